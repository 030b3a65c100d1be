//! What influences estimate: the proximal Bregman response (Grosse et al. 2023, Eq. 7; Bae et al. 2022), found by optimisation.
//!
//! ```text
//! theta(n)  =  the attributed weights with the least
//!              (1/S) sum over the sample's targets of KL(p at theta_0 || p at theta)  +  (c/N) L_n(theta)
//!              +  1/2 sum over modules m of damping_m |theta_m - theta_0,m|^2
//! response  =  (log p of the query at theta(n)  -  log p of it at theta_0) / c          nats per added copy
//! ```
//!
//! S is the number of documents of the sample, c that of added copies. Its derivative by c at 0 is the influence that
//! `solve` converges to; the rest of their difference is what the straight line leaves out.
//!
//! reads   tokens, queries, model, eigenbasis, lambda, and candidates or a ranking
//! writes  scores: of converged examples alone
//!
//! [`mod@minimum`] finds it, and knows of no language model.

pub mod minimum;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Candidate, Candidates, Draft, Eigenbasis, Example, Kind, Lambda, Ranked, Ranking, Score, Scores, Silent,
    Tokens, bad_input, check_training_examples,
};
use wherefrom_linalg::kernels::product;
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Batch, Labels, Model, Modules, Precision, Selection, Tap};
use wherefrom_pass::{open, place, sequence, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Stage, Writes, at_least};

use crate::inverse::Curvature;
use crate::method::{Damping, Method};
use crate::solve::sample::{Sample, Sampling};
use crate::solve::system::{Space, System, add};
use crate::tensors::values;
use minimum::{Ended, Objective, minimum};

/// Raised when results change.
pub const VERSION: u32 = 2;

/// The stage `proximal`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["modules"], ..About::new("proximal", VERSION) },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::required("queries", &[Kind::Tokens]),
        Role::required("eigenbasis", &[Kind::Eigenbasis]),
        Role::required("lambda", &[Kind::Lambda]),
        Role::optional("candidates", &[Kind::Candidates, Kind::Ranking]),
    ],
    parse: |knobs| {
        for least in ["sample", "examples", "steps", "training-examples"] {
            let _checked: Config = at_least(least, 1, knobs.clone())?;
        }
        serde_json::from_value(knobs)
    },
    check: Config::check,
    writes: Writes::One(Kind::Scores),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let candidates = match given.kind("candidates")? {
            None => None,
            Some(Kind::Ranking) => Some(Chosen::Ranking(given.open("candidates")?)),
            Some(_) => Some(Chosen::Candidates(given.open("candidates")?)),
        };
        let inputs = Inputs {
            tokens: given.open("tokens")?,
            queries: given.open("queries")?,
            model: given.model()?,
            eigenbasis: given.open("eigenbasis")?,
            lambda: given.open("lambda")?,
            candidates,
        };
        run(config, &inputs, exec, draft)
    },
};

/// What is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What is added to the curvature: a share of Lambda's mean in each module (a bare number), or one number for all.
    pub damping: Damping,
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Added copies c of an example. Where one copy moves the model too far to converge, a part of one.
    pub copies: f64,
    /// Examples whose response is found, drawn from the candidates, or from all.
    pub examples: usize,
    /// Documents of the mean divergence, drawn from the tokens; all where there are fewer.
    pub sample: usize,
    /// Seed of both draws.
    pub seed: u64,
    /// An example has converged where the gradient's norm is this share of what it was at the start.
    pub tolerance: f64,
    /// Steps at most.
    pub steps: usize,
    /// N of the influence; by default the rows of the tokens artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_examples: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            damping: Damping::default(),
            modules: Modules::default(),
            copies: 1.0,
            examples: 100,
            sample: 256,
            seed: 0,
            tolerance: 1e-3,
            steps: 40,
            training_examples: None,
        }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if !(self.tolerance > 0.0 && self.tolerance < 1.0) {
            let given = self.tolerance;
            return Err(bad_input(format!("tolerance = {given} is out of range; set it between 0 and 1")));
        }
        if !self.copies.is_finite() || self.copies == 0.0 {
            let given = self.copies;
            return Err(bad_input(format!(
                "copies = {given} changes nothing; set it to 1, or to less where that does not converge"
            )));
        }
        self.damping.check()
    }
}

/// Examples to choose from.
#[derive(Debug, Clone)]
pub enum Chosen {
    /// The stage filter's.
    Candidates(Artifact<Candidates>),
    /// The stage rank's.
    Ranking(Artifact<Ranking>),
}

/// What it is computed from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The training data: both the divergence's sample and the examples.
    pub tokens: Artifact<Tokens>,
    /// The queries.
    pub queries: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
    /// EK-FAC's basis.
    pub eigenbasis: Artifact<Eigenbasis>,
    /// EK-FAC's corrected eigenvalues, whose mean damping is a share of.
    pub lambda: Artifact<Lambda>,
    /// Examples to choose from; all where there are none.
    pub candidates: Option<Chosen>,
}

/// Finds the response of every chosen example; a part for each.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a knob out of its range; those of model and draft.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let Inputs { tokens, eigenbasis, lambda, .. } = inputs;
    let total = config.training_examples.unwrap_or_else(|| tokens.examples());
    check_training_examples(config.training_examples)?;
    draft.metadata("method", "proximal");
    draft.metadata("unit", "nats per added copy");
    draft.metadata("sign", "positive = one more copy raises log p(completion)");
    let curvature = Curvature::new(Method::Ekfac, config.damping, Some(eigenbasis), Some(lambda))?;
    let model = open(&inputs.model, Precision::F32, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    selection.maps_alone("proximal")?;
    let (model, _) = place(model, selection.modules(), tokens, exec, 0)?;
    let space = Space::new(&curvature, selection.modules(), &model.device, &*exec.reporter)?;
    let sampling = Sampling { model: &model, tokens, exec, documents: config.sample, seed: config.seed };
    // Progress is told by examples, not by the tokens of a product.
    let quiet = Exec { reporter: Arc::new(Silent), ..exec.clone() };
    let problem = Problem {
        space: &space,
        before: &model,
        selection: &selection,
        exec: &quiet,
        sample: sampling.draw(0)?,
        weight: config.copies / total as f64,
    };
    let queries: Vec<Example> = inputs.queries.rows()?.collect::<Result<_>>()?;
    let losses_before = losses(&model, &queries)?;

    let examples = chosen(config, inputs)?;
    let parts: Vec<u64> = draft.plan(|| Ok(examples))?;
    draft.parts(parts.len());
    exec.reporter.begin("proximal", "examples", parts.len() as u64, 0);
    let rows = tokens.rows::<Example>()?;
    let mut wanted: Vec<(usize, Example)> = Vec::new();
    for row in rows {
        let row = row?;
        if let Ok(part) = parts.binary_search(&row.example) {
            if draft.has(part) {
                exec.reporter.advance(1);
            } else {
                wanted.push((part, row));
            }
        }
    }
    for some in wanted.chunks_mut(exec.device.side_by_side().max(1)) {
        let mut work: Vec<(&(usize, Example), Option<Ended>)> = some.iter().map(|one| (one, None)).collect();
        problem.system(&model).each(&mut work, |((_, example), ended)| {
            let example = Batch::new(&[sequence(example)], &model.device);
            *ended = Some(minimum(&Response { problem: &problem, example }, config.tolerance, config.steps)?);
            Ok(())
        })?;
        for ((part, example), ended) in work {
            let ended = ended.context("every example has ended")?;
            let mut scores = Vec::new();
            if ended.gradient <= config.tolerance {
                let after = losses(&problem.at(&ended.at)?, &queries)?;
                scores.extend((0..).zip(losses_before.iter().zip(after)).map(|(query, (before, after))| Score {
                    query,
                    example: example.example,
                    influence: ((before - after) / config.copies) as f32,
                }));
            } else {
                exec.reporter.warn(&format!(
                    "example {} has not converged: the gradient's norm is {:.1e} of what it was after {} steps; set \
                     `copies` to less, or `steps` to more",
                    example.example, ended.gradient, config.steps
                ));
            }
            draft.write_rows::<Scores, _>(*part, &scores)?;
            exec.reporter.advance(1);
        }
    }
    exec.reporter.end();
    draft.summary("examples", parts.len())?;
    draft.summary("training_examples", total)
}

/// The examples whose response is found, in order.
fn chosen(config: &Config, inputs: &Inputs) -> Result<Vec<u64>> {
    let from: BTreeSet<u64> = match &inputs.candidates {
        None => (0..inputs.tokens.examples()).collect(),
        Some(Chosen::Candidates(candidates)) => {
            candidates.rows::<Candidate>()?.map(|row| Ok(row?.example)).collect::<Result<_>>()?
        }
        Some(Chosen::Ranking(ranking)) => {
            ranking.rows::<Ranked>()?.map(|row| Ok(row?.example)).collect::<Result<_>>()?
        }
    };
    let mut drawn: Vec<(f64, u64)> =
        from.into_iter().map(|example| (uniform(config.seed, example, u64::MAX), example)).collect();
    drawn.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut drawn: Vec<u64> = drawn.into_iter().take(config.examples).map(|(_, example)| example).collect();
    drawn.sort_unstable();
    Ok(drawn)
}

/// -f of every query in nats.
fn losses(model: &Model, queries: &[Example]) -> Result<Vec<f64>> {
    let loss = |query: &Example| {
        let tokens = model.token_losses(&Batch::new(&[sequence(query)], &model.device))?.concat();
        Ok(f64::from(query.loss(&tokens)))
    };
    queries.iter().map(loss).collect()
}

/// What is minimised, but for the example.
struct Problem<'a> {
    space: &'a Space,
    before: &'a Model,
    selection: &'a Selection,
    exec: &'a Exec,
    sample: Sample,
    /// c / N.
    weight: f64,
}

impl Problem<'_> {
    fn system<'a>(&'a self, model: &'a Model) -> System<'a> {
        System { space: self.space, model, selection: self.selection, exec: self.exec }
    }

    /// The model at theta_0 + moved.
    fn at(&self, moved: &[f64]) -> Result<Model> {
        let parts = self.selection.modules().iter().map(|module| self.space.matrix(&module.name, moved));
        self.before.moved(self.selection, parts.collect::<Result<Vec<Tensor<2>>>>()?)
    }
}

/// All of what is minimised, of theta - theta_0.
struct Response<'a> {
    problem: &'a Problem<'a>,
    example: Batch,
}

impl Objective for Response<'_> {
    type Place = Model;

    fn size(&self) -> usize {
        self.problem.space.size()
    }

    fn gradient(&self, moved: &[f64]) -> Result<(Model, Vec<f64>)> {
        let Problem { space, before, selection, ref sample, weight, .. } = *self.problem;
        let model = self.problem.at(moved)?;
        let mut gradient = vec![0.0; moved.len()];
        let mut taken = |scale: f64, tap: Tap<'_>| -> Result<()> {
            let part = values(product(tap.output_gradients.transpose(), tap.activations))?;
            let into = gradient[space.place(&tap.module.name)?].iter_mut();
            into.zip(part).for_each(|(into, value)| *into += scale * f64::from(value));
            Ok(())
        };
        let mean = 1.0 / sample.documents as f64;
        for (_, batch) in &sample.batches {
            model.divergence_taps(batch, before, selection, &mut |tap| taken(mean, tap))?;
        }
        model.taps(&self.example, &Labels::Empirical, selection, &mut |tap| taken(weight, tap))?;
        space.add_damping(&mut gradient, moved);
        space.only_curved(&mut gradient);
        Ok((model, gradient))
    }

    /// (H + (c/N) H_n + D) v: all of the curvature but that of the model's own bends.
    fn curved(&self, model: &Model, v: &[f64]) -> Result<Vec<f64>> {
        let Problem { sample, weight, .. } = self.problem;
        let system = self.problem.system(model);
        let mut curved = system.products(sample, &[v])?.remove(0).vector;
        if *weight > 0.0 {
            add(&mut curved, *weight, &system.batch_product(&self.example, v)?);
        }
        Ok(curved)
    }

    /// EK-FAC's inverse.
    fn precondition(&self, v: &[f64]) -> Result<Vec<f64>> {
        self.problem.space.precondition(v)
    }
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (data, queries) = (planned.size_of("tokens"), planned.size_of("queries"));
    let tokens = data.tokens * (config.sample as f64 / data.rows.max(1.0)).min(1.0);
    let examples = (config.examples as f64).min(data.rows);
    // Some three steps of some forty products, each a forward pass, a tangent and a backward pass.
    let flops = examples * 120.0 * tokens * (6.0 * sizes.forward + 4.0 * sizes.products);
    let size: f64 = sizes.modules.iter().map(|module| (module.in_features * module.out_features) as f64).sum();
    let threads = machine.device.side_by_side() as f64;
    let memory = sizes.footprint.total() as f64
        + threads * ((sizes.footprint.activations + sizes.footprint.widened) as f64 + 80.0 * size);
    Cost::new(memory, 16.0 * examples * queries.rows, flops).note(format!("{examples} examples"))
}
