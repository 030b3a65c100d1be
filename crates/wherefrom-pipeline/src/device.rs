//! What `--device` names, as a run takes it.

use anyhow::Result;
use wherefrom_model::Adapter;
use wherefrom_stage::Device;

/// The device of that name: `auto`, `cpu`, `gpu` (the first adapter) or `gpu:N`.
///
/// # Errors
/// As [`wherefrom_model::choose_adapter`].
pub fn device(name: &str) -> Result<Device> {
    Ok(match wherefrom_model::choose_adapter(name)? {
        None => Device::cpu(),
        Some((index, Adapter { name, api, memory, .. })) => {
            Device::Gpu { index, name: format!("{name}, {api}"), memory }
        }
    })
}
