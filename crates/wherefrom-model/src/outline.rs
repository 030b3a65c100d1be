//! A model without its weights: every tensor and every linear map, by name and shape.
//!
//! The blocks that run forward and backward stand here, too. They hold the names of their weights, so that what a model
//! computes, which of its maps are attributed and what it takes in memory are read off one structure.

use crate::adapter::Fit;
use crate::blocks::{Attention, Block, Experts, Feed, Gate, Mlp, Norms, Shared};
use crate::config::{self, Config};
use crate::family::{Fused, HeadNorms, Layout, NormKind};
use crate::linear::{Half, Linear, LowRank, Maps, Slices};
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

/// An adapter on one matrix: W + s B A.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adapted {
    /// Which of the adapters.
    pub(crate) adapter: usize,
    /// Of the matrix, without `.weight`.
    pub(crate) path: String,
    /// Whether the matrix is a map of a block; otherwise an embedding or the head.
    pub(crate) in_blocks: bool,
    /// Whether it is an embedding, of which PEFT keeps A as [r, rows] and B as [width, r].
    pub(crate) embedding: bool,
    /// A [r, in], B [out, r].
    pub(crate) halves: [Shape; 2],
    /// s.
    pub(crate) scale: f32,
    /// Whether A and B stand beside the matrix in a pass; otherwise they are added to it.
    pub(crate) in_effect: bool,
}

/// A model's tensors and maps, and the blocks that they make.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The embedding first.
    tensors: Vec<Shape>,
    pub(crate) adapted: Vec<Adapted>,
    /// Tensors that an adapter holds whole.
    saved: Vec<String>,
    modules: Vec<Module>,
    /// Numbers of the modules that are tables, of tokens and of positions.
    pub(crate) table: Option<usize>,
    pub(crate) position_table: Option<usize>,
    /// That of the head, unless it is the table of tokens.
    pub(crate) head_module: Option<usize>,
    /// Every map of the blocks that a pass computes, those of adapters that stand beside theirs included.
    maps: Vec<Module>,
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
        let mut builder = Builder {
            config,
            layout,
            maps: Vec::new(),
            norms: Vec::new(),
            modules: Vec::new(),
            adapted: Vec::new(),
            computed: Vec::new(),
            routed: None,
        };
        let (layers, tied) = (config.num_hidden_layers, config.tie_word_embeddings);
        let size = [config.vocab_size, config.hidden_size];
        let table = builder.beside(layout.embedding, size, (0, if tied { Part::Tied } else { Part::Table }));
        let places = [config.max_position_embeddings, config.hidden_size];
        let position_table = layout.positions.and_then(|name| builder.beside(name, places, (0, Part::Table)));
        let blocks = (0..layers).map(|index| builder.block(index)).collect();
        let final_norm = builder.norm(layout.final_norm.into(), config.hidden_size, layers);
        let head_module = if tied { None } else { builder.beside(layout.head[0], size, (layers, Part::Head)) };

        let embedding = format!("{}.weight", layout.embedding);
        let positions = layout.positions.map(|name| format!("{name}.weight"));
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => format!("{}.weight", layout.head[0]),
        };
        let vocabulary = [config.vocab_size, config.hidden_size];
        builder.adapt_whole(layout.embedding, vocabulary, true);
        if let Some(name) = layout.positions {
            builder.adapt_whole(name, [config.max_position_embeddings, config.hidden_size], true);
        }
        builder.adapt_whole(layout.head[0], vocabulary, false);
        let mut tensors = vec![Shape::plain(&embedding, &vocabulary)];
        if let Some(name) = &positions {
            tensors.push(Shape::plain(name, &[config.max_position_embeddings, config.hidden_size]));
        }
        tensors.extend(builder.maps);
        tensors.extend(builder.norms);
        if head != embedding {
            tensors.push(Shape::plain(&head, &vocabulary));
        }
        let Builder { modules, adapted, computed: maps, .. } = builder;
        let module = |shape: &Shape| shape.name.rsplit_once('.').map_or(String::new(), |(path, _)| path.into());
        let saves = |shape: &&Shape| config.adapters.list.iter().any(|adapter| adapter.saves(&module(shape)));
        let saved = tensors.iter().filter(saves).map(|shape| shape.name.clone()).collect();
        Self {
            tensors,
            adapted,
            saved,
            modules,
            table,
            position_table,
            head_module,
            maps,
            embedding,
            positions,
            blocks,
            final_norm,
            head,
        }
    }

    /// Every tensor of the checkpoint, without its adapters.
    pub fn tensors(&self) -> &[Shape] {
        &self.tensors
    }

    /// A and B of every adapter.
    pub(crate) fn halves(&self) -> impl Iterator<Item = &Shape> {
        self.adapted.iter().flat_map(|adapted| &adapted.halves)
    }

    /// Whether there is a saved tensor or an adapter on any matrix.
    pub(crate) fn has_adapters(&self) -> bool {
        !self.adapted.is_empty() || !self.saved.is_empty()
    }

    /// Whether A or B is a parameter of its own, rather than a part of the matrix that it was added to.
    pub(crate) fn stands_beside(&self, half: &Shape) -> bool {
        let of = self.adapted.iter().find(|adapted| adapted.halves.contains(half));
        of.is_some_and(|adapted| adapted.in_effect)
    }

    /// Whether adapters trained a tensor: A, B, a matrix that they are merged into, or one that they hold whole.
    pub(crate) fn is_trained(&self, tensor: &Shape) -> bool {
        self.stands_beside(tensor) || self.saved.contains(&tensor.name) || self.is_merged(tensor)
    }

    /// Whether adapters are added to a matrix as it is read.
    pub(crate) fn is_merged(&self, tensor: &Shape) -> bool {
        let path = tensor.name.strip_suffix(".weight");
        self.adapted.iter().any(|adapted| !adapted.in_effect && path == Some(&*adapted.path))
    }

    /// Every linear map of the blocks that a pass computes, attributed or not.
    pub(crate) fn maps(&self) -> &[Module] {
        &self.maps
    }

    /// Whether a tensor is an embedding, of which a pass reads rows.
    pub(crate) fn is_embedding(&self, name: &str) -> bool {
        name == self.embedding || self.positions.as_deref() == Some(name)
    }

    /// Everything that can be attributed, in forward order: tables, linear maps and norms of the blocks, the last norm and the
    /// head; of a model whose adapters are attributed, their maps alone.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Numbers of the modules that are tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = usize> {
        [self.table, self.position_table].into_iter().flatten()
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
        self.tensors.iter().chain(self.halves()).map(Shape::numbers).sum()
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
    adapted: Vec<Adapted>,
    /// Every map of a pass.
    computed: Vec<Module>,
    /// Of the maps of experts: how many of how many see a token.
    routed: Option<[usize; 2]>,
}

impl Builder<'_> {
    fn block(&mut self, index: usize) -> Block {
        let (config, layout, first) = (self.config, self.layout, self.modules.len());
        let (hidden, [queries, keys]) = (config.hidden_size, config.head_widths());
        // In forward order, since numbers of modules are.
        let entering = |builder: &mut Self, [before, _]: [Option<&str>; 2]| {
            before.map(|name| builder.norm_in(index, name, hidden))
        };
        let leaving =
            |builder: &mut Self, [_, after]: [Option<&str>; 2]| after.map(|name| builder.norm_in(index, name, hidden));
        let before = entering(self, layout.attention_norms);
        let head_norms = match layout.head_norms {
            HeadNorms::None => None,
            HeadNorms::PerHead => Some([config.head_dim; 2]),
            HeadNorms::Whole => Some([queries, keys]),
        };
        let widths = vec![queries, keys, keys];
        let slices = match (layout.attention_inputs.len(), layout.fused) {
            (1, Fused::ByHead) => vec![Slices::by_head(widths, config.head_dim)],
            (1, Fused::Whole) => vec![Slices::side_by_side(widths)],
            _ => widths.into_iter().map(Slices::one).collect(),
        };
        let place = (index, Part::Attention);
        let inputs = self.maps(place, layout.attention_inputs, hidden, slices, config.bias.attention_inputs);
        let [query_norm, key_norm] = HeadNorms::NAMES;
        let head_norms = head_norms.map(|[query_width, key_width]| {
            [self.norm_in(index, query_norm, query_width), self.norm_in(index, key_norm, key_width)]
        });
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
        let attention_norms = Norms { before, after: leaving(self, layout.attention_norms) };
        let before = entering(self, layout.mlp_norms);
        let mlp = match &config.experts {
            Some(experts) if own.experts => Feed::Experts(self.experts(index, experts)),
            _ => Feed::Mlp(self.mlp(index, layout.mlp_inputs, layout.mlp_output, config.intermediate_size)),
        };
        let mlp_norms = Norms { before, after: leaving(self, layout.mlp_norms) };
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
        let (first, are_modules) = (self.modules.len(), !self.config.adapters.are_modules());
        let map = |(name, slices): (String, Slices)| {
            let (in_features, out_features) = (inside + usize::from(bias), slices.width());
            let (input, routed) = (input.clone(), self.routed);
            let module = Module { name, in_features, out_features, bias, input, layer, part, routed };
            self.maps.push(Shape {
                transposed: self.layout.transposed,
                ..Shape::plain(module.weight(), &[out_features, inside])
            });
            if bias {
                self.maps.push(Shape::plain(module.bias(), &[out_features]));
            }
            let (weight, bias) = (module.weight(), module.bias.then(|| module.bias()));
            let number = are_modules.then_some(self.modules.len());
            self.modules.extend(are_modules.then(|| module.clone()));
            self.computed.push(module);
            Linear { number, first, weight, bias, slices, adapters: Vec::new() }
        };
        let mut maps = Maps(names.iter().cloned().zip(slices).map(map).collect());
        // PEFT finds no map in fused experts, nor routers: `target_parameters` is refused.
        if self.routed.is_none() && part != Part::Router {
            self.adapt_maps(&mut maps, &names, inside, (layer, part));
        }
        maps
    }

    /// Puts adapters beside maps that read one input: as modules every A, which read that input, too, and then every B.
    fn adapt_maps(&mut self, maps: &mut Maps, names: &[String], inside: usize, (layer, part): (usize, Part)) {
        let (own, are_modules) = (self.adapted.len().., self.config.adapters.are_modules());
        for (map, name) in maps.0.iter_mut().zip(names) {
            for mut adapted in self.adapted_of(name, [inside, map.slices.width()], true) {
                adapted.in_effect = self.config.adapters.are_in_effect();
                if adapted.in_effect {
                    let [a, b] = adapted.halves.clone().map(|half| Half { number: None, weight: half.name });
                    map.adapters.push(LowRank { a, b, scale: adapted.scale });
                }
                self.adapted.push(adapted);
            }
        }
        let adapted = self.adapted[own].iter().filter(|adapted| adapted.in_effect);
        let name = |half: &Shape| half.name.trim_end_matches(".weight").to_string();
        let Some(input) = adapted.clone().next().map(|first| name(&first.halves[0])) else { return };
        for side in 0..2 {
            let adapters = maps.0.iter_mut().flat_map(|map| &mut map.adapters);
            for (adapter, half) in adapters.zip(adapted.clone().map(|adapted| &adapted.halves[side])) {
                let ([out_features, in_features], name) = ([half.sizes[0], half.sizes[1]], name(half));
                let input = if side == 0 { input.clone() } else { name.clone() };
                let routed = None;
                let map = Module { name, in_features, out_features, bias: false, input, layer, part, routed };
                if are_modules {
                    let number = if side == 0 { &mut adapter.a.number } else { &mut adapter.b.number };
                    *number = Some(self.modules.len());
                    self.modules.push(map.clone());
                }
                self.computed.push(map);
            }
        }
    }

    /// Adapters of a matrix outside the blocks: they are added to it.
    fn adapt_whole(&mut self, name: &str, [rows, width]: [usize; 2], embedding: bool) {
        let mut adapted = self.adapted_of(name, [width, rows], false);
        adapted.iter_mut().for_each(|adapted| adapted.embedding = embedding);
        self.adapted.extend(adapted);
    }

    fn adapted_of(&self, path: &str, [inside, out]: [usize; 2], in_blocks: bool) -> Vec<Adapted> {
        let adapters = &self.config.adapters;
        let fits =
            adapters.list.iter().enumerate().filter_map(|(index, adapter)| Some((index, adapter.on(path, in_blocks)?)));
        let adapted = |(adapter, Fit { rank, scale }): (usize, Fit)| {
            let ending = adapters.ending(adapter);
            let half = |half: &str, sizes: &[usize]| Shape::plain(format!("{path}.lora_{half}{ending}.weight"), sizes);
            let halves = [half("A", &[rank, inside]), half("B", &[out, rank])];
            Adapted { adapter, path: path.into(), embedding: false, halves, scale, in_blocks, in_effect: false }
        };
        fits.map(adapted).collect()
    }

    /// A map whose input no other reads.
    fn map(&mut self, place: (usize, Part), name: &str, inside: usize, out: usize, bias: bool) -> Linear {
        self.maps(place, &[name], inside, vec![Slices::one(out)], bias).0.remove(0)
    }

    fn norm_in(&mut self, layer: usize, name: &str, width: usize) -> Norm {
        self.norm(format!("{}.{layer}.{name}", self.layout.blocks), width, layer)
    }

    /// A module that is no linear map of the blocks, [out, in]; none where adapters are attributed.
    fn beside(&mut self, name: &str, [out, inside]: [usize; 2], (layer, part): (usize, Part)) -> Option<usize> {
        let number = (!self.config.adapters.are_modules()).then_some(self.modules.len())?;
        self.modules.push(Module {
            name: name.into(),
            in_features: inside,
            out_features: out,
            bias: part == Part::Norm && self.layout.norm == NormKind::Layer,
            input: name.into(),
            layer,
            part,
            routed: None,
        });
        Some(number)
    }

    fn norm(&mut self, name: String, width: usize, layer: usize) -> Norm {
        let kind = self.layout.norm;
        let numbers = if kind == NormKind::Layer { 2 * width } else { width };
        let number = self.beside(&name, [numbers, 1], (layer, Part::Norm));
        self.norms.push(Shape::plain(format!("{name}.weight"), &[width]));
        if kind == NormKind::Layer {
            self.norms.push(Shape::plain(format!("{name}.bias"), &[width]));
        }
        Norm::new(name, kind, self.config.norm_epsilon as f32, number)
    }
}
