//! Block-diagonal factors (Grosse et al. 2023, Appendix A): A and S are replaced by the blocks on their diagonals.

use std::ops::Range;

use burn::tensor::Tensor;
use wherefrom_linalg::kernels::product;
use wherefrom_stage::Planned;

/// Where the blocks of a matrix of size n lie: `count` of them, in order and of about equal size. What does not divide
/// goes to the later ones, so that the column of a bias, the last of all, is in the last block.
pub(crate) fn blocks(n: usize, count: usize) -> Vec<Range<usize>> {
    let bound = |block: usize| block * n / count;
    (0..count).map(|block| bound(block)..bound(block + 1)).filter(|block| !block.is_empty()).collect()
}

/// Numbers in the blocks of a matrix of size n.
pub(crate) fn elements(n: usize, count: usize) -> usize {
    blocks(n, count).iter().map(|block| block.len().pow(2)).sum()
}

/// Blocks of the covariances that a planned step goes back to.
pub(crate) fn blocks_of(planned: &Planned) -> usize {
    planned.nearest(|step| step.config["blocks"].as_u64()).unwrap_or(1) as usize
}

/// Q = diag(Q_1, ..., Q_O), [n, n]: one block as a rule; the identity has none.
#[derive(Clone)]
pub(crate) struct Orthogonal(pub(crate) Vec<Tensor<2>>);

impl Orthogonal {
    /// x Q, x [rows, n].
    pub(crate) fn rows_into(&self, x: Tensor<2>) -> Tensor<2> {
        self.by_block(x, 1, product)
    }

    /// Q^T x, x [n, columns].
    pub(crate) fn columns_into(&self, x: Tensor<2>) -> Tensor<2> {
        self.by_block(x, 0, |x, block| product(block.transpose(), x))
    }

    /// x Q^T, x [rows, n].
    pub(crate) fn rows_back(&self, x: Tensor<2>) -> Tensor<2> {
        self.by_block(x, 1, |x, block| product(x, block.transpose()))
    }

    /// Q x, x [n, columns].
    pub(crate) fn columns_back(&self, x: Tensor<2>) -> Tensor<2> {
        self.by_block(x, 0, |x, block| product(block, x))
    }

    /// Each block with its share of x along `dim`, side by side again.
    fn by_block(&self, x: Tensor<2>, dim: usize, apply: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        match &self.0[..] {
            [] => return x,
            [block] => return apply(x, block.clone()),
            _ => {}
        }
        let mut start = 0;
        let shares = self.0.iter().map(|block| {
            let size = block.dims()[0];
            start += size;
            apply(x.clone().narrow(dim, start - size, size), block.clone())
        });
        Tensor::cat(shares.collect(), dim)
    }
}
