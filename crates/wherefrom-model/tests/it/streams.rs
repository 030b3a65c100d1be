//! The residual stream and projections on a direction, against float64 (tests/fixtures/persona/README.md).

use burn::tensor::Tensor;
use serde_json::Value;
use wherefrom_model::{
    Batch, Labels, Measurement, Model, Modules, Selection, Sequence, Site, Tap, TokenRows, resolve_device,
};

use crate::{DEVICE, assert_close, assert_within, fixtures, reference, values};

/// Of the largest value of a row and site.
const STREAM_TOLERANCE: f32 = 3e-6;
/// Sites of the fixture: 0 to 4, post-norm.
const SITES: usize = 6;
const WIDTH: usize = 48;

struct Row {
    ids: Vec<u32>,
    mask: Vec<bool>,
}

fn rows(name: &str) -> Vec<(String, Row)> {
    let text = std::fs::read_to_string(fixtures("persona").join(name)).unwrap();
    let row = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let mut take = |key: &str| row[key].take();
        let (id, ids, mask) = (take("id"), take("input_ids"), take("target_mask"));
        let row = Row { ids: serde_json::from_value(ids).unwrap(), mask: serde_json::from_value(mask).unwrap() };
        (id.as_str().unwrap().to_string(), row)
    };
    text.lines().map(row).collect()
}

fn model() -> Model {
    Model::load(&fixtures("persona").join("model"), &resolve_device(DEVICE).unwrap()).unwrap()
}

fn batch(rows: &[(String, Row)], model: &Model) -> Batch {
    let numbered = (0..).zip(rows);
    let sequences: Vec<_> = numbered.map(|(number, (_, row))| Sequence::new(number, &row.ids, &row.mask)).collect();
    Batch::new(&sequences, &model.device)
}

/// Every site's stream, [rows, width] each.
fn streams(model: &Model, batch: &Batch, sites: &[Site]) -> Vec<(Site, Vec<f32>)> {
    let mut streams = Vec::new();
    let visit = &mut |site, stream: Tensor<2>| {
        assert_eq!(stream.dims(), [batch.rows(), WIDTH]);
        streams.push((site, values(stream)));
        Ok(())
    };
    model.residual_streams(batch, sites, visit).unwrap();
    streams
}

/// All rows in one batch, of whatever length: every token at every site, and the means that are made of them.
#[test]
fn streams_are_those_of_transformers() {
    let model = model();
    let sites = Site::all(4);
    assert_eq!(sites.len(), SITES);

    let queries = rows("queries.jsonl");
    let (expected, _) = reference(&fixtures("persona").join("stream.safetensors"));
    let batch_of_three = batch(&queries, &model);
    let found = streams(&model, &batch_of_three, &sites);
    assert_eq!(found.iter().map(|(site, _)| *site).collect::<Vec<_>>(), sites);
    for (place, (name, row)) in queries.iter().enumerate() {
        let tokens = batch_of_three.tokens.sequences.of(place);
        for (site, (name_of_site, stream)) in found.iter().enumerate() {
            let expected = &expected[name][site * row.ids.len() * WIDTH..][..row.ids.len() * WIDTH];
            assert_close(
                &format!("{name} {name_of_site}"),
                &stream[tokens.start * WIDTH..tokens.end * WIDTH],
                expected,
            );
        }
    }

    let rows = rows("rows.jsonl");
    let (expected, _) = reference(&fixtures("persona").join("activations.safetensors"));
    let batch = batch(&rows, &model);
    for (site, (name, stream)) in streams(&model, &batch, &sites).into_iter().enumerate() {
        let TokenRows { sequences, .. } = &batch.tokens;
        for (place, (_, row)) in rows.iter().enumerate() {
            let token = |t: usize| &stream[(sequences.of(place).start + t) * WIDTH..][..WIDTH];
            let mean = |chosen: Vec<usize>| -> Vec<f32> {
                let sum = |i: usize| chosen.iter().map(|&t| f64::from(token(t)[i])).sum::<f64>();
                (0..WIDTH).map(|i| (sum(i) / chosen.len() as f64) as f32).collect()
            };
            let targets: Vec<_> = (0..row.ids.len()).filter(|&t| row.mask[t]).collect();
            let expected = |of: &str| &expected[of][(place * SITES + site) * WIDTH..][..WIDTH];
            let what = |of: &str| format!("{of} of row {place} at {name}");
            assert_within(STREAM_TOLERANCE, &what("mean"), &mean((0..row.ids.len()).collect()), expected("all_mean"));
            assert_within(
                STREAM_TOLERANCE,
                &what("last of the prompt"),
                token(targets[0] - 1),
                expected("prompt_last"),
            );
            assert_within(STREAM_TOLERANCE, &what("mean of targets"), &mean(targets), expected("target_mean"));
        }
    }
}

#[test]
fn only_the_sites_that_are_asked_for_are_handed_out() {
    let model = model();
    let batch = batch(&rows("queries.jsonl"), &model);
    let all = streams(&model, &batch, &Site::all(4));
    for sites in [vec![Site::Stream(0)], vec![Site::PostNorm], vec![Site::Stream(3), Site::Stream(1)]] {
        let found = streams(&model, &batch, &sites);
        assert_eq!(found.len(), sites.len());
        assert!(found.iter().all(|stream| sites.contains(&stream.0) && all.contains(stream)));
    }
    let error = model.residual_streams(&batch, &[Site::Stream(5)], &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("site 5") && error.contains("0 to 4 or post-norm"), "{error}");
}

#[test]
fn sites_read_as_they_are_written() {
    for site in Site::all(30) {
        assert_eq!(site.to_string().parse::<Site>().unwrap(), site);
    }
    assert_eq!(Site::PostNorm.to_string(), "post-norm");
    for word in ["-1", "last", "", "1.0"] {
        assert!(word.parse::<Site>().is_err(), "{word}");
    }
}

/// The gradient of f, a projection on a unit direction, against float64 and finite differences (of its maker).
#[test]
fn projections_have_the_gradients_of_float64() {
    let model = model();
    let rows = rows("queries.jsonl");
    let (expected, _) = reference(&fixtures("persona").join("projection.safetensors"));
    let selection = Selection::new(&Modules::Named("all".into()), model.modules()).unwrap();
    for (site, name, blocks) in [(Site::Stream(3), "3", 3), (Site::Stream(4), "4", 4), (Site::PostNorm, "post-norm", 4)]
    {
        let measurement = Measurement::Projection { site, direction: expected[&format!("{name}/direction")].clone() };
        let batch = batch(&rows[..1], &model);
        let mut compared = 0;
        let visit = &mut |tap: Tap<'_>| {
            assert!(tap.module.layer < blocks, "{}: the stream is read before it", tap.module.name);
            let gradient = values(-tap.output_gradients.transpose().matmul(tap.activations));
            if let Some(expected) = expected.get(&format!("{name}/{}", tap.module.name)) {
                assert_close(&format!("{name} {}", tap.module.name), &gradient, expected);
                compared += 1;
            }
            Ok(())
        };
        let found = model.measurement_taps(&batch, &measurement, &Labels::Empirical, &selection, visit).unwrap();
        assert_eq!(compared, 3);
        assert_close("-f", &found, &[-expected[&format!("{name}/value")][0]]);
    }
}

/// Two queries in a batch are what they are alone.
#[test]
fn projections_do_not_depend_on_the_batch() {
    let model = model();
    let rows = rows("queries.jsonl");
    let selection = Selection::new(&Modules::Named("mlp".into()), model.modules()).unwrap();
    let measurement = Measurement::Projection { site: Site::Stream(2), direction: vec![0.1; WIDTH] };
    let values = |rows: &[(String, Row)]| {
        let batch = batch(rows, &model);
        model.measurement_taps(&batch, &measurement, &Labels::Empirical, &selection, &mut |_| Ok(())).unwrap()
    };
    let alone: Vec<_> = rows.iter().flat_map(|row| values(std::slice::from_ref(row))).collect();
    assert_close("together", &values(&rows), &alone);
}
