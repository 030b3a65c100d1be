//! Places in the residual stream.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::bad_input;

/// Where the residual stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Site {
    /// Before the first block (0: the embeddings), or after so many blocks; the last is before the final norm.
    Stream(usize),
    /// After the final norm: what `transformers` calls the last of its hidden states.
    PostNorm,
}

impl Site {
    /// Every site of a model with so many blocks, in forward order.
    pub fn all(blocks: usize) -> Vec<Self> {
        (0..=blocks).map(Self::Stream).chain([Self::PostNorm]).collect()
    }

    /// Number of the stream that has to be there for it.
    pub(crate) fn stream(self, blocks: usize) -> Result<usize> {
        match self {
            Self::Stream(site) if site > blocks => Err(bad_input(format!(
                "site {site} is beyond the model's last: it has {blocks} blocks, so use 0 to {blocks} or post-norm"
            ))),
            Self::Stream(site) => Ok(site),
            Self::PostNorm => Ok(blocks),
        }
    }
}

/// `0`, `1`, … or `post-norm`.
impl fmt::Display for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(site) => write!(formatter, "{site}"),
            Self::PostNorm => formatter.write_str("post-norm"),
        }
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "post-norm" => Ok(Self::PostNorm),
            _ => word.parse().map(Self::Stream).map_err(|_| {
                bad_input(format!("site `{word}` is unknown: use a number from 0 (the embeddings) on, or post-norm"))
            }),
        }
    }
}

/// A number, or a word.
impl TryFrom<Value> for Site {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let word = value.as_str().map_or_else(|| value.to_string(), String::from);
        word.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<Site> for Value {
    fn from(site: Site) -> Self {
        match site {
            Site::Stream(number) => number.into(),
            Site::PostNorm => site.to_string().into(),
        }
    }
}

impl JsonSchema for Site {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Site".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "pattern": "^([0-9]+|post-norm)$" },
        ] })
    }
}

/// The sites of the knob: `"all"`, or a list of numbers and `"post-norm"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Sites {
    /// Every one of the model.
    #[default]
    All,
    /// These, in forward order.
    Some(Vec<Site>),
}

impl Sites {
    /// Those of a model with so many blocks, in forward order.
    pub fn of(&self, blocks: usize) -> Vec<Site> {
        match self {
            Self::All => Site::all(blocks),
            Self::Some(sites) => sites.clone(),
        }
    }
}

impl TryFrom<Value> for Sites {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(word) if word == "all" => Ok(Self::All),
            Value::Array(sites) => {
                let mut sites: Vec<Site> = sites.into_iter().map(Site::try_from).collect::<Result<_, _>>()?;
                sites.sort();
                sites.dedup();
                Ok(Self::Some(sites))
            }
            other => Err(format!("sites are \"all\" or a list such as [0, 12, \"post-norm\"], not {other}")),
        }
    }
}

impl JsonSchema for Sites {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Sites".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": "all" },
            { "type": "array", "items": Site::json_schema(generator) },
        ] })
    }
}

impl From<Sites> for Value {
    fn from(sites: Sites) -> Self {
        match sites {
            Sites::All => "all".into(),
            Sites::Some(sites) => sites.into_iter().map(Value::from).collect(),
        }
    }
}
