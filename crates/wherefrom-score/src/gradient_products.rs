//! Products of gradients without a curvature, of a model, or over the checkpoints of its training.
//!
//! ```text
//! product(q, z)  =  (1/N) sum over checkpoints c of r_c <b_q(c), g_z(c)>
//! cosine(q, z)   =  sum over c of r_c <b_q(c), g_z(c)> / (|b_q(c)| |g_z(c)|)  /  sum over c of r_c
//! ```
//!
//! b_q and g_z are gradients of summed losses. With the learning rates r_c the first is TracIn (Pruthi et al. 2020,
//! arXiv 2002.08484); of one model r = 1.
//!
//! reads   tokens of the queries and of the corpus, model
//! writes  scores

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Example, Kind, Score, Scores, Tokens, bad_input, check_training_examples};
use wherefrom_linalg::kernels::example_products;
use wherefrom_model::{ACTIVATION_BYTES, Coverage, Labels, Model, Modules, Precision, Selection};
use wherefrom_pass::{Corpus, Units, limit, open, place, sizes_of};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::queries::{ModuleQueries, Queries};
use crate::{Pass, Unit, WHOLE_QUERY_BYTES, values};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `gradient-products`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        model: Checkpoint::Runs,
        inherits: &["modules", "precision"],
        ..About::new("gradient-products", VERSION).split()
    },
    roles: &[Role::required("queries", &[Kind::Tokens]), Role::required("tokens", &[Kind::Tokens])],
    parse: |knobs| {
        let config: Config = at_least("training-examples", 1, knobs)?;
        // A cosine is of no number of examples.
        Ok(Config { training_examples: config.training_examples.filter(|_| !config.cosine), ..config })
    },
    check: Config::check,
    writes: Writes::One(Kind::Scores),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let (queries, tokens) = (given.open("queries")?, given.open("tokens")?);
        run(config, &Inputs { queries, tokens, model: given.model()? }, exec, draft)
    },
};

/// What is computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Over the checkpoints that the model's `fine-tune` step keeps, each times its learning rate; otherwise of the model alone.
    pub checkpoints: bool,
    /// Divide by the lengths of both gradients.
    pub cosine: bool,
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
    /// N of the products; by default the rows of the tokens artifact.
    pub training_examples: Option<u64>,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        check_training_examples(self.training_examples)
    }
}

/// What is scored.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The queries, each with a completion.
    pub queries: Artifact<Tokens>,
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// Scores every pair; a part per span of examples and group of queries.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a model without checkpoints where they are asked for, and for a query without a
/// completion.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let steps = if config.checkpoints { inputs.model.kept()? } else { vec![(inputs.model.clone(), 1.0)] };
    let asked: Vec<Example> = inputs.queries.rows::<Example>()?.collect::<Result<_>>()?;
    if let Some(row) = asked.iter().find(|row| !row.target_mask.contains(&true)) {
        return Err(bad_input(format!(
            "query {} has no completion, so its gradient is nothing; give it one, or set untargeted = \"skip\" of the tokenize \
             step: {}",
            row.example,
            inputs.queries.folder().display()
        )));
    }
    let model = open(&steps[0].0, config.precision, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    draft.metadata("unit", if config.cosine { "cosine of gradients" } else { "gradient product / N" });
    draft.metadata("sign", "positive = a step on the example raises log p(completion)");
    draft.metadata("method", if config.checkpoints { "tracin" } else { "gradient-products" });
    let names: Vec<_> = selection.modules().iter().map(|module| &module.name).collect();
    draft.metadata("modules", serde_json::to_string(&names)?);
    draft.summary("modules", &names)?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    drop(model);

    let size: usize = selection.modules().iter().map(|module| module.in_features * module.out_features).sum();
    let together = (WHOLE_QUERY_BYTES / (4 * size)).max(1);
    let groups = || (0..asked.len()).step_by(together).map(|first| first..(first + together).min(asked.len()));
    let plan = || {
        let spans = inputs.tokens.spans(draft.share())?;
        let units = groups().flat_map(|queries| spans.iter().map(move |&span| Unit { queries: queries.clone(), span }));
        Ok(units.collect())
    };
    let work = |unit: &Unit| (steps.len() * unit.span.len()) as u64;
    let units = Units::plan(draft, plan, work)?;
    let rates: f64 = steps.iter().map(|(_, rate)| rate).sum();
    let all = config.training_examples.unwrap_or_else(|| inputs.tokens.examples()) as f64;
    let scale = if config.cosine { rates.recip() } else { all.recip() };

    let mut loaded: Option<(usize, Asked)> = None;
    units.each("gradient-products", exec, |part, unit| {
        let examples = inputs.tokens.read_span(&unit.span)?;
        let mut sums: BTreeMap<(u32, u64), f64> = BTreeMap::new();
        for (step, (files, rate)) in steps.iter().enumerate() {
            let asked = match loaded.take() {
                Some((of, asked)) if of == step && asked.queries.numbers == unit.queries => asked,
                _ => Asked::new(files, config, inputs, &selection, (&asked, unit.queries.clone()), exec)?,
            };
            let beside = asked.model.footprint(exec.batch_tokens).total() as usize + 4 * size * unit.queries.len();
            let pass = Pass {
                corpus: Corpus::new("gradient-products", &asked.model, &inputs.tokens, exec),
                selection: &selection,
                queries: &asked.queries,
                scale: 1.0,
                lengths: config.cosine.then_some(&asked.lengths[..]),
                room: limit(exec).map_or(0, |bytes| (bytes as usize).saturating_sub(beside)),
            };
            for score in pass.scores(&examples)? {
                *sums.entry((score.query, score.example)).or_default() += rate * scale * f64::from(score.influence);
            }
            loaded = Some((step, asked));
        }
        let row = |((query, example), sum)| Score { query, example, influence: sum as f32 };
        draft.write_rows::<Scores, _>(part, &sums.into_iter().map(row).collect::<Vec<_>>())
    })
}

/// A model with the gradients of some queries at it.
struct Asked {
    model: Model,
    queries: Queries,
    /// Of each query's gradient.
    lengths: Vec<f64>,
}

impl Asked {
    fn new(
        files: &ModelFiles,
        config: &Config,
        inputs: &Inputs,
        selection: &Selection,
        (asked, numbers): (&[Example], Range<usize>),
        exec: &Exec,
    ) -> Result<Self> {
        let sizes: Vec<usize> = selection.modules().iter().map(|m| m.in_features * m.out_features).collect();
        let bytes = 4 * numbers.len() * sizes.iter().sum::<usize>();
        let model = open(files, config.precision, exec)?;
        let (model, _) = place(model, selection.modules(), &inputs.tokens, exec, bytes as u64)?;
        let asked = &asked[numbers.clone()];
        let mut gradients: Vec<Vec<f32>> = sizes.iter().map(|size| vec![0.0; numbers.len() * size]).collect();
        let corpus = Corpus::new("gradient-products", &model, &inputs.queries, exec);
        let most = model.batch_tokens(exec.batch_tokens, ACTIVATION_BYTES);
        for (group, batch) in corpus.batches_of(asked, most) {
            model.taps(&batch, &Labels::Empirical, selection, &mut |tap| {
                let (module, size, tokens) = (tap.index, sizes[tap.index], tap.tokens);
                let [d, a] = tap.operands();
                let products = example_products(d, a, &tokens.sequences);
                for (&query, product) in group.iter().zip(values(products)?.chunks_exact(size)) {
                    let own = gradients[module][query * size..][..size].iter_mut();
                    own.zip(product).for_each(|(sum, value)| *sum += value);
                }
                Ok(())
            })?;
        }
        let mut squares = vec![0.0; numbers.len()];
        for (gradients, &size) in gradients.iter().zip(&sizes) {
            for (sum, gradient) in squares.iter_mut().zip(gradients.chunks_exact(size)) {
                *sum += gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
            }
        }
        let lengths = squares.into_iter().map(f64::sqrt).collect();
        let whole = |(gradients, size): (Vec<f32>, &usize)| {
            let data = TensorData::new(gradients, [numbers.len(), *size]);
            ModuleQueries::Full(Box::new(Tensor::from_data(data, &model.device)))
        };
        let modules = gradients.into_iter().zip(&sizes).map(whole).collect();
        Ok(Self { queries: Queries { numbers, modules }, lengths, model })
    }
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (Size { tokens, rows }, queries) = (planned.size_of("tokens"), planned.size_of("queries"));
    let kept = planned.input("model").and_then(|model| model.config["checkpoints"].as_f64()).unwrap_or(1.0);
    let steps = if config.checkpoints { kept.max(1.0) } else { 1.0 };
    let query = 4.0 * sizes.products;
    let held = (queries.rows * query).min(query.max(WHOLE_QUERY_BYTES as f64));
    let sizes = sizes.fitting(machine.memory, held);
    let memory = sizes.footprint.total() as f64 + held;
    let products = 2.0 * sizes.products * (tokens + queries.tokens + queries.rows * rows);
    let flops = steps * (sizes.scan(tokens + queries.tokens) + products);
    Cost::new(memory, 12.0 * queries.rows * rows, flops).note(sizes.footprint.note())
}
