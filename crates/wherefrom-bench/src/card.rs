//! What a device can do at best: products, copies, transfers, and how long it takes to start anything at all.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::product;
use wherefrom_model::{Precision, open_device};

/// A product that takes longer is large enough.
const LONG: f64 = 0.03;
/// Runs of which the best counts.
const RUNS: usize = 5;
/// Operations of one number each that are started one after the other.
const LAUNCHES: usize = 256;

/// Best of several.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Card {
    /// Square products of float32, and of float16 where the device has it.
    pub(crate) f32: Product,
    pub(crate) f16: Option<Product>,
    /// Bytes read and written a second by x + 1, and bytes a second to the device and back.
    pub(crate) copy: f64,
    pub(crate) upload: f64,
    pub(crate) download: f64,
    /// Seconds of an operation on one number, of many that are started together; and until the host has the result of one.
    pub(crate) launch_seconds: f64,
    pub(crate) round_trip_seconds: f64,
}

/// n x n times n x n.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) n: usize,
    /// Floating point operations a second.
    pub(crate) flops: f64,
    /// From the first call to its result, which compiles a kernel and may choose one.
    pub(crate) first_seconds: f64,
}

impl Card {
    /// Of the adapter of that number or the CPU, with matrices of at most `most` rows.
    pub(crate) fn measure(adapter: Option<usize>, most: usize) -> Result<Self> {
        let device = open_device(adapter)?;
        let f16 = Precision::F16.runs_on(&device).then(|| largest(&device, FloatDType::F16, most)).transpose()?;
        let f32 = largest(&device, FloatDType::F32, most)?;
        let values = most * most;
        let data = TensorData::new(vec![1.0_f32; values], [most, most]);
        let bytes = 4.0 * values as f64;
        let mut up = || -> Result<_> {
            let tensor = Tensor::<2>::from_data(data.clone(), &device);
            device.sync()?;
            Ok(tensor)
        };
        let (upload, tensor) = best(&mut up)?;
        let (copy, _) = best(&mut || {
            let sum = tensor.clone() + 1.0;
            device.sync()?;
            Ok(sum)
        })?;
        let (download, _) = best(&mut || Ok(tensor.clone().into_data()))?;
        let one = Tensor::<2>::zeros([1, 1], &device);
        let (many, _) = best(&mut || {
            let sum = (0..LAUNCHES).fold(one.clone(), |sum, _| sum + 1.0);
            device.sync()?;
            Ok(sum)
        })?;
        let (round_trip_seconds, _) = best(&mut || Ok((one.clone() + 1.0).into_data()))?;
        Ok(Self {
            f32,
            f16,
            copy: 2.0 * bytes / copy,
            upload: bytes / upload,
            download: bytes / download,
            launch_seconds: many / LAUNCHES as f64,
            round_trip_seconds,
        })
    }

    /// Operations a second in a precision.
    pub(crate) fn flops(&self, half: bool) -> Option<f64> {
        if half { self.f16.map(|product| product.flops) } else { Some(self.f32.flops) }
    }
}

/// The best rate of products of matrices that grow until one takes long.
fn largest(device: &Device, kind: FloatDType, most: usize) -> Result<Product> {
    let mut found = Product::default();
    let mut n = most.min(256);
    loop {
        let ramp: Vec<f32> = (0..n * n).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect();
        let x = Tensor::<2>::from_data(TensorData::new(ramp, [n, n]), device).cast(kind);
        let mut multiply = || {
            let y = product(x.clone(), x.clone());
            device.sync()?;
            Ok(y)
        };
        let start = Instant::now();
        multiply()?;
        let first_seconds = start.elapsed().as_secs_f64();
        let (seconds, _) = best(&mut multiply)?;
        let flops = 2.0 * (n as f64).powi(3) / seconds;
        if flops > found.flops {
            found = Product { n, flops, first_seconds };
        }
        if seconds > LONG || 2 * n > most {
            return Ok(found);
        }
        n *= 2;
    }
}

/// Seconds of the fastest of some runs after a first, and what the last one made.
fn best<T>(body: &mut dyn FnMut() -> Result<T>) -> Result<(f64, T)> {
    let mut made = body()?;
    let mut seconds = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        made = body()?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok((seconds, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_measured_as_a_card_is() {
        let card = Card::measure(None, 64).unwrap();
        assert_eq!(card.f32.n, 64);
        let halved = card.f16.unwrap();
        let rates = [card.f32.flops, halved.flops, card.copy, card.upload, card.download];
        assert!(rates.iter().all(|&rate| rate > 1e3 && rate.is_finite()), "{rates:?}");
        assert!(card.launch_seconds > 0.0 && card.round_trip_seconds > 0.0);
    }
}
