//! Banks and agreement through the store, as the pipeline runs them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::{
    Agreed, Agreement, Artifact, Draft, Example, Kind, Recipe, Retraining, Retrainings, Row as _, Score, Scores,
    Silent, Store, Tokens, write_atomically,
};
use wherefrom_evaluate::{agreement, retrain};
use wherefrom_model::{Config, Model};
use wherefrom_stage::Exec;

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn produce(&self, kind: Kind, config: Value, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<PathBuf> {
        let recipe = Recipe { stage: kind.name().into(), version: 1, config, inputs: BTreeMap::new(), model: None };
        Ok(Store::new(self.0.path()).produce(kind, recipe, &Silent, fill)?.0)
    }

    fn tokens(&self, rows: &[Example]) -> Artifact<Tokens> {
        let fill = |draft: &mut Draft| draft.write(0, &[Example::to_batch(rows)?]);
        Artifact::open(&self.produce(Kind::Tokens, json!(rows.len()), fill).unwrap()).unwrap()
    }

    fn model(&self) -> PathBuf {
        let config = Config {
            vocab_size: 24,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            max_position_embeddings: 16,
            tie_word_embeddings: true,
            ..Config::llama(8, 10_000.0, 1e-5)
        };
        let folder = self.0.path().join("base");
        std::fs::create_dir_all(&folder).unwrap();
        let model = Model::random(config, 0, &wherefrom_model::resolve_device("cpu").unwrap());
        let json = serde_json::to_vec(&model.config.to_json()).unwrap();
        write_atomically(&folder.join("config.json"), &json).unwrap();
        write_atomically(&folder.join("model.safetensors"), &model.to_safetensors().unwrap()).unwrap();
        folder
    }

    fn bank(&self, knobs: Value, before: Option<Artifact<Retrainings>>) -> Result<Artifact<Retrainings>> {
        let config: retrain::Config = serde_json::from_value(knobs.clone())?;
        let inputs = retrain::Inputs {
            tokens: self.tokens(&(0..30).map(|number| row(number, number as u32 * 7, 8)).collect::<Vec<_>>()),
            queries: self.tokens(&[row(0, 1, 6), row(1, 9, 7)]),
            model: self.model(),
            strongest: None,
            before,
        };
        let kind = Kind::Retrainings;
        Artifact::open(&self.produce(kind, knobs, |draft| retrain::run(&config, &inputs, &Exec::default(), draft))?)
    }
}

/// Counts upwards from `first`.
fn row(example: u64, first: u32, length: u32) -> Example {
    let input_ids: Vec<_> = (0..length).map(|token| 3 + (first + token) % 20).collect();
    let target_mask = (0..input_ids.len()).map(|position| position > 0).collect();
    Example {
        example,
        docs: vec![format!("row {example}")],
        doc_starts: vec![0],
        input_ids,
        target_mask,
        ..Example::default()
    }
}

fn knobs(more: &Value) -> Value {
    let mut knobs = json!({ "epochs": 3, "batch-rows": 8, "learning-rate": 0.01, "share": 3.0 });
    knobs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    knobs
}

fn rows(bank: &Artifact<Retrainings>) -> Vec<Retraining> {
    let mut rows: Vec<Retraining> = bank.rows().unwrap().map(Result::unwrap).collect();
    rows.sort_by_key(|row| (row.subset, row.seed));
    rows
}

#[test]
fn a_bank_grows_by_what_it_lacks_and_equals_one_made_at_once() {
    let bench = Bench::new();
    let whole = bench.bank(knobs(&json!({ "subsets": 4, "seeds": [0, 1] })), None).unwrap();
    let begun = bench.bank(knobs(&json!({ "subsets": 2, "seeds": [0, 1] })), None).unwrap();
    let grown = bench.bank(knobs(&json!({ "subsets": 2, "first": 3, "seeds": [0, 1] })), Some(begun.clone())).unwrap();
    assert_eq!(rows(&grown), rows(&whole));
    // What is carried lies in one part; the whole data was run before.
    assert_eq!((whole.parts(), begun.parts(), grown.parts()), (10, 6, 5));
    let rows = rows(&whole);
    assert!(rows.iter().all(|row| row.examples.len() == if row.subset == 0 { 0 } else { 3 }));
    assert_eq!(rows[0].loss.len(), 2);
    assert_eq!(rows[0].by_token.len(), 6 + 7);
    let other = bench.bank(knobs(&json!({ "subsets": 2, "draw": 1, "seeds": [0, 1] })), Some(begun)).unwrap_err();
    assert!(other.to_string().contains("with other examples"), "{other}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |more: Value, what: &str| {
        let config: retrain::Config = serde_json::from_value(knobs(&more)).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(json!({ "share": 1.5 }), "share = 1.5");
    refused(json!({ "weight": 1.0 }), "weight = 1");
    refused(json!({ "first": 0 }), "first = 0");
    refused(json!({ "seeds": [1, 1] }), "seeds");
    refused(json!({ "epochs": 0 }), "epochs = 0");
}

#[test]
fn scores_that_foretell_every_change_have_a_correlation_of_one() {
    let bench = Bench::new();
    // Without the examples of a subset, log p of query 0 falls by their influences and that of query 1 rises by twice theirs.
    let influence = |example: u64| (example * example % 7) as f32 - 3.0;
    let run = |subset: u32, seed: u64, examples: Vec<u64>| {
        let sum: f32 = examples.iter().map(|&example| influence(example)).sum();
        let base = 10.0 + seed as f32;
        Retraining { subset, seed, weight: 0.0, loss: vec![base + sum, base - 2.0 * sum], by_token: vec![], examples }
    };
    let mut bank = vec![run(0, 0, vec![]), run(0, 1, vec![])];
    for subset in 1..=6 {
        bank.extend((0..2).map(|seed| run(subset, seed, vec![u64::from(subset), u64::from(subset) + 6])));
    }
    let made = bench.produce(Kind::Retrainings, json!({}), |draft| draft.write_rows::<Retrainings, _>(0, &bank));
    let bank: Artifact<Retrainings> = Artifact::open(&made.unwrap()).unwrap();
    let scores: Vec<Score> = (0..2)
        .flat_map(|query| (0..14).map(move |example| Score { query, example, influence: influence(example) }))
        .collect();
    let made = bench.produce(Kind::Scores, json!({}), |draft| draft.write_rows::<Scores, _>(0, &scores)).unwrap();
    let scores: Artifact<Scores> = Artifact::open(&made).unwrap();
    let config = agreement::Config::default();
    let fill = |draft: &mut Draft| agreement::run(&config, &scores, &bank, &Exec::default(), draft);
    let agreed: Artifact<Agreement> =
        Artifact::open(&bench.produce(Kind::Agreement, json!({}), fill).unwrap()).unwrap();
    let rows: Vec<Agreed> = agreed.rows().unwrap().map(Result::unwrap).collect();
    let about = |value: f32, expected: f32| assert!((value - expected).abs() < 1e-5, "{value}, not {expected}");
    for (row, sign, slope) in [(&rows[0], 1.0, 1.0), (&rows[1], -1.0, -2.0)] {
        about(row.spearman[0], sign);
        about(row.pearson[0], sign);
        about(row.line[0], slope);
        about(row.line[1], 0.0);
        about(row.ceiling[0], 1.0);
        assert_eq!(row.subset, [1, 2, 3, 4, 5, 6]);
    }
    assert_eq!(agreed.manifest().summary["lds"][0], json!(0.0), "the mean of 1 and -1");
}
