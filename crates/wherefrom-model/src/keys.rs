//! `config.json`, key by key; every refusal names the key and the file.

use std::path::{Path, PathBuf};

use anyhow::{Error, Result};
use serde_json::Value;
use wherefrom_linalg::kernels::Activation;

use crate::error::bad_input;

/// Largest of any count or width. No model comes near, and sizes that are multiplied stay within 64 bits.
const LARGEST: u64 = 1 << 24;

/// Bytes of the longest file: the largest indices have some 10 MB.
const LONGEST: u64 = 1 << 27;

/// The file as JSON. A key may have several spellings, which must not disagree. Null is as good as not there.
pub(crate) struct Keys {
    json: Value,
    path: PathBuf,
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

    /// The same with the keys of an object inside, which a model of text has where it is part of a larger one.
    pub(crate) fn inside(&self, key: &str) -> Option<Self> {
        let inside = self.json[key].is_object().then(|| self.json[key].clone())?;
        Some(Self { json: inside, path: self.path.clone() })
    }

    /// The same with these where they are missing.
    pub(crate) fn filled(&self, defaults: &Value) -> Self {
        let mut json = self.json.clone();
        for (key, value) in defaults.as_object().into_iter().flatten() {
            if json[key].is_null() {
                json[key] = value.clone();
            }
        }
        Self { json, path: self.path.clone() }
    }

    pub(crate) fn refuse(&self, what: &str) -> Error {
        bad_input(format!("{what}: {}", self.path.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every key with its value.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.json.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
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

    /// A number above 0; none where the key is null.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match &self.json[key] {
            Value::Null => Ok(None),
            value => match self.number(value, key, None)? {
                number if number > 0.0 => Ok(Some(number)),
                _ => Err(self.refuse(&format!("`{key}` must be above 0"))),
            },
        }
    }

    pub(crate) fn number_or(&self, spellings: &[&str], default: f64) -> Result<f64> {
        self.number(self.any(spellings)?, spellings[0], Some(default))
    }

    pub(crate) fn number(&self, value: &Value, key: &str, default: Option<f64>) -> Result<f64> {
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
}
