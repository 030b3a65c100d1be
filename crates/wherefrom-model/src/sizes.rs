//! What a model takes over tokens, from its `config.json` alone, which says in what type its weights are stored, too.

use serde_json::Value;

use crate::config::Config;
use crate::footprint::{Footprint, Held};
use crate::module::{Module, Modules, Selection};
use crate::outline::{Outline, Shape};
use crate::precision::Precision;
use crate::weights::STORED;

/// Sizes of a model and of the modules that are attributed.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// Bytes of running it.
    pub footprint: Footprint,
    /// The attributed modules.
    pub modules: Vec<Module>,
    /// Multiply-adds of one token on its way forward: every linear map, of experts those that see it, and the vocabulary head.
    pub forward: f64,
    /// Those of the head alone.
    pub head: f64,
    /// Sum of in · out over the attributed modules.
    pub products: f64,
    /// The same of those that see a token.
    pub token_products: f64,
    /// Parameters that training changes: all, or A and B of adapters.
    pub trained: f64,
    /// Sum of in + out over the attributed modules that see a token.
    pub sums: f64,
    outline: Outline,
    stored_in_16_bits: bool,
}

impl Sizes {
    /// Of the model with that `config.json`; `modules` as the knob has it. None where either cannot be read.
    pub fn new(json: &Value, modules: &Value, batch_tokens: usize) -> Option<Self> {
        let choice: Modules = serde_json::from_value(modules.clone()).unwrap_or_default();
        let config = Config::from_json(json).ok()?;
        let outline = Outline::new(&config);
        let chosen = match Selection::new(&choice, outline.modules()) {
            // An adapter may have no map of an MLP, and a step no choice.
            Err(_) if choice == Modules::default() => Selection::all(outline.modules()),
            chosen => chosen.ok()?,
        };
        let modules = chosen.modules().to_vec();
        let product = |module: &Module| (module.in_features * module.out_features) as f64;
        let head = outline.vocabulary() as f64 * outline.hidden() as f64;
        Some(Self {
            footprint: Footprint::new(&outline, batch_tokens).tapping(&modules),
            forward: outline.maps().iter().map(|map| map.share() * product(map)).sum::<f64>() + head,
            head,
            trained: match config.adapters.are_modules() {
                true => outline.halves().map(Shape::numbers).sum::<u64>() as f64,
                false => outline.parameters() as f64,
            },
            products: modules.iter().map(product).sum(),
            token_products: modules.iter().map(|module| module.share() * product(module)).sum(),
            sums: modules.iter().map(|module| module.share() * (module.in_features + module.out_features) as f64).sum(),
            modules,
            outline,
            stored_in_16_bits: [STORED, "torch_dtype"]
                .iter()
                .find_map(|key| json[*key].as_str())
                .is_some_and(|name| ["bfloat16", "float16"].contains(&name)),
        })
    }

    /// The same with weights that are held as [`crate::Model::held`] holds those of the model's files, on the CPU or on a GPU.
    pub fn held(self, precision: Precision, cpu: bool) -> Self {
        let held = match precision {
            Precision::F32 if cpu && self.stored_in_16_bits => Held { bytes: 2, widened: true },
            Precision::F32 => Held::FLOAT32,
            Precision::F16 | Precision::Bf16 => Held { bytes: 2, widened: false },
        };
        // What adapters are merged into is no longer what its file has.
        let merged = |shape: &Shape| held.widened && self.outline.is_merged(shape);
        let held = |shape: &Shape| if merged(shape) { Held::FLOAT32 } else { held };
        Self { footprint: self.footprint.holding(&self.outline, held), ..self }
    }

    /// The same with weights in memory where `beside` further bytes fit the limit with them, as [`Footprint::fitting`] has it.
    pub fn fitting(self, limit: Option<u64>, beside: f64) -> Self {
        Self { footprint: self.footprint.fitting(limit, beside as u64), ..self }
    }

    /// Bytes of a forward pass alone: it keeps nothing for a backward pass.
    pub fn forward_bytes(&self) -> f64 {
        self.footprint.weight_bytes() as f64 + self.footprint.activations as f64 / 2.0
    }

    /// Multiply-adds, counted twice, of a forward and an activation-only backward pass over so many tokens.
    pub fn scan(&self, tokens: f64) -> f64 {
        4.0 * self.forward * tokens
    }

    /// Numbers of one query: factors of a rank, or whole matrices.
    pub fn query(&self, rank: Option<f64>) -> f64 {
        let factors = |module: &Module| {
            let (inside, out) = (module.in_features as f64, module.out_features as f64);
            rank.filter(|&rank| rank < inside.min(out)).map_or(inside * out, |rank| rank * (inside + out))
        };
        self.modules.iter().map(factors).sum()
    }
}
