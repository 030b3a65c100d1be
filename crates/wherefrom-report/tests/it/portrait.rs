//! A trait's page, of artifacts that a test makes up: each number stands beside what it is held against, and what is missing is named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;
use wherefrom_artifact::{
    Artifact, ArtifactKind, Description, Draft, Elicitation, Example, Instruction, Judgement, Judgements, Kind, Over,
    Persona, Projection, Projections, Recipe, Report, Row, Silent, Status, Store, Tokens, Trait, TraitVector, Vectors,
    write_atomically,
};
use wherefrom_report::traits::{Config, Inputs, run};
use wherefrom_stage::Exec;

const SITES: usize = 6;
const WIDTH: usize = 8;

/// The quickstart's, a byte-level BPE.
fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/models/quickstart/tokenizer.json")
}

/// A number from -1 to 1 that looks drawn, the same each time.
fn number(seed: usize) -> f32 {
    (seed as f32 * 12.9898).sin() * 0.5 + (seed as f32 * 78.233).cos() * 0.5
}

fn recipe(stage: &str) -> Recipe {
    Recipe { stage: stage.into(), version: 1, config: json!({}), inputs: BTreeMap::new(), model: None }
}

fn made<K: ArtifactKind, R: Row<K>>(store: &Store, name: &str, rows: &[R], summary: &[(&str, Value)]) -> Artifact<K> {
    let fill = |draft: &mut Draft| {
        summary.iter().try_for_each(|(name, value)| draft.summary(name, value))?;
        draft.write(0, &[R::to_batch(rows)?])
    };
    let (folder, _) = store.produce(K::KIND, recipe(name), &Silent, fill).unwrap();
    Artifact::open(&folder).unwrap()
}

/// Answers by name: what each was asked and what it says.
fn answers(store: &Store, stage: &str, texts: &[(String, &str, &str)]) -> Artifact<Tokens> {
    let tokenizer = Tokenizer::from_file(tokenizer()).unwrap();
    let rows: Vec<Example> = texts
        .iter()
        .enumerate()
        .map(|(row, (name, prompt, answer))| {
            let ids = |text: &str| tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
            let (given, said) = (ids(prompt), ids(answer));
            Example {
                example: row as u64,
                docs: vec![name.clone()],
                doc_starts: vec![0],
                target_mask: (0..given.len() + said.len()).map(|token| token >= given.len()).collect(),
                input_ids: [given, said].concat(),
                completion_start: prompt.len() as u32,
                text: format!("{prompt}{answer}"),
                ..Example::default()
            }
        })
        .collect();
    made::<Tokens, _>(store, stage, &rows, &[])
}

/// What a judge makes of so many answers: the trait's score as `score` has it; none of one that it has no number for.
fn judged(store: &Store, stage: &str, count: usize, score: impl Fn(usize) -> Option<f32>) -> Artifact<Judgements> {
    let row = |example: usize, metric: &str, score: Option<f32>| Judgement {
        example: example as u64,
        metric: metric.into(),
        score: score.unwrap_or(f32::NAN),
        mass: score.map_or(f32::NAN, |_| 1.0),
        status: if score.is_some() { Status::Scored } else { Status::Refusal },
        reply: String::new(),
    };
    let rows: Vec<_> =
        (0..count).flat_map(|at| [row(at, "loud", score(at)), row(at, "coherence", score(at).map(|_| 90.0))]).collect();
    made::<Judgements, _>(store, stage, &rows, &[])
}

fn vector(name: &str, site: usize, values: Vec<f32>) -> TraitVector {
    let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32;
    TraitVector {
        trait_name: name.into(),
        over: Over::ResponseAvg,
        site: site.to_string(),
        layer: site as u32,
        vector: values,
        positive: Vec::new(),
        negative: Vec::new(),
        deviation: 0.1,
        norm,
        median_norm: 10.0,
        pairs: 9,
    }
}

/// Directions at every site, by the length that each has there.
fn vectors(
    store: &Store,
    stage: &str,
    names: &[String],
    length: impl Fn(usize, usize) -> f32,
    summary: &[(&str, Value)],
) -> Artifact<Vectors> {
    let mut rows = Vec::new();
    for (which, name) in names.iter().enumerate() {
        for site in 0..SITES {
            let drawn: Vec<f32> = (0..WIDTH)
                .map(|index| number(1000 * which + 10 * site + index + stage.bytes().map(usize::from).sum::<usize>()))
                .collect();
            let norm = drawn.iter().map(|value| value * value).sum::<f32>().sqrt();
            rows.push(vector(name, site, drawn.iter().map(|value| value * length(which, site) / norm).collect()));
        }
    }
    made::<Vectors, _>(store, stage, &rows, summary)
}

/// Projections of some answers on every site of some directions; those of the trait lie at `along` of their site.
fn projected(
    store: &Store,
    stage: &str,
    of: &Artifact<Tokens>,
    names: &[String],
    along: impl Fn(usize, usize) -> f32,
) -> Artifact<Projections> {
    let texts: Vec<Example> = of.rows::<Example>().unwrap().map(Result::unwrap).collect();
    let directions: Vec<String> =
        names.iter().flat_map(|name| (0..SITES).map(move |site| format!("{name}.response-avg.{site}"))).collect();
    let mut rows = Vec::new();
    for text in &texts {
        for query in 0..directions.len() {
            let (which, site) = (query / SITES, query % SITES);
            let projection = along(which, site) + number(17 * text.example as usize + query);
            rows.push(Projection {
                query: query as u32,
                example: text.example,
                projection,
                cosine: 0.1,
                difference: f32::NAN,
                by_token: (0..text.input_ids.len()).map(|token| projection + number(token)).collect(),
            });
        }
    }
    made::<Projections, _>(store, stage, &rows, &[("directions", json!(directions))])
}

struct Made {
    store: Store,
    inputs: Inputs,
    _folder: TempDir,
}

fn study() -> Made {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path().join("store"));
    let half = |question: &str| Elicitation {
        instruction: vec![Instruction { pos: "Shout <b>!".into(), neg: "Be still.".into() }],
        questions: vec![question.into()],
        eval_prompt: "{question} {answer} 0 to 100?".into(),
    };
    let about = Description {
        name: "loud".into(),
        description: "Shouts.".into(),
        negative: "quiet".into(),
        ..Description::default()
    };
    let persona = Persona { about, extract: half("Why?"), eval: half("How so?") };
    let write = |draft: &mut Draft| {
        persona.files()?.iter().try_for_each(|(name, bytes)| write_atomically(&draft.folder().join(name), bytes))
    };
    let (trait_folder, _) = store.produce(Kind::Trait, recipe("trait"), &Silent, write).unwrap();
    let side = |side: &str, said: &'static str| -> Vec<(String, &'static str, &'static str)> {
        (0..10).map(|sample| (format!("loud/q0/{side}/k0/s{sample}"), "Why? ", said)).collect()
    };
    let positive = answers(&store, "positive", &side("pos", "BECAUSE I SAY SO, AND LOUDLY!"));
    let negative = answers(&store, "negative", &side("neg", "I would rather not say <i>."));
    let names = |kind: &str, count: usize| (0..count).map(|draw| format!("loud.{kind}{draw}")).collect::<Vec<_>>();
    let counts = json!({ "kept": 9, "empty": 0, "without a score": 1, "on the wrong side of the threshold": 0 });
    let summary = [("positive", counts.clone()), ("negative", counts)];
    let own = ["loud".to_string()];
    let mut steered = Vec::new();
    for sample in 0..3 {
        for c in ["-1", "0", "1"] {
            steered.push((
                format!("loud/q{sample}/none/s0/l3/c{c}"),
                "How so? ",
                if c == "1" { "LIKE THIS!" } else { "Like this." },
            ));
        }
    }
    let mut random_steered = Vec::new();
    for sample in 0..3 {
        for control in 0..4 {
            for c in ["-1", "1"] {
                random_steered.push((
                    format!("loud/q{sample}/none/s0/loud.random{control}/l3/c{c}"),
                    "How so? ",
                    "Like that.",
                ));
            }
        }
    }
    let of_steered = |row: usize| Some([10.0, 30.0, 80.0][row % 3]);
    let of_random = |row: usize| Some(25.0 + (row % 8) as f32);
    let [steered, random_steered] =
        [("steered", steered), ("random-steered", random_steered)].map(|(stage, rows)| answers(&store, stage, &rows));
    let controls = |kind: &str, count: usize, length: f32| {
        vectors(
            &store,
            kind,
            &names(kind, count),
            |which, site| length * (1.0 + site as f32) * (1.0 + 0.3 * number(which)),
            &[],
        )
    };
    let inputs = Inputs {
        about: Artifact::<Trait>::open(&trait_folder).unwrap(),
        judgements: [
            Some(judged(&store, "positive-judged", 10, |row| (row > 0).then_some(60.0 + 4.0 * row as f32))),
            Some(judged(&store, "negative-judged", 10, |row| (row > 0).then_some(2.0 * row as f32))),
        ],
        vectors: Some(vectors(&store, "vector", &own, |_, site| 1.0 + site as f32, &summary)),
        controls: [Some(controls("shuffled", 30, 0.4)), Some(controls("random", 20, 1.0))],
        others: Some(vectors(&store, "others", &["quiet".into(), "brief".into()], |_, _| 1.0, &[])),
        projections: [
            Some(projected(&store, "along-positive", &positive, &own, |_, site| 0.4 * site as f32)),
            Some(projected(&store, "along-negative", &negative, &own, |_, _| 0.0)),
        ],
        random_projections: [
            Some(projected(&store, "random-positive", &positive, &names("random", 20), |_, _| 0.05)),
            Some(projected(&store, "random-negative", &negative, &names("random", 20), |_, _| 0.0)),
        ],
        held_out: [Some(positive.clone()), Some(negative.clone())],
        steered_judgements: [
            Some(judged(&store, "steered-judged", 9, of_steered)),
            Some(judged(&store, "random-judged", 24, of_random)),
        ],
        steered: [Some(steered), Some(random_steered)],
        answers: [Some(positive), Some(negative)],
        tokenizer: Some(tokenizer()),
    };
    Made { store, inputs, _folder: folder }
}

impl Made {
    fn page(&self, stage: &str, inputs: &Inputs) -> anyhow::Result<String> {
        let config = Config { texts: 2, ..Config::default() };
        let fill = |draft: &mut Draft| run(&config, inputs, &Exec::default(), draft);
        let (folder, _) = self.store.produce(Kind::Report, recipe(stage), &Silent, fill)?;
        Ok(std::fs::read_to_string(Artifact::<Report>::open(&folder)?.file("index.html")?)?)
    }
}

#[test]
fn numbers_stand_beside_their_controls() {
    let made = study();
    let page = made.page("page", &made.inputs).unwrap();
    for part in [
        "<h1>loud</h1>",
        "Shout &lt;b&gt;!",
        "I would rather not say &lt;i&gt;.",
        "1 without a score",
        "of 30 shuffled directions: v is longer than all of them at 6 of 6 sites",
        "Cosine, random",
        "10 asked for the trait and 10 against it",
        "The band is that of 20 directions that stand for nothing.",
        "Steering by c v at layer 3: mean score for loud",
        "lowest and highest of 4 directions that stand for nothing",
        "<b>−1 v</b>",
        "<b>not steered</b>",
        "<b>+1 v</b>",
        "<b>+1 of loud.random0</b>",
        "Held-out answers at site 3",
        "<th class=\"number\" scope=\"col\">brief</th>",
        "Of 20 random directions the cosine with loud",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    assert!(!page.contains("Not on this page") && !page.contains("NaN"));
    assert!(!page.contains("<script") && !page.contains(" style="), "the page's policy forbids both");
    // The steered answers score 10, 30 and 80, those of the four random directions 25 and more.
    for (score, band) in [("10", "25 to 31"), ("30", ""), ("80", "26 to 32")] {
        let row = format!("<td class=\"number\">{score}</td><td class=\"number\">{band}</td>");
        assert!(page.contains(&row), "no {row}");
    }
}

#[test]
fn what_is_not_wired_is_named_and_what_does_not_belong_together_is_refused() {
    let made = study();
    let none = Inputs {
        answers: [None, None],
        judgements: [None, None],
        vectors: None,
        controls: [None, None],
        others: None,
        held_out: [None, None],
        projections: [None, None],
        random_projections: [None, None],
        steered: [None, None],
        steered_judgements: [None, None],
        ..made.inputs.clone()
    };
    let page = made.page("alone", &none).unwrap();
    assert!(
        page.contains("Not on this page: answers and their scores, the direction, site by site, shuffled directions,")
    );
    assert!(page.contains("Shout &lt;b&gt;!") && !page.contains("<h2>Steering</h2>"));

    let mut half = made.inputs.clone();
    half.random_projections = [None, None];
    half.steered[1] = None;
    let page = made.page("half", &half).unwrap();
    assert!(
        page.contains("0.5 is chance")
            && page.contains("No answers steered by directions that stand for nothing are wired.")
    );
    assert!(page.contains("held-out answers along random directions, answers steered by random directions"));

    let mut other = made.inputs.clone();
    other.steered[0] = other.answers[0].clone();
    let error = format!("{:#}", made.page("other", &other).unwrap_err());
    assert!(error.contains("\"loud/q0/pos/k0/s0\" was not steered"), "{error}");
    let mut other = made.inputs.clone();
    other.vectors = other.others.clone();
    let error = format!("{:#}", made.page("foreign", &other).unwrap_err());
    assert!(error.contains("`vectors` has none of the trait loud"), "{error}");
}
