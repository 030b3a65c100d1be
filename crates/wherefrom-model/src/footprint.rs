//! What a model needs in memory, from its sizes alone.

use crate::head::HEAD_LOGITS;
use crate::module::{Module, Part};
use crate::outline::{Outline, Shape};

/// Bytes of activations that a batch may keep: a wider model takes fewer tokens at a time.
pub const ACTIVATION_BYTES: usize = 1 << 30;
/// Tokens of a sequence that is expected: one sequence at least is tapped at once.
const TAPPED_TOKENS: usize = 512;
/// Fewer tokens than this make products slow.
const LEAST_TOKENS: usize = 256;

/// Tokens of a batch: what is asked for, or as many as keep so many bytes of activations.
pub(crate) fn batch_tokens(outline: &Outline, asked: usize, bytes: usize) -> usize {
    asked.min((bytes / (4 * kept(outline)).max(1)).max(LEAST_TOKENS))
}

/// The same where each token keeps its probabilities, too.
pub(crate) fn linearised_tokens(outline: &Outline, asked: usize) -> usize {
    asked.min((ACTIVATION_BYTES / (4 * (kept(outline) + outline.vocabulary()))).max(LEAST_TOKENS))
}

/// Numbers that a token keeps for the backward pass: outputs of the linear maps, of experts those that see it, and the residual
/// stream of each block.
fn kept(outline: &Outline) -> usize {
    let outputs: f64 = outline.maps().iter().map(|map| map.share() * map.out_features as f64).sum();
    outputs.round() as usize + outline.blocks.len() * outline.hidden()
}

/// How a matrix is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Bytes of a number.
    pub bytes: u64,
    /// Whether products take it in float32, so that a copy is made for each.
    pub widened: bool,
}

impl Held {
    /// As products take it.
    pub const FLOAT32: Self = Self { bytes: 4, widened: false };
}

/// Bytes that a forward and an activation-only backward pass hold at once, in float32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Every parameter, in float32.
    pub weights: u64,
    /// The same as they are held: in their files' 16 bits a number, say.
    pub held: u64,
    /// The largest matrix of those that are widened while a product takes them.
    pub widened: u64,
    /// The largest matrix, gains and biases: what is there at once of weights that are read where a pass needs them.
    pub largest: u64,
    /// Tokens of a batch.
    pub batch_tokens: u64,
    /// Whether all weights are in memory, or read where a pass needs them.
    pub holds_weights: bool,
    /// Of a batch: what each block keeps for the backward pass (outputs of its linear maps, and the residual stream), what
    /// one block needs in it, and two tables of logits.
    pub activations: u64,
}

impl Footprint {
    /// Of the batches that [`crate::Model::batches`] makes of `batch_tokens`.
    pub fn new(outline: &Outline, batch_tokens: usize) -> Self {
        let batch_tokens = self::batch_tokens(outline, batch_tokens, ACTIVATION_BYTES);
        let (kept, vocabulary) = (kept(outline), outline.vocabulary());
        let backward = 2 * kept / outline.blocks.len().max(1);
        let logits = (batch_tokens * vocabulary).min(HEAD_LOGITS.max(vocabulary));
        let (matrices, vectors): (Vec<_>, Vec<_>) = outline.tensors().iter().partition(|shape| shape.sizes.len() > 1);
        let largest = matrices.iter().map(|shape| shape.numbers()).max().unwrap_or(0);
        Self {
            weights: 4 * outline.parameters(),
            held: 4 * outline.parameters(),
            widened: 0,
            largest: 4 * (largest + vectors.into_iter().chain(outline.halves()).map(Shape::numbers).sum::<u64>()),
            batch_tokens: batch_tokens as u64,
            holds_weights: true,
            activations: 4 * (batch_tokens * (kept + backward) + 2 * logits) as u64,
        }
    }

    /// The same beside taps of tables and of the head, whose rows are as long as the vocabulary: of `TAPPED_TOKENS`, or as many as
    /// the logits have room for, the logits, their gradient, one-hots, and both uses of a tied matrix together.
    pub fn tapping(self, modules: &[Module]) -> Self {
        let numbers = |module: &Module| {
            let (out, whole) = (module.out_features, self.batch_tokens as usize);
            let tables = if module.part == Part::Tied { 5 } else { 2 };
            tables * out * whole.min(TAPPED_TOKENS.max(HEAD_LOGITS / out))
        };
        let outside = modules.iter().filter(|module| !module.part.is_map() && module.part != Part::Norm);
        let largest = outside.map(numbers).max().unwrap_or(0);
        Self { activations: self.activations + 4 * largest as u64, ..self }
    }

    /// The same with matrices that are held in other types.
    pub fn holding(self, outline: &Outline, held: impl Fn(&Shape) -> Held) -> Self {
        let (mut all, mut largest) = (4 * outline.halves().map(Shape::numbers).sum::<u64>(), 0);
        for shape in outline.tensors() {
            let Held { bytes, widened } = if shape.sizes.len() > 1 { held(shape) } else { Held::FLOAT32 };
            all += bytes * shape.numbers();
            largest = largest.max(if widened { 4 * shape.numbers() } else { 0 });
        }
        Self { held: all, widened: largest, ..self }
    }

    /// The same with weights that are read where a pass needs them.
    pub fn by_block(self) -> Self {
        Self { holds_weights: false, ..self }
    }

    /// The same with all weights in memory where they and `beside` further bytes fit the limit, and read where a pass needs
    /// them where not.
    pub fn fitting(self, limit: Option<u64>, beside: u64) -> Self {
        Self {
            holds_weights: limit.is_none_or(|limit| self.held + self.widened + self.activations + beside <= limit),
            ..self
        }
    }

    /// Bytes of weights.
    pub fn weight_bytes(self) -> u64 {
        if self.holds_weights { self.held + self.widened } else { self.largest }
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.weight_bytes() + self.activations
    }

    /// What a plan says of it.
    pub fn note(self) -> &'static str {
        if self.holds_weights { "" } else { "weights read block by block" }
    }
}
