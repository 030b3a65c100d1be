//! Identity: an artifact's key is the digest of how it is made, never of where it lies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The preimage of a key.
///
/// `key = BLAKE3(canonical JSON { stage, version, config, inputs, model })`, the first 128 bits in hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The stage's name.
    pub stage: String,
    /// The stage's version: raised when its results change.
    pub version: u32,
    /// The stage's configuration with every default filled in.
    pub config: Value,
    /// Role to key, or to the digest of a file that no stage makes.
    pub inputs: BTreeMap<String, String>,
    /// The model's digest or key, for stages that run it.
    pub model: Option<String>,
}

impl Recipe {
    /// The key: 32 hexadecimal digits.
    pub fn key(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        blake3::hash(canonical_json(&value).as_bytes()).to_hex()[..32].to_string()
    }
}

/// JSON with object keys sorted and no white space: equal values give equal text.
pub fn canonical_json(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(canonical_json).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            let entries: Vec<_> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::String(key.clone()), canonical_json(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_does_not_depend_on_field_order() {
        let left: Value = serde_json::from_str(r#"{"b":1.5,"a":{"y":[1,2],"x":null}}"#).unwrap();
        let right: Value = serde_json::from_str(r#"{"a":{"x":null,"y":[1,2]},"b":1.5}"#).unwrap();
        assert_eq!(canonical_json(&left), canonical_json(&right));
        assert_eq!(canonical_json(&left), r#"{"a":{"x":null,"y":[1,2]},"b":1.5}"#);
    }

    #[test]
    fn every_field_changes_the_key() {
        let recipe = Recipe {
            stage: "score".into(),
            version: 1,
            config: Value::Null,
            inputs: BTreeMap::from([("tokens".into(), "k".into())]),
            model: None,
        };
        let mut others = vec![recipe.clone(); 5];
        others[0].stage = "rank".into();
        others[1].version = 2;
        others[2].config = Value::Bool(true);
        others[3].inputs.insert("tokens".into(), "l".into());
        others[4].model = Some("m".into());
        for other in others {
            assert_ne!(other.key(), recipe.key(), "{other:?}");
        }
    }
}
