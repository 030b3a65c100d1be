//! What differs from layer to layer: windows, and layers whose queries and keys are not turned.

use anyhow::Result;
use serde_json::Value;

use super::Architecture;
use crate::config::{Layer, Positions};
use crate::keys::Keys;

/// Each layer's window and positions; none where all layers see all and turn alike.
pub(super) fn read(keys: &Keys, architecture: Architecture, count: usize) -> Result<Vec<Layer>> {
    let types = keys.layer_types(count)?;
    let every = |slides: &dyn Fn(usize) -> bool| (0..count).map(slides).collect::<Vec<_>>();
    let slides = match architecture {
        // In all layers, whatever their types.
        Architecture::Mistral | Architecture::Mixtral | Architecture::Phi3 => every(&|_| true),
        Architecture::Qwen3Moe => {
            let used = keys.flag("use_sliding_window", false)?;
            every(&|_| used)
        }
        Architecture::Qwen2 | Architecture::Qwen3 if keys.flag("use_sliding_window", false)? => {
            let full = keys.count_or("max_window_layers", 28)?;
            types.unwrap_or_else(|| every(&|layer| layer >= full))
        }
        Architecture::Qwen2Moe if keys.flag("use_sliding_window", false)? => {
            let last = keys.count_or("max_window_layers", 28)?;
            types.unwrap_or_else(|| every(&|layer| layer.is_multiple_of(2) && layer < last))
        }
        Architecture::Gemma2 | Architecture::GptOss => types.unwrap_or_else(|| every(&|layer| layer.is_multiple_of(2))),
        Architecture::Gemma3 | Architecture::Gemma3Text => {
            let pattern = keys.size_or(&["sliding_window_pattern"], 6)?;
            types.unwrap_or_else(|| every(&|layer| !(layer + 1).is_multiple_of(pattern)))
        }
        Architecture::Olmo3 => types.unwrap_or_else(|| every(&|layer| !(layer + 1).is_multiple_of(4))),
        Architecture::Smollm3 => return smollm3(keys, types, count),
        _ => {
            if types.is_some_and(|types| types.contains(&true)) {
                return Err(keys.refuse("`layer_types` has sliding_attention, and this model has no window"));
            }
            return Ok(Vec::new());
        }
    };
    let default = match architecture {
        Architecture::Mixtral | Architecture::Phi3 => None,
        Architecture::GptOss => Some(128),
        _ => Some(4096),
    };
    let Some(window) = window(keys, default)? else {
        return match architecture {
            Architecture::Gemma2
            | Architecture::Gemma3
            | Architecture::Gemma3Text
            | Architecture::GptOss
            | Architecture::Olmo3
                if slides.contains(&true) =>
            {
                Err(keys.refuse("`sliding_window` is null, and some layers slide; set it, or `layer_types`"))
            }
            _ => Ok(Vec::new()),
        };
    };
    if !slides.contains(&true) {
        return Ok(Vec::new());
    }
    let own = matches!(architecture, Architecture::Gemma3 | Architecture::Gemma3Text | Architecture::Olmo3);
    let layer = |slides: bool| match slides {
        true => Layer {
            window: Some(window),
            positions: if own { Positions::Local } else { Positions::Global },
            experts: false,
        },
        false => Layer::default(),
    };
    Ok(slides.into_iter().map(layer).collect())
}

/// `sliding_window`; none where it is null, or not there and has no default.
fn window(keys: &Keys, default: Option<usize>) -> Result<Option<usize>> {
    match (keys.has("sliding_window"), keys.value("sliding_window").is_null()) {
        (true, true) => Ok(None),
        (false, _) => Ok(default),
        (true, false) => keys.size(&["sliding_window"]).map(Some),
    }
}

/// `no_rope_layers` has a 1 where a layer turns, and a 0 where it does not; those slide where windows are used.
fn smollm3(keys: &Keys, types: Option<Vec<bool>>, count: usize) -> Result<Vec<Layer>> {
    let turns: Vec<bool> = match keys.value("no_rope_layers") {
        Value::Null => {
            let interval = keys.size_or(&["no_rope_layer_interval"], 4)?;
            (0..count).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()
        }
        Value::Array(list) => {
            let turns = |value: &Value| value.as_u64().filter(|&value| value <= 1).map(|value| value == 1);
            let list: Option<Vec<bool>> = list.iter().map(turns).collect();
            let list = list.ok_or_else(|| keys.refuse("`no_rope_layers` must be a list of 0 and 1"))?;
            if list.len() < count {
                return Err(keys.refuse(&format!("`no_rope_layers` has {} entries for {count} layers", list.len())));
            }
            list
        }
        _ => return Err(keys.refuse("`no_rope_layers` must be a list of 0 and 1")),
    };
    let window = if keys.flag("use_sliding_window", false)? { window(keys, None)? } else { None };
    if window.is_none() && types.as_ref().is_some_and(|types| types.contains(&true)) {
        return Err(keys.refuse("`layer_types` has sliding_attention, and this model has no window"));
    }
    let layer = |(index, turns): (usize, bool)| Layer {
        window: window.filter(|_| types.as_ref().map_or(!turns, |types| types[index])),
        positions: if turns { Positions::Global } else { Positions::None },
        experts: false,
    };
    Ok(turns.into_iter().take(count).enumerate().map(layer).collect())
}
