//! Where the arithmetic runs.

use anyhow::Result;
use burn::tensor::Device;

use crate::error::bad_input;

/// The device of that name: `auto`, `cpu`, `gpu` or `gpu:N`.
///
/// # Errors
/// [`crate::BadInput`] for another name, and for a GPU in a build without one.
pub fn resolve_device(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => {
            whence_linalg::memory::keep_freed_memory();
            Ok(Device::flex())
        }
        name if name == "gpu" || name.starts_with("gpu:") => gpu(name),
        other => Err(bad_input(format!("unknown device `{other}`: use auto, cpu, gpu or gpu:N"))),
    }
}

/// The device in words, for people and manifests.
///
/// # Errors
/// As [`resolve_device`].
pub fn device_name(name: &str) -> Result<String> {
    let device = resolve_device(name)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(match name {
        "auto" | "cpu" => format!("cpu, {threads} threads"),
        _ => format!("{device:?}"),
    })
}

#[cfg(not(feature = "wgpu"))]
fn gpu(name: &str) -> Result<Device> {
    Err(bad_input(format!("this build has no GPU support for --device {name}: rebuild with --features wgpu")))
}

#[cfg(feature = "wgpu")]
fn gpu(name: &str) -> Result<Device> {
    use burn::tensor::DeviceKind;
    let index = name.strip_prefix("gpu:").unwrap_or("0");
    let index = index.parse().map_err(|_| bad_input(format!("`{name}` is no device: use gpu or gpu:N")))?;
    Ok(Device::wgpu(DeviceKind::DiscreteGpu(index)))
}
