//! Activations against hidden states of transformers in float64 (tests/fixtures/persona/README.md).

mod measure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::{
    Activations, Artifact, Draft, Example, Kind, Position, Recipe, Row, Silent, Store, Streams, Tokens,
};
use wherefrom_gradients::activations::{Config, Inputs, STAGE, run};
use wherefrom_model::Site;
use wherefrom_model::Sites;
use wherefrom_stage::Exec;

/// Of the largest value of a row and site.
const TOLERANCE: f32 = 1e-5;
/// 0 to 4, post-norm.
const SITES: usize = 6;
const WIDTH: usize = 48;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/persona")
}

fn rows() -> Vec<Example> {
    rows_of("rows.jsonl")
}

fn rows_of(file: &str) -> Vec<Example> {
    let row = |(example, line): (u64, &str)| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let input_ids: Vec<u32> = serde_json::from_value(row["input_ids"].take()).unwrap();
        let target_mask: Vec<bool> = serde_json::from_value(row["target_mask"].take()).unwrap();
        Example { example, docs: vec!["row".into()], doc_starts: vec![0], input_ids, target_mask, ..Example::default() }
    };
    let text = std::fs::read_to_string(fixtures().join(file)).unwrap();
    (0..).zip(text.lines()).map(row).collect()
}

fn produce(folder: &TempDir, kind: Kind, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<PathBuf> {
    let recipe =
        Recipe { stage: kind.name().into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), model: None };
    Ok(Store::new(folder.path()).produce(kind, recipe, &Silent, fill)?.0)
}

/// The artifact of these rows, which stand in parts of 10, and so do its own.
fn activations(config: &Config, rows: &[Example], batch_tokens: usize) -> Result<Vec<Streams>> {
    let folder = tempfile::tempdir()?;
    let tokens = produce(&folder, Kind::Tokens, |draft| {
        draft.summary("tokens", rows.iter().map(|row| row.input_ids.len()).sum::<usize>())?;
        let mut parts = rows.chunks(10).enumerate();
        parts.try_for_each(|(part, rows)| draft.write(part, &[<Example as Row<Tokens>>::to_batch(rows)?]))
    })?;
    let inputs = Inputs { tokens: Artifact::open(&tokens)?, model: fixtures().join("model").into() };
    let exec = Exec { batch_tokens, ..Exec::default() };
    let sealed = produce(&folder, Kind::Activations, |draft| run(config, &inputs, &exec, draft))?;
    let artifact = Artifact::<Activations>::open(&sealed)?;
    assert_eq!(artifact.manifest().parts.len(), rows.len().div_ceil(10));
    artifact.rows::<Streams>()?.collect()
}

/// [rows, sites, width]
fn reference(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixtures().join("activations.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = tensors.tensor(name).unwrap().data().chunks_exact(4);
    values.map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let worst = found.iter().zip(expected).fold(0.0_f32, |worst, (one, other)| worst.max((one - other).abs()));
    assert!(worst <= TOLERANCE * largest, "{what}: {worst:.2e} of {largest}");
}

#[test]
fn every_site_and_position_is_that_of_transformers_in_batches_of_any_size() {
    let rows = rows();
    let references = ["all_mean", "target_mean", "prompt_last"].map(reference);
    for batch_tokens in [1, 64, 4096] {
        let found = activations(&Config::default(), &rows, batch_tokens).unwrap();
        assert_eq!(found.len(), rows.len());
        for (index, row) in found.iter().enumerate() {
            assert_eq!((row.example, row.shape), (index as u64, [SITES, WIDTH]));
            for (found, expected) in [&row.all_mean, &row.target_mean, &row.prompt_last].into_iter().zip(&references) {
                for site in 0..SITES {
                    let expected = &expected[(index * SITES + site) * WIDTH..][..WIDTH];
                    close(&found[site * WIDTH..][..WIDTH], expected, &format!("row {index}, site {site}"));
                }
            }
        }
    }
}

#[test]
fn chosen_sites_and_positions_are_those_of_all() {
    let rows = rows();
    let all = activations(&Config::default(), &rows, 4096).unwrap();
    let sites = Sites::Some(vec![Site::Stream(3), Site::PostNorm]);
    let config = Config { sites, positions: vec![Position::PromptLast], ..Config::default() };
    for (some, all) in activations(&config, &rows, 4096).unwrap().iter().zip(&all) {
        assert_eq!(some.shape, [2, WIDTH]);
        assert!(some.all_mean.is_empty() && some.target_mean.is_empty());
        assert_eq!(some.prompt_last[..WIDTH], all.prompt_last[3 * WIDTH..][..WIDTH]);
        assert_eq!(some.prompt_last[WIDTH..], all.prompt_last[5 * WIDTH..]);
    }
}

#[test]
fn a_row_without_targets_has_a_last_token_and_no_mean_over_targets() {
    let mut rows = rows()[..2].to_vec();
    let prompt = rows[0].target_mask.iter().position(|&target| target).unwrap();
    let whole = activations(&Config::default(), &rows, 4096).unwrap();
    rows[0].input_ids.truncate(prompt);
    rows[0].target_mask.truncate(prompt);
    let error = activations(&Config::default(), &rows, 4096).unwrap_err().to_string();
    assert!(error.contains("row 0 of the tokens has no target"), "{error}");
    let config = Config { positions: vec![Position::PromptLast], ..Config::default() };
    let found = activations(&config, &rows, 4096).unwrap();
    close(&found[0].prompt_last, &whole[0].prompt_last, "the prompt alone ends where it ended before its answer");
}

#[test]
fn a_site_that_the_model_does_not_have_is_refused() {
    let config = Config { sites: Sites::Some(vec![Site::Stream(5)]), ..Config::default() };
    let error = activations(&config, &rows()[..1], 4096).unwrap_err().to_string();
    assert!(error.contains("site 5 is beyond the model's last"), "{error}");
}

#[test]
fn knobs_that_say_the_same_are_one_configuration() {
    let configured = |knobs: Value| -> Result<Value> {
        let config = (STAGE.parse)(knobs)?;
        config.check()?;
        Ok(serde_json::to_value(config)?)
    };
    let all = json!({ "sites": "all", "positions": ["all-mean", "target-mean", "prompt-last"], "precision": "f32" });
    assert_eq!(configured(json!({})).unwrap(), all);
    let knobs = json!({ "sites": ["post-norm", 3, "0", 3], "positions": ["prompt-last", "all-mean"] });
    let some = json!({ "sites": [0, 3, "post-norm"], "positions": ["all-mean", "prompt-last"], "precision": "f32" });
    assert_eq!(configured(knobs).unwrap(), some);
    for (knobs, word) in [
        (json!({ "sites": [] }), "sites = []"),
        (json!({ "positions": [] }), "positions = []"),
        (json!({ "sites": ["last"] }), "site `last` is unknown"),
        (json!({ "sites": [-1] }), "site `-1` is unknown"),
        (json!({ "sites": 3 }), "or a list such as"),
        (json!({ "positions": ["first"] }), "first"),
    ] {
        let error = configured(knobs).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
