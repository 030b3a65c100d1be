//! `config.json`, key by key; every refusal names the key and the file.

use std::path::{Path, PathBuf};

use anyhow::{Error, Result};
use serde_json::{Map, Value};
use wherefrom_linalg::kernels::Activation;

use crate::error::bad_input;
use crate::rotary::{Rotary, Scaling};

/// Largest of any count or width. No model comes near, and sizes that are multiplied stay within 64 bits.
const LARGEST: u64 = 1 << 24;

/// Bytes of the longest file: the largest indices have some 10 MB.
const LONGEST: u64 = 1 << 27;

/// The file as JSON. A key may have several spellings, which must not disagree. Null is as good as not there.
pub(crate) struct Keys {
    json: Value,
    path: PathBuf,
}

/// How a family writes rotary positions.
pub(crate) struct RotaryKeys {
    /// Key of the base, at the top level.
    pub(crate) theta: &'static str,
    /// Key of the part of a head that turns, at the top level, and its default.
    pub(crate) share: (&'static str, f64),
    /// Whether a part of a head can turn alone.
    pub(crate) partial: bool,
}

impl Keys {
    /// The `config.json` of a folder.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        Self::parse(folder.join("config.json"))
    }

    /// Another file of its kind.
    pub(crate) fn read(path: PathBuf) -> Result<Self> {
        let keys = Self::parse(path)?;
        if keys.json.is_object() { Ok(keys) } else { Err(keys.refuse("it is no JSON object")) }
    }

    /// No object has none of the keys, and is refused for the first that is needed.
    fn parse(path: PathBuf) -> Result<Self> {
        let unread = |what: &dyn std::fmt::Display| {
            bad_input(format!("cannot read {} ({what}); give a Hugging Face folder", path.display()))
        };
        let metadata = std::fs::metadata(&path).map_err(|error| unread(&error))?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            return Err(unread(&format!("it is no file of {} MB or less", LONGEST >> 20)));
        }
        let text = std::fs::read(&path).map_err(|error| unread(&error))?;
        let json = serde_json::from_slice(&text)
            .map_err(|error| bad_input(format!("not JSON ({error}): {}", path.display())))?;
        Ok(Self { json, path })
    }

    /// The same of a file that is not written yet.
    pub(crate) fn of(json: Value) -> Self {
        Self { json, path: "config.json".into() }
    }

    pub(crate) fn refuse(&self, what: &str) -> Error {
        bad_input(format!("{what}: {}", self.path.display()))
    }

    /// Whether the key stands there, be it as null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.json.get(key).is_some()
    }

    pub(crate) fn value(&self, key: &str) -> &Value {
        &self.json[key]
    }

    /// The value, under whichever spelling; null where there is none.
    fn any(&self, spellings: &[&str]) -> Result<&Value> {
        let mut found = spellings.iter().map(|key| (*key, &self.json[*key])).filter(|(_, value)| !value.is_null());
        let Some((key, value)) = found.next() else { return Ok(&Value::Null) };
        match found.find(|(_, other)| *other != value && (other.as_f64().is_none() || other.as_f64() != value.as_f64()))
        {
            Some((other, its)) => {
                Err(self.refuse(&format!("`{key}` is {value} and `{other}` is {its}, which mean one thing; keep one")))
            }
            None => Ok(value),
        }
    }

    pub(crate) fn word(&self, key: &str) -> Option<&str> {
        self.json[key].as_str()
    }

    /// A whole number above 0.
    pub(crate) fn size(&self, spellings: &[&str]) -> Result<usize> {
        match self.any(spellings)?.as_u64() {
            Some(value @ 1..=LARGEST) => Ok(value as usize),
            Some(value @ 1..) => Err(self.refuse(&format!("`{}` cannot be {value}", spellings[0]))),
            _ => Err(self.refuse(&format!("`{}` must be a whole number above 0", spellings[0]))),
        }
    }

    pub(crate) fn size_or(&self, spellings: &[&str], default: usize) -> Result<usize> {
        if self.any(spellings)?.is_null() { Ok(default) } else { self.size(spellings) }
    }

    /// A whole number, 0 or more.
    pub(crate) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.json[key].as_u64() == Some(0) { Ok(0) } else { self.size_or(&[key], default) }
    }

    pub(crate) fn number_or(&self, spellings: &[&str], default: f64) -> Result<f64> {
        self.number(self.any(spellings)?, spellings[0], Some(default))
    }

    fn number(&self, value: &Value, key: &str, default: Option<f64>) -> Result<f64> {
        match (value, default) {
            (Value::Null, Some(default)) => Ok(default),
            (value, _) => value.as_f64().ok_or_else(|| self.refuse(&format!("`{key}` must be a number"))),
        }
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match &self.json[key] {
            Value::Null => Ok(default),
            Value::Bool(value) => Ok(*value),
            _ => Err(self.refuse(&format!("`{key}` must be true or false"))),
        }
    }

    /// Refuses a key that says something, whatever it is.
    pub(crate) fn refuse_key(&self, key: &str) -> Result<()> {
        if self.json[key].is_null() { Ok(()) } else { Err(self.refuse(&format!("`{key}` is not supported"))) }
    }

    /// Refuses the variant that a flag turns on.
    pub(crate) fn refuse_flag(&self, key: &str) -> Result<()> {
        if self.flag(key, false)? { Err(self.refuse(&format!("`{key}` is not supported"))) } else { Ok(()) }
    }

    /// An activation under the names of `transformers`; none where there is none.
    pub(crate) fn activation(&self, key: &str) -> Result<Option<Activation>> {
        Ok(Some(match &self.json[key] {
            Value::Null => return Ok(None),
            Value::String(name) => match name.as_str() {
                "silu" | "swish" => Activation::Silu,
                "gelu" | "gelu_python" => Activation::Gelu,
                "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" => {
                    Activation::GeluTanh
                }
                "quick_gelu" => Activation::QuickGelu,
                "relu" => Activation::Relu,
                other => {
                    return Err(self.refuse(&format!(
                        "`{key}` `{other}` is not supported (supported: silu, gelu, gelu_new, gelu_fast, \
                         gelu_pytorch_tanh, quick_gelu, relu)"
                    )));
                }
            },
            _ => return Err(self.refuse(&format!("`{key}` must be a word"))),
        }))
    }

    /// What kind of attention each layer has, where the file says so: `sliding_attention`, `full_attention`.
    ///
    /// # Errors
    /// Other words, and a list of another length than `layers`.
    pub(crate) fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let Value::Array(types) = &self.json["layer_types"] else {
            self.refuse_key("layer_types")?;
            return Ok(None);
        };
        let slides = |word: &Value| match word.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(self.refuse(&format!(
                "`layer_types` has {word}, which is not supported (supported: full_attention, sliding_attention)"
            ))),
        };
        if types.len() != layers {
            return Err(self.refuse(&format!("`layer_types` has {} entries for {layers} layers", types.len())));
        }
        types.iter().map(slides).collect::<Result<_>>().map(Some)
    }

    /// Rotary positions as `transformers` reads them: of `rope_scaling` if it says something, else of `rope_parameters`;
    /// and of keys at the top level for what is not said there.
    ///
    /// `context` is the longest sequence.
    pub(crate) fn rotary(&self, head_dim: usize, context: usize, keys: &RotaryKeys) -> Result<Rotary> {
        let (name, table) = self.rotary_table()?;
        let empty = Map::new();
        let table = table.unwrap_or(&empty);
        if let Some((inside, _)) = table.iter().find(|(_, value)| value.is_object()) {
            return Err(self.refuse(&format!(
                "`{name}` is nested (`{inside}`): positions that differ by kind of layer are not supported"
            )));
        }
        let inside =
            |key: &str, default: Option<f64>| self.number(table.get(key).unwrap_or(&Value::Null), key, default);
        let above_zero = |key: &str, value: f64| match value > 0.0 {
            true => Ok(value),
            false => Err(self.refuse(&format!("`{key}` must be above 0"))),
        };
        let theta = self.number_or(&[keys.theta], 10_000.0)?;
        let theta = above_zero("rope_theta", inside("rope_theta", Some(theta))?)?;
        let (share_key, default_share) = keys.share;
        let share = inside("partial_rotary_factor", Some(self.number_or(&[share_key], default_share)?))?;
        if !(0.0..=1.0).contains(&share) {
            return Err(self.refuse(&format!("`partial_rotary_factor` is {share}; it must be between 0 and 1")));
        }
        let kind = match table.get("rope_type").or(table.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(self.refuse(&format!("`rope_type` in `{name}` must be a word"))),
        };
        let factor = || above_zero("factor", inside("factor", None)?);
        let scaling = match kind {
            "default" if inside("factor", Some(1.0))? != 1.0 => {
                return Err(self.refuse(&format!("`{name}` has a `factor` and no `rope_type` that makes use of it")));
            }
            "default" => Scaling::Default,
            // It changes nothing up to the model's own context, and longer sequences are refused.
            "dynamic" => factor().map(|_| Scaling::Default)?,
            "linear" => Scaling::Linear { factor: factor()? },
            "llama3" => {
                let own = inside("original_max_position_embeddings", Some(context as f64))?;
                let (low, high) = (inside("low_freq_factor", None)?, inside("high_freq_factor", None)?);
                if low >= high {
                    return Err(self.refuse("`high_freq_factor` must be greater than `low_freq_factor`"));
                }
                // At the top level it counts more than inside.
                let context = self.number_or(&["original_max_position_embeddings"], own)?;
                let context = above_zero("original_max_position_embeddings", context)?;
                Scaling::Llama3 { factor: factor()?, low: above_zero("low_freq_factor", low)?, high, context }
            }
            other => {
                return Err(self.refuse(&format!(
                    "rope variant `{other}` is not supported (supported: default, linear, llama3, dynamic)"
                )));
            }
        };
        if !keys.partial && share != 1.0 && kind != "default" {
            return Err(self.refuse(&format!(
                "`partial_rotary_factor` is {share} with `rope_type` `{kind}`, and whole heads turn in this family"
            )));
        }
        let dims = if keys.partial { (head_dim as f64 * share) as usize } else { head_dim };
        let rotary = Rotary { dims, theta, scaling };
        if 2 * rotary.dims.div_ceil(2) > head_dim {
            return Err(self.refuse("rotary positions turn pairs, so `head_dim` must be even"));
        }
        Ok(rotary)
    }

    /// `rope_scaling` or `rope_parameters`, and which; neither, where both are empty.
    fn rotary_table(&self) -> Result<(&'static str, Option<&Map<String, Value>>)> {
        for name in ["rope_scaling", "rope_parameters"] {
            match &self.json[name] {
                Value::Null => {}
                Value::Object(table) if table.is_empty() => {}
                Value::Object(table) => return Ok((name, Some(table))),
                other => return Err(self.refuse(&format!("`{name}` is {other}; it must be an object"))),
            }
        }
        Ok(("rope_parameters", None))
    }

    /// Keys that say something which `transformers` takes no notice of.
    pub(crate) fn unheeded(&self, keys: &RotaryKeys) -> Result<Option<String>> {
        let (name, table) = self.rotary_table()?;
        let inside = table.and_then(|table| table.get("partial_rotary_factor")).filter(|share| !share.is_null());
        let share = inside.or(Some(&self.json["partial_rotary_factor"]).filter(|share| !share.is_null()));
        if let Some(share) = share.filter(|share| !keys.partial && share.as_f64() != Some(1.0)) {
            return Ok(Some(format!(
                "`partial_rotary_factor` is {share} in {}, and whole heads turn in this family, as in transformers: it is not heeded",
                self.path.display()
            )));
        }
        if name == "rope_scaling" && self.json["rope_parameters"].as_object().is_some_and(|table| !table.is_empty()) {
            return Ok(Some(format!(
                "`rope_scaling` stands beside `rope_parameters` in {}: it counts alone, as in transformers",
                self.path.display()
            )));
        }
        Ok(None)
    }
}
