//! `config.json`, key by key; every refusal names the key and the file.

use std::path::{Path, PathBuf};

use anyhow::{Error, Result};
use serde_json::Value;
use wherefrom_linalg::kernels::Activation;

use crate::error::bad_input;
use crate::rotary::{Rotary, Scaling};

/// The file as JSON. A key may have several spellings: the first that is there and not null counts.
pub(crate) struct Keys {
    json: Value,
    path: PathBuf,
}

impl Keys {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let name = path.display();
        let text = std::fs::read(&path).map_err(|error| {
            bad_input(format!("cannot read the model's config ({error}); give a Hugging Face folder: {name}"))
        })?;
        let json = serde_json::from_slice(&text).map_err(|error| bad_input(format!("not JSON ({error}): {name}")))?;
        Ok(Self { json, path })
    }

    pub(crate) fn refuse(&self, what: &str) -> Error {
        bad_input(format!("{what}: {}", self.path.display()))
    }

    /// The value of the first spelling that is there; null where none is.
    pub(crate) fn any(&self, spellings: &[&str]) -> &Value {
        let found = spellings.iter().map(|key| &self.json[*key]).find(|value| !value.is_null());
        found.unwrap_or(&Value::Null)
    }

    pub(crate) fn word(&self, key: &str) -> Option<&str> {
        self.json[key].as_str()
    }

    /// A whole number above 0.
    pub(crate) fn size(&self, spellings: &[&str]) -> Result<usize> {
        match self.any(spellings).as_u64() {
            Some(0) | None => Err(self.refuse(&format!("`{}` must be a whole number above 0", spellings[0]))),
            Some(value) => Ok(value as usize),
        }
    }

    pub(crate) fn size_or(&self, spellings: &[&str], default: usize) -> Result<usize> {
        if self.any(spellings).is_null() { Ok(default) } else { self.size(spellings) }
    }

    pub(crate) fn number_or(&self, spellings: &[&str], default: f64) -> Result<f64> {
        self.number(self.any(spellings), spellings[0], Some(default))
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

    /// Refuses the variant that a flag turns on.
    pub(crate) fn refuse_flag(&self, key: &str) -> Result<()> {
        if self.flag(key, false)? { Err(self.refuse(&format!("`{key}` is not supported"))) } else { Ok(()) }
    }

    /// An activation under the names of `transformers`.
    pub(crate) fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        Ok(match &self.json[key] {
            Value::Null => default,
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
        })
    }

    /// Rotary positions in the old spelling (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`).
    ///
    /// `theta` and `share` name the old keys of the base and of the part of a head that turns, with their defaults.
    pub(crate) fn rotary(&self, head_dim: usize, theta: (&str, f64), share: (&str, f64)) -> Result<Rotary> {
        let table = self.any(&["rope_parameters", "rope_scaling"]);
        let inside = |key: &str, default: Option<f64>| self.number(&table[key], key, default);
        let theta = inside("rope_theta", Some(self.number_or(&[theta.0, "rope_theta"], theta.1)?))?;
        let share =
            inside("partial_rotary_factor", Some(self.number_or(&[share.0, "partial_rotary_factor"], share.1)?))?;
        let kind = table["rope_type"].as_str().or(table["type"].as_str()).unwrap_or("default");
        let scaling = match kind {
            // `dynamic` changes nothing up to the model's own context, and longer sequences are refused.
            "default" | "dynamic" => Scaling::Default,
            "linear" => Scaling::Linear { factor: inside("factor", None)? },
            "llama3" => Scaling::Llama3 {
                factor: inside("factor", None)?,
                low: inside("low_freq_factor", None)?,
                high: inside("high_freq_factor", None)?,
                context: inside("original_max_position_embeddings", None)?,
            },
            other => {
                return Err(self.refuse(&format!(
                    "rope variant `{other}` is not supported (supported: default, linear, llama3, dynamic)"
                )));
            }
        };
        let rotary = Rotary { dims: (head_dim as f64 * share) as usize, theta, scaling };
        if 2 * rotary.dims.div_ceil(2) > head_dim {
            return Err(self.refuse("rotary positions turn pairs, so `head_dim` must be even"));
        }
        Ok(rotary)
    }
}
