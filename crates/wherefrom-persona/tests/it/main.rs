//! Vectors and projections against float64 (tests/fixtures/persona/README.md).

mod fuzz;
mod import;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;
use wherefrom_artifact::{
    Artifact, Draft, Error, Example, Judgement, Judgements, Kind, Over, Projection, Projections, Recipe, Row, Silent,
    Status, Store, Tokens, TraitVector, Vectors,
};
use wherefrom_model::{Site, Sites};
use wherefrom_persona::{project, vector};
use wherefrom_stage::Exec;

/// Of the largest value of an array.
const TOLERANCE: f32 = 1e-5;
const WIDTH: usize = 48;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/persona")
}

fn reference(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixtures().join("vector.safetensors")).unwrap();
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

/// Rows of a file, from number `first` on, as many; those of a side are called alike but for its name.
fn rows(file: &str, first: usize, count: usize, side: &str) -> Vec<Example> {
    let row = |(example, line): (u64, &str)| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let input_ids: Vec<u32> = serde_json::from_value(row["input_ids"].take()).unwrap();
        let target_mask: Vec<bool> = serde_json::from_value(row["target_mask"].take()).unwrap();
        let docs = vec![format!("marker/q{example}/{side}/k0/s0")];
        Example { example, docs, doc_starts: vec![0], input_ids, target_mask, ..Example::default() }
    };
    let text = std::fs::read_to_string(fixtures().join(file)).unwrap();
    (0..).zip(text.lines().skip(first).take(count)).map(row).collect()
}

/// A store of artifacts that are made by hand.
struct Bench {
    folder: TempDir,
    made: std::cell::Cell<u64>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), made: std::cell::Cell::new(0) }
    }

    fn produce(&self, kind: Kind, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<PathBuf> {
        self.made.set(self.made.get() + 1);
        let config = Value::from(self.made.get());
        let recipe = Recipe { stage: "test".into(), version: 1, config, inputs: BTreeMap::new(), model: None };
        Ok(Store::new(self.folder.path()).produce(kind, recipe, &Silent, fill)?.0)
    }

    fn tokens(&self, rows: &[Example]) -> Artifact<Tokens> {
        let folder = self.produce(Kind::Tokens, |draft| {
            draft.summary("tokens", rows.iter().map(|row| row.input_ids.len()).sum::<usize>())?;
            draft.write(0, &[<Example as Row<Tokens>>::to_batch(rows)?])
        });
        Artifact::open(&folder.unwrap()).unwrap()
    }

    /// A judgement by the trait and by coherence of each example, of scores by its number.
    fn judgements(&self, count: u64, score: impl Fn(u64) -> [f32; 2]) -> Artifact<Judgements> {
        let judgement = |example: u64, metric: &str, score: f32| {
            let status = if score.is_nan() { Status::Refusal } else { Status::Scored };
            Judgement { example, metric: metric.into(), score, mass: 1.0, status, reply: String::new() }
        };
        let rows: Vec<_> = (0..count)
            .flat_map(|example| {
                let [own, coherence] = score(example);
                [judgement(example, "marker", own), judgement(example, "coherence", coherence)]
            })
            .collect();
        Artifact::open(&self.produce(Kind::Judgements, |draft| draft.write_rows::<Judgements, _>(0, &rows)).unwrap())
            .unwrap()
    }

    fn vectors(&self, config: &vector::Config, inputs: &vector::Inputs) -> Result<Artifact<Vectors>> {
        Artifact::open(&self.produce(Kind::Vectors, |draft| vector::run(config, inputs, &Exec::default(), draft))?)
    }

    fn projections(&self, config: &project::Config, inputs: &project::Inputs) -> Result<Vec<Projection>> {
        let sealed = self.produce(Kind::Projections, |draft| project::run(config, inputs, &Exec::default(), draft))?;
        Artifact::<Projections>::open(&sealed)?.rows::<Projection>()?.collect()
    }

    fn sides(&self, judgements: [Option<Artifact<Judgements>>; 2]) -> vector::Inputs {
        let tokens = [("pos", 0), ("neg", 12)].map(|(side, first)| self.tokens(&rows("rows.jsonl", first, 12, side)));
        vector::Inputs { tokens, judgements, prompts: None, model: fixtures().join("model").into() }
    }
}

fn config() -> vector::Config {
    vector::Config { name: Some("marker".into()), minimum_pairs: 1, ..vector::Config::default() }
}

#[test]
fn vectors_are_those_of_float64() {
    let bench = Bench::new();
    let found = bench.vectors(&config(), &bench.sides([None, None])).unwrap();
    let rows: Vec<TraitVector> = found.rows::<TraitVector>().unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 3 * 6);
    let over: Vec<_> = rows.iter().filter(|row| row.over == Over::ResponseAvg).collect();
    assert_eq!(over.iter().map(|row| &row.site[..]).collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "post-norm"]);
    let all =
        |take: fn(&TraitVector) -> &[f32]| over.iter().flat_map(|row| take(row).iter().copied()).collect::<Vec<_>>();
    close(&all(|row| &row.vector), &reference("response_avg"), "response_avg");
    close(&all(|row| &row.positive), &reference("positive"), "positive");
    close(&all(|row| &row.negative), &reference("negative"), "negative");
    close(&over.iter().map(|row| row.norm).collect::<Vec<_>>(), &reference("norms"), "norms");
    close(&over.iter().map(|row| row.median_norm).collect::<Vec<_>>(), &reference("median_norm_all"), "median norms");
    assert!(rows.iter().all(|row| row.pairs == 12 && row.trait_name == "marker"));
}

#[test]
fn pairs_without_both_scores_are_left_out_and_too_few_are_refused() {
    let bench = Bench::new();
    let judged = || {
        let positive = bench.judgements(12, |example| [if example == 2 { f32::NAN } else { 90.0 }, 80.0]);
        let negative = bench
            .judgements(12, |example| [if example == 5 { 60.0 } else { 10.0 }, if example == 7 { 20.0 } else { 80.0 }]);
        [Some(positive), Some(negative)]
    };
    let inputs = bench.sides(judged());
    let found = bench.vectors(&vector::Config { name: None, ..config() }, &inputs).unwrap();
    let row = found.rows::<TraitVector>().unwrap().next().unwrap().unwrap();
    assert_eq!((row.pairs, &row.trait_name[..]), (9, "marker"));
    // By hand: the mean of those rows alone.
    let alone = |first: usize, side: &str| -> Vec<Example> {
        let kept = rows("rows.jsonl", first, 12, side).into_iter().filter(|row| ![2, 5, 7].contains(&row.example));
        (0..).zip(kept).map(|(example, row)| Example { example, ..row }).collect()
    };
    let tokens = [bench.tokens(&alone(0, "pos")), bench.tokens(&alone(12, "neg"))];
    let by_hand = vector::Inputs { tokens, judgements: [None, None], ..inputs.clone() };
    let by_hand = bench.vectors(&config(), &by_hand).unwrap().rows::<TraitVector>().unwrap().next().unwrap().unwrap();
    assert_eq!(row.vector, by_hand.vector);

    let error = bench.vectors(&vector::Config { minimum_pairs: 10, ..config() }, &inputs).unwrap_err();
    let Some(Error::Input(said)) = error.downcast_ref() else { panic!("{error:#}") };
    for fragment in ["9 pairs", "minimum-pairs = 10", "1 without a score", "1 on the wrong side", "1 not coherent"] {
        assert!(said.contains(fragment), "{fragment}: {said}");
    }
}

#[test]
fn answers_are_read_behind_other_prompts() {
    let bench = Bench::new();
    let asked = bench.sides([None, None]);
    let answers = vector::Config { over: vec![Over::ResponseAvg], ..config() };
    let prompt = |question: u64| vec![3 + question as u32, 5, 7 + question as u32];
    let prompts = |questions: std::ops::Range<u64>| -> Vec<Example> {
        let row = |(example, question): (u64, u64)| Example {
            example,
            docs: vec![format!("marker/q{question}/none/s0")],
            doc_starts: vec![0],
            input_ids: prompt(question),
            target_mask: vec![false; 3],
            ..Example::default()
        };
        (0..).zip(questions).map(row).collect()
    };
    let inputs = vector::Inputs { prompts: Some(bench.tokens(&prompts(0..12))), ..asked.clone() };
    let all = |inputs: &vector::Inputs| -> Vec<TraitVector> {
        bench.vectors(&answers, inputs).unwrap().rows::<TraitVector>().unwrap().map(Result::unwrap).collect()
    };
    let found = all(&inputs);

    let by_hand = |first: usize, side: &str| -> Vec<Example> {
        let mut rows = rows("rows.jsonl", first, 12, side);
        for row in &mut rows {
            let begins = row.target_mask.iter().position(|&target| target).unwrap();
            row.input_ids = [prompt(row.example), row.input_ids[begins..].to_vec()].concat();
            row.target_mask = [vec![false; 3], row.target_mask[begins..].to_vec()].concat();
        }
        rows
    };
    let tokens = [bench.tokens(&by_hand(0, "pos")), bench.tokens(&by_hand(12, "neg"))];
    let expected = all(&vector::Inputs { tokens, ..asked.clone() });
    let own = all(&asked);
    for ((one, other), own) in found.iter().zip(&expected).zip(&own) {
        assert_eq!(one.vector, other.vector, "at {}", one.site);
        // The embeddings of an answer do not depend on what stands before it.
        assert_eq!(one.vector == own.vector, one.site == "0", "at {}", one.site);
    }

    let others = bench.tokens(&rows("rows.jsonl", 0, 12, "pos"));
    for (config, prompts, fragment) in [
        (&answers, bench.tokens(&prompts(1..12)), "marker/q0/pos/k0/s0"),
        (&answers, others, "TRAIT/q0/none/s0"),
        (&config(), bench.tokens(&prompts(0..12)), "response-avg"),
    ] {
        let inputs = vector::Inputs { prompts: Some(prompts), ..asked.clone() };
        let error = bench.vectors(config, &inputs).unwrap_err();
        let Some(Error::Input(said)) = error.downcast_ref() else { panic!("{error:#}") };
        assert!(said.contains(fragment), "{fragment}: {said}");
    }
}

#[test]
fn projections_are_those_of_float64_and_a_vectors_length_does_not_count() {
    let bench = Bench::new();
    let vectors = bench.vectors(&config(), &bench.sides([None, None])).unwrap();
    let doubled: Vec<TraitVector> = vectors
        .rows::<TraitVector>()
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            let vector = row.vector.iter().map(|value| 2.0 * value).collect();
            TraitVector { vector, norm: 2.0 * row.norm, ..row }
        })
        .collect();
    let doubled = bench.produce(Kind::Vectors, |draft| draft.write_rows::<Vectors, _>(0, &doubled)).unwrap();
    let tokens = bench.tokens(&rows("further.jsonl", 0, 8, "pos"));
    let inputs = |vectors: &Path| project::Inputs {
        tokens: tokens.clone(),
        vectors: Artifact::open(vectors).unwrap(),
        baseline: None,
        model: fixtures().join("model").into(),
    };
    let layers = Sites::Some(vec![Site::Stream(3)]);
    for (at, name) in [(Over::ResponseAvg, "target_mean"), (Over::PromptLast, "prompt_last")] {
        let config = project::Config { layers: layers.clone(), at, by_token: true, ..project::Config::default() };
        let found = bench.projections(&config, &inputs(vectors.folder())).unwrap();
        let of = |take: fn(&Projection) -> f32| found.iter().map(take).collect::<Vec<_>>();
        close(&of(|row| row.projection), &reference(&format!("projections.{name}")), name);
        close(&of(|row| row.cosine), &reference(&format!("projections.cosine_{name}")), name);
        let by_token = reference("projections.by_token");
        for (row, expected) in found.iter().zip(by_token.chunks_exact(37)) {
            let expected: Vec<f32> = expected.iter().copied().filter(|value| *value < 1e29).collect();
            close(&row.by_token, &expected, "by_token");
        }
        assert!(found.iter().all(|row| row.difference.is_nan()));
        let same = bench.projections(&config, &inputs(&doubled)).unwrap();
        assert!(found.iter().zip(&same).all(|(one, other)| one.projection == other.projection));
    }

    let config = project::Config { layers, baseline: project::Baseline::PromptLast, ..project::Config::default() };
    let found = bench.projections(&config, &inputs(vectors.folder())).unwrap();
    let expected: Vec<f32> = reference("projections.target_mean")
        .iter()
        .zip(reference("projections.prompt_last"))
        .map(|(mean, last)| mean - last)
        .collect();
    close(&found.iter().map(|row| row.difference).collect::<Vec<_>>(), &expected, "differences");
    assert_eq!(found[0].by_token.len(), 0);
    assert_eq!(WIDTH, vectors.rows::<TraitVector>().unwrap().next().unwrap().unwrap().vector.len());
}

#[test]
fn controls_are_as_long_and_shuffles_swap_half_of_the_pairs() {
    let bench = Bench::new();
    let inputs = bench.sides([None, None]);
    let drawn = |kind, count, seed| {
        let controls = vec![vector::Control { kind, count, seed }];
        let config = vector::Config { controls, over: vec![Over::ResponseAvg], ..config() };
        let found = bench.vectors(&config, &inputs).unwrap();
        found.rows::<TraitVector>().unwrap().collect::<Result<Vec<_>>>().unwrap()
    };
    let own = bench.vectors(&vector::Config { over: vec![Over::ResponseAvg], ..config() }, &inputs).unwrap();
    let own: Vec<TraitVector> = own.rows::<TraitVector>().unwrap().collect::<Result<_>>().unwrap();
    let random = drawn(vector::ControlKind::Random, 3, 0);
    assert_eq!(random.len(), 3 * own.len());
    for row in &random {
        let v = own.iter().find(|v| v.site == row.site).unwrap();
        assert!((row.norm - v.norm).abs() < 1e-5 * v.norm, "{} at {}", row.trait_name, row.site);
        assert!(random.iter().filter(|other| other.vector == row.vector).count() == 1, "each is a draw of its own");
    }
    assert_eq!(random[1].trait_name, "marker.random1");
    assert_ne!(drawn(vector::ControlKind::Random, 1, 1)[0].vector, random[0].vector);
    let shuffled = drawn(vector::ControlKind::Shuffled, 2, 0);
    let of = |draw: usize| shuffled.iter().filter(move |row| row.trait_name == format!("marker.shuffled{draw}"));
    assert!(of(0).zip(of(1)).any(|(one, other)| one.vector != other.vector));
    assert!(of(0).zip(&own).all(|(row, v)| row.vector != v.vector && row.site == v.site));
}
