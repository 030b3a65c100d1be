//! LoRA adapters as PEFT describes them in `adapter_config.json`: which maps they change, at which rank and scale.
//!
//! An adapter on W [out, in] has A [r, in] and B [out, r], and the map computes x W^T + s (x A^T) B^T with s = alpha / r, or
//! alpha / sqrt(r) under `use_rslora` (Hu et al. 2021, arXiv 2106.09685; Kalajdzievski 2023, arXiv 2312.03732).

use std::fmt;
use std::path::Path;

use anyhow::Result;
use fancy_regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::error::bad_input;
use crate::keys::Keys;

/// What describes an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// What holds its tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Which maps are attributed, of a model with adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// A and B of every adapter.
    #[default]
    Adapter,
    /// W + s B A of every map, merged in float32.
    Merged,
    /// W of every map, with the adapters in effect.
    Base,
}

impl Attribute {
    /// The words of the knob.
    pub const ALL: [(&'static str, Self); 3] =
        [("adapter", Self::Adapter), ("merged", Self::Merged), ("base", Self::Base)];

    /// The one of that name.
    ///
    /// # Errors
    /// [`crate::BadInput`] for another word.
    pub fn named(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == word);
        found.map(|(_, attribute)| attribute).ok_or_else(|| {
            bad_input(format!("attribute = \"{word}\" is unknown: use \"adapter\", \"merged\" or \"base\""))
        })
    }
}

/// The adapters of a model, and what is attributed of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Adapters {
    /// In order. What they add is summed.
    pub list: Vec<Lora>,
    /// Which maps are attributed.
    pub attribute: Attribute,
}

impl Adapters {
    /// Whether A and B are modules, and the maps of the base are none.
    pub(crate) fn are_modules(&self) -> bool {
        !self.list.is_empty() && self.attribute == Attribute::Adapter
    }

    /// Whether A and B stand beside W in a pass, rather than in it.
    pub(crate) fn are_in_effect(&self) -> bool {
        self.attribute != Attribute::Merged
    }

    /// What names of A and B end in: nothing of a single adapter, `.0`, `.1` and so on of several.
    pub(crate) fn ending(&self, adapter: usize) -> String {
        if self.list.len() == 1 { String::new() } else { format!(".{adapter}") }
    }

    /// As a plan hands them on beside a `config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// One adapter, without its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    rank: usize,
    alpha: f64,
    rslora: bool,
    targets: Names,
    exclude: Option<Names>,
    /// Modules that it holds whole: what a path ends in.
    saved: Vec<String>,
    /// The same as PEFT asks what of that is not adapted.
    not_adapted: Vec<Pattern>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    layers: Vec<usize>,
    layer_patterns: Vec<Pattern>,
    ties: bool,
}

/// Rank and scale of an adapter on one map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fit {
    pub(crate) rank: usize,
    /// s.
    pub(crate) scale: f32,
}

/// Names of maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Names {
    /// A whole path matches.
    Expression(Pattern),
    /// A path is one of these, or ends in a dot and one of these.
    List(Vec<String>),
    /// Every linear map but the head.
    AllLinear,
}

impl Names {
    fn hold(&self, path: &str, in_blocks: bool) -> bool {
        match self {
            Self::Expression(pattern) => pattern.is_match(path),
            Self::List(names) => names.iter().any(|name| ends_in(path, name)),
            Self::AllLinear => in_blocks,
        }
    }
}

pub(crate) fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// A regular expression of Python's, which may look around.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Pattern(Regex);

impl Pattern {
    fn is_match(&self, text: &str) -> bool {
        // It gives up where it would try for ever.
        self.0.is_match(text).unwrap_or(false)
    }

    fn captured(&self, text: &str) -> Option<usize> {
        self.0.captures(text).ok()??.name("index")?.as_str().parse().ok()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl TryFrom<String> for Pattern {
    type Error = fancy_regex::Error;

    fn try_from(text: String) -> Result<Self, fancy_regex::Error> {
        Regex::new(&text).map(Self)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.as_str().into()
    }
}

/// Keys that change nothing here: notes, how training began and went, and what is of methods that are refused by another key.
const NO_MATTER: [&str; 22] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    // Read below.
    "ensure_weight_tying",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
];
/// The others that are read below.
const READ: [&str; 6] =
    ["alpha_pattern", "exclude_modules", "modules_to_save", "rank_pattern", "target_modules", "use_rslora"];

impl Lora {
    /// Reads `adapter_config.json` in `folder`.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a missing or malformed file and for every variant that is not supported, by name.
    pub fn load(folder: &Path) -> Result<Self> {
        if !folder.join(ADAPTER_CONFIG).exists() {
            return Err(no_adapter(folder));
        }
        let keys = Keys::read(folder.join(ADAPTER_CONFIG))?;
        refuse_variants(&keys)?;
        let targets = match keys.value("target_modules") {
            Value::String(word) if word == "all-linear" => Names::AllLinear,
            Value::Null => {
                return Err(keys.refuse("`target_modules` is null; write the list of maps that were trained"));
            }
            _ => names(&keys, "target_modules")?,
        };
        let exclude = match keys.value("exclude_modules") {
            Value::Null => None,
            _ => Some(names(&keys, "exclude_modules")?),
        };
        let saved = texts(&keys, "modules_to_save")?;
        let not_adapted =
            saved.iter().map(|name| pattern(&keys, "modules_to_save", &format!(r"^(^|.*\.){name}($|\..*)")));
        let not_adapted = not_adapted.collect::<Result<_>>()?;
        let Patterns { rank_pattern, alpha_pattern } = patterns(&keys)?;
        let ranks =
            ordered(&keys, "rank_pattern", rank_pattern)?.into_iter().map(|(pattern, value)| match value.as_u64() {
                Some(rank @ 1..=LARGEST_RANK) => Ok((pattern, rank as usize)),
                _ => Err(keys.refuse(&format!("`rank_pattern` has {value}; a rank is a whole number above 0"))),
            });
        let alphas =
            ordered(&keys, "alpha_pattern", alpha_pattern)?.into_iter().map(|(pattern, value)| match value.as_f64() {
                Some(alpha) => Ok((pattern, alpha)),
                None => Err(keys.refuse(&format!("`alpha_pattern` has {value}; an alpha is a number"))),
            });
        let layers = match keys.value("layers_to_transform") {
            Value::Null => Vec::new(),
            Value::Array(layers) => layers.clone(),
            layer => vec![layer.clone()],
        };
        let layers = layers.iter().map(|layer| {
            layer
                .as_u64()
                .map(|layer| layer as usize)
                .ok_or_else(|| keys.refuse(&format!("`layers_to_transform` has {layer}; a layer is a whole number")))
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        if !layers.is_empty() && matches!(targets, Names::Expression(_)) {
            return Err(
                keys.refuse("`layers_to_transform` says nothing where `target_modules` is an expression; remove it")
            );
        }
        let named = texts(&keys, "layers_pattern")?;
        let layer_patterns = match named.is_empty() {
            // The first number of a path: that of an expert comes after it.
            true => vec![pattern(&keys, "layers_pattern", r"^.*?\.[^.]*\.(?P<index>\d+)\.")],
            false => named
                .iter()
                .map(|name| pattern(&keys, "layers_pattern", &format!(r"^(?:|.*?\.){name}\.(?P<index>\d+)\.")))
                .collect(),
        };
        Ok(Self {
            rank: keys.size_or(&["r"], 8)?,
            alpha: keys.number_or(&["lora_alpha"], 8.0)?,
            rslora: keys.flag("use_rslora", false)?,
            targets,
            exclude,
            saved,
            not_adapted,
            ranks: ranks.collect::<Result<_>>()?,
            alphas: alphas.collect::<Result<_>>()?,
            layers,
            layer_patterns: layer_patterns.into_iter().collect::<Result<_>>()?,
            ties: keys.flag("ensure_weight_tying", false)?,
        })
    }

    /// A new adapter of one rank and alpha on maps of the blocks, by what their paths end in; without any, on all of them.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a rank or an alpha that makes none.
    pub fn new(rank: usize, alpha: f64, rslora: bool, targets: Option<Vec<String>>) -> Result<Self> {
        if !(1..=LARGEST_RANK as usize).contains(&rank) {
            return Err(bad_input(format!("lora: rank = {rank} is out of range; set it to 1 or more (8 is usual)")));
        }
        if !(alpha.is_finite() && alpha != 0.0) {
            return Err(bad_input(format!(
                "lora: alpha = {alpha} makes no adapter; set it to twice the rank, or to the rank"
            )));
        }
        Ok(Self {
            rank,
            alpha,
            rslora,
            targets: targets.map_or(Names::AllLinear, Names::List),
            exclude: None,
            saved: Vec::new(),
            not_adapted: Vec::new(),
            ranks: Vec::new(),
            alphas: Vec::new(),
            layers: Vec::new(),
            layer_patterns: Vec::new(),
            ties: false,
        })
    }

    /// The names by which it targets maps, where it lists some.
    pub(crate) fn target_names(&self) -> &[String] {
        if let Names::List(names) = &self.targets { names } else { &[] }
    }

    /// The `adapter_config.json` of an adapter that was made by [`Lora::new`] and sits on these maps.
    pub(crate) fn to_peft(&self, paths: &[String], fan_in_fan_out: bool) -> Value {
        let mut targets: Vec<_> = match &self.targets {
            Names::List(names) => names.clone(),
            _ => paths.to_vec(),
        };
        targets.sort();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": null,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.rslora,
            "use_dora": false,
            "bias": "none",
            "init_lora_weights": true,
            "fan_in_fan_out": fan_in_fan_out,
            "target_modules": targets,
            "modules_to_save": null,
            "rank_pattern": {},
            "alpha_pattern": {},
        })
    }

    /// Its fit on the map or embedding of that path, if it targets it, as PEFT decides that: what is left out or saved whole is
    /// none, and the first pattern wins, ranks and alphas apart.
    pub(crate) fn on(&self, path: &str, in_blocks: bool) -> Option<Fit> {
        let left_out = self.exclude.as_ref().is_some_and(|names| names.hold(path, in_blocks))
            || self.not_adapted.iter().any(|pattern| pattern.is_match(path));
        if left_out || !self.targets.hold(path, in_blocks) {
            return None;
        }
        let layer = || self.layer_patterns.iter().find_map(|pattern| pattern.captured(path));
        if !self.layers.is_empty() && !layer().is_some_and(|layer| self.layers.contains(&layer)) {
            return None;
        }
        let rank = self.ranks.iter().find(|(pattern, _)| pattern.is_match(path)).map_or(self.rank, |(_, rank)| *rank);
        let alpha =
            self.alphas.iter().find(|(pattern, _)| pattern.is_match(path)).map_or(self.alpha, |(_, alpha)| *alpha);
        let below = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        Some(Fit { rank, scale: (alpha / below) as f32 })
    }

    /// Whether it holds the whole tensors of a module, or of one that the module is part of.
    pub(crate) fn saves(&self, path: &str) -> bool {
        let parents = path.match_indices('.').map(|(end, _)| &path[..end]);
        parents.chain([path]).any(|module| self.saved.iter().any(|name| module.ends_with(&**name)))
    }

    /// Whether embedding and head were trained as one.
    pub(crate) fn ties(&self) -> bool {
        self.ties
    }
}

const LARGEST_RANK: u64 = 1 << 20;

/// What to do about an adapter that is not read.
const MERGE: &str =
    "merge it into its base (peft's `merge_and_unload`, saved with `save_pretrained`) and give that as `path`";

/// Refuses what computes something else than x W^T + s (x A^T) B^T, or starts from another W than the base's.
fn refuse_variants(keys: &Keys) -> Result<()> {
    match keys.word("peft_type") {
        Some("LORA") => {}
        Some(other) => {
            return Err(keys.refuse(&format!("adapters of the type `{other}` are not supported, only LORA; {MERGE}")));
        }
        None => return Err(keys.refuse("there is no `peft_type`, so this describes no adapter of PEFT")),
    }
    if keys.word("bias").is_some_and(|bias| bias != "none") {
        return Err(keys.refuse(&format!("`bias` other than \"none\" is not supported; {MERGE}")));
    }
    match keys.value("init_lora_weights") {
        Value::Null | Value::Bool(_) => {}
        Value::String(word) if ["gaussian", "eva", "orthogonal"].contains(&&word[..]) => {}
        other => {
            return Err(keys.refuse(&format!(
                "`init_lora_weights` is {other}, which may have changed the base's own weights: on the plain base the adapter is \
                 another model; save it as plain LoRA (peft's `path_initial_model_for_weight_conversion`), or {MERGE}"
            )));
        }
    }
    let known = |key: &str| key == "bias" || NO_MATTER.contains(&key) || READ.contains(&key);
    for (key, value) in keys.entries().filter(|(key, _)| !known(key)) {
        let says_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if !says_nothing {
            return Err(keys.refuse(&format!("`{key}` is not supported; {MERGE}")));
        }
    }
    Ok(())
}

/// A word, or a list of names.
fn names(keys: &Keys, key: &str) -> Result<Names> {
    match keys.value(key) {
        Value::String(expression) => Ok(Names::Expression(pattern(keys, key, &format!(r"\A(?:{expression})\z"))?)),
        _ => Ok(Names::List(texts(keys, key)?)),
    }
}

/// A list of texts, or one.
fn texts(keys: &Keys, key: &str) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(String::from);
    let found = match keys.value(key) {
        Value::Null => Some(Vec::new()),
        Value::Array(items) => items.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    };
    found.ok_or_else(|| keys.refuse(&format!("`{key}` must be a list of names")))
}

/// What is looked up by pattern: the first that matches counts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Patterns {
    rank_pattern: Option<Ordered>,
    alpha_pattern: Option<Ordered>,
}

/// From the file: JSON's objects do not keep the order of their keys.
fn patterns(keys: &Keys) -> Result<Patterns> {
    let refused = |what: &dyn fmt::Display| keys.refuse(&format!("it cannot be read ({what})"));
    let text = std::fs::read(keys.path()).map_err(|error| refused(&error))?;
    serde_json::from_slice(&text).map_err(|error| refused(&error))
}

/// An object in the order of the file.
struct Ordered(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Patterns with their values, each the end of a path: `(.*\.)?(KEY)$`, matched from the beginning.
fn ordered(keys: &Keys, key: &str, entries: Option<Ordered>) -> Result<Vec<(Pattern, Value)>> {
    let entries = entries.map_or_else(Vec::new, |Ordered(entries)| entries).into_iter();
    entries.map(|(name, value)| Ok((pattern(keys, key, &format!(r"\A(?:(.*\.)?({name})\z)"))?, value))).collect()
}

fn pattern(keys: &Keys, key: &str, expression: &str) -> Result<Pattern> {
    let compiled = Regex::new(expression).map(Pattern);
    compiled.map_err(|error| keys.refuse(&format!("`{key}` has an expression that cannot be read ({error})")))
}

/// Why there is no adapter in a folder, and what to do.
fn no_adapter(folder: &Path) -> anyhow::Error {
    let shown = folder.display();
    bad_input(if folder.join("config.json").exists() {
        format!(
            "{shown} has no {ADAPTER_CONFIG}: it is a whole model; give it as `path`, and as `adapter` a folder of PEFT"
        )
    } else {
        format!("the adapter {shown} has no {ADAPTER_CONFIG}; give a folder that PEFT's `save_pretrained` has written")
    })
}
