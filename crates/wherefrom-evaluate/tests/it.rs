//! Banks and agreement through the store, as the pipeline runs them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use burn::tensor::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::{
    Agreed, Agreement, Artifact, Calibrated, Calibration, Cell, CellColumn, CellType, Cells, Columns, Draft, Example,
    Kept, Kind, Over, Ranked, Ranking, Recipe, Retraining, Retrainings, Retrieval, Retrieved, Row as _, Score, Scores,
    Silent, Store, Tokens, TraitVector, Vectors, write_atomically,
};
use wherefrom_evaluate::sources::Known;
use wherefrom_evaluate::{agreement, calibration, metagradient, retrain, retrieval};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Batch, Config, Model, Sequence, Site};
use wherefrom_stage::Exec;
use wherefrom_train::course::{Course, Learner, Training};

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn produce(&self, kind: Kind, config: Value, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<PathBuf> {
        self.produce_from(BTreeMap::new(), kind, config, fill)
    }

    fn produce_from(
        &self,
        inputs: BTreeMap<String, String>,
        kind: Kind,
        config: Value,
        fill: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Result<PathBuf> {
        let recipe = Recipe { stage: kind.name().into(), version: 1, config, inputs, model: None };
        Ok(Store::new(self.0.path()).produce(kind, recipe, &Silent, fill)?.0)
    }

    fn tokens(&self, rows: &[Example]) -> Artifact<Tokens> {
        let fill = |draft: &mut Draft| draft.write(0, &[Example::to_batch(rows)?]);
        Artifact::open(&self.produce(Kind::Tokens, json!(rows.len()), fill).unwrap()).unwrap()
    }

    /// The column `fact`, with a value for each row.
    fn columns(&self, values: &[Option<&str>]) -> Artifact<Columns> {
        let columns: Arc<[CellColumn]> = [CellColumn { name: "fact".into(), values: CellType::Text }].into();
        let kept = |(example, value): (u64, &Option<&str>)| {
            let cell = value.map_or(Cell::Null, |value| Cell::Text(value.into()));
            let cells = Cells { columns: columns.clone(), values: vec![cell] };
            Kept { example, doc: format!("row {example}"), cells }
        };
        let rows: Vec<Kept> = (0..).zip(values).map(kept).collect();
        let fill = |draft: &mut Draft| {
            draft.keep(&columns);
            draft.write(0, &[Kept::to_batch(&rows)?])
        };
        Artifact::open(&self.produce(Kind::Columns, json!(values), fill).unwrap()).unwrap()
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

    fn inputs(&self) -> (Artifact<Tokens>, Artifact<Tokens>) {
        let tokens = (0..30).map(|number| row(number, number as u32 * 7, 8)).collect::<Vec<_>>();
        (self.tokens(&tokens), self.tokens(&[row(0, 1, 6), row(1, 9, 7)]))
    }

    /// The direction of the first two coordinates, behind the block.
    fn vectors(&self) -> Artifact<Vectors> {
        let vector: Vec<f32> = (0..16).map(|place| if place < 2 { 3.0 } else { 0.0 }).collect();
        let row = TraitVector {
            trait_name: "marker".into(),
            over: Over::ResponseAvg,
            site: "1".into(),
            layer: 1,
            norm: 18.0_f32.sqrt(),
            vector,
            positive: vec![],
            negative: vec![],
            deviation: f32::NAN,
            median_norm: f32::NAN,
            pairs: 0,
        };
        let made = self.produce(Kind::Vectors, json!({}), |draft| draft.write_rows::<Vectors, _>(0, &[row]));
        Artifact::open(&made.unwrap()).unwrap()
    }

    /// Influences of every example, by query.
    fn metagradient(&self, training: &Training, exec: &Exec) -> Vec<Vec<f64>> {
        let (tokens, queries) = self.inputs();
        let inputs = metagradient::Inputs { tokens, queries, model: self.model().into() };
        let recipe = json!([training, exec.memory]);
        let made =
            self.produce(Kind::Scores, recipe, |draft| metagradient::run(training, &inputs, exec, draft)).unwrap();
        let scores: Artifact<Scores> = Artifact::open(&made).unwrap();
        let smoothness = scores.manifest().summary["metasmoothness"].as_f64().unwrap();
        assert!(smoothness > 0.5 && smoothness <= 1.0, "{smoothness}");
        let mut influences = vec![Vec::new(); 2];
        for score in scores.rows::<Score>().unwrap().map(Result::unwrap) {
            assert_eq!(score.example, influences[score.query as usize].len() as u64);
            influences[score.query as usize].push(f64::from(score.influence));
        }
        influences
    }

    fn bank(&self, knobs: Value, before: Option<Artifact<Retrainings>>) -> Result<Artifact<Retrainings>> {
        self.bank_of(knobs, before, None)
    }

    fn bank_of(
        &self,
        knobs: Value,
        before: Option<Artifact<Retrainings>>,
        known: Option<Known>,
    ) -> Result<Artifact<Retrainings>> {
        let config: retrain::Config = serde_json::from_value(knobs.clone())?;
        let (tokens, queries) = self.inputs();
        let (model, strongest, vectors) = (self.model().into(), None, Some(self.vectors()));
        let inputs = retrain::Inputs { tokens, queries, model, strongest, known, vectors, before };
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
fn a_projection_is_measured_in_place_of_a_loss() {
    let bench = Bench::new();
    let (_, queries) = bench.inputs();
    let measured = |rate: f64| {
        let more = json!({ "subsets": 2, "measure": { "projection": 1 }, "learning-rate": rate });
        bench.bank(knobs(&more), None).unwrap()
    };
    // Steps of no length leave the model that every run begins with.
    let bank = measured(1e-30);
    let device = wherefrom_model::resolve_device("cpu").unwrap();
    let model = Model::load(&bench.model(), &device).unwrap();
    for row in rows(&bank) {
        assert!(row.by_token.is_empty() && row.loss.len() == 2);
        for (loss, query) in row.loss.iter().zip(queries.rows::<Example>().unwrap().map(Result::unwrap)) {
            let batch = Batch::new(&[Sequence::new(0, &query.input_ids, &query.target_mask)], &device);
            let mut expected = 0.0;
            let mut see = |_: Site, stream: Tensor<2>| {
                let stream: Vec<f32> = stream.into_data().try_into_vec().unwrap();
                let targets = stream.chunks_exact(16).skip(1);
                let count = targets.len() as f32;
                expected = -targets.map(|h| (h[0] + h[1]) / 2.0_f32.sqrt()).sum::<f32>() / count;
                Ok(())
            };
            model.residual_streams(&batch, &[Site::Stream(1)], &mut see).unwrap();
            assert!((loss - expected).abs() < 1e-5 * expected.abs().max(0.1), "{loss}, not {expected}");
        }
    }
    let trained = rows(&measured(0.01));
    assert!(trained[1].loss != trained[0].loss, "taking examples out changes it");

    let scores = |unit: &str| -> Artifact<Scores> {
        let rows: Vec<Score> = (0..2)
            .flat_map(|query| (0..30).map(move |example| Score { query, example, influence: example as f32 }))
            .collect();
        let fill = |draft: &mut Draft| {
            draft.metadata("unit", unit);
            draft.write_rows::<Scores, _>(0, &rows)
        };
        Artifact::open(&bench.produce(Kind::Scores, json!(unit), fill).unwrap()).unwrap()
    };
    let agreed = |unit: &str, bank: &Artifact<Retrainings>| {
        let (config, scores) = (agreement::Config::default(), scores(unit));
        let fill = |draft: &mut Draft| agreement::run(&config, &scores, bank, &Exec::default(), draft);
        bench.produce(Kind::Agreement, json!([unit, bank.folder()]), fill)
    };
    let nats = bench.bank(knobs(&json!({ "subsets": 2 })), None).unwrap();
    for (unit, bank, wrong) in [
        ("nats per added copy", &bank, Some("measured the projection on \"marker.response-avg.1\"")),
        ("projection per added copy", &nats, Some("measured log-probabilities")),
        ("projection per added copy", &bank, None),
        ("similarity", &bank, None),
    ] {
        let said = agreed(unit, bank).err().map(|error| error.to_string());
        assert_eq!(said.is_some(), wrong.is_some(), "{unit}: {said:?}");
        assert!(said.is_none_or(|said| said.contains(wrong.unwrap())));
    }
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
    refused(json!({ "choose": "sources" }), "belong together");
    refused(json!({ "column": "fact" }), "belong together");
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

#[test]
fn calibrated_nats_are_those_of_the_line_and_their_interval_holds_what_it_has_not_seen() {
    let bench = Bench::new();
    // Of a nat that is foretold 0.25 are measured, and up to 0.3 more or less. Query 1 has the opposite sign.
    let around = |query: u32, subset: u32, what: u64| 2.0 * uniform(u64::from(query), u64::from(subset), what) - 1.0;
    let agreed = |query: u32| -> Agreed {
        let (subset, sign): (Vec<u32>, f64) = ((1..=200).collect(), if query == 0 { 1.0 } else { -1.0 });
        let predicted: Vec<f32> = subset.iter().map(|&subset| 5.0 * around(query, subset, 0) as f32).collect();
        let noise = subset.iter().map(|&subset| 0.3 * around(query, subset, 1));
        let measured = predicted.iter().zip(noise).map(|(x, noise)| (sign * 0.25 * f64::from(*x) + noise) as f32);
        let measured = measured.collect();
        let none = Vec::new;
        Agreed { query, spearman: none(), pearson: none(), line: none(), ceiling: none(), subset, predicted, measured }
    };
    let of_scores = |key: &str| BTreeMap::from([("scores".to_string(), key.repeat(32))]);
    let rows = [agreed(0), agreed(1)];
    let fill = |draft: &mut Draft| draft.write_rows::<Agreement, _>(0, &rows);
    let agreement: Artifact<Agreement> =
        Artifact::open(&bench.produce_from(of_scores("a"), Kind::Agreement, json!({}), fill).unwrap()).unwrap();
    let ranking = |key: &str| -> Artifact<Ranking> {
        let row = |query, rank, influence| Ranked {
            query,
            positive: true,
            rank,
            example: 7 * u64::from(rank),
            influence,
            ..Ranked::default()
        };
        let rows = [row(0, 1, 20.0), row(0, 2, 2.0), row(1, 1, 2.0)];
        let fill = |draft: &mut Draft| draft.write_rows::<Ranking, _>(0, &rows);
        Artifact::open(&bench.produce_from(of_scores(key), Kind::Ranking, json!({}), fill).unwrap()).unwrap()
    };
    let calibrated = |config: &calibration::Config, ranking: &Artifact<Ranking>| -> Result<Artifact<Calibration>> {
        let knobs = serde_json::to_value(config)?;
        let fill = |draft: &mut Draft| calibration::run(config, ranking, &agreement, draft);
        Artifact::open(&bench.produce_from(ranking.manifest().recipe.inputs.clone(), Kind::Calibration, knobs, fill)?)
    };
    let found = calibrated(&calibration::Config::default(), &ranking("a")).unwrap();
    let lines: Vec<Calibrated> = found.rows().unwrap().map(Result::unwrap).collect();
    let (mut xy, mut xx) = (0.0, 0.0);
    for (x, y) in rows[0].predicted.iter().zip(&rows[0].measured).step_by(2) {
        (xy, xx) = (xy + f64::from(*x) * f64::from(*y), xx + f64::from(*x).powi(2));
    }
    let line = &lines[0];
    let slope = (xy / xx) as f32;
    assert!((line.slope[0] - slope).abs() < 1e-6 && (slope - 0.25).abs() < 0.03, "{:?}, not {slope}", line.slope);
    assert!(line.slope[1] < 0.25 && 0.25 < line.slope[2] && line.slope[2] - line.slope[1] < 0.05, "{:?}", line.slope);
    assert!((lines[1].slope[0] + 0.25).abs() < 0.03, "{:?}", lines[1].slope);
    assert_eq!((&line.example[..], &line.influence[..]), (&[7, 14][..], &[20.0, 2.0][..]));
    for place in 0..2 {
        assert!((line.nats[place] - slope * line.influence[place]).abs() < 1e-5);
    }
    // 95 in 100 of noise that is uniform within 0.3 lie within 0.285.
    assert!((line.nats[1] - line.low[1] - 0.285).abs() < 0.06, "{} {}", line.low[1], line.nats[1]);
    assert!((line.high[1] - line.nats[1] - 0.285).abs() < 0.06, "{} {}", line.nats[1], line.high[1]);
    assert!(line.high[0] - line.low[0] > line.high[1] - line.low[1], "farther out the slope counts for more");
    let summary = &found.manifest().summary;
    assert_eq!((line.covered[1], &summary["checked"], &summary["beyond"]), (100, &json!(200), &json!(1)));
    let coverage = summary["held"].as_f64().unwrap();
    assert!((0.9..0.99).contains(&coverage), "{coverage}");
    assert_eq!(coverage, f64::from(line.covered[0] + lines[1].covered[0]) / 200.0);

    // One line for two queries of opposite signs knows neither.
    let study = calibration::Config { by: calibration::By::Study, draws: 200 };
    let found = calibrated(&study, &ranking("a")).unwrap();
    let lines: Vec<Calibrated> = found.rows().unwrap().map(Result::unwrap).collect();
    assert_eq!(lines[0].slope, lines[1].slope);
    assert!(lines[0].slope[1] < -0.2 && lines[0].slope[2] > 0.2, "{:?}", lines[0].slope);
    let error = calibrated(&study, &ranking("b")).unwrap_err().to_string();
    assert!(error.contains("wire both to the same"), "{error}");
}

#[test]
fn sources_rank_where_their_influences_put_them() {
    let bench = Bench::new();
    // Examples 0..10 with influence 10 - example on query 0; query 1 has all equal, query 2 has no source.
    let influence = |query: u32, example: u64| if query == 0 { 10.0 - example as f32 } else { 0.5 };
    let scores: Vec<Score> = (0..3)
        .flat_map(|query| (0..10).map(move |example| Score { query, example, influence: influence(query, example) }))
        .collect();
    let made = bench.produce(Kind::Scores, json!({}), |draft| draft.write_rows::<Scores, _>(0, &scores)).unwrap();
    let scores: Artifact<Scores> = Artifact::open(&made).unwrap();
    let mut facts = [None; 10];
    (facts[1], facts[4], facts[9]) = (Some("a"), Some("a"), Some("b"));
    let columns = bench.columns(&facts);
    let known = Known { columns, query_columns: bench.columns(&[Some("a"), Some("b"), Some("c")]) };
    let config: retrieval::Config = serde_json::from_value(json!({ "column": "fact", "at": [1, 2, 5] })).unwrap();
    let fill = |draft: &mut Draft| retrieval::run(&config, &scores, &known, &Exec::default(), draft);
    let found: Artifact<Retrieval> = Artifact::open(&bench.produce(Kind::Retrieval, json!({}), fill).unwrap()).unwrap();
    let rows: Vec<Retrieved> = found.rows().unwrap().map(Result::unwrap).collect();
    let row = |query, ranks: &[u32], reciprocal_rank, recall: [f32; 3], influence, strongest| Retrieved {
        query,
        sources: ranks.len() as u32,
        reciprocal_rank,
        ranks: ranks.to_vec(),
        recall: recall.to_vec(),
        influence,
        strongest,
    };
    assert_eq!(rows[0], row(0, &[2, 5], 0.5, [0.0, 0.5, 1.0], 15.0, 10.0));
    assert_eq!(rows[1], row(1, &[10], 0.1, [0.0; 3], 0.5, 0.5));
    assert_eq!(rows[2], row(2, &[], 0.0, [0.0; 3], 0.0, 0.5));
    let summary = &found.manifest().summary;
    assert!((summary["mean_reciprocal_rank"][0].as_f64().unwrap() - 0.3).abs() < 1e-6, "{summary:?}");
    assert!((summary["recall_at_5"][0].as_f64().unwrap() - 0.5).abs() < 1e-6, "{summary:?}");
    assert_eq!(summary["queries_with_sources"], json!(2));

    let config = retrieval::Config { column: "source".into(), ..config };
    let fill = |draft: &mut Draft| retrieval::run(&config, &scores, &known, &Exec::default(), draft);
    let error = bench.produce(Kind::Retrieval, json!({ "other": true }), fill).unwrap_err();
    assert!(format!("{error:#}").contains("columns has no column `source`, but fact"), "{error:#}");
}

#[test]
fn a_bank_takes_out_the_known_sources_of_each_query() {
    let bench = Bench::new();
    let mut facts = [None; 30];
    (facts[3], facts[7], facts[8]) = (Some("a"), Some("a"), Some("b"));
    let known = Known { columns: bench.columns(&facts), query_columns: bench.columns(&[Some("a"), None]) };
    let bank = bench.bank_of(knobs(&json!({ "choose": "sources", "column": "fact" })), None, Some(known)).unwrap();
    let runs: Vec<(u32, Vec<u64>)> = rows(&bank).into_iter().map(|row| (row.subset, row.examples)).collect();
    assert_eq!(runs, [(0, vec![]), (1, vec![3, 7])]);
}

fn smooth() -> Training {
    Training { epochs: 3, batch_rows: 8, learning_rate: 0.01, eps_root: 1e-6, ..Training::default() }
}

/// The largest difference, over the largest number.
fn error(values: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    values.iter().zip(expected).fold(0.0_f64, |most, (value, expected)| most.max((value - expected).abs())) / largest
}

#[test]
fn the_metagradient_is_what_whole_retrainings_differ_by() {
    let bench = Bench::new();
    let influences = bench.metagradient(&smooth(), &Exec::default());
    assert_eq!(influences.iter().map(Vec::len).collect::<Vec<_>>(), [30, 30]);
    let (tokens, queries) = bench.inputs();
    let queries: Vec<Example> = queries.rows().unwrap().map(Result::unwrap).collect();
    let model = Model::load(&bench.model(), &wherefrom_model::resolve_device("cpu").unwrap()).unwrap();
    let course = Course::new(&smooth(), &tokens, &model).unwrap();
    // log p of the queries behind a run in which one example weighs otherwise.
    let told = |example: u64, weight: f32| -> Vec<f64> {
        let mut learner = Learner::new(model.clone());
        let of = |number| if number == example { weight } else { 1.0 };
        for step in 0..course.steps() {
            course.step(&mut learner, step, &of).unwrap();
        }
        let log_probability = |query: &Example| {
            let sequence = Sequence::new(0, &query.input_ids, &query.target_mask);
            let losses = learner.model.token_losses(&Batch::new(&[sequence], &model.device)).unwrap().concat();
            -losses.into_iter().map(f64::from).sum::<f64>()
        };
        queries.iter().map(log_probability).collect()
    };
    let examples = [0, 7, 11, 18, 29];
    let mut slopes = vec![Vec::new(); queries.len()];
    for example in examples {
        let [one, other, two, second] = [1.02, 0.98, 1.04, 0.96].map(|weight| told(example, weight));
        for (query, slopes) in slopes.iter_mut().enumerate() {
            slopes.push((8.0 * (one[query] - other[query]) - (two[query] - second[query])) / 0.24);
        }
    }
    for (influences, slopes) in influences.iter().zip(&slopes) {
        let influences: Vec<f64> = examples.iter().map(|&example| influences[example as usize]).collect();
        assert!(error(&influences, slopes) < 2e-3, "{influences:?}, not {slopes:?}");
    }
}

#[test]
fn states_that_have_no_room_are_made_again_and_change_nothing() {
    let bench = Bench::new();
    let all = bench.metagradient(&smooth(), &Exec::default());
    let some = bench.metagradient(&smooth(), &Exec { memory: Some(1), ..Exec::default() });
    for (all, some) in all.iter().zip(&some) {
        assert!(error(some, all) < 1e-4, "{some:?}, not {all:?}");
    }
}

#[test]
fn a_run_without_a_derivative_is_refused_by_name() {
    let refused = |training: Training, what: &str| {
        let error = metagradient::check(&training).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(Training { clip: Some(1.0), ..smooth() }, "clip");
    refused(Training { eps_root: 0.0, ..smooth() }, "eps-root = 0");
    refused(Training { epochs: 0, ..smooth() }, "epochs = 0");
}
