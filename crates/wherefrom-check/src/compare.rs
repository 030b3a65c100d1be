//! Two computations of the same thing, compared in float64.

use wherefrom_artifact::Factors;

/// Of one gradient with another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreement {
    /// <G, H> / (|G| |H|); 1 where both are zero.
    pub(crate) cosine: f64,
    /// |G - H| / |G|.
    pub(crate) difference: f64,
}

/// Of G = L R^T and H = L' R'^T.
pub(crate) fn agreement(one: &Factors, other: &Factors) -> Agreement {
    let (own, cross, others) = (inner(one, one), inner(one, other), inner(other, other));
    if own == 0.0 && others == 0.0 {
        return Agreement { cosine: 1.0, difference: 0.0 };
    }
    let cosine = cross / (own * others).sqrt();
    Agreement { cosine, difference: ((own - 2.0 * cross + others).max(0.0) / own).sqrt() }
}

/// <L R^T, L' R'^T> = sum over t, t' of (L^T L')[t, t'] (R^T R')[t, t'], which needs no gradient formed.
fn inner(one: &Factors, other: &Factors) -> f64 {
    let left = columns(&one.left, one.rank, &other.left, other.rank);
    let right = columns(&one.right, one.rank, &other.right, other.rank);
    left.iter().zip(&right).map(|(x, y)| x * y).sum()
}

/// X^T Y of X [n, r], Y [n, s] -> [r, s], row-major.
fn columns(x: &[f32], r: usize, y: &[f32], s: usize) -> Vec<f64> {
    let mut products = vec![0.0; r * s];
    for (x, y) in x.chunks_exact(r.max(1)).zip(y.chunks_exact(s.max(1))) {
        for (row, &x) in products.chunks_exact_mut(s.max(1)).zip(x) {
            row.iter_mut().zip(y).for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
        }
    }
    products
}

/// Least and median of some numbers; not a number where one is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return Self { least: f64::NAN, median: f64::NAN };
        }
        values.sort_by(f64::total_cmp);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[half] } else { 0.5 * (values[half - 1] + values[half]) };
        Self { least: values[0], median }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_products_of_factors_are_those_of_the_matrices() {
        // G = [1 2]^T [3 4] has norm^2 5 x 25; H = 2 G, and K is orthogonal to G.
        let factors = |left: [f32; 2], right: [f32; 2]| Factors {
            row: 0,
            module: "m".into(),
            rank: 1,
            left_shape: [2, 1],
            left: left.to_vec(),
            right_shape: [2, 1],
            right: right.to_vec(),
        };
        let (g, h, k) =
            (factors([1.0, 2.0], [3.0, 4.0]), factors([2.0, 4.0], [3.0, 4.0]), factors([2.0, -1.0], [3.0, 4.0]));
        assert_eq!(inner(&g, &g), 125.0);
        assert_eq!(agreement(&g, &h).cosine, 1.0);
        assert_eq!(agreement(&g, &h).difference, 1.0);
        assert_eq!(agreement(&g, &k).cosine, 0.0);
    }

    #[test]
    fn what_is_not_a_number_spreads() {
        assert!(Spread::of([1.0, f64::NAN].into_iter()).least.is_nan());
    }
}
