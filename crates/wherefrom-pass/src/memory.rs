//! How many modules are summed in one pass over the tokens: as many as fit the memory.

use anyhow::Result;
use wherefrom_artifact::{Artifact, Tokens};
use wherefrom_model::{Footprint, Model, Module, Selection, Sizes};
use wherefrom_stage::{Device, Exec, Machine, Planned, Sums};

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

/// An opened model, with all weights in memory where they, its batches, the taps of these modules and `beside` further bytes fit; and
/// the bytes that model and batches leave.
///
/// # Errors
/// As [`Model::held`].
pub fn place(
    model: Model,
    modules: &[Module],
    tokens: &Artifact<Tokens>,
    exec: &Exec,
    beside: u64,
) -> Result<(Model, Option<u64>)> {
    let limit = limit(exec);
    let footprint = model.footprint(exec.batch_of(tokens.tokens())).tapping(modules);
    settle(footprint.fitting(limit, beside), model, limit)
}

/// As [`place`], beside the sums of these modules; `bytes` is what one pass needs. Weights are in memory where that takes no
/// further pass.
///
/// # Errors
/// As [`Model::held`].
pub fn place_beside_sums(
    model: Model,
    selection: &Selection,
    tokens: &Artifact<Tokens>,
    exec: &Exec,
    bytes: impl Fn(&[Module]) -> u64,
) -> Result<(Model, Option<u64>)> {
    let footprint = model.footprint(exec.batch_of(tokens.tokens())).tapping(selection.modules());
    let limit = limit(exec);
    let on = (&exec.device, limit);
    let (footprint, _) = arranged(footprint, on, selection.modules(), exec.modules_per_pass, bytes);
    settle(footprint, model, limit)
}

fn settle(footprint: Footprint, model: Model, limit: Option<u64>) -> Result<(Model, Option<u64>)> {
    let model = if footprint.holds_weights { model.held()? } else { model };
    Ok((model, room(limit, footprint)))
}

/// The limit, less what running the model takes.
fn room(limit: Option<u64>, footprint: Footprint) -> Option<u64> {
    Some(limit?.saturating_sub(footprint.total()))
}

/// Where the weights are, and the modules by pass. On the CPU a pass over the tokens costs more than reading the weights for
/// every batch; to a GPU they have a long way.
fn arranged(
    footprint: Footprint,
    (device, limit): (&Device, Option<u64>),
    modules: &[Module],
    per_pass: Option<usize>,
    bytes: impl Fn(&[Module]) -> u64,
) -> (Footprint, Vec<Vec<usize>>) {
    let of = |chosen: &[usize]| bytes(&chosen.iter().map(|&place| modules[place].clone()).collect::<Vec<_>>());
    let all: Vec<usize> = (0..modules.len()).collect();
    let passes = |footprint| split(&all, per_pass, room(limit, footprint), of);
    let held = passes(Footprint { holds_weights: true, ..footprint });
    let fitting = footprint.fitting(limit, held.iter().map(|pass| of(pass)).max().unwrap_or(0));
    if fitting.holds_weights && (held.len() == 1 || device.gpu().is_some()) {
        return (fitting, held);
    }
    let stored = passes(footprint.by_block());
    if fitting.holds_weights && held.len() == stored.len() { (fitting, held) } else { (footprint.by_block(), stored) }
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

/// Sizes of the model that a planned step runs, in the precision that it says.
pub fn sizes_of(planned: &Planned, machine: &Machine) -> Option<Sizes> {
    let sizes = planned.attributed(machine, Sizes::new)?;
    let precision = serde_json::from_value(planned.config["precision"].clone()).unwrap_or_default();
    Some(sizes.held(precision, machine.device.gpu().is_none()))
}

/// Passes that a planned step will make.
pub struct PlannedPasses {
    /// How many.
    pub count: usize,
    /// Bytes of the largest, with what running the model takes.
    pub memory: f64,
    /// What shares would leave.
    pub sums: Sums,
    /// What a plan says of them.
    pub note: String,
}

/// The passes of a planned step, where one takes so many `bytes` for its modules, and so many `numbers` are summed for each.
pub fn planned_passes(
    sizes: &Sizes,
    planned: &Planned,
    machine: &Machine,
    bytes: impl Fn(&[Module]) -> u64,
    numbers: impl Fn(&Module) -> u64,
) -> PlannedPasses {
    let (modules, per_pass) = (&sizes.modules, planned.modules_per_pass);
    let (footprint, passes) = arranged(sizes.footprint, (&machine.device, machine.memory), modules, per_pass, &bytes);
    let of = |pass: &Vec<usize>| bytes(&pass.iter().map(|&place| modules[place].clone()).collect::<Vec<_>>());
    let (count, largest) = (passes.len(), passes.iter().map(of).max().unwrap_or(0));
    let mut notes = vec![footprint.note().to_string()];
    if count > 1 {
        notes.push(format!("{count} passes over the tokens"));
    }
    notes.retain(|note| !note.is_empty());
    let sums = Sums { modules: modules.len(), bytes: modules.iter().map(|module| 8 * numbers(module)).sum() };
    PlannedPasses { count, memory: (footprint.total() + largest) as f64, sums, note: notes.join("; ") }
}
