//! Where the arithmetic runs: the CPU, or the n-th adapter of this machine.

use anyhow::Result;
use burn::tensor::Device;

use crate::assigned::{self, Bus, Said};
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
    /// The driver and its version, as it says them.
    pub driver: String,
    /// What the interface says that it can, by the names of wgpu: `SHADER_F16`.
    pub features: Vec<String>,
    /// Bytes of its memory, where somebody knows: of Vulkan its own, of a software adapter the machine's.
    pub memory: Option<u64>,
    /// Bytes of the largest tensor, where the interface has a limit.
    pub largest_tensor: Option<u64>,
    /// Where it is plugged in, if its interface says so.
    pub bus: Option<Bus>,
}

impl Adapter {
    /// One of which only its interface is known.
    #[cfg(any(test, feature = "cuda", feature = "rocm"))]
    pub(crate) fn of(api: &'static str) -> Self {
        Self {
            name: String::new(),
            api,
            hardware: true,
            driver: String::new(),
            features: Vec::new(),
            memory: None,
            largest_tensor: None,
            bus: None,
        }
    }
}

/// Every adapter, in the order of `gpu:N`; none in a build without GPU support.
pub fn adapters() -> Vec<Adapter> {
    found::list().iter().map(|found| found.adapter.clone()).collect()
}

/// Whether this build has any of the features cuda, rocm, metal, vulkan and wgpu.
pub fn has_gpu_support() -> bool {
    found::SUPPORT
}

/// Which of [`adapters`] a name stands for; none for the CPU. `auto` is the one that a scheduler has assigned to this process, else
/// the first that is hardware, else the CPU; `gpu` the first of all.
///
/// # Errors
/// [`crate::BadInput`] for another name, for a GPU in a build without one, for an adapter that is not there, and where it is not
/// certain which one was assigned.
pub fn choose_adapter(name: &str) -> Result<Option<(usize, Adapter)>> {
    if name == "auto" && has_gpu_support() {
        match assigned::said(&|name| std::env::var(name).ok()) {
            Said::Nothing => {}
            Said::NoGpu => return Ok(None),
            Said::One { variable, word } => {
                let in_bus_order = std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID");
                let index = assigned::adapter(variable, &word, in_bus_order, &assigned::listed(), &adapters())?;
                return Ok(Some((index, found::get(index)?.adapter.clone())));
            }
        }
    }
    let chosen = choose(name, &adapters)?;
    chosen.map(|index| Ok((index, found::get(index)?.adapter.clone()))).transpose()
}

/// Refuses a name that [`choose_adapter`] does not know, without looking for an adapter.
///
/// # Errors
/// [`crate::BadInput`].
pub fn check_device_name(name: &str) -> Result<()> {
    choose(name, &Vec::new).map(drop)
}

/// The CPU, or the adapter of that number in [`adapters`], started on the first call.
///
/// # Errors
/// [`crate::BadInput`] for an adapter that is not there or does not start.
pub fn open_device(adapter: Option<usize>) -> Result<Device> {
    match adapter {
        None => {
            wherefrom_linalg::memory::keep_freed_memory();
            Ok(Device::flex())
        }
        Some(index) => found::open(index),
    }
}

/// [`open_device`] by name, as [`choose_adapter`] takes it.
///
/// # Errors
/// As both.
pub fn resolve_device(name: &str) -> Result<Device> {
    open_device(choose(name, &adapters)?)
}

/// The precisions that a device computes in; it is started for this.
///
/// # Errors
/// As [`open_device`].
pub fn precisions(adapter: Option<usize>) -> Result<Vec<Precision>> {
    let device = open_device(adapter)?;
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

/// Which of these adapters, which are looked for only where the name leaves it open; none for the CPU. Whether a `gpu:N` is
/// there is seen when it is opened.
fn choose(name: &str, adapters: &dyn Fn() -> Vec<Adapter>) -> Result<Option<usize>> {
    let unknown = || bad_input(format!("unknown device `{name}`: use auto, cpu, gpu or gpu:N"));
    match name {
        "cpu" => Ok(None),
        "auto" => Ok(adapters().iter().position(|adapter| adapter.hardware)),
        "gpu" => Ok(Some(0)),
        _ => name.strip_prefix("gpu:").and_then(|index| index.parse().ok()).map(Some).ok_or_else(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, hardware: bool) -> Adapter {
        Adapter { name: name.into(), hardware, ..Adapter::of("Vulkan") }
    }

    #[test]
    fn no_adapter_is_looked_for_where_the_name_says_it_all() {
        let nobody = || -> Vec<Adapter> { panic!("adapters were looked for") };
        for (name, expected) in [("cpu", None), ("gpu", Some(0)), ("gpu:3", Some(3))] {
            assert_eq!(choose(name, &nobody).unwrap(), expected, "{name}");
        }
        assert!(check_device_name("auto").is_ok() && check_device_name("gpux").is_err());
    }

    #[test]
    fn auto_is_the_first_hardware_and_no_software_adapter() {
        let table = [adapter("llvmpipe", false), adapter("Intel Arc", true), adapter("NVIDIA H100", true)];
        let chosen =
            |name: &str, table: &[Adapter]| choose(name, &|| table.to_vec()).map_err(|error| error.to_string());
        assert_eq!(chosen("auto", &table), Ok(Some(1)));
        assert_eq!(chosen("auto", &table[..1]), Ok(None));
        assert_eq!(chosen("auto", &[]), Ok(None));
        assert_eq!(chosen("gpu", &table), Ok(Some(0)));
        assert_eq!(chosen("gpu:2", &table), Ok(Some(2)));
        assert_eq!(chosen("cpu", &table), Ok(None));
        for name in ["gpux", "gpu:", "gpu:-1", "GPU", ""] {
            assert_eq!(chosen(name, &table), Err(format!("unknown device `{name}`: use auto, cpu, gpu or gpu:N")));
        }
    }
}
