//! Which layer and which map of it a module is, by its name.

use std::collections::BTreeMap;

use serde::Serialize;

/// Modules as a grid of layers and maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Grid {
    /// Module names, in the order of `by_module`.
    pub(crate) modules: Vec<String>,
    /// Names of the layers, first to last; `other` where a module has no number in its name.
    pub(crate) layers: Vec<String>,
    /// Names of the maps inside a layer.
    pub(crate) maps: Vec<String>,
    /// By module: its layer and its map.
    pub(crate) places: Vec<(usize, usize)>,
}

impl Grid {
    /// From `transformers` names: the first number is the layer, what follows it the map
    /// (`model.layers.3.mlp.down_proj` is layer 3, map `mlp.down_proj`).
    pub(crate) fn new(modules: Vec<String>) -> Self {
        let split = |name: &String| {
            let words: Vec<&str> = name.split('.').collect();
            let number = words.iter().position(|word| word.parse::<u32>().is_ok());
            number.map_or((u32::MAX, name.clone()), |at| (words[at].parse().unwrap_or(0), words[at + 1..].join(".")))
        };
        let split: Vec<(u32, String)> = modules.iter().map(split).collect();
        let mut numbers: BTreeMap<u32, usize> = split.iter().map(|(number, _)| (*number, 0)).collect();
        numbers.values_mut().enumerate().for_each(|(place, into)| *into = place);
        let mut maps: Vec<String> = Vec::new();
        let mut places = Vec::new();
        for (number, map) in &split {
            let place = maps.iter().position(|known| known == map).unwrap_or_else(|| {
                maps.push(map.clone());
                maps.len() - 1
            });
            places.push((numbers[number], place));
        }
        let name = |number: &u32| if *number == u32::MAX { "other".into() } else { number.to_string() };
        Self { layers: numbers.keys().map(name).collect(), modules, maps, places }
    }

    /// Shares by layer: sums of `by_module`.
    pub(crate) fn by_layer(&self, by_module: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; self.layers.len()];
        for (&(layer, _), &share) in self.places.iter().zip(by_module) {
            sums[layer] += f64::from(share);
        }
        sums
    }
}

/// sum_l l · |s_l| / sum_l |s_l|: where along the layers the influence sits; none where there is none.
pub(crate) fn centre_of_mass(by_layer: &[f64]) -> Option<f64> {
    let sum: f64 = by_layer.iter().map(|share| share.abs()).sum();
    let moment: f64 = by_layer.iter().enumerate().map(|(layer, share)| layer as f64 * share.abs()).sum();
    (sum > 0.0).then(|| moment / sum)
}
