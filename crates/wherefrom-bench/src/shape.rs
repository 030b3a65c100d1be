//! Shapes of language models whose weights are drawn on the spot: what a card is measured with.

use serde_json::{Value, json};
use wherefrom_model::{Precision, Sizes};

/// A Llama by its sizes, and how much of it is run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Width of the residual stream, and of the MLP inside.
    hidden: usize,
    inner: usize,
    pub(crate) layers: usize,
    heads: usize,
    key_value_heads: usize,
    vocabulary: usize,
    /// Tokens of a batch, and sequences that most phases read.
    pub(crate) batch_tokens: usize,
    pub(crate) sequences: usize,
}

/// By size, the smallest first. `tiny` is for software adapters and for tests; the others have the sizes of SmolLM2-135M,
/// Llama 3.2 (1B, 3B), Llama 3.1 (8B), and Qwen2.5 (14B, 32B), the last two with the vocabulary of Llama 2.
pub(crate) static SHAPES: [Shape; 7] = [
    shape("tiny", [64, 192, 2], [4, 2], 512, [512, 16]),
    shape("135M", [576, 1536, 30], [9, 3], 49_152, [8192, 128]),
    shape("1B", [2048, 8192, 16], [32, 8], 128_256, [4096, 64]),
    shape("3B", [3072, 8192, 28], [24, 8], 128_256, [4096, 32]),
    shape("8B", [4096, 14_336, 32], [32, 8], 128_256, [2048, 24]),
    shape("14B", [5120, 13_824, 48], [40, 8], 32_000, [2048, 24]),
    shape("32B", [5120, 27_648, 64], [40, 8], 32_000, [2048, 24]),
];

const fn shape(
    name: &'static str,
    [hidden, inner, layers]: [usize; 3],
    [heads, key_value_heads]: [usize; 2],
    vocabulary: usize,
    [batch_tokens, sequences]: [usize; 2],
) -> Shape {
    Shape { name, hidden, inner, layers, heads, key_value_heads, vocabulary, batch_tokens, sequences }
}

impl Shape {
    /// The `config.json`; embedding and head are one matrix.
    pub(crate) fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000,
            "tie_word_embeddings": true,
            "attention_bias": false,
            "mlp_bias": false,
            "dtype": "float16",
        })
    }

    /// Whether all its MLPs are attributed, and its queries preconditioned.
    pub(crate) fn is_small(&self) -> bool {
        self.hidden < 1024
    }

    /// Numbers of the checkpoint.
    pub(crate) fn parameters(&self) -> u64 {
        let head = self.hidden / self.heads;
        let attention = 2 * self.hidden * (self.heads + self.key_value_heads) * head;
        let layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden;
        (self.vocabulary * self.hidden + self.layers * layer + self.hidden) as u64
    }

    /// Bytes of a card that it takes in float32, as a plan has it: weights, a batch, and the sums of the first block's MLP with
    /// their products.
    fn bytes(&self) -> u64 {
        let sizes = Sizes::new(&self.config(), &Value::Null, self.batch_tokens);
        let passes = sizes.map_or(u64::MAX / 2, |sizes| sizes.held(Precision::F32, false).footprint.total());
        passes + 12 * (2 * self.hidden.pow(2) + 3 * self.inner.pow(2)) as u64
    }

    /// Bytes of its largest tensor in float32: the embedding, or a covariance.
    fn largest_tensor(&self) -> u64 {
        4 * (self.hidden * self.vocabulary).max(self.inner * self.inner) as u64
    }
}

/// The largest shape above 1B that fits `memory` bytes and tensors of `largest` bytes, of which four fifths are taken.
pub(crate) fn largest(memory: u64, largest: Option<u64>, disk: Option<u64>) -> Option<&'static Shape> {
    let fits = |shape: &&Shape| {
        shape.bytes() <= memory / 5 * 4
            && largest.is_none_or(|largest| shape.largest_tensor() <= largest)
            && disk.is_none_or(|disk| 2 * shape.parameters() <= disk / 2)
    };
    SHAPES[3..].iter().rev().find(fits)
}

#[cfg(test)]
mod tests {
    use wherefrom_model::{Config, Outline};

    use super::*;

    #[test]
    fn a_shape_is_as_large_as_its_name_says() {
        for shape in &SHAPES {
            let config = Config::from_json(&shape.config()).unwrap();
            assert_eq!(Outline::new(&config).parameters(), shape.parameters(), "{}", shape.name);
        }
        let billions = |name: &str| SHAPES.iter().find(|shape| shape.name == name).unwrap().parameters() as f64 / 1e9;
        for (name, size) in [("135M", 0.135), ("1B", 1.24), ("3B", 3.2), ("8B", 7.5), ("14B", 14.0), ("32B", 31.5)] {
            assert!((billions(name) / size - 1.0).abs() < 0.1, "{name}: {}", billions(name));
        }
    }

    #[test]
    fn the_largest_that_fits_is_taken() {
        let name = |gib: u64, tensor: Option<u64>| largest(gib << 30, tensor, None).map(|shape| shape.name);
        let (two, four) = (Some((2 << 30) - 1), Some((4 << 30) - 4));
        assert_eq!(name(16, two), None);
        assert_eq!(name(24, two), Some("3B"));
        assert_eq!(name(48, two), Some("8B"));
        assert_eq!(name(80, two), Some("14B"));
        assert_eq!(name(192, four), Some("32B"));
        assert_eq!(name(192, two), Some("14B"));
        // An interface whose tensors are small.
        assert_eq!(name(192, Some(128 << 20)), None);
        // Weights are written to a disk first.
        assert_eq!(largest(192 << 30, four, Some(20 << 30)).map(|shape| shape.name), Some("3B"));
    }
}
