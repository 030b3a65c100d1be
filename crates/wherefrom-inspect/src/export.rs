//! Artifacts in the formats of other tools: rankings as JSON lines, factors as safetensors.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use wherefrom_artifact::{
    Artifact, ArtifactKind, Basis, Covariance, Covariances, Eigenbasis, Example, Factors, Gradients, Kind, Lambda,
    LambdaSum, Preconditioned, Ranked, Ranking, Row, Store, bad_input, open_any, replace,
};

use crate::show::query_rows;

/// Writes the artifact in `folder` to the file `output`.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a kind that has no other form than its own.
pub fn export(store: &Store, folder: &Path, output: &Path) -> Result<()> {
    let manifest = open_any(folder)?;
    let mut tensors = Tensors::default();
    match manifest.kind {
        Kind::Ranking => return ranking(store, folder, output),
        Kind::Covariances => tensors.each::<Covariances, Covariance>(folder, |tensors, row| {
            for module in row.modules() {
                let name = tensors.block(format!("{module}.{}", row.side.name()));
                tensors.count(&name, row.count);
                tensors.push(format!("{name}.sum"), vec![row.size, row.size], row.matrix.clone());
            }
        })?,
        Kind::Eigenbasis => tensors.each::<Eigenbasis, Basis>(folder, |tensors, row| {
            for module in row.modules() {
                let name = tensors.block(format!("{module}.{}", row.side.name()));
                let n = row.values.len();
                tensors.push(format!("{name}.values"), vec![n], row.values.clone());
                tensors.push(format!("{name}.vectors"), vec![n, n], row.vectors.clone());
            }
        })?,
        Kind::Lambda => tensors.each::<Lambda, LambdaSum>(folder, |tensors, row| {
            tensors.count(&row.module, row.count);
            tensors.push(format!("{}.sum", row.module), row.shape.to_vec(), row.lambda);
        })?,
        Kind::Gradients => tensors.each::<Gradients, Factors>(folder, factors)?,
        Kind::Preconditioned => tensors.each::<Preconditioned, Factors>(folder, factors)?,
        other => {
            return Err(bad_input(format!(
                "{} has no other form to export: a ranking becomes JSON lines; covariances, eigenbasis, lambda, gradients and \
                 preconditioned become safetensors; what is Parquet can be read as it is (FORMAT.md)",
                other.name()
            )));
        }
    }
    for (name, text) in [
        ("kind", manifest.kind.name().into()),
        ("key", manifest.key),
        ("recipe", serde_json::to_string(&manifest.recipe)?),
    ] {
        tensors.metadata.insert(format!("wherefrom.{name}"), text);
    }
    tensors.write(output)
}

/// Tensors by name, and what is known of them.
#[derive(Default)]
struct Tensors {
    values: Vec<(String, Vec<usize>, Vec<f32>)>,
    metadata: HashMap<String, String>,
    /// Rows so far of each module and side.
    blocks: HashMap<String, usize>,
}

impl Tensors {
    fn each<K: ArtifactKind, R: Row<K>>(&mut self, folder: &Path, take: impl Fn(&mut Self, R)) -> Result<()> {
        Artifact::<K>::open(folder)?.rows::<R>()?.try_for_each(|row| row.map(|row| take(self, row)))
    }

    /// The name of the next block of a module and side: the first has none of its own, the others are numbered from 1.
    fn block(&mut self, name: String) -> String {
        let seen = self.blocks.entry(name.clone()).or_default();
        *seen += 1;
        if *seen == 1 { name } else { format!("{name}.{}", *seen - 1) }
    }

    fn push(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.values.push((name, shape, values));
    }

    /// Tokens or examples that a sum is over.
    fn count(&mut self, name: &str, count: u64) {
        self.metadata.insert(format!("{name}.count"), count.to_string());
    }

    fn write(self, output: &Path) -> Result<()> {
        let view = |(name, shape, values): &'_ (String, Vec<usize>, Vec<f32>)| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.clone(), shape.clone(), bytes)
        };
        let bytes: Vec<_> = self.values.iter().map(view).collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        let file = safetensors::serialize(views, Some(self.metadata))?;
        replace(output, |into| Ok(into.write_all(&file)?))
    }
}

/// `ROW.MODULE.left` [out, r] and `ROW.MODULE.right` [in, r]; whole matrices [out, in] have a left only.
fn factors(tensors: &mut Tensors, row: Factors) {
    let name = format!("{}.{}", row.row, row.module);
    tensors.push(format!("{name}.left"), row.left_shape.to_vec(), row.left);
    if row.rank > 0 {
        tensors.push(format!("{name}.right"), row.right_shape.to_vec(), row.right);
    }
}

/// A line a query, as the proponent viewer of PAIR's pretraining-tda reads it (<https://pair-code.github.io/pretraining-tda/demo>).
fn ranking(store: &Store, folder: &Path, output: &Path) -> Result<()> {
    let artifact = Artifact::<Ranking>::open(folder)?;
    let mut asked: BTreeMap<u32, Example> = BTreeMap::new();
    for example in query_rows(store, artifact.manifest(), &BTreeMap::new()).into_iter().flatten() {
        let example = example?;
        asked.insert(u32::try_from(example.example)?, example);
    }
    let mut queries: BTreeMap<u32, Vec<Ranked>> = BTreeMap::new();
    for row in artifact.rows::<Ranked>()? {
        let row = row?;
        queries.entry(row.query).or_default().push(row);
    }
    let unit = artifact.metadata("unit")?;
    replace(output, |into| {
        for (query, rows) in &mut queries {
            rows.sort_by_key(|row| (!row.positive, row.rank));
            let line = line(*query, asked.get(query), rows, unit.as_deref());
            writeln!(into, "{line}").context("write a line")?;
        }
        Ok(())
    })
}

fn line(query: u32, asked: Option<&Example>, rows: &[Ranked], unit: Option<&str>) -> Value {
    let name = asked.map_or_else(|| format!("query {query}"), |example| example.docs.join(" + "));
    let text = asked.map_or("", |example| &example.text[..]);
    let (prompt, completion) =
        text.split_at_checked(asked.map_or(0, |example| example.completion_start as usize)).unwrap_or(("", text));
    let of = |positive: bool| rows.iter().filter(move |row| row.positive == positive);
    let texts = |positive| of(positive).map(|row| json!(row.text)).collect::<Vec<_>>();
    let ids = |positive| of(positive).map(|row| json!(row.doc)).collect::<Vec<_>>();
    let scores = |positive| of(positive).map(|row| json!(row.influence)).collect::<Vec<_>>();
    json!({
        "example_id": name,
        "query_set": "wherefrom",
        "inputs_plaintext": prompt,
        "targets_plaintext": completion,
        "unit": unit,
        "proponents": texts(true), "proponent_ids": ids(true), "proponent_scores": scores(true),
        "opponents": texts(false), "opponent_ids": ids(false), "opponent_scores": scores(false),
    })
}
