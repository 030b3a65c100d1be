//! Training as a function of the weights of its examples, against a run of torch in float64 (tests/fixtures/truth).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use serde_json::Value;
use wherefrom_artifact::Example;
use wherefrom_model::{Batch, Model, Sequence};
use wherefrom_train::course::{Course, Learner, Training};
use wherefrom_train::metasmoothness::{STEP, metasmoothness};
use wherefrom_train::reverse::Adjoint;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/truth/metagradient")
}

fn read(name: &str) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().unwrap());
    let values = |view: safetensors::tensor::TensorView<'_>| match view.dtype() {
        safetensors::Dtype::F64 => view.data().chunks_exact(8).map(number).collect(),
        _ => view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
    };
    file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), values(view)))).collect()
}

fn rows(name: &str) -> Vec<Example> {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let row = |(number, line): (usize, &str)| {
        let row: Value = serde_json::from_str(line).unwrap();
        let input_ids: Vec<u32> = serde_json::from_value(row["input_ids"].clone()).unwrap();
        let mask = serde_json::from_value(row["target_mask"].clone());
        let target_mask = mask.unwrap_or_else(|_| (0..input_ids.len()).map(|place| place > 0).collect());
        Example { example: number as u64, input_ids, target_mask, ..Example::default() }
    };
    text.lines().enumerate().map(row).collect()
}

/// The run of the fixture, and what it begins with.
fn course(eps_root: f64) -> (Course, Learner) {
    let order = &read("reference-eps-root-1e-8.safetensors")["order"];
    let batches: Vec<Vec<usize>> =
        order.1.chunks(order.0[1]).map(|batch| batch.iter().map(|&row| row as usize).collect()).collect();
    let training = Training {
        epochs: 1,
        batch_rows: 8,
        learning_rate: 0.008,
        warmup_share: 0.25,
        minimum_learning_rate_share: 1.0,
        betas: [0.9, 0.98],
        eps: 1e-12,
        eps_root,
        weight_decay: 0.01,
        clip: None,
        seed: 0,
        lora: None,
    };
    let course = Course::of(rows("train.jsonl"), batches, &training);
    let device = wherefrom_model::resolve_device("cpu").unwrap();
    (course, Learner::new(Model::load(&folder().join("initial"), &device).unwrap()))
}

/// That run, its examples weighted: the model behind it, and each step's loss before it.
fn run(eps_root: f64, weight: &dyn Fn(u64) -> f32) -> (Model, Vec<f64>) {
    let (course, mut learner) = course(eps_root);
    let losses = (0..course.steps()).map(|step| {
        let (loss, targets) = course.step(&mut learner, step, weight).unwrap();
        loss / targets as f64
    });
    let losses = losses.collect();
    (learner.model, losses)
}

/// log p of a query's targets.
fn log_probability(model: &Model, query: &Example) -> f64 {
    let sequence = Sequence::new(0, &query.input_ids, &query.target_mask);
    let losses = model.token_losses(&Batch::new(&[sequence], &model.device)).unwrap();
    -losses[0].iter().map(|&loss| f64::from(loss)).sum::<f64>()
}

#[test]
fn a_run_equals_one_in_float64() {
    for (name, eps_root) in [("1e-8", 1e-8), ("1e-4", 1e-4)] {
        let (model, losses) = run(eps_root, &|_| 1.0);
        let expected = &read(&format!("reference-eps-root-{name}.safetensors"))["batch_loss"].1;
        for (step, (loss, expected)) in losses.iter().zip(expected).enumerate() {
            assert!((loss - expected).abs() < 2e-5 * expected.abs(), "step {step}: {loss}, {expected}");
        }
        for (name, (_, expected)) in read(&format!("final-eps-root-{name}.safetensors")) {
            let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
            let values: Vec<f32> = model.parameters[&name].to_data().try_into_vec().unwrap();
            let error = values.iter().zip(&expected).map(|(value, expected)| (f64::from(*value) - expected).abs());
            let error = error.fold(0.0, f64::max);
            assert!(error < 2e-5 * largest, "{name}: {error} of {largest}");
        }
    }
}

#[test]
fn an_example_taken_out_or_copied_changes_the_queries_as_in_float64() {
    let queries = rows("queries.jsonl");
    let reference = read("reference-eps-root-1e-4.safetensors");
    let metric = &reference["metric"];
    let before: Vec<f64> = metric.1.chunks(metric.0[1]).map(|by_step| by_step[by_step.len() - 1]).collect();
    for (what, factor) in [("removed", 0.0), ("copied", 2.0)] {
        let changes = &reference[what];
        let (mut error, mut largest) = (0.0_f64, 0.0_f64);
        for example in [0, 7, 23, 41, 63] {
            let (model, _) = run(1e-4, &|number| if number == example { factor } else { 1.0 });
            for (query, row) in queries.iter().enumerate() {
                let expected = changes.1[query * changes.0[1] + example as usize];
                error = error.max((log_probability(&model, row) - before[query] - expected).abs());
                largest = largest.max(expected.abs());
            }
        }
        assert!(error < 1e-3 * largest.max(0.01), "{what}: {error} of {largest}");
    }
}

/// df/dw of every row, and the adjoint before the first step, of f = log p of a query.
fn metagradient(course: &Course, start: &Learner, query: &Example) -> (Vec<f64>, Adjoint) {
    let mut last = start.clone();
    let states: Vec<_> = (0..course.steps()).map(|step| course.advance(&mut last, step).unwrap()).collect();
    let sequence = Sequence::new(0, &query.input_ids, &query.target_mask);
    let (gradients, ..) = last.model.parameter_gradients(&Batch::new(&[sequence], &last.model.device)).unwrap();
    let negated = |tensor: &Tensor<2>| -> Vec<f64> {
        let values: Vec<f32> = tensor.to_data().try_into_vec().unwrap();
        values.into_iter().map(|value| -f64::from(value)).collect()
    };
    let mut adjoint = Adjoint::new(gradients.iter().map(|(name, values)| (name.clone(), negated(values))).collect());
    let mut influences = vec![0.0; course.examples().len()];
    for state in states.iter().rev() {
        for (example, value) in course.back(state, &mut adjoint).unwrap() {
            influences[example as usize] += value;
        }
    }
    (influences, adjoint)
}

/// The largest difference, over the largest number.
fn error(values: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    values.iter().zip(expected).fold(0.0_f64, |most, (value, expected)| most.max((value - expected).abs())) / largest
}

#[test]
fn the_metagradient_equals_one_differentiated_in_float64() {
    for (name, eps_root) in [("1e-8", 1e-8), ("1e-4", 1e-4)] {
        let (course, start) = course(eps_root);
        let expected = &read(&format!("reference-eps-root-{name}.safetensors"))["metagradient"];
        let adjoints = read(&format!("adjoint-eps-root-{name}.safetensors"));
        for (number, query) in rows("queries.jsonl").iter().enumerate() {
            let (influences, adjoint) = metagradient(&course, &start, query);
            let of_query = |(shape, values): &(Vec<usize>, Vec<f64>)| -> Vec<f64> {
                values.chunks(values.len() / shape[0]).nth(number).unwrap().to_vec()
            };
            let error_of_influences = error(&influences, &of_query(expected));
            let all = |values: Vec<Vec<f64>>| values.concat();
            let expected = all(adjoint.weights.keys().map(|name| of_query(&adjoints[name])).collect());
            let error_of_adjoint = error(&all(adjoint.weights.into_values().collect()), &expected);
            assert!(error_of_influences < 1e-3, "eps-root {name}, query {number}: {error_of_influences}");
            assert!(error_of_adjoint < 1e-3, "eps-root {name}, query {number}: {error_of_adjoint}");
        }
    }
}

#[test]
fn batches_that_go_through_the_model_in_pieces_change_no_metagradient() {
    let (course, start) = course(1e-8);
    for query in rows("queries.jsonl").into_iter().take(1) {
        let [(whole, _), (by_row, _)] =
            [course.clone(), course.clone().in_pieces(1)].map(|course| metagradient(&course, &start, &query));
        assert_ne!(whole, by_row, "sums in another order are rounded otherwise");
        assert!(error(&by_row, &whole) < 1e-3, "{}", error(&by_row, &whole));
    }
}

#[test]
fn metasmoothness_is_that_of_the_run_in_float64() {
    for (name, eps_root, expected) in [("1e-8", 1e-8, 0.820_25), ("1e-4", 1e-4, 0.958_77)] {
        let direction = &read(&format!("reference-eps-root-{name}.safetensors"))["direction"].1;
        let end =
            |distance: f32| run(eps_root, &|example| 1.0 + distance * STEP * direction[example as usize] as f32).0;
        let [last, one, two] = [0.0, 1.0, 2.0].map(|distance| end(distance).parameters);
        let found = metasmoothness([&last, &one, &two]).unwrap().unwrap();
        assert!((found - expected).abs() < 2e-3, "eps-root {name}: {found}, not {expected}");
        assert_eq!(metasmoothness([&last, &last, &two]).unwrap(), None);
    }
}
