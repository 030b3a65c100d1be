//! How many modules are summed in one pass over the tokens: as many as fit the memory.

use wherefrom_model::{Footprint, Module, Outline, Sizes};
use wherefrom_stage::{Device, Exec, Machine, Planned};

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
pub fn room(exec: &Exec, outline: &Outline) -> Option<u64> {
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
pub(crate) fn split(
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

/// Sizes of the model that a planned step is about.
pub fn sizes_of(planned: &Planned, machine: &Machine) -> Option<Sizes> {
    planned.attributed(machine, Sizes::new)
}

/// Passes that a planned step will make, and the bytes of the largest, with what running the model takes.
pub fn planned_passes(
    sizes: &Sizes,
    planned: &Planned,
    machine: &Machine,
    bytes: impl Fn(&[Module]) -> u64,
) -> (usize, f64) {
    let running = sizes.footprint.total();
    let room = machine.memory.map(|memory| memory.saturating_sub(running));
    let of = |chosen: &[usize]| bytes(&chosen.iter().map(|&i| sizes.modules[i].clone()).collect::<Vec<_>>());
    let all: Vec<usize> = (0..sizes.modules.len()).collect();
    let passes = split(&all, planned.modules_per_pass, room, of);
    let largest = passes.iter().map(|pass| of(pass)).max().unwrap_or(0);
    (passes.len(), (running + largest) as f64)
}

/// What a plan says of several passes.
pub fn note(passes: usize) -> String {
    if passes > 1 { format!("{passes} passes over the tokens") } else { String::new() }
}
