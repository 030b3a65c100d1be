//! A study made of whatever texts a test wants, in a store of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use tokenizers::Tokenizer;
use wherefrom_artifact::{
    Artifact, ArtifactKind, Detail, Details, Draft, Example, Kind, Loss, Losses, Ranked, Ranking, Recipe, Report, Row,
    Score, Scores, Silent, Store, Tokens,
};
use wherefrom_report::{Config, Inputs, run};
use wherefrom_stage::Exec;

/// The quickstart's, a byte-level BPE.
pub(crate) fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/models/quickstart/tokenizer.json")
}

pub(crate) struct Study {
    pub(crate) queries: Vec<Example>,
    pub(crate) train: Vec<Example>,
    pub(crate) modules: Vec<String>,
    /// Every pair of query and sequence.
    pub(crate) details: Vec<Detail>,
    pub(crate) losses: Vec<Loss>,
}

/// What came of it.
pub(crate) struct Page {
    _folder: TempDir,
    pub(crate) folder: PathBuf,
    pub(crate) html: String,
}

/// A number in (-1, 1) that looks random, the same each time.
fn number(seed: u64) -> f32 {
    let mut mixed = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 32;
    (mixed % 2_000_001) as f32 / 1_000_000.0 - 1.0
}

fn example(number: usize, doc: &str, text: &str) -> Example {
    let ids = Tokenizer::from_file(tokenizer()).unwrap().encode_fast(text, true).unwrap().get_ids().to_vec();
    Example {
        example: number as u64,
        docs: vec![doc.into()],
        doc_starts: vec![0],
        target_mask: (0..ids.len()).map(|position| position > 0).collect(),
        input_ids: ids,
        text: text.into(),
        ..Example::default()
    }
}

impl Study {
    /// `texts` are document and text; every text is scored for every query.
    pub(crate) fn new(queries: &[(&str, &str)], texts: &[(&str, &str)], layers: usize) -> Self {
        let rows = |texts: &[(&str, &str)]| -> Vec<Example> {
            texts.iter().enumerate().map(|(index, (doc, text))| example(index, doc, text)).collect()
        };
        let maps = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        let modules = (0..layers).flat_map(|layer| maps.map(|map| format!("model.layers.{layer}.{map}"))).collect();
        Self::of(rows(queries), rows(texts), modules)
    }

    pub(crate) fn of(queries: Vec<Example>, train: Vec<Example>, modules: Vec<String>) -> Self {
        let mut details = Vec::new();
        for (query, _) in queries.iter().enumerate() {
            for row in &train {
                let seed = 1_000_000 * (query as u64 + 1) + 1000 * row.example;
                let by_token: Vec<f32> = (0..row.input_ids.len()).map(|token| number(seed + token as u64)).collect();
                let influence: f32 = by_token.iter().sum();
                let raw: Vec<f32> = (0..modules.len()).map(|module| 1.5 + number(seed + 500 + module as u64)).collect();
                let sum: f32 = raw.iter().sum();
                details.push(Detail {
                    score: Score { query: query as u32, example: row.example, influence },
                    by_module: raw.iter().map(|share| share * influence / sum).collect(),
                    by_token,
                });
            }
        }
        let losses = queries.iter().map(|row| {
            let cost = |(position, target): (usize, &bool)| if *target { 2.0 + number(position as u64) } else { 0.0 };
            let by_token: Vec<f32> = row.target_mask.iter().enumerate().map(cost).collect();
            Loss { example: row.example, loss: by_token.iter().sum(), by_token }
        });
        Self { losses: losses.collect(), queries, train, modules, details }
    }

    pub(crate) fn ranking(&self) -> Vec<Ranked> {
        let mut rows = Vec::new();
        for query in 0..self.queries.len() as u32 {
            for positive in [true, false] {
                let mut scores: Vec<Score> = self.details.iter().map(|detail| detail.score).collect();
                scores.retain(|score| score.query == query && (score.influence > 0.0) == positive);
                scores.sort_by(|left, right| right.influence.abs().total_cmp(&left.influence.abs()));
                for (index, score) in scores.iter().enumerate() {
                    let row = &self.train[score.example as usize];
                    rows.push(Ranked {
                        query,
                        positive,
                        rank: index as u32 + 1,
                        example: score.example,
                        doc: row.docs.join(" + "),
                        influence: score.influence,
                        text: row.text.clone(),
                        ..Ranked::default()
                    });
                }
            }
        }
        rows
    }

    /// The page, with every optional input or with none.
    pub(crate) fn page(&self, config: &Config, complete: bool) -> Page {
        let folder = TempDir::new().unwrap();
        let store = Store::new(folder.path());
        let scores: Vec<Score> = self.details.iter().map(|detail| detail.score).collect();
        let mut ranking = made::<Ranking, _>(&store, "rank", &self.ranking(), &[]);
        let tokens = made::<Tokens, _>(&store, "tokenize", &self.train, &[]);
        let queries = made::<Tokens, _>(&store, "tokenize-queries", &self.queries, &[]);
        let modules = serde_json::to_string(&self.modules).unwrap();
        let details = made::<Details, _>(&store, "details", &self.details, &[("modules", &modules)]);
        if complete {
            let unit = [("unit", "nats per added copy"), ("sign", "positive = one more copy raises log p(completion)")];
            ranking = made::<Ranking, _>(&store, "rank-with-unit", &self.ranking(), &unit);
        }
        let inputs = Inputs {
            ranking,
            tokens,
            details: complete.then_some(details),
            queries: complete.then_some(queries),
            losses: complete.then(|| made::<Losses, _>(&store, "losses", &self.losses, &[])),
            scores: complete.then(|| made::<Scores, _>(&store, "score", &scores, &[])),
            columns: None,
            tokenizer: complete.then(tokenizer),
        };
        let fill = |draft: &mut Draft| run(config, &inputs, &Exec::default(), draft);
        let (sealed, _) = store.produce(Kind::Report, recipe("report"), &Silent, fill).unwrap();
        let report = Artifact::<Report>::open(&sealed).unwrap();
        let html = std::fs::read_to_string(report.file("index.html").unwrap()).unwrap();
        Page { _folder: folder, folder: sealed, html }
    }
}

fn recipe(stage: &str) -> Recipe {
    Recipe { stage: stage.into(), version: 1, config: json!({}), inputs: BTreeMap::new(), model: None }
}

fn made<K: ArtifactKind, R: Row<K>>(store: &Store, stage: &str, rows: &[R], metadata: &[(&str, &str)]) -> Artifact<K> {
    let fill = |draft: &mut Draft| {
        metadata.iter().for_each(|(name, value)| draft.metadata(name, *value));
        draft.write(0, &[R::to_batch(rows)?])
    };
    let (folder, _) = store.produce(K::KIND, recipe(stage), &Silent, fill).unwrap();
    Artifact::open(&folder).unwrap()
}
