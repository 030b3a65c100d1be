//! Gauss-Newton products of every family against differences of its logits, and of a Llama against float64
//! (tests/fixtures/truth).

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use wherefrom_linalg::random::normal;
use wherefrom_linalg::test_support::with_burn_operations;
use wherefrom_model::{Batch, Model, Modules, Part, Selection, Sequence, resolve_device};

use crate::{Fixture, fixtures, values};

const FAMILIES: [&str; 14] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_neox_sequential",
    "granite",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

type Maps = Vec<Vec<f64>>;

fn selection(model: &Model, choice: Modules) -> Selection {
    Selection::new(&choice, model.modules()).unwrap()
}

fn random(selection: &Selection, seed: u64) -> Maps {
    let map = |(stream, size): (u64, u64)| (0..size).map(|i| f64::from(normal(seed, stream, i) as f32)).collect();
    let sizes = selection.modules().iter().map(|module| (module.in_features * module.out_features) as u64);
    (0..).zip(sizes).map(map).collect()
}

fn tensors(model: &Model, selection: &Selection, maps: &Maps) -> Vec<Tensor<2>> {
    let tensor = |(module, map): (&wherefrom_model::Module, &Vec<f64>)| {
        let map: Vec<_> = map.iter().map(|&value| value as f32).collect();
        Tensor::from_data(TensorData::new(map, [module.out_features, module.in_features]), &model.device)
    };
    selection.modules().iter().zip(maps).map(tensor).collect()
}

fn dot(x: &Maps, y: &Maps) -> f64 {
    x.iter().flatten().zip(y.iter().flatten()).map(|(x, y)| x * y).sum()
}

/// G v, and how the loss of each sequence moves.
fn product(model: &Model, batch: &Batch, selection: &Selection, v: &Maps) -> (Maps, Vec<f64>) {
    let mut found: Maps = v.iter().map(|map| vec![0.0; map.len()]).collect();
    let direction = tensors(model, selection, v);
    let linearised = model.linearised(batch, selection).unwrap();
    let slopes = linearised.product(&direction, &mut |tap| {
        let map = values(tap.output_gradients.transpose().matmul(tap.activations));
        found[tap.index].iter_mut().zip(map).for_each(|(sum, value)| *sum += f64::from(value));
        Ok(())
    });
    (found, slopes.unwrap())
}

/// The model at weights W + step V.
fn moved(model: &Model, selection: &Selection, v: &Maps, step: f64) -> Model {
    let mut model = model.clone();
    for (module, v) in selection.modules().iter().zip(tensors(&model, selection, v)) {
        let v = v * step as f32;
        let inside = module.in_features - usize::from(module.bias);
        let mut add = |name: String, v: Tensor<2>| {
            let sum = model.parameters[&name].clone() + v;
            model.parameters.insert(name, sum);
        };
        if module.bias {
            add(module.bias(), v.clone().narrow(1, inside, 1).transpose());
        }
        add(module.weight(), v.narrow(1, 0, inside));
    }
    model
}

/// Central differences of what the models at W + h V and W - h V say, and at half of h, extrapolated.
fn difference(model: &Model, selection: &Selection, v: &Maps, h: f64, of: impl Fn(&Model) -> Vec<f64>) -> Vec<f64> {
    let central = |h: f64| {
        let [up, down] = [h, -h].map(|step| of(&moved(model, selection, v, step)));
        up.iter().zip(down).map(|(up, down)| (up - down) / (2.0 * h)).collect::<Vec<_>>()
    };
    central(h / 2.0).iter().zip(central(h)).map(|(fine, coarse)| (4.0 * fine - coarse) / 3.0).collect()
}

/// Rows that predict a target, with the weight of each; of the batch of [`segmented`].
struct Targets(Vec<(usize, f64)>);

/// A packed row with weights, and a plain one.
fn segmented(fixture: &Fixture) -> (Batch, Targets) {
    let (first, second) = (&fixture.sequences[0][..], &fixture.sequences[1][..]);
    let ids: Vec<u32> = [second, first].concat();
    let starts = [0, second.len() as u32];
    let weights = [1.0, -0.5];
    let mask: Vec<bool> = (0..ids.len() as u32).map(|t| !starts.contains(&t)).collect();
    let packed = Sequence {
        example: 0,
        input_ids: &ids,
        target_mask: &mask,
        segments: &starts,
        weights: &weights,
        preference: None,
    };
    let plain: Vec<bool> = (0..first.len()).map(|t| t > 1).collect();
    let batch = Batch::new(&[packed, Sequence::new(1, first, &plain)], &fixture.model.device);
    let mut targets: Vec<_> = (1..second.len()).map(|t| (t - 1, 1.0)).collect();
    targets.extend((1..first.len()).map(|t| (second.len() + t - 1, -0.5)));
    targets.extend((2..first.len()).map(|t| (ids.len() + t - 1, 1.0)));
    (batch, Targets(targets))
}

/// sum over targets of w (J u)^T H (J v), of the logits' differences.
fn by_differences(
    fixture: &Fixture,
    h: f64,
    batch: &Batch,
    targets: &Targets,
    selection: &Selection,
    [u, v]: [&Maps; 2],
) -> f64 {
    let width = fixture.model.config.vocab_size;
    let logits = |model: &Model| values(model.logits(batch).unwrap()).into_iter().map(f64::from).collect::<Vec<_>>();
    let [ju, jv] = [u, v].map(|v| difference(&fixture.model, selection, v, h, logits));
    let z = logits(&fixture.model);
    let row = |&(row, weight): &(usize, f64)| {
        let own = row * width..(row + 1) * width;
        let (z, ju, jv) = (&z[own.clone()], &ju[own.clone()], &jv[own]);
        let largest = z.iter().fold(f64::MIN, |largest, &z| largest.max(z));
        let p: Vec<_> = z.iter().map(|z| (z - largest).exp()).collect();
        let sum: f64 = p.iter().sum();
        let mean = |x: &dyn Fn(usize) -> f64| p.iter().enumerate().map(|(i, p)| p / sum * x(i)).sum::<f64>();
        weight * (mean(&|i| ju[i] * jv[i]) - mean(&|i| ju[i]) * mean(&|i| jv[i]))
    };
    targets.0.iter().map(row).sum()
}

fn agree(what: &str, found: f64, expected: f64, scale: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * scale, "{what}: {found}, {expected}, of {scale}");
}

/// On the burn path, too, which a GPU takes; with all maps, with those of the MLPs, and with single ones.
#[test]
fn products_of_every_family_are_those_of_its_logits() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        // A token that is routed elsewhere makes a difference, and no derivative.
        let h = if fixture.model.config.experts.is_some() { 4e-4 } else { 4e-3 };
        products_are_those_of_logits(name, &fixture, h);
    }
}

/// Against differences of steps `h` along the direction.
pub(crate) fn products_are_those_of_logits(name: &str, fixture: &Fixture, h: f64) {
    let (batch, targets) = segmented(fixture);
    let maps: Vec<_> = fixture.model.modules().iter().filter(|module| module.part.is_map()).collect();
    let one = |index: usize| Modules::Globs(vec![maps[index].name.clone()]);
    let last = maps.len() - 1;
    // An adapter may have no map of an MLP.
    let mlp = fixture.model.modules().iter().any(|module| module.part == Part::Mlp).then(Modules::default);
    for choice in [Modules::Globs(vec!["*".into()]), one(0), one(last)].into_iter().chain(mlp) {
        let selection = selection(&fixture.model, choice);
        let (u, v) = (random(&selection, 1), random(&selection, 2));
        let checked = || {
            let (gu, _) = product(&fixture.model, &batch, &selection, &u);
            let (gv, slopes) = product(&fixture.model, &batch, &selection, &v);
            let scale = (dot(&u, &gu) * dot(&v, &gv)).abs().sqrt();
            agree(&format!("{name}: symmetry"), dot(&u, &gv), dot(&v, &gu), scale, 1e-5);
            (scale, dot(&u, &gv), dot(&v, &gv), slopes)
        };
        let (scale, ugv, vgv, slopes) = checked();
        // How losses move is their gradients along the direction.
        let mut along = 0.0;
        let labels = wherefrom_model::Labels::Empirical;
        let visit = &mut |tap: wherefrom_model::Tap<'_>| {
            let gradient = values(tap.output_gradients.transpose().matmul(tap.activations));
            along += gradient.iter().zip(&v[tap.index]).map(|(&g, v)| f64::from(g) * v).sum::<f64>();
            Ok(())
        };
        fixture.model.taps(&batch, &labels, &selection, visit).unwrap();
        let size: f64 = slopes.iter().map(|slope| slope.abs()).sum();
        agree(&format!("{name}: gradient"), slopes.iter().sum(), along, size, 1e-4);
        // Both factors of an adapter move, and tokens are routed elsewhere: differences are coarse.
        let tolerance = if h < 4e-3 { 1e-2 } else { 2e-3 };
        agree(name, ugv, by_differences(fixture, h, &batch, &targets, &selection, [&u, &v]), scale, tolerance);
        agree(name, vgv, by_differences(fixture, h, &batch, &targets, &selection, [&v, &v]), scale, tolerance);
        let losses = |model: &Model| {
            let losses = model.taps(&batch, &labels, &selection, &mut |_| Ok(())).unwrap();
            losses.into_iter().map(f64::from).collect()
        };
        let expected = difference(&fixture.model, &selection, &v, h, losses);
        let size = expected.iter().fold(0.0_f64, |size, slope| size.max(slope.abs()));
        for (slope, expected) in slopes.iter().zip(expected) {
            agree(&format!("{name}: slope"), *slope, expected, size, 4.0 * tolerance);
        }
        let (_, plain, ..) = with_burn_operations(checked);
        agree(&format!("{name}: burn"), plain, ugv, scale, 1e-5);
    }
}

/// Three vectors, to 1e-5 in norm.
#[test]
fn a_product_equals_dense_float64() {
    let folder = fixtures("truth").join("gauss-newton");
    let model = Model::load(&folder.join("model"), &resolve_device("cpu").unwrap()).unwrap();
    let text = std::fs::read_to_string(folder.join("train.jsonl")).unwrap();
    let row = |line: &str| -> (Vec<u32>, Vec<bool>) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(row["input_ids"].clone()).unwrap();
        let mask = serde_json::from_value(row["target_mask"].clone());
        let mask = mask.unwrap_or_else(|_| (0..ids.len()).map(|place| place > 0).collect());
        (ids, mask)
    };
    let rows: Vec<_> = text.lines().map(row).collect();
    let sequences: Vec<_> = (0..).zip(&rows).map(|(example, (ids, mask))| Sequence::new(example, ids, mask)).collect();
    let batch = Batch::new(&sequences, &model.device);
    let selection = selection(&model, Modules::Named("all".into()));
    let read = |name: &str| -> HashMap<String, Vec<f64>> {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |data: &[u8]| data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
        file.tensors().into_iter().map(|(name, view)| (name, numbers(view.data()))).collect()
    };
    let (vectors, products) = (read("vectors.safetensors"), read("products.safetensors"));
    for number in 0..3 {
        let of = |stored: &HashMap<String, Vec<f64>>| -> Maps {
            let map = |module: &wherefrom_model::Module| {
                let size = module.in_features * module.out_features;
                stored[&module.name][number * size..(number + 1) * size].to_vec()
            };
            selection.modules().iter().map(map).collect()
        };
        let expected = of(&products);
        let (mut found, _) = product(&model, &batch, &selection, &of(&vectors));
        let rows = rows.len() as f64;
        for (found, expected) in found.iter_mut().flatten().zip(expected.iter().flatten()) {
            *found = *found / rows - expected;
        }
        let off = (dot(&found, &found) / dot(&expected, &expected)).sqrt();
        assert!(off < 1e-5, "vector {number}: {off:e}");
    }
}
