//! What the machine can do at best: products, copies, eigendecompositions.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::product;
use wherefrom_linalg::random::normal;
use wherefrom_linalg::{Threads, symmetric_eigen};
use wherefrom_model::{Precision, resolve_device};

/// m, k, n of the product: 2,048 tokens through a map of SmolLM2's MLP.
const PRODUCT: [usize; 3] = [2048, 576, 1536];
/// Bytes that are copied: beyond every cache.
const COPY: usize = 256 << 20;

/// Best of several, with the threads that the process has.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// float32 product, floating point operations a second.
    pub(crate) flops: f64,
    /// The same of operands in bfloat16.
    #[serde(default)]
    pub(crate) bf16_flops: f64,
    /// Copy, bytes read and written a second.
    pub(crate) copy: f64,
}

impl Ceilings {
    pub(crate) fn measure() -> Result<Self> {
        let device = resolve_device("cpu")?;
        let random = |seed, shape: [usize; 2]| {
            let values: Vec<f32> = (0..(shape[0] * shape[1]) as u64).map(|i| normal(seed, 0, i) as f32).collect();
            Tensor::<2>::from_data(TensorData::new(values, shape), &device)
        };
        let [m, k, n] = PRODUCT;
        let (a, b) = (random(0, [m, k]), random(1, [k, n]));
        let seconds = best(60, || drop(black_box(product(a.clone(), b.clone()))));
        let (a, b) = (Precision::Bf16.operand(a), Precision::Bf16.operand(b));
        let rounded = best(60, || drop(black_box(product(a.clone(), b.clone()))));
        let operations = 2.0 * (m * k * n) as f64;
        let (from, mut into) = (vec![1_u8; COPY], vec![0_u8; COPY]);
        let chunk = COPY.div_ceil(rayon::current_num_threads());
        let copy = best(8, || {
            let pieces = into.par_chunks_mut(chunk).zip(from.par_chunks(chunk));
            pieces.for_each(|(into, from)| into.copy_from_slice(from));
            black_box(&mut into);
        });
        let (flops, bf16_flops) = (operations / seconds, operations / rounded);
        Ok(Self { flops, bf16_flops, copy: 2.0 * COPY as f64 / copy })
    }

    /// The better of two.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            flops: self.flops.max(other.flops),
            bf16_flops: self.bf16_flops.max(other.bf16_flops),
            copy: self.copy.max(other.copy),
        }
    }
}

/// Seconds of a float64 eigendecomposition by size, best of three.
pub(crate) fn eigen(sizes: &[usize]) -> Result<BTreeMap<usize, f64>> {
    let mut seconds = BTreeMap::new();
    for &n in sizes {
        let matrix: Vec<f64> =
            (0..n * n).map(|i| normal(0, (i / n).min(i % n) as u64, (i / n).max(i % n) as u64)).collect();
        let mut failed = None;
        seconds.insert(n, best(3, || failed = symmetric_eigen(black_box(&matrix), n, Threads::All).err()));
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(seconds)
}

/// Seconds of the fastest of so many runs.
fn best(runs: usize, mut body: impl FnMut()) -> f64 {
    let mut seconds = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        body();
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    seconds
}
