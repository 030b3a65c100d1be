//! Artifacts as they are shown and exported.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::{ArtifactKind, Lambda, LambdaSum, Loss, Losses, Ranked, Ranking, Recipe, Row, Silent, Store};
use wherefrom_inspect::{export, show};

struct Bench {
    folder: TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        Self { folder, store }
    }

    fn sealed<K: ArtifactKind, R: Row<K>>(&self, rows: &[R]) -> PathBuf {
        let inputs = BTreeMap::new();
        let recipe = Recipe { stage: "made".into(), version: 7, config: json!({ "top": 3 }), inputs, model: None };
        let fill = |draft: &mut wherefrom_artifact::Draft| draft.write(0, &[R::to_batch(rows)?]);
        self.store.produce(K::KIND, recipe, &Silent, fill).unwrap().0
    }

    fn lambda(&self) -> PathBuf {
        let lambda = vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        self.sealed::<Lambda, _>(&[LambdaSum { module: "layer".into(), count: 4, shape: [2, 3], lambda }])
    }
}

#[test]
fn a_manifest_comes_before_the_first_rows() {
    let bench = Bench::new();
    let losses: Vec<_> = (0..9).map(|example| Loss { example, loss: 0.5, by_token: vec![] }).collect();
    let folder = bench.sealed::<Losses, _>(&losses);
    let text = show(&bench.store, &folder).unwrap();
    for line in ["stage     made (version 7)", "config    {\"top\":3}", "parts     1, 9 rows"] {
        assert!(text.contains(line), "{text}");
    }
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("example ")).collect();
    assert_eq!(rows.len(), 5, "{text}");
    assert_eq!(rows[4], "example 4 loss 0.5000");
}

#[test]
fn matrices_become_named_tensors() {
    let bench = Bench::new();
    let (folder, output) = (bench.lambda(), bench.folder.path().join("lambda.safetensors"));
    export(&bench.store, &folder, None, &output).unwrap();
    let bytes = std::fs::read(output).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!((&metadata["layer.count"][..], &metadata["wherefrom.kind"][..]), ("4", "lambda"));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("layer.sum").unwrap();
    assert_eq!(tensor.shape(), [2, 3]);
    assert_eq!(tensor.data()[20..24], 5.0_f32.to_le_bytes());
}

#[test]
fn a_ranking_becomes_a_line_for_each_query() {
    let bench = Bench::new();
    let row = |query, positive, rank, example: u64| Ranked {
        query,
        positive,
        rank,
        example,
        doc: format!("doc {example}"),
        influence: if positive { 1.0 } else { -1.0 } / rank as f32,
        text: format!("text {example}"),
        ..Ranked::default()
    };
    let rows = [row(0, true, 2, 4), row(0, true, 1, 3), row(0, false, 1, 5), row(2, true, 1, 6)];
    let (folder, output) = (bench.sealed::<Ranking, _>(&rows), bench.folder.path().join("ranking.jsonl"));
    export(&bench.store, &folder, None, &output).unwrap();
    let text = std::fs::read_to_string(output).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["proponents"], json!(["text 3", "text 4"]));
    assert_eq!(lines[0]["opponent_scores"], json!([-1.0]));
    assert_eq!((&lines[1]["example_id"], &lines[1]["proponent_ids"]), (&json!("query 2"), &json!(["doc 6"])));
}

#[test]
fn what_has_no_other_form_is_refused_with_what_has() {
    let bench = Bench::new();
    let folder = bench.sealed::<Losses, _>(&[Loss { example: 0, loss: 0.5, by_token: vec![] }]);
    let error = export(&bench.store, &folder, None, &bench.folder.path().join("no")).unwrap_err().to_string();
    assert_eq!(
        error,
        "losses has no other form to export than .csv: a ranking becomes JSON lines; vectors, activations, covariances, eigenbasis, \
         lambda, gradients, preconditioned and projected-gradients become safetensors; what is Parquet can be read as it is (FORMAT.md)"
    );
    assert!(!bench.folder.path().join("no").exists());
}
