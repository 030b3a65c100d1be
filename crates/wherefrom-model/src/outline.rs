//! A model without its weights: every tensor and every linear map, by name and shape.
//!
//! The blocks that run forward and backward stand here, too. They hold the names of their weights, so that what a model
//! computes, which of its maps are attributed and what it takes in memory are read off one structure.

use crate::blocks::{Attention, Block, Experts, Feed, Gate, Mlp, Norms, Shared};
use crate::config::{self, Config};
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
        let mut builder =
            Builder { config, layout, maps: Vec::new(), norms: Vec::new(), modules: Vec::new(), routed: None };
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
    /// Vectors that belong to no map.
    norms: Vec<Shape>,
    modules: Vec<Module>,
    /// Of the maps of experts: how many of how many see a token.
    routed: Option<[usize; 2]>,
}

impl Builder<'_> {
    fn block(&mut self, index: usize) -> Block {
        let (config, layout, first) = (self.config, self.layout, self.modules.len());
        let (hidden, [queries, keys]) = (config.hidden_size, config.head_widths());
        let attention_norms = self.norms_in(index, layout.attention_norms);
        let mlp_norms = self.norms_in(index, layout.mlp_norms);
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
        let place = (index, Part::Attention);
        let inputs = self.maps(place, layout.attention_inputs, hidden, slices, config.bias.attention_inputs);
        let output = self.map(place, layout.attention_output, queries, hidden, config.bias.attention_output);
        let sinks = config.sinks.then(|| format!("{}.{index}.self_attn.sinks", layout.blocks));
        self.norms.extend(sinks.iter().map(|name| Shape::plain(name, &[config.num_attention_heads])));
        let own = config.layer(index);
        let attention = Attention {
            inputs,
            head_norms,
            clip: config.attention_clip,
            positions: own.positions,
            scale: config.scale(index),
            cap: config.attention_cap,
            window: own.window,
            sinks,
            output,
        };
        let mlp = match &config.experts {
            Some(experts) if own.experts => Feed::Experts(self.experts(index, experts)),
            _ => Feed::Mlp(self.mlp(index, layout.mlp_inputs, layout.mlp_output, config.intermediate_size)),
        };
        let (residual, scale) = (config.residual, config.residual_scale);
        Block { residual, scale, modules: first..self.modules.len(), attention_norms, attention, mlp_norms, mlp }
    }

    fn mlp(&mut self, layer: usize, inputs: &[&str], output: &str, inner: usize) -> Mlp {
        let (config, place) = (self.config, (layer, Part::Mlp));
        let slices = match self.layout.gate_beside_up {
            true => vec![Slices::side_by_side(vec![inner; 2])],
            false => inputs.iter().map(|_| Slices::one(inner)).collect(),
        };
        let inputs = self.maps(place, inputs, config.hidden_size, slices, config.bias.mlp);
        let output = self.map(place, output, inner, config.hidden_size, config.bias.mlp);
        let limit = config.experts.as_ref().and_then(|experts| experts.limit);
        Mlp { inputs, gate: Gate { activation: config.activation, limit }, output }
    }

    fn experts(&mut self, layer: usize, experts: &config::Experts) -> Experts {
        let (hidden, place) = (self.config.hidden_size, (layer, Part::Router));
        let names = self.layout.experts.as_ref().expect("a layout of experts");
        let router = self.map(place, names.router, hidden, experts.count, experts.router_bias);
        let expert = |builder: &mut Self, base: &str, inner: usize| {
            let [gate, up, down] = names.maps.map(|map| format!("{base}.{map}"));
            builder.mlp(layer, &[&gate, &up], &down, inner)
        };
        self.routed = Some([experts.chosen, experts.count]);
        let all = (0..experts.count)
            .map(|number| expert(self, &format!("{}.{number}", names.experts), experts.intermediate_size))
            .collect();
        self.routed = None;
        let shared = experts.shared.map(|inner| Shared {
            gate: self.map(place, names.shared_gate, hidden, 1, false),
            mlp: expert(self, names.shared, inner),
        });
        Experts { router, experts: all, chosen: experts.chosen, normalised: experts.normalised, shared }
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
            let (input, routed) = (input.clone(), self.routed);
            let module = Module { name, in_features, out_features, bias, input, layer, part, routed };
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

    fn norms_in(&mut self, layer: usize, names: [Option<&str>; 2]) -> Norms {
        let width = self.config.hidden_size;
        let [before, after] = names.map(|name| name.map(|name| self.norm_in(layer, name, width)));
        Norms { before, after }
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
