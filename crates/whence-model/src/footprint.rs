//! What a model needs in memory, from its sizes alone.

use crate::config::Config;
use crate::model::HEAD_LOGITS;

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
    /// Of batches of `batch_tokens`.
    pub fn new(config: &Config, batch_tokens: usize) -> Self {
        let modules = config.modules();
        let outputs: usize = modules.iter().map(|module| module.out_features).sum();
        let layers = config.num_hidden_layers.max(1);
        let kept = outputs + layers * config.hidden_size;
        let on_the_way_back = 2 * kept / layers;
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
