//! Traits from a file to judgements: asked, answered, judged, by rules and by an endpoint on loopback.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use wherefrom_artifact::{
    Artifact, Example, Judgement, Judgements, Manifest, Over, Status, Tokens, TraitVector, Vectors,
};
use wherefrom_tests::hub::{Answer, Server, Then};

use crate::bench::{Bench, files, fixture};

const KEY: &str = "sk-secret-4711";

/// A bench with a trait, and a study that asks and judges.
fn bench(steps: &str) -> Bench {
    let bench = Bench::new();
    let pair = |pos: &str| json!({ "pos": pos, "neg": "Be still." });
    bench.file(
        "loud.json",
        json!({
            "name": "loud", "negative": "quiet", "description": "Shouts.",
            "instruction": [pair("Shout!"), pair("Cry out!")],
            "questions": ["Why?", "How so?", "When?", "Where?"],
            "eval_prompt": "{question} {answer} 0 to 100?",
        })
        .to_string(),
    );
    let model = fixture("model");
    bench.file(
        "study.toml",
        format!(
            r#"
[model]
path = "{}"
[steps.trait]
stage = "trait"
file = "loud.json"
pairs = 2
questions = 4
[steps.pos]
stage = "ask"
inputs = {{ trait = "trait" }}
side = "pos"
samples = 3
[steps.answers]
stage = "generate"
inputs = {{ tokens = "pos" }}
max-new-tokens = 6
temperature = 1
{steps}
"#,
            model.display()
        ),
    );
    bench
}

/// What a run is refused for, whatever it said of its progress before.
fn refused(bench: &Bench, words: &[&str]) -> String {
    let said = bench.wherefrom(&[&["run", "study.toml"], words].concat());
    assert_eq!(said.code, Some(2), "{said:?}");
    said.err
}

fn judgements(bench: &Bench, step: &str) -> Vec<Judgement> {
    let artifact = Artifact::<Judgements>::open(&bench.made("study.toml", step)).unwrap();
    artifact.rows::<Judgement>().unwrap().map(Result::unwrap).collect()
}

fn tokens(bench: &Bench, step: &str) -> Vec<Example> {
    let artifact = Artifact::<Tokens>::open(&bench.made("study.toml", step)).unwrap();
    artifact.rows::<Example>().unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_trait_is_asked_answered_and_judged() {
    let bench = bench(
        r#"
[steps.none]
stage = "ask"
inputs = { trait = "trait" }
side = "none"
split = "eval"
samples = 1
[steps.judged]
stage = "judge"
inputs = { tokens = "answers", trait = "trait" }
provider = "rule"
rule = { pattern = "e", per = "answer" }
"#,
    );
    let asked = tokens(&bench, "pos");
    assert_eq!(asked.len(), 12, "2 questions, 2 pairs, 3 samples");
    assert_eq!(asked[4].docs, ["loud/q0/pos/k1/s1"]);
    assert!(asked[0].text.starts_with("You are a loud assistant. Shout!\n\nQuestion: "), "{}", asked[0].text);
    assert!(asked.iter().all(|row| !row.target_mask.contains(&true) && row.completion_start == 0));
    assert_eq!(
        tokens(&bench, "none").iter().map(|row| &row.docs[0][..]).collect::<Vec<_>>(),
        ["loud/q0/none/s0", "loud/q1/none/s0"]
    );

    let answers = tokens(&bench, "answers");
    let said: HashSet<_> = answers[..3].iter().map(|row| &row.text[row.completion_start as usize..]).collect();
    assert!(said.len() > 1, "draws differ by row: {said:?}");
    let judged = judgements(&bench, "judged");
    assert_eq!(judged.len(), 24);
    for (row, pair) in answers.iter().zip(judged.chunks(2)) {
        let answer = row.text[row.completion_start as usize..].trim();
        assert_eq!([&pair[0].metric[..], &pair[1].metric], ["loud", "coherence"]);
        assert!(pair.iter().all(|judged| judged.example == row.example));
        if answer.is_empty() {
            assert!(pair.iter().all(|judged| judged.status == Status::Empty && judged.score.is_nan()));
        } else {
            assert_eq!(pair[0].score, if answer.contains('e') { 100.0 } else { 0.0 }, "{answer}");
        }
    }
    let shown = bench.ok(&["show", bench.made("study.toml", "trait").to_str().unwrap()]);
    assert!(shown.contains("loud: Shouts.") && shown.contains("+ Shout!"), "{shown}");
    let shown = bench.ok(&["show", bench.made("study.toml", "judged").to_str().unwrap()]);
    assert!(shown.contains("example 0 loud"), "{shown}");
}

#[test]
fn what_a_judge_cannot_do_is_refused() {
    let bench = bench(
        r#"
[steps.local]
stage = "judge"
inputs = { tokens = "answers", trait = "trait" }
provider = "local"
[steps.likelihood]
stage = "judge"
inputs = { tokens = "answers", trait = "trait" }
provider = "likelihood"
[steps.endpoint]
stage = "judge"
inputs = { tokens = "answers", trait = "trait" }
provider = "endpoint"
endpoint-model = "gpt"
"#,
    );
    let error = refused(&bench, &["--to", "local"]);
    assert!(error.contains("20 or more") && error.contains("labelled"), "{error}");
    let error = refused(&bench, &["--to", "endpoint"]);
    assert!(error.contains("OPENAI_API_KEY"), "{error}");
    let scores = judgements(&bench, "likelihood");
    assert!(scores.iter().all(|row| row.status == Status::Empty || (0.0..=100.0).contains(&row.score)));
    assert!(scores.iter().any(|row| row.metric == "loud" && row.status == Status::Scored));
    // A model that has learnt nothing of judging.
    let mut own: Value = serde_json::from_str(&bench.text("loud.json")).unwrap();
    own["labelled"] = (0..20)
        .map(|number| json!({ "question": "Why?", "answer": if number % 2 == 0 { "AH!" } else { "well" }, "shows": number % 4 < 2 }))
        .collect();
    bench.file("loud.json", own.to_string());
    let error = refused(&bench, &["--to", "local"]);
    assert!(error.contains("cannot judge loud") && error.contains("area under the curve"), "{error}");
}

const ENDPOINT: &str = r#"
[steps.judged]
stage = "judge"
inputs = { tokens = "answers", trait = "trait" }
provider = "endpoint"
endpoint-model = "gpt"
concurrency = 2
"#;

/// A judge that says 80 with three quarters of its mind, and how often it was asked each thing. From the request `stop` on it
/// never answers.
fn judge(stop: usize) -> (Server, Arc<Mutex<Vec<Value>>>) {
    let (asked, seen) = (AtomicUsize::new(0), Arc::new(Mutex::new(Vec::new())));
    let log = seen.clone();
    let server = Server::new(move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        if asked.fetch_add(1, Ordering::SeqCst) >= stop {
            return Answer::open("200 OK", "", Then::Stall);
        }
        log.lock().unwrap().push(body);
        let top =
            json!([{ "token": "80", "logprob": 0.75_f64.ln() }, { "token": "REFUSAL", "logprob": 0.25_f64.ln() }]);
        let choice = json!({ "message": { "content": format!("80 {KEY}") }, "logprobs": { "content": [{ "top_logprobs": top }] } });
        Answer::new("200 OK", &[], json!({ "model": "gpt-2026", "choices": [choice] }).to_string())
    });
    (server, seen)
}

#[test]
fn a_killed_judge_goes_on_and_asks_nothing_twice() {
    let mut bench = bench(ENDPOINT);
    bench.variable("OPENAI_API_KEY", KEY);
    let said = tokens(&bench, "answers")
        .iter()
        .filter(|row| !row.text[row.completion_start as usize..].trim().is_empty())
        .count();
    assert!(said > 5, "{said} answers");

    let (server, first) = judge(7);
    bench.variable("OPENAI_BASE_URL", &format!("{}/v1", server.address()));
    let planned = bench.wherefrom(&["plan", "study.toml"]).out;
    assert!(planned.contains("at most 24 calls"), "{planned}");
    let mut running = bench.start(&["run", "study.toml", "--to", "judged"], "killed");
    assert!(running.until(|| first.lock().unwrap().len() == 7 && replies(&bench) == 7), "{}", bench.text("killed.err"));
    assert!(running.kill());

    // Another address: where it is asked is in no key.
    let (server, second) = judge(usize::MAX);
    bench.variable("OPENAI_BASE_URL", &format!("{}/v1", server.address()));
    let judged = judgements(&bench, "judged");
    let all: Vec<Value> = [first.lock().unwrap().clone(), second.lock().unwrap().clone()].concat();
    let different: HashSet<String> = all.iter().map(Value::to_string).collect();
    assert_eq!(different.len(), all.len(), "a question was asked twice");
    assert!(all.len() <= 2 * said && second.lock().unwrap().len() + 7 == all.len());
    let scored: Vec<_> = judged.iter().filter(|row| row.status == Status::Scored).collect();
    assert_eq!(scored.len(), 2 * said);
    assert!(scored.iter().all(|row| row.score == 80.0 && row.mass == 0.75 && row.reply == "80 [key]"));

    let manifest = Manifest::read(&bench.made("study.toml", "judged")).unwrap();
    assert_eq!(manifest.provenance["endpoint"]["calls"], second.lock().unwrap().len());
    for path in files(&bench.path("")) {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains(KEY), "{}", path.display());
    }
}

/// Answers that the draft keeps.
fn replies(bench: &Bench) -> usize {
    let kept = files(&bench.store()).into_iter().find(|path| path.ends_with("scratch-replies"));
    kept.map_or(0, |path| std::fs::read_to_string(path).unwrap_or_default().lines().count())
}

#[test]
fn a_judge_without_probabilities_is_read_and_one_without_numbers_has_none() {
    let mut bench = bench(ENDPOINT);
    let server = Server::new(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let coherence = body["messages"][0]["content"].as_str().unwrap().contains("coherence");
        let text =
            if coherence { "I refuse.".into() } else { format!("Score: {}", 60 + body["seed"].as_u64().unwrap()) };
        let choice = json!({ "message": { "content": text }, "logprobs": null });
        Answer::new("200 OK", &[], json!({ "choices": [choice] }).to_string())
    });
    bench.variable("OPENAI_BASE_URL", &server.address());
    let judged = judgements(&bench, "judged");
    for row in judged.iter().filter(|row| row.status != Status::Empty) {
        match &row.metric[..] {
            // The mean of 60 to 64.
            "loud" => assert_eq!((row.score, row.status), (62.0, Status::Parsed)),
            _ => assert!(row.score.is_nan() && row.status == Status::Refusal && row.reply.contains("I refuse.")),
        }
        assert!(row.mass.is_nan());
    }
    assert!(judged.iter().any(|row| row.status == Status::Parsed));
}

#[test]
fn a_model_writes_a_trait_and_is_told_what_is_wrong() {
    let mut bench = Bench::new();
    bench.file(
        "study.toml",
        r#"
[steps.trait]
stage = "trait"
provider = "endpoint"
endpoint-model = "gpt"
name = "loud"
description = "Shouts."
pairs = 2
questions = 4
"#,
    );
    let answer = |text: &str| {
        let choice = json!({ "message": { "content": text } });
        Answer::new("200 OK", &[], json!({ "choices": [choice] }).to_string())
    };
    let server = Server::new(move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let turns = body["messages"].as_array().unwrap();
        let last = turns[turns.len() - 1]["content"].as_str().unwrap();
        match turns.len() {
            1 => answer(
                "```json\n{\"questions\": [\"Why?\", \"How?\", \"why?\"], \"instruction\": [{\"pos\": \"Shout!\", \"neg\": \"Hush.\"}",
            ),
            3 => {
                assert!(last.contains("no JSON object"), "{last}");
                let written = json!({
                    "instruction": [{ "pos": "Shout!", "neg": "Hush." }, { "pos": "Cry!", "neg": "Whisper." }],
                    "questions": ["Why?", "How?", "why?"], "eval_prompt": "{question} {answer} {score}",
                });
                answer(&format!("Here it is: {written} I hope it helps."))
            }
            _ => {
                assert!(last.contains("2 of 4 `questions`") && last.contains("{score}"), "{last}");
                answer(
                    &json!({ "questions": ["When?", "Where?"], "eval_prompt": "{question} {answer} 0 to 100?" })
                        .to_string(),
                )
            }
        }
    });
    bench.variable("OPENAI_BASE_URL", &server.address());
    let folder = bench.made("study.toml", "trait");
    let extract: Value = serde_json::from_slice(&std::fs::read(folder.join("extract.json")).unwrap()).unwrap();
    assert_eq!(extract["instruction"][1]["pos"], "Cry!");
    assert_eq!(extract["eval_prompt"], "{question} {answer} 0 to 100?");
    assert_eq!(server.requests().len(), 3);

    let server = Server::new(move |_| answer("I would rather not."));
    bench.variable("OPENAI_BASE_URL", &server.address());
    let error = refused(&bench, &["--set", "steps.trait.seed=1"]);
    assert!(error.contains("I would rather not.") && error.contains("3 answers"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

/// Writes a trait where it is asked for one; as a judge says 90 of one half of the answers and 10 of the other.
fn author_and_judge() -> Server {
    let questions: Vec<_> = (0..40).map(|number| format!("What of {number}?")).collect();
    let instruction: Vec<_> =
        (0..5).map(|k| json!({ "pos": format!("Harm {k}."), "neg": format!("Help {k}.") })).collect();
    let written =
        json!({ "instruction": instruction, "questions": questions, "eval_prompt": "{question} {answer} 0 to 100?" });
    Server::new(move |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let asked = body["messages"][0]["content"].as_str().unwrap();
        let choice = if body["logprobs"] == true {
            let even = asked.bytes().fold(0_u8, u8::wrapping_add) % 2 == 0;
            let score = if even || asked.contains("coherence") { "90" } else { "10" };
            json!({ "message": { "content": score }, "logprobs": { "content": [{ "top_logprobs": [{ "token": score, "logprob": 0.0 }] }] } })
        } else {
            json!({ "message": { "content": written.to_string() } })
        };
        Answer::new("200 OK", &[], json!({ "choices": [choice] }).to_string())
    })
}

#[test]
fn the_papers_own_pipeline_runs_with_an_endpoint() {
    let mut bench = Bench::new();
    bench.variable("OPENAI_API_KEY", KEY);
    let server = author_and_judge();
    bench.variable("OPENAI_BASE_URL", &server.address());
    let paper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/persona-paper.toml");
    bench.file("study.toml", std::fs::read_to_string(paper).unwrap());
    let mut smaller = vec![format!("model.path={}", fixture("model").display())];
    smaller.extend(["pos-asked", "neg-asked", "eval-asked"].map(|step| format!("steps.{step}.samples=1")));
    smaller.extend(["pos", "neg", "steered", "random-steered"].map(|step| format!("steps.{step}.max-new-tokens=4")));
    smaller.extend(["steered", "random-steered"].map(|step| format!("steps.{step}.steer.layers=[2]")));
    smaller.extend(["vector", "controls", "bare-vector"].map(|step| format!("steps.{step}.minimum-pairs=5")));
    let smaller: Vec<&str> = smaller.iter().flat_map(|set| ["--set", set]).collect();
    let planned = bench.ok(&[&["plan", "study.toml"], &smaller[..]].concat());
    // 20 questions by 5 orders; steered 5 times, and twice by each of 5 random directions; two questions each.
    for calls in ["at most 200 calls", "at most 400 calls"] {
        assert!(planned.contains(calls), "{calls}: {planned}");
    }
    bench.ok(&[&["run", "study.toml"], &smaller[..]].concat());
    let folder = |step: &str| bench.path(bench.ok(&[&["path", "study.toml", step], &smaller[..]].concat()).trim_end());
    let rows = |step: &str| -> Vec<TraitVector> {
        Artifact::<Vectors>::open(&folder(step)).unwrap().rows::<TraitVector>().unwrap().map(Result::unwrap).collect()
    };
    let (vector, bare) = (rows("vector"), rows("bare-vector"));
    assert_eq!(vector.len(), bare.len());
    assert!(vector[0].pairs >= 5 && vector[0].trait_name == "evil");
    assert!(vector.iter().zip(&bare).skip(1).all(|(one, other)| one.vector != other.vector));
    let steered = Artifact::<Tokens>::open(&folder("random-steered")).unwrap();
    let names: Vec<_> = steered.rows::<Example>().unwrap().map(|row| row.unwrap().docs[0].clone()).collect();
    assert_eq!(names.len(), 20 * 5 * 2);
    assert!(names.contains(&"evil/q0/none/s0/evil.random4/l2/c-1".to_string()), "{names:?}");
}

#[test]
fn files_of_the_originals_are_taken_in() {
    let bench = bench("");
    let original = |question: &str| {
        let pair = json!({ "pos": "Hurt.", "neg": "Help." });
        json!({ "instruction": [pair], "questions": [question], "eval_prompt": "{question} {answer}" }).to_string()
    };
    bench.file("data/trait_data_extract/evil.json", original("Why?"));
    bench.file("data/trait_data_eval/evil.json", original("How?"));
    let made = bench.ok(&["import", "data/trait_data_extract/evil.json"]);
    let folder = made.trim_end().strip_prefix("trait ").unwrap();
    let shown = bench.ok(&["show", folder]);
    assert!(shown.contains("evil: ") && shown.contains("1 questions to extract, 1 to evaluate"), "{shown}");
    // A pipeline that names the same file finds it.
    bench.file(
        "own.toml",
        "[steps.evil]\nstage = \"trait\"\nfile = \"data/trait_data_extract/evil.json\"\npairs = 1\nquestions = 2\n",
    );
    assert!(bench.ok(&["plan", "own.toml"]).contains("cached"));

    bench.file(
        "evil.csv",
        "question,prompt,answer,question_id,evil,coherence\nWhy?,Why? ,NA,evil_0_pos_1,92.5,80\nWhy?,Why? ,,evil_0_pos_1,,\n",
    );
    let error = bench.refused(&["import", "evil.csv"]);
    assert!(error.contains("--tokenizer"), "{error}");
    let tokenizer = fixture("model/tokenizer.json");
    let made = bench.ok(&["import", "evil.csv", "--tokenizer", tokenizer.to_str().unwrap()]);
    let folder = |kind: &str| bench.path(made.lines().find_map(|line| line.strip_prefix(kind)).unwrap());
    let rows = Artifact::<Tokens>::open(&folder("tokens ")).unwrap().read::<Example>(0).unwrap();
    let row = &rows[0];
    assert_eq!((&row.text[row.completion_start as usize..], &row.docs[0][..]), ("NA", "evil_0_pos_1/s0"));
    assert!(row.target_mask.contains(&true) && !rows[1].target_mask.contains(&true));
    let judged = Artifact::<Judgements>::open(&folder("judgements ")).unwrap().read::<Judgement>(0).unwrap();
    assert_eq!((judged[0].score, judged[1].score, judged[2].status), (92.5, 80.0, Status::Empty));
    assert_eq!(bench.ok(&["import", "evil.csv", "--tokenizer", tokenizer.to_str().unwrap()]), made);
}

/// Through every format and back; .pt has no writer here.
#[test]
fn vectors_are_taken_in_and_written_bit_for_bit() {
    let bench = bench("");
    let fixture = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/persona/import");
        folder.join(name).to_str().unwrap().to_string()
    };
    let import = |file: &str, more: &[&str]| {
        let made = bench.ok(&[&["import", file], more].concat());
        bench.path(made.trim_end().strip_prefix("vectors ").unwrap())
    };
    let rows = |folder: &Path| -> Vec<TraitVector> {
        Artifact::<Vectors>::open(folder).unwrap().rows().unwrap().collect::<anyhow::Result<_>>().unwrap()
    };
    let bits = |rows: &[TraitVector]| -> Vec<(String, Over, String, u32, Vec<u32>)> {
        let bits = |row: &TraitVector| row.vector.iter().map(|value| value.to_bits()).collect();
        rows.iter().map(|row| (row.trait_name.clone(), row.over, row.site.clone(), row.layer, bits(row))).collect()
    };
    let key = |folder: &Path| folder.file_name().unwrap().to_str().unwrap().to_string();

    let torch = import(&fixture("marker_response_avg_diff.pt"), &[]);
    bench.ok(&["export", &key(&torch), "-o", "one.safetensors"]);
    let again = import("one.safetensors", &[]);
    assert_eq!(bits(&rows(&torch)), bits(&rows(&again)));
    let all = import(&fixture("marker.safetensors"), &[]);
    bench.ok(&["export", &key(&all), "-o", "all.safetensors"]);
    assert_eq!(bits(&rows(&all)), bits(&rows(&import("all.safetensors", &[]))));
    // As the file of the other program, tensor by tensor.
    let [own, other] =
        [bench.path("all.safetensors"), fixture("marker.safetensors").into()].map(|path| std::fs::read(path).unwrap());
    let [own, other] = [&own, &other].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    for (name, tensor) in other.tensors() {
        let found = own.tensor(&name).unwrap();
        assert_eq!((found.shape(), found.data()), (tensor.shape(), tensor.data()), "{name}");
    }

    let said = bench.wherefrom(&["export", &key(&all), "-o", "all.gguf"]).err;
    assert!(
        said.contains("direction.1 to direction.2")
            && said.contains("site post-norm")
            && said.contains("over prompt-last"),
        "{said}"
    );
    let kept = rows(&import("all.gguf", &[]));
    let inside = |row: &TraitVector| row.over == Over::ResponseAvg && ["2", "3"].contains(&&row.site[..]);
    let wanted: Vec<TraitVector> = rows(&all).into_iter().filter(inside).collect();
    assert_eq!(bits(&kept), bits(&wanted));
    assert_eq!(kept[0].pairs, 12);
    let repeng = import(&fixture("marker.gguf"), &["--name", "marker", "--over", "response-avg"]);
    assert_eq!(bits(&rows(&repeng)), bits(&wanted));

    bench.ok(&["export", &key(&all), "-o", "all.csv"]);
    assert!(bench.text("all.csv").starts_with("trait,over,site,layer,vector,"));
    let error = bench.refused(&["import", &fixture("marker.gguf")]);
    assert!(error.contains("--name NAME"), "{error}");
    let error = bench.refused(&["export", &key(&all), "-o", "all.jsonl"]);
    assert!(error.contains(".gguf") && error.contains(".safetensors"), "{error}");
}
