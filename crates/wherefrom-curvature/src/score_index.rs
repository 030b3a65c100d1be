//! Influence of indexed examples on queries: an estimate from signs, without the model and without the tokens.
//!
//! influence(q, z) = (1/N) sum over the coordinates of x_q x_z / (Lambda + damping), with x_z = c_z sigma sign(x_z):
//! weights w = x_q sigma / (Lambda + damping) / N of each query, then c_z sum_i w_i s_i of each row.
//!
//! reads   gradients, index, coordinates, eigenbasis, lambda
//! writes  scores

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Coordinates, Draft, Eigenbasis, Error, Factors, Gradients, Index, Kind, Lambda, Row, Score, Scores,
    check_training_examples,
};
use wherefrom_linalg::kernels::{Ragged, picked_products};
use wherefrom_linalg::signs::{SignSums, row_bytes};
use wherefrom_model::open_device;
use wherefrom_pass::sizes_of;
use wherefrom_stage::{About, Cost, Exec, Machine, Planned, Role, Stage, Writes, at_least};

use crate::coordinates::planned_coordinates;
use crate::inverse::{Curvature, Inverse};
use crate::method::{Damping, Method};
use crate::table::{Share, Table};
use crate::tensors::{tensor, values};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `score-index`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("score-index", VERSION).on_device().split(),
    roles: &[
        Role::required("queries", &[Kind::Gradients]),
        Role::required("index", &[Kind::Index]),
        Role::required("coordinates", &[Kind::Coordinates]),
        Role::required("eigenbasis", &[Kind::Eigenbasis]),
        Role::required("lambda", &[Kind::Lambda]),
    ],
    parse: |knobs| at_least("training-examples", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Scores),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let inputs = Inputs {
            queries: given.open("queries")?,
            index: given.open("index")?,
            coordinates: given.open("coordinates")?,
            eigenbasis: given.open("eigenbasis")?,
            lambda: given.open("lambda")?,
        };
        run(config, &inputs, exec, draft)
    },
};

/// Pairs in a part of the scores.
const PAIRS: u64 = 1 << 22;

/// What is computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What is added to Lambda: a share of its mean in each module (a bare number), or one number for all.
    pub damping: Damping,
    /// N of the influence; by default the rows of the index.
    pub training_examples: Option<u64>,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        check_training_examples(self.training_examples)?;
        self.damping.check()
    }
}

/// What is scored.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Query gradients, as exact factors.
    pub queries: Artifact<Gradients>,
    /// Training sequences.
    pub index: Artifact<Index>,
    /// Those of the index.
    pub coordinates: Artifact<Coordinates>,
    /// The basis they are of.
    pub eigenbasis: Artifact<Eigenbasis>,
    /// Corrected eigenvalues.
    pub lambda: Artifact<Lambda>,
}

/// Scores every pair in one pass over the index; a part for some millions of pairs.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let table = Table::read(&inputs.coordinates)?;
    let names: Vec<_> = table.shares.iter().map(|share| &share.module).collect();
    let measured = inputs.queries.manifest().summary.get("measured");
    let said = |name: &str| measured.and_then(|measured| measured[name].as_str());
    draft.metadata("unit", format!("{} per added copy, within the index", said("unit").unwrap_or("nats")));
    draft
        .metadata("sign", format!("positive = one more copy raises {}", said("raises").unwrap_or("log p(completion)")));
    draft.metadata("method", "ekfac");
    draft.metadata("modules", serde_json::to_string(&names)?);
    draft.summary("modules", &names)?;
    if let Some(coverage) = inputs.index.manifest().summary.get("coverage") {
        draft.summary("coverage", coverage)?;
    }
    let examples = config.training_examples.unwrap_or_else(|| inputs.index.manifest().rows());
    let (queries, weights) = weights(config, inputs, &table, 1.0 / examples.max(1) as f64, exec)?;
    let sums = SignSums::new(&weights, table.count);

    let units: Vec<Range<usize>> = draft.plan(|| Ok(units(&inputs.index, queries.len() as u64)))?;
    let rows =
        |unit: &Range<usize>| -> u64 { inputs.index.manifest().parts[unit.clone()].iter().map(|part| part.rows).sum() };
    let done = units.iter().enumerate().filter(|(part, _)| draft.has(*part)).map(|(_, unit)| rows(unit)).sum();
    exec.reporter.begin("score-index", "examples", inputs.index.manifest().rows(), done);
    for (number, unit) in units.iter().enumerate().filter(|(number, _)| !draft.has(*number)) {
        let mut scores = Vec::new();
        for part in unit.clone() {
            for some in inputs.index.signs(part, row_bytes(table.count))? {
                let found = sums.of(some.signs(0..some.len())?);
                let rows = some.examples()?.iter().zip(some.scales()?).zip(found.chunks_exact(queries.len()));
                scores.extend(rows.flat_map(|((&example, scale), found)| {
                    let score = move |(&query, sum): (&u32, &f32)| Score { query, example, influence: scale * sum };
                    queries.iter().zip(found).map(score)
                }));
                exec.reporter.advance(some.len() as u64);
            }
        }
        if let Some(row) = scores.iter().find(|row: &&Score| !row.influence.is_finite()) {
            let what = format!(
                "the influence of example {} on query {} overflows float32; raise `damping`",
                row.example, row.query
            );
            return Err(Error::Input(what).into());
        }
        scores.sort_by_key(|row| (row.query, row.example));
        draft.write(number, &[<Score as Row<Scores>>::to_batch(&scores)?])?;
    }
    exec.reporter.end();
    Ok(())
}

/// Runs of parts of the index.
fn units(index: &Artifact<Index>, queries: u64) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    let mut pairs = PAIRS;
    for (part, entry) in index.manifest().parts.iter().enumerate() {
        match units.last_mut().filter(|_| pairs + entry.rows * queries <= PAIRS) {
            Some(last) => last.end = part + 1,
            None => {
                units.push(part..part + 1);
                pairs = 0;
            }
        }
        pairs += entry.rows * queries;
    }
    units
}

/// w = x_q sigma / (Lambda + damping) / N at every coordinate, query by query, and their numbers.
fn weights(config: &Config, inputs: &Inputs, table: &Table, scale: f64, exec: &Exec) -> Result<(Vec<u32>, Vec<f32>)> {
    let device = open_device(exec.device.gpu())?;
    let curvature = Curvature::new(Method::Ekfac, config.damping, Some(&inputs.eigenbasis), Some(&inputs.lambda))?;
    let (mut queries, mut places, mut weights) = (Vec::new(), HashMap::new(), Vec::new());
    let mut asked: Option<BTreeSet<u64>> = None;
    for share in &table.shares {
        let rows = inputs.queries.module::<Factors>(&share.module)?;
        let Some(first) = rows.first() else {
            return Err(Error::Mismatch(format!(
                "the queries have no gradient of {}: take their gradients with the `modules` of lambda",
                share.module
            ))
            .into());
        };
        let numbers: BTreeSet<u64> = rows.iter().map(|row| row.row).collect();
        if numbers.len() != rows.len() || *asked.get_or_insert_with(|| numbers.clone()) != numbers {
            return Err(Error::Mismatch(format!(
                "the gradients of {} are not one for each query: take all of them in one step",
                share.module
            ))
            .into());
        }
        let shape = [first.left_shape[0], first.right_shape[0]];
        let inverse = curvature.of(&share.module, shape, &device, &*exec.reporter)?;
        let chosen = share.places(shape)?;
        let factors = share.factors(&inverse, &chosen, scale)?;
        for row in rows {
            let query = u32::try_from(row.row)
                .map_err(|_| Error::Mismatch(format!("there is no query {}: their numbers are below 2^32", row.row)))?;
            let place = *places.entry(query).or_insert_with(|| {
                queries.push(query);
                weights.resize(queries.len() * table.count, 0.0);
                queries.len() - 1
            });
            let into = &mut weights[place * table.count..][share.first..share.first + factors.len()];
            weigh(row, &inverse, shape, &chosen, &factors, into)?;
        }
    }
    Ok((queries, weights))
}

impl Share {
    /// sigma / (Lambda + damping) / N, at its places.
    fn factors(&self, inverse: &Inverse, places: &[u32], scale: f64) -> Result<Vec<f32>> {
        let reciprocal = values(inverse.reciprocal.clone().context("a reciprocal of Lambda + damping")?)?;
        let each = places
            .iter()
            .zip(&self.deviations)
            .map(|(&place, &deviation)| (f64::from(reciprocal[place as usize]) * f64::from(deviation) * scale) as f32);
        Ok(each.collect())
    }
}

/// x_q = (Q_S^T left) (Q_A^T right)^T at these places, times the factors.
fn weigh(
    row: Factors,
    inverse: &Inverse,
    shape: [usize; 2],
    places: &[u32],
    factors: &[f32],
    into: &mut [f32],
) -> Result<()> {
    let rotation = inverse.rotation.as_ref().context("a rotation into the eigenbasis")?;
    if row.rank == 0 || [row.left_shape[0], row.right_shape[0]] != shape {
        let what = format!("gradient {} of {} is not given as factors of {shape:?}", row.row, row.module);
        return Err(Error::Mismatch(what).into());
    }
    let device = rotation.activation.0[0].device();
    let left = rotation.gradient.columns_into(tensor(row.left, row.left_shape, &device));
    let right = rotation.activation.columns_into(tensor(row.right, row.right_shape, &device));
    let one = Ragged::new([row.rank]);
    picked_products(places, left.transpose(), right.transpose(), &one, &mut [into], |into, values| {
        for ((into, value), factor) in into.iter_mut().zip(values).zip(factors) {
            *into = value * factor;
        }
    });
    Ok(())
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let kept = planned_coordinates(planned, sizes.products);
    let queries = planned.size_of("queries").rows;
    let pairs = queries * planned.size_of("index").rows;
    // Weights, in float32 and in bits, and the scores of a part.
    let memory = 5.0 * queries * kept + 100.0 * pairs.min(4e6) + 12.0 * sizes.products;
    Cost::new(memory, 12.0 * pairs, 2.0 * pairs * kept)
}
