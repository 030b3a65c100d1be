//! Which parameters are attributed, module by module, and how much of the model that is.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use anyhow::Result;
use globset::GlobBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::bad_input;
use crate::outline::Outline;

/// One linear map W [out, in] of the checkpoint; a bias is the last column of W, and a 1 the last value of its input.
///
/// What is no map of the blocks has such a shape, too, so that its gradient is a sum of d a^T over tokens like that of a map:
///
/// ```text
/// head               [vocabulary, width]  d the gradient at the logits, a what the head reads
/// table (embedding)  [rows, width]        d the one-hot of the row, a the gradient at what was read of it
/// both in one        [vocabulary, width]  the tokens of both uses
/// norm               [width, 1]           d the gradient of its gain (then of its bias: [2 width, 1]) by one token, a = 1
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// As in `transformers`: `model.layers.3.mlp.down_proj`.
    pub name: String,
    /// Width of its input, the 1 of a bias included.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// Name of the first of the chosen modules that read the same input tensor (of all modules: q for q, k and v; gate for
    /// gate and up).
    pub input: String,
    /// Block number.
    pub layer: usize,
    /// What it belongs to.
    pub part: Part,
    /// Of a map of an expert: how many experts see a token, and of how many; none where every token is seen.
    pub routed: Option<[usize; 2]>,
}

/// What a module is: maps of the blocks first, then what `"everything"` and names of their own take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Queries, keys, values, and the map out of the heads.
    Attention,
    /// Gate, up and down, of experts, too.
    Mlp,
    /// What chooses and weighs experts. Neither `"mlp"` nor `"all"` takes it.
    Router,
    /// A table of which a row is read for each token: by its id, or by its position.
    Table,
    /// Gain and bias of a norm.
    Norm,
    /// The map to the vocabulary.
    Head,
    /// The matrix that is both the table of tokens and the head.
    Tied,
}

impl Part {
    /// Whether it is a linear map of the blocks.
    pub fn is_map(self) -> bool {
        matches!(self, Self::Attention | Self::Mlp | Self::Router)
    }
}

impl Module {
    /// Name of its weight, without the bias.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Name of its bias.
    pub fn bias(&self) -> String {
        format!("{}.bias", self.name)
    }

    /// The share of the tokens that it sees, where all experts see as many; a table that is the head, too, sees each twice.
    pub fn share(&self) -> f64 {
        let whole = if self.part == Part::Tied { 2.0 } else { 1.0 };
        self.routed.map_or(whole, |[chosen, of]| chosen as f64 / of as f64)
    }

    /// Whether S, the covariance on the side of `out_features`, is kept as its diagonal, in the standard basis: of rows of a
    /// vocabulary and of numbers of a norm.
    pub fn has_diagonal(&self) -> bool {
        !self.part.is_map()
    }

    /// The expert that a map of experts is of: its name without the map's.
    pub fn expert(&self) -> Option<&str> {
        self.routed.and(self.name.rsplit_once('.')).map(|(expert, _)| expert)
    }

    /// Whether no chosen module before it reads the same input: its activation covariance is that of all who do.
    pub fn first_of_input(&self) -> bool {
        self.input == self.name
    }
}

/// The user's choice of modules: `"mlp"`, `"all"`, `"everything"`, or a list of globs on module names.
///
/// A glob takes the maps of the blocks that it matches; one that matches none of them takes what else it matches: tables, norms
/// and the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "write \"mlp\", \"all\", \"everything\", or a list of globs")]
pub enum Modules {
    /// `"mlp"`, `"all"` or `"everything"`.
    #[schemars(extend("enum" = ["mlp", "all", "everything"]))]
    Named(String),
    /// Globs such as `model.layers.*.mlp.*`.
    Globs(Vec<String>),
}

impl Default for Modules {
    fn default() -> Self {
        Self::Named("mlp".into())
    }
}

/// The chosen modules, in forward order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    modules: Vec<Module>,
    /// For each module of the model, its place in `modules`.
    places: Vec<Option<usize>>,
    /// Whether others of the choice are left to other passes, which is done for memory.
    part: bool,
}

impl Selection {
    /// Every module.
    pub(crate) fn all(modules: &[Module]) -> Self {
        let places = (0..modules.len()).map(Some).collect();
        Self { modules: modules.to_vec(), places, part: false }
    }

    /// Resolves the choice against the model's modules.
    ///
    /// # Errors
    /// [`crate::BadInput`] for an unknown word, a malformed glob and a glob that matches nothing.
    pub fn new(choice: &Modules, modules: &[Module]) -> Result<Self> {
        let examples = || {
            let maps = modules.iter().filter(|module| module.part.is_map());
            maps.take(3).map(|module| module.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let mut chosen = vec![false; modules.len()];
        match choice {
            Modules::Named(name) => match name.as_str() {
                "all" | "mlp" => {
                    for (chosen, module) in chosen.iter_mut().zip(modules) {
                        *chosen = module.part == Part::Mlp || (name == "all" && module.part == Part::Attention);
                    }
                }
                "everything" => chosen.fill(true),
                other => {
                    return Err(bad_input(format!(
                        "modules = \"{other}\" is unknown: use \"mlp\", \"all\", \"everything\", or a list of globs on names such \
                         as {}",
                        examples()
                    )));
                }
            },
            Modules::Globs(globs) => {
                let by_name: HashMap<&str, usize> =
                    modules.iter().enumerate().map(|(index, module)| (module.name.as_str(), index)).collect();
                for glob in globs {
                    // Names of thousands of experts are no patterns.
                    if let Some(&index) = by_name.get(glob.as_str()) {
                        chosen[index] = true;
                        continue;
                    }
                    let matcher = GlobBuilder::new(glob)
                        .build()
                        .map_err(|error| bad_input(format!("modules: the glob `{glob}` is malformed ({error})")))?
                        .compile_matcher();
                    let hits = |maps: bool| {
                        let own = modules.iter().enumerate().filter(move |(_, module)| module.part.is_map() == maps);
                        own.filter(|(_, module)| matcher.is_match(&module.name)).map(|(index, _)| index)
                    };
                    // Globs chose among maps alone before there was anything else.
                    let mut hit: Vec<usize> = hits(true).collect();
                    if hit.is_empty() {
                        hit = hits(false).collect();
                    }
                    hit.iter().for_each(|&index| chosen[index] = true);
                    if hit.is_empty() {
                        return Err(bad_input(format!(
                            "modules: the glob `{glob}` matches no module; names look like {}",
                            examples()
                        )));
                    }
                }
            }
        }
        let mut selected: Vec<Module> = Vec::new();
        let mut first: HashMap<&str, &str> = HashMap::new();
        let mut places = vec![None; modules.len()];
        for (index, module) in modules.iter().enumerate().filter(|(index, _)| chosen[*index]) {
            places[index] = Some(selected.len());
            let input = (*first.entry(&module.input).or_insert(&module.name)).to_string();
            selected.push(Module { input, ..module.clone() });
        }
        if selected.is_empty() {
            let what = match modules.iter().find(|module| module.part.is_map()) {
                Some(first) if *choice == Modules::default() => {
                    format!(
                        "no map of an MLP is among the modules, which look like {}; give modules = \"all\"",
                        first.name
                    )
                }
                Some(_) => "nothing is chosen; give \"mlp\", \"all\", \"everything\" or at least one glob".into(),
                None => "the adapter changes no map of the blocks; give attribute = \"merged\" or \"base\"".into(),
            };
            return Err(bad_input(format!("modules: {what}")));
        }
        Ok(Self { modules: selected, places, part: false })
    }

    /// The chosen modules, in forward order.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Refuses tables, norms and the head, for `what` that knows linear maps of the blocks alone.
    ///
    /// # Errors
    /// [`crate::BadInput`] that names the first of them.
    pub fn maps_alone(&self, what: &str) -> Result<()> {
        match self.modules.iter().find(|module| !module.part.is_map()) {
            Some(module) => Err(bad_input(format!(
                "{what} takes linear maps of the blocks alone, and {} is none; set modules to \"mlp\", \"all\" or globs on maps",
                module.name
            ))),
            None => Ok(()),
        }
    }

    /// A part of the choice: those at these places, which ascend.
    pub fn only(&self, chosen: &[usize]) -> Self {
        let modules = chosen.iter().map(|&place| self.modules[place].clone()).collect();
        let own: HashMap<usize, usize> = chosen.iter().enumerate().map(|(own, &place)| (place, own)).collect();
        let places = self.places.iter().map(|place| place.and_then(|place| own.get(&place).copied()));
        Self { modules, places: places.collect(), part: chosen.len() < self.modules.len() }
    }

    /// The first of them, by its number in the model.
    pub(crate) fn first(&self) -> usize {
        self.places.iter().position(Option::is_some).unwrap_or(0)
    }

    /// Whether a block of these modules is computed again in the backward pass, rather than kept: none of it is chosen, and
    /// memory is short.
    pub(crate) fn computes_again(&self, block: &Range<usize>) -> bool {
        self.part && self.places[block.clone()].iter().all(Option::is_none)
    }

    /// Where the model's module `index` stands in the selection.
    pub(crate) fn place(&self, index: usize) -> Option<usize> {
        self.places[index]
    }
}

/// How many parameters are attributed, and which are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Parameters of the chosen modules.
    pub attributed: u64,
    /// Parameters of the model, those of its adapters included.
    pub total: u64,
    /// Name and size of every parameter that is not attributed.
    pub unattributed: Vec<(String, u64)>,
    /// Of a model with adapters, what those trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
}

/// What of a model its adapters' training changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trained {
    /// Its parameters that are attributed.
    pub attributed: u64,
    /// All of them: A and B of the adapters, or the matrices that they were merged into; and what was saved whole.
    pub total: u64,
}

impl Coverage {
    /// Parameters of the model outside its embeddings and its vocabulary head.
    pub fn without_embeddings(&self) -> u64 {
        let embeddings = self.unattributed.iter().filter(|(name, _)| Self::is_embedding(name)).map(|(_, size)| size);
        self.total - embeddings.sum::<u64>()
    }

    /// Whether a parameter is a table of tokens or positions, or the head.
    pub fn is_embedding(name: &str) -> bool {
        ["embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out"].iter().any(|word| name.contains(word))
    }

    /// Whether less than half is attributed of what training changed: of all outside embeddings and head, or, of a model with
    /// adapters, of what those trained.
    pub fn is_thin(&self) -> bool {
        match self.trained {
            Some(trained) => 2 * trained.attributed < trained.total,
            None => 2 * self.attributed < self.without_embeddings(),
        }
    }

    /// Coverage of a model by a selection.
    pub fn new(outline: &Outline, selection: &Selection) -> Self {
        let mut coverage = Self { attributed: 0, total: 0, unattributed: Vec::new(), trained: None };
        let own: HashSet<_> = selection.modules.iter().flat_map(|module| [module.weight(), module.bias()]).collect();
        for tensor in outline.tensors().iter().chain(outline.halves().filter(|half| outline.stands_beside(half))) {
            let (numbers, attributed) = (tensor.numbers(), own.contains(&tensor.name));
            coverage.total += numbers;
            if attributed {
                coverage.attributed += numbers;
            } else {
                coverage.unattributed.push((tensor.name.clone(), numbers));
            }
            if outline.has_adapters() {
                let trained = coverage.trained.get_or_insert(Trained { attributed: 0, total: 0 });
                if outline.is_trained(tensor) {
                    trained.total += numbers;
                    trained.attributed += if attributed { numbers } else { 0 };
                }
            }
        }
        coverage
    }
}
