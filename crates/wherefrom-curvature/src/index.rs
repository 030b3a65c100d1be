//! Signs of every example's gradient at chosen coordinates of the eigenbasis: a bit each, to be scored without the model.
//!
//! x = Q_S^T G_z Q_A at the coordinates, of deviation sigma = sqrt(Lambda); kept are the signs of x and the scale
//! c = mean(|x| / sigma), so that x is about c sigma sign(x).
//!
//! reads   tokens, model, eigenbasis, coordinates
//! writes  index

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Coordinates, Draft, Eigenbasis, Example, Index, Kind, Signs, Tokens, bad_input};
use wherefrom_linalg::kernels::picked_products;
use wherefrom_linalg::signs::row_bytes;
use wherefrom_model::{Coverage, Labels, Modules, Precision, Selection};
use wherefrom_pass::{Corpus, open, place, sequence, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes};

use crate::blocks::blocks_of;
use crate::coordinates::planned_coordinates;
use crate::covariance;
use crate::table::{Share, Table};
use crate::tensors::{Rotation, rotations};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `index`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("index", VERSION).split() },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::required("eigenbasis", &[Kind::Eigenbasis]),
        Role::required("coordinates", &[Kind::Coordinates]),
    ],
    parse: serde_json::from_value,
    check: |_| Ok(()),
    writes: Writes::One(Kind::Index),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let (eigenbasis, coordinates) = (given.open("eigenbasis")?, given.open("coordinates")?);
        let inputs = Inputs { tokens: given.open("tokens")?, model: given.model()?, eigenbasis, coordinates };
        run(config, &inputs, exec, draft)
    },
};

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
}

/// What it is made from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
    /// The basis that the coordinates are of.
    pub eigenbasis: Artifact<Eigenbasis>,
    /// Which are kept.
    pub coordinates: Artifact<Coordinates>,
}

/// One example on its way.
struct Kept {
    signs: Vec<u8>,
    /// Sum of |x| / sigma.
    sum: f64,
}

/// Keeps every example, with the text's own labels; a part per span of examples.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let table = Table::read(&inputs.coordinates)?;
    let model = open(&inputs.model, config.precision, exec)?;
    let names = table.shares.iter().map(|share| share.module.clone()).collect();
    let selection = Selection::new(&Modules::Globs(names), model.modules())?;
    // A sign says of no number that it is zero, and most examples have no gradient in most experts.
    if let Some(module) = selection.modules().iter().find(|module| module.routed.is_some()) {
        return Err(bad_input(format!(
            "index: {} is of an expert, which most examples do not see, and an index of signs cannot say so; use `score` or \
             `project-gradients`, or leave experts out by `modules`",
            module.name
        )));
    }
    // Nor that a row of a table was not read.
    selection.maps_alone("index")?;
    let blocks = inputs.eigenbasis.manifest().count("blocks").unwrap_or(1) as usize;
    let products = selection.modules().iter().map(|module| (module.in_features * module.out_features) as u64).sum();
    let beside = bytes(covariance::summed(selection.modules(), blocks), products);
    let (model, _) = place(model, selection.modules(), &inputs.tokens, exec, beside)?;
    let names: Vec<_> = selection.modules().iter().map(|module| &module.name).collect();
    draft.metadata("coordinates", table.count.to_string());
    draft.summary("coordinates", table.count)?;
    draft.summary("modules", &names)?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;

    let corpus = Corpus::new("index", &model, &inputs.tokens, exec);
    let spans = corpus.spans(draft)?;
    if spans.is_empty() {
        return Ok(());
    }
    let modules = selection.modules().iter().zip(rotations(&inputs.eigenbasis, selection.modules(), &model.device)?);
    let modules = modules.map(|(module, rotation)| {
        let share = table.shares.iter().find(|share| share.module == module.name);
        let share = share.expect("the selection has the table's modules");
        Ok(Places { share, rotation, places: share.places([module.out_features, module.in_features])? })
    });
    let modules: Vec<Places<'_>> = modules.collect::<Result<_>>()?;
    corpus.parts(spans, |part, examples| {
        draft.write_rows::<Index, _>(part, &signs(&corpus, examples, &selection, &modules, table.count)?)
    })
}

/// A module with its basis and its coordinates.
struct Places<'a> {
    share: &'a Share,
    rotation: Rotation,
    /// Row-major.
    places: Vec<u32>,
}

/// The rows of these examples, with so many coordinates.
fn signs(
    corpus: &Corpus<'_>,
    examples: &[Example],
    selection: &Selection,
    modules: &[Places<'_>],
    count: usize,
) -> Result<Vec<Signs>> {
    let row = |example: &Example| Signs { example: example.example, scale: 0.0, signs: Vec::new() };
    let mut rows: Vec<_> = examples.iter().map(row).collect();
    corpus.batches(examples, |group, batch| {
        let kept = |_| Kept { signs: vec![0; row_bytes(count)], sum: 0.0 };
        let mut kept: Vec<_> = (0..batch.len()).map(kept).collect();
        corpus.model.taps(batch, &Labels::Empirical, selection, &mut |tap| {
            let (Places { share, rotation, places }, tokens) = (&modules[tap.index], tap.tokens);
            let [d, a] = tap.operands();
            let (d, a) = (rotation.gradient.rows_into(d), rotation.activation.rows_into(a));
            picked_products(places, d, a, &tokens.sequences, &mut kept, |kept, values| kept.add(share, values));
            Ok(())
        })?;
        for (&index, kept) in group.iter().zip(kept) {
            let row = &mut rows[index];
            (row.scale, row.signs) = ((kept.sum / count as f64) as f32, kept.signs);
            if !row.scale.is_finite() {
                return Err(corpus.model.overflow(sequence(&examples[index]), "its gradient", &Labels::Empirical));
            }
        }
        Ok(())
    })?;
    Ok(rows)
}

impl Kept {
    /// One module's values.
    fn add(&mut self, share: &Share, values: &[f32]) {
        for (i, (value, deviation)) in (share.first..).zip(values.iter().zip(&share.deviations)) {
            self.signs[i / 8] |= u8::from(*value < 0.0) << (i % 8);
            self.sum += f64::from((value / deviation).abs());
        }
    }
}

/// Bytes of the bases and of the coordinates' places.
fn bytes(bases: u64, products: u64) -> u64 {
    4 * (bases + products)
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let kept = planned_coordinates(planned, sizes.products);
    let all = covariance::summed(&sizes.modules, blocks_of(planned)) as f64;
    let beside = bytes(all as u64, sizes.products as u64) as f64;
    let sizes = sizes.fitting(machine.memory, beside);
    let memory = sizes.footprint.total() as f64 + beside;
    let flops = sizes.scan(tokens) + 2.0 * tokens * (all + sizes.products);
    let note = format!("{} a sequence", wherefrom_artifact::bytes(kept / 8.0));
    Cost::new(memory, rows * (kept / 8.0 + 16.0), flops).note(sizes.footprint.note()).note(note)
}
