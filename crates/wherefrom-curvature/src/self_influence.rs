//! Self-influence of training sequences: (1/N) sum over modules of <P(G_z), G_z>, at full rank.
//!
//! In the eigenbasis, <P(G), G> = sum over the elements of (Q_S^T G Q_A)^2 / (Lambda + damping).
//!
//! reads   tokens, model, eigenbasis, lambda
//! writes  self-influence

use anyhow::Result;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Draft, Eigenbasis, Kind, Lambda, OwnInfluence, SelfInfluence, Tokens, check_training_examples,
};
use wherefrom_linalg::kernels::weighted_squares;
use wherefrom_model::{Coverage, Labels, Modules, Precision, Ragged, Selection};
use wherefrom_pass::{Corpus, open, place, sequence, sizes_of};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::blocks::blocks_of;
use crate::covariance;
use crate::inverse::{Curvature, Inverse};
use crate::lambda;
use crate::method::{Damping, Method};
use crate::tensors::values;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `self-influence`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        model: Checkpoint::Runs,
        inherits: &["modules", "precision"],
        ..About::new("self-influence", VERSION).split()
    },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::when("eigenbasis", &[Kind::Eigenbasis], |config| config.method.uses_eigenbasis()),
        Role::when("lambda", &[Kind::Lambda], |config| config.method.uses_lambda()),
    ],
    parse: |knobs| {
        let mut config: Config = at_least("training-examples", 1, knobs)?;
        config.damping = config.method.damping(config.damping);
        Ok(config)
    },
    check: Config::check,
    writes: Writes::One(Kind::SelfInfluence),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let (eigenbasis, lambda) = (given.maybe("eigenbasis")?, given.maybe("lambda")?);
        let inputs = Inputs { tokens: given.open("tokens")?, model: given.model()?, eigenbasis, lambda };
        run(config, &inputs, exec, draft)
    },
};

/// What is computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Which curvature.
    pub method: Method,
    /// What is added to Lambda: a share of its mean in each module (a bare number), or one number for all.
    pub damping: Damping,
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
    /// N of the influence; by default the rows of the tokens artifact.
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

/// What it is computed from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
    /// Needed by `kfac` and `ekfac`.
    pub eigenbasis: Option<Artifact<Eigenbasis>>,
    /// Needed by `diagonal` and `ekfac`.
    pub lambda: Option<Artifact<Lambda>>,
}

/// The gradient of every example against itself, with the text's own labels; a part per span of examples.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let curvature = Curvature::new(config.method, config.damping, inputs.eigenbasis.as_ref(), inputs.lambda.as_ref())?;
    let model = open(&inputs.model, config.precision, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    let blocks = inputs.eigenbasis.as_ref().and_then(|basis| basis.manifest().count("blocks")).unwrap_or(1) as usize;
    let beside = lambda::bytes(selection.modules(), Some(blocks), 4);
    let (model, _) = place(model, selection.modules(), &inputs.tokens, exec, beside)?;
    let modules = selection.modules();
    let names: Vec<_> = modules.iter().map(|module| &module.name).collect();
    let unit = match config.method {
        Method::Identity => "gradient product / N",
        Method::Adam => "gradient product over Adam's roots / N",
        Method::Diagonal | Method::Kfac | Method::Ekfac => "nats per added copy",
    };
    draft.metadata("unit", unit);
    draft.metadata("sign", "positive = one more copy raises log p(the example's own targets)");
    draft.metadata("method", config.method.name());
    draft.metadata("damping", serde_json::to_string(&config.damping)?);
    draft.metadata("modules", serde_json::to_string(&names)?);
    draft.summary("modules", &names)?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;

    let corpus = Corpus::new("self-influence", &model, &inputs.tokens, exec);
    let spans = corpus.spans(draft)?;
    if spans.is_empty() {
        return Ok(());
    }
    let inverses = modules.iter().map(|module| {
        curvature.of(&module.name, [module.out_features, module.in_features], &model.device, &*exec.reporter)
    });
    let inverses = inverses.collect::<Result<Vec<_>>>()?;
    let scale = 1.0 / config.training_examples.unwrap_or_else(|| inputs.tokens.examples()) as f64;
    corpus.parts(spans, |part, examples| {
        let row = |example: u64| OwnInfluence { example, influence: 0.0, by_module: vec![0.0; modules.len()] };
        let mut rows: Vec<_> = examples.iter().map(|example| row(example.example)).collect();
        corpus.taps(examples, &selection, |group, tap| {
            let (module, tokens) = (tap.index, tap.tokens);
            let squares = own(&inverses[module], config.precision, tap.operands(), &tokens.sequences);
            for (&index, square) in group.iter().zip(values(squares)?) {
                rows[index].by_module[module] += (scale * f64::from(square)) as f32;
            }
            Ok(())
        })?;
        for row in &mut rows {
            row.influence = row.by_module.iter().map(|&value| f64::from(value)).sum::<f64>() as f32;
        }
        if let Some((place, row)) = rows.iter().enumerate().find(|(_, row)| !row.influence.is_finite()) {
            let module = row.by_module.iter().position(|share| !share.is_finite()).map_or("all modules", |m| names[m]);
            let what = format!("its self-influence by {module}");
            return Err(model.overflow(sequence(&examples[place]), &what, &Labels::Empirical));
        }
        draft.write_rows::<SelfInfluence, _>(part, &rows)
    })
}

/// <P(G_z), G_z> of every example: d [rows, out], a [rows, in] -> [examples, 1].
fn own(inverse: &Inverse, precision: Precision, [mut d, mut a]: [Tensor<2>; 2], examples: &Ragged) -> Tensor<2> {
    if let Some(basis) = &inverse.rotation {
        d = precision.operand(basis.gradient.rows_into(d));
        a = precision.operand(basis.activation.rows_into(a));
    }
    weighted_squares(inverse.reciprocal.clone(), d, a, examples)
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (Size { tokens, rows }, blocks) = (planned.size_of("tokens"), blocks_of(planned));
    let beside = lambda::bytes(&sizes.modules, Some(blocks), 4) as f64;
    let sizes = sizes.fitting(machine.memory, beside);
    let memory = sizes.footprint.total() as f64 + beside;
    let flops = sizes.scan(tokens)
        + 2.0 * tokens * (covariance::summed_by_token(&sizes.modules, blocks) + sizes.token_products);
    Cost::new(memory, rows * (12.0 + 4.0 * sizes.modules.len() as f64), flops).note(sizes.footprint.note())
}
