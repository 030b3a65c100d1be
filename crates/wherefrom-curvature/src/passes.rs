//! How many modules are summed in one pass over the tokens: as many as fit the memory.

use wherefrom_artifact::{Device, Exec};
use wherefrom_model::{Footprint, Outline};

/// Bytes that may be held, as [`Device::limit`] has it.
pub fn limit(exec: &Exec) -> Option<u64> {
    exec.device.limit(exec.memory, wherefrom_linalg::memory::available_bytes)
}

/// Bytes of a summed number on its device: float32 of a span on a GPU, float64 of all spans on the CPU.
pub fn number_bytes(device: &Device) -> u64 {
    match device {
        Device::Cpu { .. } => 8,
        Device::Gpu { .. } => 4,
    }
}

/// Bytes for sums: the limit, less what running the model takes.
pub(crate) fn room(exec: &Exec, outline: &Outline) -> Option<u64> {
    Some(limit(exec)?.saturating_sub(Footprint::new(outline, exec.batch_tokens).total()))
}

/// Whether these modules are no more than one pass takes: `per_pass` of them, or as many as `room` has bytes for.
pub(crate) fn fits(
    modules: &[usize],
    per_pass: Option<usize>,
    room: Option<u64>,
    bytes: impl Fn(&[usize]) -> u64,
) -> bool {
    match per_pass {
        Some(most) => modules.len() <= most,
        None => room.is_none_or(|room| bytes(modules) <= room),
    }
}

/// Modules, in order, by pass: as many as fit, and at least one.
pub fn split(
    modules: &[usize],
    per_pass: Option<usize>,
    room: Option<u64>,
    bytes: impl Fn(&[usize]) -> u64,
) -> Vec<Vec<usize>> {
    let mut passes: Vec<Vec<usize>> = Vec::new();
    for &module in modules {
        if let Some(pass) = passes.last_mut() {
            pass.push(module);
            if fits(pass, per_pass, room, &bytes) {
                continue;
            }
            pass.pop();
        }
        passes.push(vec![module]);
    }
    passes
}
