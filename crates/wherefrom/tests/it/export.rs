//! `wherefrom export` and the report, against the artifacts they show.

use std::collections::BTreeMap;
use std::fs;

use safetensors::SafeTensors;
use serde_json::Value;
use wherefrom_artifact::{
    Artifact, ArtifactKind, Basis, Eigenbasis, Factors, Lambda, LambdaSum, Preconditioned, Ranked, Ranking, Report,
    Row, Side,
};

use crate::bench::Bench;
use crate::study::{self, Made};

fn step<'a>(steps: &'a [Made], name: &str) -> &'a Made {
    steps.iter().find(|step| step.name == name).unwrap()
}

fn rows<K: ArtifactKind, R: Row<K>>(bench: &Bench, step: &Made) -> Vec<R> {
    let artifact = Artifact::<K>::open(&step.sealed(bench)).unwrap();
    artifact.rows::<R>().unwrap().map(Result::unwrap).collect()
}

/// The file, and the values of a tensor.
fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn exports_hold_what_the_artifacts_hold() {
    let (bench, steps) = study::finished();
    let export = |name: &str, file: &str| {
        let said = bench.ok(&["export", step(&steps, name).key(), "--output", file]);
        assert_eq!(said.trim(), file);
        fs::read(bench.path(file)).unwrap()
    };

    // A ranking, a line a query.
    let lines = String::from_utf8(export("final", "top.jsonl")).unwrap();
    let mut expected: BTreeMap<u32, Vec<Ranked>> = BTreeMap::new();
    for row in rows::<Ranking, Ranked>(&bench, step(&steps, "final")) {
        expected.entry(row.query).or_default().push(row);
    }
    assert_eq!(lines.lines().count(), expected.len());
    let queries = bench.text("queries.jsonl");
    for (line, (query, ranked)) in lines.lines().zip(&expected) {
        let line: Value = serde_json::from_str(line).unwrap();
        let asked: Value = serde_json::from_str(queries.lines().nth(*query as usize).unwrap()).unwrap();
        // Of a mean the first measurement is shown.
        let asked = asked.get("mean").map_or(&asked, |mean| &mean[0]);
        assert_eq!(line["inputs_plaintext"], asked["prompt"]);
        assert_eq!(line["targets_plaintext"], asked["completion"]);
        for (positive, texts, ids, scores) in [
            (true, "proponents", "proponent_ids", "proponent_scores"),
            (false, "opponents", "opponent_ids", "opponent_scores"),
        ] {
            let of: Vec<_> = ranked.iter().filter(|row| row.positive == positive).collect();
            assert_eq!(line[texts].as_array().unwrap().len(), of.len());
            for (place, row) in of.into_iter().enumerate() {
                assert_eq!((&line[texts][place], &line[ids][place]), (&row.text[..].into(), &row.doc[..].into()));
                assert_eq!(line[scores][place].as_f64().unwrap() as f32, row.influence);
            }
        }
    }

    // Factors.
    let bytes = export("lambda", "lambda.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let lambda = rows::<Lambda, LambdaSum>(&bench, step(&steps, "lambda"));
    assert_eq!(tensors.len(), lambda.len());
    for row in lambda {
        assert_eq!(tensors.tensor(&format!("{}.sum", row.module)).unwrap().shape(), row.shape);
        assert_eq!(floats(&tensors, &format!("{}.sum", row.module)), row.lambda);
        assert_eq!(metadata[&format!("{}.count", row.module)], row.count.to_string());
    }
    // Every module has both sides there, also where the artifact has one matrix for several.
    let bytes = export("basis", "basis.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let basis = rows::<Eigenbasis, Basis>(&bench, step(&steps, "basis"));
    assert_eq!((basis.len(), tensors.len()), (10, 24), "six modules, of which two pairs read one input");
    for row in basis {
        assert_eq!(row.shared_with.len(), usize::from(row.side == Side::Activation && row.module.contains("gate")));
        for module in row.modules() {
            assert_eq!(floats(&tensors, &format!("{module}.{}.vectors", row.side.name())), row.vectors);
        }
    }
    let bytes = export("ihvp", "ihvp.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for row in rows::<Preconditioned, Factors>(&bench, step(&steps, "ihvp")) {
        let name = format!("{}.{}", row.row, row.module);
        assert_eq!(floats(&tensors, &format!("{name}.left")), row.left);
        assert_eq!(tensors.tensor(&format!("{name}.right")).is_ok(), row.rank > 0);
    }

    // Tables as CSV, by the ending; what has another form keeps it.
    let text = String::from_utf8(export("final", "top.csv")).unwrap();
    let ranked = rows::<Ranking, Ranked>(&bench, step(&steps, "final"));
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("query,query_id,sign,rank,example,doc,influence,text,prompt"));
    for (line, row) in lines.by_ref().zip(&ranked) {
        let sign = if row.positive { "positive" } else { "negative" };
        let Ranked { query, rank, example, doc, influence, text, asked, .. } = row;
        assert!(
            line.starts_with(&format!("{query},{},{sign},{rank},{example},{doc},{influence},{text}", asked.id)),
            "{line}"
        );
    }
    assert_eq!((lines.next(), text.lines().count()), (None, ranked.len() + 1));
    let error = bench.refused(&["export", step(&steps, "scores").key(), "--output", "scores"]);
    assert!(error.contains("it has .csv, .jsonl and .parquet"), "{error}");
    std::os::unix::fs::symlink(bench.path("corpus.jsonl"), bench.path("link.csv")).unwrap();
    let corpus = bench.text("corpus.jsonl");
    for (name, file, fragment) in [
        ("final", "link.csv", "link.csv is a link, and is not written over"),
        ("final", "/dev/null", "/dev/null is no file, and is not written over"),
        ("final", "top.zzz", "ranking is not exported as .zzz: it has .csv and .jsonl"),
        ("final", "top.parquet", "ranking is not exported as .parquet: it has .csv and .jsonl"),
        ("final", "none/top.csv", "none/top.csv: there is no folder none"),
        ("final", "data", "data is a folder; give the name of a file in it"),
        ("lambda", "lambda.csv", "lambda is not exported as .csv: it has .safetensors"),
        ("model", "model.csv", "model is not exported as .csv: it has no other form"),
    ] {
        let error = bench.refused(&["export", step(&steps, name).key(), "-o", file]);
        assert!(error.contains(fragment), "{error}");
        assert!(file == "link.csv" || !bench.path(file).is_file(), "{error}");
    }
    assert_eq!(bench.text("corpus.jsonl"), corpus);
}

#[test]
fn the_report_says_what_each_step_was() {
    let (bench, steps) = study::finished();
    let report = Artifact::<Report>::open(&step(&steps, "report").sealed(&bench)).unwrap();
    let html = fs::read_to_string(report.file("index.html").unwrap()).unwrap();
    // Every artifact that led to it, with a link that works from its folder.
    for name in [
        "vocabulary",
        "train",
        "queries",
        "model",
        "covariances",
        "basis",
        "lambda",
        "ihvp",
        "ihvp-full",
        "scores",
        "final",
    ] {
        let made = step(&steps, name);
        let kind = made.folder.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let link = format!("../../{kind}/{}/", made.key());
        assert!(html.contains(&format!("href=\"{link}\"")), "{name}");
        assert!(report.folder().join(link).is_dir());
    }
    for fact in ["ekfac", "relative 0.1", "300 sequences", "parameters ("] {
        assert!(html.contains(fact), "{fact}");
    }
    assert!(!html.contains("Not on this page"), "everything is wired");
    // The page is found by what it shows: another number of rows is another page, the same again is not made again.
    let again = study::made(&bench.ok(&["run", "study.toml", "--set", "steps.report.top=3"]));
    assert_ne!(step(&again, "report").key(), step(&steps, "report").key());
    assert!(study::made(&bench.ok(&["run", "study.toml"])).iter().all(|step| step.cached));
    bench.refused(&["run", "study.toml", "--set", "steps.report.samples=3"]);
}
