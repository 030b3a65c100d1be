//! Which layer and which map of it a module is, by its name.

use std::collections::BTreeMap;

use serde::Serialize;

/// The layer of what has no number in its name.
const OTHER: &str = "other";

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
        let name = |number: &u32| if *number == u32::MAX { OTHER.into() } else { number.to_string() };
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
    /// sum_l l · |s_l| / sum_l |s_l|: where along the layers the influence sits; none where there is none. What is in no layer,
    /// such as an embedding or the head, is left out.
    pub(crate) fn centre_of_mass(&self, by_layer: &[f64]) -> Option<f64> {
        let numbered =
            self.layers.iter().zip(by_layer).filter(|(name, _)| *name != OTHER).map(|(_, share)| share.abs());
        let sum: f64 = numbered.clone().sum();
        let moment: f64 = numbered.enumerate().map(|(layer, share)| layer as f64 * share).sum();
        (sum > 0.0).then(|| moment / sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_no_layer_is_no_layer_behind_the_last() {
        let names = ["model.embed_tokens", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"];
        let grid = Grid::new(names.map(String::from).to_vec());
        assert_eq!(grid.layers, ["0", "1", "other"]);
        let by_layer = grid.by_layer(&[5.0, 1.0, -3.0, 2.0]);
        assert_eq!(by_layer, [1.0, -3.0, 7.0]);
        assert_eq!(grid.centre_of_mass(&by_layer), Some(0.75));
        assert_eq!(grid.centre_of_mass(&[0.0, 0.0, 7.0]), None);
    }
}
