//! Where the arithmetic runs: the CPU, or the n-th adapter of this machine.

use anyhow::Result;
use burn::tensor::Device;

use crate::error::bad_input;
use crate::found;
use crate::precision::Precision;

/// A GPU that this build can reach, or a program that plays one: `gpu:N` is the N-th of [`adapters`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// As the driver calls it: `llvmpipe (LLVM 15.0.6, 256 bits)`.
    pub name: String,
    /// `Vulkan`, `Metal`, `Dx12`, `Gl`, `CUDA` or `ROCm`.
    pub api: &'static str,
    /// False for a software adapter, which is this machine's CPU by a detour.
    pub hardware: bool,
    /// Bytes of the largest tensor, where the interface has a limit.
    pub largest_tensor: Option<u64>,
}

/// Every adapter, in the order of `gpu:N`; none in a build without GPU support.
pub fn adapters() -> Vec<Adapter> {
    found::list().iter().map(|found| found.adapter.clone()).collect()
}

/// What `auto` stands for: the first hardware GPU of a build that can reach one, else the CPU.
pub fn automatic_device() -> String {
    let hardware = adapters().iter().position(|adapter| adapter.hardware);
    hardware.map_or("cpu".into(), |index| format!("gpu:{index}"))
}

/// Whether this build has any of the features cuda, rocm, metal, vulkan and wgpu.
pub fn has_gpu_support() -> bool {
    found::SUPPORT
}

/// The device of that name: `auto`, `cpu`, `gpu` (the first adapter of the list) or `gpu:N`.
///
/// # Errors
/// [`crate::BadInput`] for another name, for a GPU in a build without one, and for an adapter that is not there or does
/// not start.
pub fn resolve_device(name: &str) -> Result<Device> {
    match place(name)? {
        None => {
            wherefrom_linalg::memory::keep_freed_memory();
            Ok(Device::flex())
        }
        Some(index) => found::open(index),
    }
}

/// The device in words, for people and manifests.
///
/// # Errors
/// As [`resolve_device`].
pub fn device_name(name: &str) -> Result<String> {
    Ok(match place(name)? {
        None => format!("cpu, {} threads", std::thread::available_parallelism().map_or(1, usize::from)),
        Some(index) => {
            let adapter = &found::get(index)?.adapter;
            format!("gpu:{index}, {}, {}", adapter.name, adapter.api)
        }
    })
}

/// Whether that name stands for an adapter of [`adapters`].
///
/// # Errors
/// As [`resolve_device`], but for an adapter that is not there.
pub fn is_gpu(name: &str) -> Result<bool> {
    Ok(place(name)?.is_some())
}

/// The precisions that the device of that name computes in; it is started for this.
///
/// # Errors
/// As [`resolve_device`].
pub fn precisions(name: &str) -> Result<Vec<Precision>> {
    let device = resolve_device(name)?;
    Ok(Precision::ALL.into_iter().filter(|precision| precision.runs_on(&device)).collect())
}

/// Refuses a tensor that is larger than the device's interface can address.
///
/// `what` names it, `values` counts its float32 values.
///
/// # Errors
/// [`crate::BadInput`], with the sizes and what else to try.
pub fn fits(device: &Device, what: &str, values: usize) -> Result<()> {
    let bytes = 4 * values as u64;
    match found::of(device) {
        Some((adapter, Some(largest))) if bytes > largest => Err(bad_input(format!(
            "{what} takes {bytes} bytes in one piece, and {} on {} holds {largest} at most; use --device cpu, or a build \
             with `--features cuda`, or `vulkan` where the driver has 64-bit indexing",
            adapter.api, adapter.name
        ))),
        _ => Ok(()),
    }
}

/// Which adapter; none for the CPU.
fn place(name: &str) -> Result<Option<usize>> {
    let unknown = || bad_input(format!("unknown device `{name}`: use auto, cpu, gpu or gpu:N"));
    match name {
        "cpu" => Ok(None),
        "auto" => place(&automatic_device()),
        "gpu" => Ok(Some(0)),
        _ => name.strip_prefix("gpu:").and_then(|index| index.parse().ok()).map(Some).ok_or_else(unknown),
    }
}
