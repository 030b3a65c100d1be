//! A decoder in numbers and options, as a family reads it from `config.json`.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize as _;
use serde_json::Value;
use wherefrom_linalg::kernels::Activation;

use crate::adapter::{Adapters, Lora};
use crate::checkpoint::Checkpoint;
use crate::error::bad_input;
use crate::family::{self, Architecture, Layout, llama};
use crate::keys::Keys;
use crate::rotary::Rotary;

/// How the model generates.
pub const GENERATION: &str = "generation_config.json";

/// Where adapters stand in a `config.json` that is handed on with them.
pub const ADAPTERS: &str = "wherefrom.adapters";

/// Most layers: the largest models have some hundred.
const LAYERS: usize = 4096;
/// Largest width of a stream or of an MLP: the largest models have some 2^16. A module's 2^40 parameters in each of so many
/// layers stay within 64 bits.
const WIDTH: usize = 1 << 20;
/// Most experts, of all layers together: the largest models have some 20,000.
const EXPERTS: usize = 1 << 17;
/// Most tokens and positions.
const ROWS: usize = 1 << 24;

/// Sizes and options of a decoder-only language model; sizes under their Hugging Face names.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family, which has names and layout of the checkpoint.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// What the embedding is multiplied by.
    pub embedding_scale: f32,
    /// What attention and MLP add to the stream is multiplied by.
    pub residual_scale: f32,
    /// What the logits are divided by.
    pub logit_divisor: f32,
    /// c, where a logit z becomes c tanh(z / c).
    pub logit_cap: Option<f32>,
    /// Rotary positions; none where positions are learned.
    pub rotary: Option<Rotary>,
    /// Those of layers that have their own.
    pub local_rotary: Option<Rotary>,
    /// What is not the same in every layer; empty where all of them see all and turn by `rotary`.
    pub layers: Vec<Layer>,
    /// What attention scores are multiplied by.
    pub attention_scale: f32,
    /// c, where an attention score z becomes c tanh(z / c).
    pub attention_cap: Option<f32>,
    /// Queries, keys and values are cut off at this and its negative.
    pub attention_clip: Option<f32>,
    /// Whether each head has a logit of its own in the softmax, which has no value.
    pub sinks: bool,
    /// Whether they are also divided by the number of the block, counted from 1.
    pub scale_by_layer: bool,
    /// Added to the mean square or the variance of a norm.
    pub norm_epsilon: f64,
    /// Where norms stand, and what the MLP reads.
    pub residual: Residual,
    /// f of the MLP.
    pub activation: Activation,
    /// Which maps have a bias.
    pub bias: Bias,
    /// Experts in place of the MLP, in the layers that say so.
    pub experts: Option<Experts>,
    /// The adapters on it.
    pub adapters: Adapters,
}

/// How attention and MLP hang on the residual stream x; what they read and what they add may be normed, as the layout says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// x += attention(x), then x += mlp(x).
    Sequential,
    /// x += attention(x) + mlp(x).
    Parallel,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layer {
    /// How many tokens a query sees at most, its own the last of them; none: all before it.
    pub window: Option<usize>,
    /// How queries and keys are turned.
    pub positions: Positions,
    /// Whether it has experts in place of an MLP.
    pub experts: bool,
}

/// How a layer turns queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Positions {
    /// By `rotary`.
    #[default]
    Global,
    /// By `local_rotary`.
    Local,
    /// Not at all.
    None,
}

/// A mixture of experts: each is an MLP, and a router has each token seen by some of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many see a token.
    pub chosen: usize,
    /// Width of each.
    pub intermediate_size: usize,
    /// Whether the weights of the chosen are a softmax over them, or theirs of the softmax over all.
    pub normalised: bool,
    /// Whether the router has a bias.
    pub router_bias: bool,
    /// Width of an expert that sees every token, times the sigmoid of a map of its own.
    pub shared: Option<usize>,
    /// l, where gate is cut off above l, up at -l and l, and their product is f(gate) (up + 1).
    pub limit: Option<f32>,
}

/// Which linear maps have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bias {
    /// Those that make queries, keys and values.
    pub attention_inputs: bool,
    /// The one from the heads.
    pub attention_output: bool,
    /// Those of the MLP.
    pub mlp: bool,
}

impl Config {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a missing or malformed file and for every variant that is not supported, by name.
    pub fn load(folder: &Path) -> Result<Self> {
        let keys = Keys::load(folder)?;
        for adapter in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
            if folder.join(adapter).exists() {
                return Err(keys.refuse(&format!(
                    "{adapter} stands beside the model, and nothing says whether it is in effect: name its folder as `adapter` \
                     beside `path` in [model], and let `path` be a folder of the base alone"
                )));
            }
        }
        Self::read(&keys)
    }

    /// Reads the `config.json` of a checkpoint, and the `adapter_config.json` of its adapters.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Ok(Self { adapters: checkpoint.adapters()?, ..Self::load(&checkpoint.folder)? })
    }

    /// As [`Config::load`], of the content of a `config.json`; of its adapters under the key [`ADAPTERS`], as
    /// [`Adapters::to_json`] writes them.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_json(json: &Value) -> Result<Self> {
        let adapters = json.get(ADAPTERS).map_or_else(|| Ok(Adapters::default()), Adapters::deserialize)?;
        Ok(Self { adapters, ..Self::read(&Keys::of(json.clone()))? })
    }

    /// Whether an adapter changes the embedding or the head, one without the other.
    pub(crate) fn is_untied_by_adapters(&self) -> Result<bool> {
        let layout = self.layout();
        let changes = |adapter: &&Lora, path: &str| adapter.on(path, false).is_some() || adapter.saves(path);
        let changes = |adapter: &&Lora| changes(adapter, layout.embedding) || changes(adapter, layout.head[0]);
        match self.adapters.list.iter().find(changes) {
            Some(adapter) if adapter.ties() => Err(bad_input(
                "an adapter changes the embedding or the head under `ensure_weight_tying`, which is not supported: merge it into \
                 its base and give that as `path`",
            )),
            changed => Ok(changed.is_some()),
        }
    }

    fn read(keys: &Keys) -> Result<Self> {
        let config = family::read(keys)?;
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            return Err(keys.refuse("`num_attention_heads` must be a multiple of `num_key_value_heads`"));
        }
        config.check_size().map_err(|what| keys.refuse(&what))?;
        Ok(config)
    }

    /// Refuses sizes that no model has: what follows from them, a list of every module first, would take all memory.
    ///
    /// # Errors
    /// Which size cannot be.
    pub fn check_size(&self) -> Result<(), String> {
        let [heads, _] = self.head_widths();
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers, LAYERS),
            ("hidden_size", self.hidden_size, WIDTH),
            ("intermediate_size", self.intermediate_size, WIDTH),
            ("num_attention_heads` times `head_dim", heads, WIDTH),
            ("vocab_size", self.vocab_size, ROWS),
            ("max_position_embeddings", self.max_position_embeddings, ROWS),
        ];
        if let Some(experts) = &self.experts {
            let sizes = [
                ("num_experts", experts.count, EXPERTS),
                ("num_hidden_layers` times `num_experts", experts.count * self.num_hidden_layers, EXPERTS),
                ("moe_intermediate_size", experts.intermediate_size.max(experts.shared.unwrap_or(0)), WIDTH),
            ];
            if let Some((name, size, most)) = sizes.into_iter().find(|(_, size, most)| size > most) {
                return Err(format!("`{name}` cannot be {size}: no model has more than {most}"));
            }
            if experts.chosen > experts.count {
                return Err(format!(
                    "`num_experts_per_tok` is {} of {} experts; it cannot be more than there are",
                    experts.chosen, experts.count
                ));
            }
        }
        match sizes.into_iter().find(|(_, size, most)| size > most) {
            Some((name, size, most)) => Err(format!("`{name}` cannot be {size}: no model has more than {most}")),
            None => Ok(()),
        }
    }

    /// The config of a Llama as `transformers` reads it.
    pub fn to_json(&self) -> Value {
        llama::to_json(self)
    }

    /// Refuses a model of text inside another: what is written would lack the rest of it.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn check_written(&self) -> Result<(), String> {
        match self.architecture {
            Architecture::Gemma3 => {
                Err("the model is one of text and pictures, of which the text alone is read; give the model of \
                                         text by itself (`gemma3_text`) to train it"
                    .into())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn layout(&self) -> &'static Layout {
        self.architecture.layout()
    }

    /// What is particular to a layer.
    pub fn layer(&self, index: usize) -> Layer {
        self.layers.get(index).copied().unwrap_or_default()
    }

    /// Scale of the attention scores of a block.
    pub(crate) fn scale(&self, layer: usize) -> f32 {
        if self.scale_by_layer { self.attention_scale / (layer + 1) as f32 } else { self.attention_scale }
    }

    /// Width of all query heads, and of all key heads.
    pub(crate) fn head_widths(&self) -> [usize; 2] {
        [self.num_attention_heads, self.num_key_value_heads].map(|heads| heads * self.head_dim)
    }
}

/// The ids with which the model ends a text: `eos_token_id` of generation_config.json, or of config.json where that says
/// none; one or a list; none if it has none.
///
/// # Errors
/// [`crate::BadInput`] for a file that is missing or not JSON.
pub fn end_tokens(folder: &Path) -> Result<Vec<u32>> {
    let generation = folder.join(GENERATION);
    let mut keys = if generation.exists() { Keys::read(generation)? } else { Keys::load(folder)? };
    if keys.value("eos_token_id").is_null() {
        keys = Keys::load(folder)?;
    }
    let ids = match keys.value("eos_token_id") {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
    ids.iter()
        .map(id)
        .collect::<Option<_>>()
        .ok_or_else(|| keys.refuse("`eos_token_id` must be a token id or a list of them"))
}
