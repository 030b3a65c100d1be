//! A model without its weights: every tensor and every linear map, by name and shape.
//!
//! The blocks that run forward and backward stand here, too. They hold the names of their weights, so that what a model
//! computes, which of its maps are attributed and what it takes in memory are read off one structure.

use crate::blocks::{Attention, Block, Mlp};
use crate::config::Config;
use crate::family::{Fused, HeadNorms, Layout, NormKind};
use crate::linear::{Linear, Maps, Slices};
use crate::module::{Module, Part};
use crate::norm::Norm;

/// One tensor of a checkpoint, as it is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its name in `transformers`.
    pub name: String,
    /// `[out, in]` of a map, `[rows, width]` of an embedding, `[width]` of a bias or gain.
    pub sizes: Vec<usize>,
    /// Whether the file has it as `[in, out]`.
    pub transposed: bool,
}

impl Shape {
    fn plain(name: impl Into<String>, sizes: &[usize]) -> Self {
        Self { name: name.into(), sizes: sizes.into(), transposed: false }
    }

    /// How many numbers it has.
    pub fn numbers(&self) -> u64 {
        self.sizes.iter().map(|&size| size as u64).product()
    }
}

/// A model's tensors and maps, and the blocks that they make.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The embedding first.
    tensors: Vec<Shape>,
    modules: Vec<Module>,
    pub(crate) embedding: String,
    /// The embedding of learned positions.
    pub(crate) positions: Option<String>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: Norm,
    /// The vocabulary head: a tensor of its own, or the embedding.
    pub(crate) head: String,
}

impl Outline {
    /// The outline of a config; no weight is read, and nothing of their size is allocated.
    pub fn new(config: &Config) -> Self {
        let layout = config.layout();
        let mut builder = Builder { config, layout, maps: Vec::new(), norms: Vec::new(), modules: Vec::new() };
        let blocks = (0..config.num_hidden_layers).map(|index| builder.block(index)).collect();
        let final_norm = builder.norm(layout.final_norm.into(), config.hidden_size);

        let embedding = format!("{}.weight", layout.embedding);
        let positions = layout.positions.map(|name| format!("{name}.weight"));
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => format!("{}.weight", layout.head[0]),
        };
        let vocabulary = [config.vocab_size, config.hidden_size];
        let mut tensors = vec![Shape::plain(&embedding, &vocabulary)];
        if let Some(name) = &positions {
            tensors.push(Shape::plain(name, &[config.max_position_embeddings, config.hidden_size]));
        }
        tensors.extend(builder.maps);
        tensors.extend(builder.norms);
        if head != embedding {
            tensors.push(Shape::plain(&head, &vocabulary));
        }
        Self { tensors, modules: builder.modules, embedding, positions, blocks, final_norm, head }
    }

    /// Every tensor of the checkpoint.
    pub fn tensors(&self) -> &[Shape] {
        &self.tensors
    }

    /// Every linear map of the blocks, in forward order. The vocabulary head is none of them.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Rows of the embedding.
    pub fn vocabulary(&self) -> usize {
        self.tensors[0].sizes[0]
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.tensors[0].sizes[1]
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(Shape::numbers).sum()
    }
}

/// Puts blocks together, and notes every tensor and every map on the way.
struct Builder<'a> {
    config: &'a Config,
    layout: &'static Layout,
    maps: Vec<Shape>,
    norms: Vec<Shape>,
    modules: Vec<Module>,
}

impl Builder<'_> {
    fn block(&mut self, index: usize) -> Block {
        let (config, layout, first) = (self.config, self.layout, self.modules.len());
        let (hidden, inner, [queries, keys]) = (config.hidden_size, config.intermediate_size, config.head_widths());
        let attention_norm = self.norm_in(index, layout.attention_norm, hidden);
        let mlp_norm = self.norm_in(index, layout.mlp_norm, hidden);
        let head_norms = match layout.head_norms {
            HeadNorms::None => None,
            HeadNorms::PerHead => Some([config.head_dim; 2]),
            HeadNorms::Whole => Some([queries, keys]),
        };
        let [query_norm, key_norm] = HeadNorms::NAMES;
        let head_norms = head_norms.map(|[query_width, key_width]| {
            [self.norm_in(index, query_norm, query_width), self.norm_in(index, key_norm, key_width)]
        });

        let widths = vec![queries, keys, keys];
        let slices = match (layout.attention_inputs.len(), layout.fused) {
            (1, Fused::ByHead) => vec![Slices::by_head(widths, config.head_dim)],
            (1, Fused::Whole) => vec![Slices::side_by_side(widths)],
            _ => widths.into_iter().map(Slices::one).collect(),
        };
        let (attention, mlp) = ((index, Part::Attention), (index, Part::Mlp));
        let inputs = self.maps(attention, layout.attention_inputs, hidden, slices, config.bias.attention_inputs);
        let output = self.map(attention, layout.attention_output, queries, hidden, config.bias.attention_output);
        let attention = Attention { norm: attention_norm, inputs, head_norms, output, scale: config.scale(index) };

        let slices = layout.mlp_inputs.iter().map(|_| Slices::one(inner)).collect();
        let inputs = self.maps(mlp, layout.mlp_inputs, hidden, slices, config.bias.mlp);
        let output = self.map(mlp, layout.mlp_output, inner, hidden, config.bias.mlp);
        let mlp = Mlp { norm: mlp_norm, inputs, activation: config.activation, output };
        Block { residual: config.residual, modules: first..self.modules.len(), attention, mlp }
    }

    /// Maps of one block that read one input.
    fn maps(
        &mut self,
        (layer, part): (usize, Part),
        names: &[&str],
        inside: usize,
        slices: Vec<Slices>,
        bias: bool,
    ) -> Maps {
        let full = |name: &str| format!("{}.{layer}.{name}", self.layout.blocks);
        let (names, input): (Vec<_>, _) = (names.iter().map(|name| full(name)).collect(), full(names[0]));
        let map = |(name, slices): (String, Slices)| {
            let (in_features, out_features) = (inside + usize::from(bias), slices.width());
            let module = Module { name, in_features, out_features, bias, input: input.clone(), layer, part };
            let map = Linear::new(self.modules.len(), &module, slices);
            self.maps.push(Shape {
                transposed: self.layout.transposed,
                ..Shape::plain(module.weight(), &[out_features, inside])
            });
            if bias {
                self.maps.push(Shape::plain(module.bias(), &[out_features]));
            }
            self.modules.push(module);
            map
        };
        Maps(names.into_iter().zip(slices).map(map).collect())
    }

    /// A map whose input no other reads.
    fn map(&mut self, place: (usize, Part), name: &str, inside: usize, out: usize, bias: bool) -> Linear {
        self.maps(place, &[name], inside, vec![Slices::one(out)], bias).0.remove(0)
    }

    fn norm_in(&mut self, layer: usize, name: &str, width: usize) -> Norm {
        self.norm(format!("{}.{layer}.{name}", self.layout.blocks), width)
    }

    fn norm(&mut self, name: String, width: usize) -> Norm {
        let kind = self.layout.norm;
        self.norms.push(Shape::plain(format!("{name}.weight"), &[width]));
        if kind == NormKind::Layer {
            self.norms.push(Shape::plain(format!("{name}.bias"), &[width]));
        }
        Norm::new(name, kind, self.config.norm_epsilon as f32)
    }
}
