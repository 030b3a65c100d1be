//! Under which names a parameter may lie in a checkpoint, and which part of a tensor of all experts it is.

use crate::config::Config;
use crate::family::{ExpertNames, Packed};

/// Names under which a parameter may lie as it is: its own, without the base of the bare model, inside another model, and what
/// older files call it.
pub(crate) fn spellings(config: &Config, name: &str) -> Vec<String> {
    let layout = config.layout();
    let mut names = vec![name.to_string()];
    if let Some(names_of) = &layout.experts {
        names.extend(ExpertTensor::of(config, name).and_then(|tensor| tensor.old(config, names_of)));
        names.extend(old_router(config, names_of, name));
    }
    if name.strip_suffix(".weight") == Some(layout.head[0]) {
        names = head_names(config);
    }
    wrapped(config, names)
}

/// Names under which the head may lie.
pub(crate) fn head_names(config: &Config) -> Vec<String> {
    config.layout().head.iter().map(|head| format!("{head}.weight")).collect()
}

/// Names under which the tensor of all experts may lie that a parameter is a part of.
pub(crate) fn packed_spellings(config: &Config, tensor: &ExpertTensor) -> Vec<String> {
    wrapped(config, vec![tensor.packed(config)])
}

/// Names under which numbers of 4 bits of all experts, and their scales, may lie.
pub(crate) fn quantised_spellings(config: &Config, tensor: &ExpertTensor) -> [Vec<String>; 2] {
    ["blocks", "scales"].map(|kind| wrapped(config, vec![format!("{}_{kind}", tensor.packed(config))]))
}

/// The name that a parameter is written under.
pub(crate) fn written(config: &Config, name: &str) -> String {
    let old = config.layout().experts.as_ref().and_then(|names| {
        let tensor = ExpertTensor::of(config, name).and_then(|tensor| tensor.old(config, names));
        tensor.or_else(|| old_router(config, names, name))
    });
    old.unwrap_or_else(|| name.to_string())
}

/// A map of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertTensor {
    layer: usize,
    pub(crate) expert: usize,
    /// Gate, up or down.
    pub(crate) map: usize,
    bias: bool,
    pub(crate) packing: Packed,
}

impl ExpertTensor {
    /// None where the name is of no expert.
    pub(crate) fn of(config: &Config, name: &str) -> Option<Self> {
        let layout = config.layout();
        let names = layout.experts.as_ref()?;
        let (layer, rest) = name.strip_prefix(layout.blocks)?.strip_prefix('.')?.split_once('.')?;
        let (expert, rest) = rest.strip_prefix(names.experts)?.strip_prefix('.')?.split_once('.')?;
        let (map, kind) = rest.split_once('.')?;
        let map = names.maps.iter().position(|own| *own == map)?;
        let (layer, expert) = (layer.parse().ok()?, expert.parse().ok()?);
        Some(Self { layer, expert, map, bias: kind == "bias", packing: names.packed })
    }

    fn old(self, config: &Config, names: &ExpertNames) -> Option<String> {
        let block = names.old_block?;
        let (blocks, Self { layer, expert, .. }) = (config.layout().blocks, self);
        Some(format!("{blocks}.{layer}.{block}.experts.{expert}.{}.weight", names.old_maps[self.map]))
    }

    /// The tensor of all experts: gate and up are in one.
    pub(crate) fn packed(self, config: &Config) -> String {
        let layout = config.layout();
        let experts = layout.experts.as_ref().map_or("", |names| names.experts);
        let map = if self.map == 2 { "down_proj" } else { "gate_up_proj" };
        let bias = if self.bias { "_bias" } else { "" };
        format!("{}.{}.{experts}.{map}{bias}", layout.blocks, self.layer)
    }

    /// Its shape, where the parameter has so many values by row; and of the parameter in it the first number, how its rows lie
    /// there, and which of so many neighbours it is.
    pub(crate) fn place(self, count: usize, sizes: &[usize]) -> Part {
        let beside = if self.map == 2 { 1 } else { 2 };
        let lane = (beside == 2).then_some([self.map, 2]);
        match (self.packing, sizes) {
            (Packed::Columns, &[out]) => Part {
                shape: vec![count, beside * out],
                own: vec![beside * out],
                first: self.expert * beside * out,
                lane,
                transposed: false,
            },
            (Packed::Columns, &[out, inside]) => Part {
                shape: vec![count, inside, beside * out],
                own: vec![inside, beside * out],
                first: self.expert * inside * beside * out,
                lane,
                transposed: true,
            },
            (Packed::Rows, sizes) => {
                let (numbers, row) = (sizes.iter().product::<usize>(), &sizes[1..]);
                let mut shape = vec![count, beside * sizes[0]];
                shape.extend(row);
                let first = (self.expert * beside + self.map % 2 * (beside - 1)) * numbers;
                Part { shape, own: sizes.to_vec(), first, lane: None, transposed: false }
            }
            (Packed::Columns, _) => unreachable!("a map or its bias"),
        }
    }
}

/// Where a parameter lies in a tensor of all experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of the tensor.
    pub(crate) shape: Vec<usize>,
    /// Of what is read for the parameter.
    pub(crate) own: Vec<usize>,
    /// Its first number in the tensor.
    pub(crate) first: usize,
    /// Which it is of so many whose columns take turns.
    pub(crate) lane: Option<[usize; 2]>,
    /// Whether it lies as [in, out].
    pub(crate) transposed: bool,
}

/// What older files call the router.
fn old_router(config: &Config, names: &ExpertNames, name: &str) -> Option<String> {
    let rest = name.strip_prefix(config.layout().blocks)?.strip_prefix('.')?;
    let (layer, rest) = rest.split_once('.')?;
    let kind = rest.strip_prefix(names.router)?;
    Some(format!("{}.{layer}.{}.gate{kind}", config.layout().blocks, names.old_block?))
}

/// The same without the base of the bare model, and with what a larger model puts before.
fn wrapped(config: &Config, mut names: Vec<String>) -> Vec<String> {
    let base = config.layout().base;
    let short = names.iter().filter_map(|name| name.strip_prefix(base)?.strip_prefix('.').map(String::from));
    let wrapper = |name: &String| {
        let put = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
        config.architecture.wrappers().iter().filter_map(put).collect::<Vec<_>>()
    };
    let others: Vec<String> = short.chain(names.iter().flat_map(wrapper)).collect();
    names.extend(others);
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(model_type: &str) -> Config {
        Config::from_json(&json!({
            "model_type": model_type, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 9, "num_experts": 3,
            "num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "hidden_act": "silu",
        }))
        .unwrap()
    }

    #[test]
    fn an_expert_is_found_under_its_names() {
        let name = "model.layers.1.mlp.experts.2.up_proj.weight";
        let mixtral = config("mixtral");
        assert_eq!(spellings(&mixtral, name)[1], "model.layers.1.block_sparse_moe.experts.2.w3.weight");
        assert_eq!(written(&mixtral, name), "model.layers.1.block_sparse_moe.experts.2.w3.weight");
        let router = "model.layers.0.mlp.gate.weight";
        assert_eq!(spellings(&mixtral, router)[1], "model.layers.0.block_sparse_moe.gate.weight");
        let olmoe = config("olmoe");
        assert_eq!(spellings(&olmoe, name), [name, &name["model.".len()..]]);
        let tensor = ExpertTensor::of(&olmoe, name).unwrap();
        assert_eq!(tensor.packed(&olmoe), "model.layers.1.mlp.experts.gate_up_proj");
        // [3, 2 * 6, 8]: the third expert's lower half.
        let part = tensor.place(3, &[6, 8]);
        assert_eq!((part.shape, part.first, part.own), (vec![3, 12, 8], (2 * 12 + 6) * 8, vec![6, 8]));
        let down = ExpertTensor::of(&olmoe, "model.layers.1.mlp.experts.2.down_proj.weight").unwrap();
        assert_eq!(down.place(3, &[8, 6]).first, 2 * 8 * 6);
        // Neither is of an expert that is routed to.
        for other in
            ["model.layers.1.mlp.shared_expert.up_proj.weight", "model.layers.1.mlp.shared_experts.2.up_proj.weight"]
        {
            assert_eq!(ExpertTensor::of(&config("qwen2_moe"), other), None);
        }
    }

    #[test]
    fn columns_of_gate_and_up_take_turns_in_gpt_oss() {
        let config = config("gpt_oss");
        let tensor = ExpertTensor::of(&config, "model.layers.0.mlp.experts.1.up_proj.weight").unwrap();
        let part = tensor.place(3, &[6, 8]);
        assert_eq!((part.shape, part.own, part.first), (vec![3, 8, 12], vec![8, 12], 8 * 12));
        assert_eq!((part.lane, part.transposed), (Some([1, 2]), true));
        let bias = ExpertTensor::of(&config, "model.layers.0.mlp.experts.1.down_proj.bias").unwrap();
        assert_eq!(bias.packed(&config), "model.layers.0.mlp.experts.down_proj_bias");
        assert_eq!(bias.place(3, &[8]).first, 8);
    }
}
