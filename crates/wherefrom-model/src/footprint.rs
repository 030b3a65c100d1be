//! What a model needs in memory, from its sizes alone.

use crate::config::Config;
use crate::model::HEAD_LOGITS;

/// Bytes of activations that a batch may keep: a wider model takes fewer tokens at a time.
pub const ACTIVATION_BYTES: usize = 1 << 30;
/// Fewer tokens than this make products slow.
const LEAST_TOKENS: usize = 256;

/// Tokens of a batch: what is asked for, or as many as keep so many bytes of activations.
pub(crate) fn batch_tokens(config: &Config, asked: usize, bytes: usize) -> usize {
    asked.min((bytes / (4 * kept(config)).max(1)).max(LEAST_TOKENS))
}

/// Numbers that a token keeps for the way back: outputs of the linear maps, and the residual stream of each block.
fn kept(config: &Config) -> usize {
    let outputs: usize = config.modules().iter().map(|module| module.out_features).sum();
    outputs + config.num_hidden_layers * config.hidden_size
}

/// Bytes that a forward and an activation-only backward pass hold at once, in float32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Every parameter.
    pub weights: u64,
    /// Of a batch: what each block keeps for the way back (outputs of its linear maps, and the residual stream), what
    /// one block needs on the way back, and two tables of logits.
    pub activations: u64,
}

impl Footprint {
    /// Of the batches that [`crate::Model::batches`] makes of `batch_tokens`.
    pub fn new(config: &Config, batch_tokens: usize) -> Self {
        let (batch_tokens, kept) = (self::batch_tokens(config, batch_tokens, ACTIVATION_BYTES), kept(config));
        let on_the_way_back = 2 * kept / config.num_hidden_layers.max(1);
        let logits = (batch_tokens * config.vocab_size).min(HEAD_LOGITS.max(config.vocab_size));
        Self {
            weights: 4 * config.parameters(),
            activations: 4 * (batch_tokens * (kept + on_the_way_back) + 2 * logits) as u64,
        }
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.weights + self.activations
    }
}
