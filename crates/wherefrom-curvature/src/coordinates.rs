//! The coordinates (i, j) of Q_S^T G Q_A that an index keeps: those with the largest Lambda_ij / mean(Lambda), over all
//! modules.
//!
//! A coordinate adds x_q x_z / (Lambda + damping) to a score. Its variance over examples and queries like them is
//! (Lambda / (Lambda + damping))^2, which grows with Lambda / damping, and a relative damping is a share of the mean.
//!
//! reads   lambda
//! writes  coordinates

use std::cmp::Ordering;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Coordinate, Coordinates, Draft, Error, Kind, Lambda, LambdaSum, Row, bad_input};
use wherefrom_pass::sizes_of;
use wherefrom_stage::{About, Cost, Exec, Machine, Planned, Role, Stage, Writes, at_least};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `coordinates`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("coordinates", VERSION),
    roles: &[Role::required("lambda", &[Kind::Lambda])],
    parse: |knobs| at_least("dimensions", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Coordinates),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| run(config, &Inputs { lambda: given.open("lambda")? }, exec, draft),
};

/// How many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Coordinates, a bit each in every row of an index; all there are, if there are fewer.
    pub dimensions: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { dimensions: 65_536 }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        match self.dimensions {
            0 => Err(bad_input("dimensions = 0 leaves nothing to rank by; 65536 is the default")),
            _ => Ok(()),
        }
    }
}

/// What they are chosen by.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Corrected eigenvalues in the eigenbasis.
    pub lambda: Artifact<Lambda>,
}

/// A place in Lambda.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Lambda / mean(Lambda of its module).
    share: f32,
    module: usize,
    /// Row-major in [out, in].
    element: usize,
    lambda: f64,
}

impl Place {
    /// The largest first; equal ones in order.
    fn order(&self, other: &Self) -> Ordering {
        let places = (self.module, self.element).cmp(&(other.module, other.element));
        other.share.total_cmp(&self.share).then(places)
    }
}

/// Chooses them; one part, in the order of modules, rows and columns.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    if draft.has(0) {
        return Ok(());
    }
    exec.reporter.begin("coordinates", "modules", inputs.lambda.manifest().rows(), 0);
    let (mut modules, mut kept): (Vec<(String, usize)>, Vec<Place>) = Default::default();
    for row in inputs.lambda.rows::<LambdaSum>()? {
        let row = row?;
        let count = row.count.max(1) as f64;
        let mean = row.lambda.iter().map(|&sum| f64::from(sum)).sum::<f64>() / count / row.lambda.len() as f64;
        // Beyond twice as many as are wanted, the least are let go.
        let mut least = 0.0f32;
        for (element, sum) in row.lambda.iter().enumerate() {
            let lambda = f64::from(*sum) / count;
            let share = (lambda / mean) as f32;
            if share > least {
                kept.push(Place { share, module: modules.len(), element, lambda });
                if kept.len() >= config.dimensions.saturating_mul(2) {
                    least = cut(&mut kept, config.dimensions);
                }
            }
        }
        cut(&mut kept, config.dimensions);
        modules.push((row.module, row.shape[1]));
        exec.reporter.advance(1);
    }
    if kept.is_empty() {
        return Err(Error::Mismatch("lambda is zero everywhere: there is nothing to choose".into()).into());
    }
    kept.sort_unstable_by_key(|place| (place.module, place.element));
    let rows: Vec<_> = kept
        .iter()
        .map(|place| {
            let (module, columns) = &modules[place.module];
            let (row, column) = ((place.element / columns) as u32, (place.element % columns) as u32);
            Coordinate { module: module.clone(), row, column, deviation: place.lambda.sqrt() as f32 }
        })
        .collect();
    draft.summary("coordinates", rows.len())?;
    draft.write(0, &[<Coordinate as Row<Coordinates>>::to_batch(&rows)?])?;
    exec.reporter.end();
    Ok(())
}

/// Keeps the first `count` in order; the share of the last of them, if any had to go.
fn cut(kept: &mut Vec<Place>, count: usize) -> f32 {
    if kept.len() <= count {
        return 0.0;
    }
    let (_, last, _) = kept.select_nth_unstable_by(count - 1, Place::order);
    let least = last.share;
    kept.truncate(count);
    least
}

/// Coordinates that the step chooses which has the role `coordinates`, of so many.
pub(crate) fn planned_coordinates(planned: &Planned, of: f64) -> f64 {
    let chosen = planned.input("coordinates").map(|step| step.config["dimensions"].as_f64().unwrap_or(of));
    chosen.map_or(0.0, |dimensions| dimensions.min(of))
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let kept = (config.dimensions as f64).min(sizes.products);
    // Every coordinate lies in memory twice, until the least are let go.
    Cost::new(4.0 * sizes.products + 64.0 * kept, 20.0 * kept, 2.0 * sizes.products)
}
