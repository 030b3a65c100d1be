//! Artifacts as text: a ranking as a table, and the first rows of anything else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::{
    Artifact, ArtifactKind, Basis, Candidate, Coordinate, Covariance, Detail, Example, Factors, Format, Kind,
    LambdaSum, Loss, Manifest, OwnInfluence, Ranked, Ranking, Row, Score, SelfInfluence, Signs, Store, Tokens,
    open_any,
};
use wherefrom_artifact::{
    Candidates, Coordinates, Covariances, Details, Eigenbasis, Gradients, Index, Lambda, Losses, Preconditioned, Scores,
};
use wherefrom_model::Coverage;

/// Rows shown.
const ROWS: usize = 5;
/// Rows of a self-influence shown.
const STRONGEST: usize = 10;
/// Queries shown.
const QUERIES: usize = 20;
/// Characters of a text shown.
const EXCERPT: usize = 90;
/// Characters of a document's name shown.
const WIDEST: usize = 40;

/// For each query its text, the strongest examples of either sign, and what they say.
///
/// `known` are artifacts outside the store, by key.
pub fn ranking(store: &Store, folder: &Path, known: &BTreeMap<String, PathBuf>) -> Result<String> {
    let artifact = Artifact::<Ranking>::open(folder)?;
    let texts = query_texts(store, artifact.manifest(), known).unwrap_or_default();
    let mut queries: BTreeMap<u32, Vec<Ranked>> = BTreeMap::new();
    for row in artifact.rows::<Ranked>()? {
        let row = row?;
        let rows = queries.entry(row.query).or_default();
        if row.rank <= if row.positive { 3 } else { 2 } {
            rows.push(row);
        }
    }
    let mut text = String::new();
    if let Some(unit) = artifact.metadata("unit")? {
        let sign = artifact.metadata("sign")?.map_or(String::new(), |sign| format!("; {sign}"));
        writeln!(text, "influence in {unit}{sign}")?;
    }
    let widest = queries.values().flatten().map(|row| row.doc.chars().count()).max().unwrap_or(0).min(WIDEST);
    for (query, rows) in queries.iter_mut().take(QUERIES) {
        rows.sort_by_key(|row| (!row.positive, row.rank));
        let (doc, asked) = texts.get(query).map_or(("", ""), |(doc, asked)| (doc, asked));
        writeln!(text, "\nquery {query}  {doc}\n  {asked}")?;
        for row in rows {
            let sign = if row.positive { '+' } else { '-' };
            let (influence, doc) = (significant(row.influence), clipped(&row.doc, WIDEST));
            writeln!(text, "  {sign}{} {influence:>10}  {doc:<widest$}  {}", row.rank, excerpt(&row.text))?;
        }
    }
    if queries.len() > QUERIES {
        writeln!(text, "\nand {} more queries", queries.len() - QUERIES)?;
    }
    Ok(text)
}

/// Which parameters the stage of an artifact attributed and which not, by name and share, where its manifest says so:
/// `540672 of 1000576 parameters (54.0 %) are attributed; not model.embed_tokens (26.2 %), ...`
pub fn coverage(manifest: &Manifest) -> Option<String> {
    let coverage: Coverage = serde_json::from_value(manifest.summary.get("coverage")?.clone()).ok()?;
    let share = |size: u64| format!("{:.1} %", 100.0 * size as f64 / coverage.total as f64);
    // Layers together: model.layers.*.self_attn.q_proj.
    let mut rest: Vec<(String, u64)> = Vec::new();
    for (name, size) in &coverage.unattributed {
        let words = name.trim_end_matches(".weight").split('.');
        let words = words.map(|word| if word.parse::<usize>().is_ok() { "*" } else { word });
        let name = words.collect::<Vec<_>>().join(".");
        match rest.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += size,
            None => rest.push((name, *size)),
        }
    }
    rest.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let rest: Vec<_> = rest.iter().map(|(name, size)| format!("{name} ({})", share(*size))).collect();
    let rest = if rest.is_empty() { String::new() } else { format!("; not {}", rest.join(", ")) };
    let (attributed, total) = (coverage.attributed, coverage.total);
    Some(format!("{attributed} of {total} parameters ({}) are attributed{rest}", share(attributed)))
}

/// Names and texts of the queries, for people.
fn query_texts(
    store: &Store,
    ranking: &Manifest,
    known: &BTreeMap<String, PathBuf>,
) -> Option<BTreeMap<u32, (String, String)>> {
    let row = |row: Example| Some((u32::try_from(row.example).ok()?, (row.docs.join(" + "), asked(&row))));
    query_rows(store, ranking, known)?.take(QUERIES).map(|example| row(example.ok()?)).collect()
}

/// The queries of a ranking: scores, preconditioned, gradients, tokens, each by the key in the recipe before.
pub(crate) fn query_rows(
    store: &Store,
    ranking: &Manifest,
    known: &BTreeMap<String, PathBuf>,
) -> Option<impl Iterator<Item = Result<Example>> + use<>> {
    let find = |manifest: &Manifest, role: &str, kinds: &[Kind]| {
        let key = manifest.recipe.inputs.get(role)?;
        let folder = kinds.iter().map(|kind| store.folder(*kind, key)).find(|folder| folder.is_dir());
        folder.or_else(|| known.get(key).cloned())
    };
    let scores = Manifest::read(&find(ranking, "scores", &[Kind::Scores, Kind::Details])?).ok()?;
    let mut gradients = Manifest::read(&find(&scores, "queries", &[Kind::Preconditioned, Kind::Gradients])?).ok()?;
    if gradients.kind == Kind::Preconditioned {
        gradients = Manifest::read(&find(&gradients, "gradients", &[Kind::Gradients])?).ok()?;
    }
    let tokens = Artifact::<Tokens>::open(&find(&gradients, "tokens", &[Kind::Tokens])?).ok()?;
    tokens.rows::<Example>().ok()
}

/// `prompt | completion`, and what it is measured against or together with.
fn asked(query: &Example) -> String {
    let start = query.completion_start as usize;
    let text = match query.text.split_at_checked(start) {
        Some((prompt, completion)) if !prompt.is_empty() => {
            let (prompt, completion) = (one_line(prompt), one_line(completion));
            let skipped = prompt.chars().count().saturating_sub(EXCERPT);
            let dots = if skipped > 0 { "…" } else { "" };
            format!("{dots}{} | {}", prompt.chars().skip(skipped).collect::<String>(), excerpt(&completion))
        }
        _ => clipped(&one_line(&query.text), 2 * EXCERPT),
    };
    let rival = query.parts().zip(&query.segment_texts).find(|((_, weight), _)| *weight < 0.0);
    match (rival, query.segments.len()) {
        (Some((_, rival)), 2) => {
            let rival = rival.strip_prefix(query.text.get(..start).unwrap_or_default()).unwrap_or(rival);
            format!("{text} (against {})", excerpt(rival))
        }
        (_, 0 | 1) => text,
        (_, segments) => format!("{text} (and {} more, weighted)", segments - 1),
    }
}

/// Manifest in short, and the first rows.
pub fn show(store: &Store, folder: &Path) -> Result<String> {
    let manifest = open_any(folder)?;
    let mut text = String::new();
    writeln!(text, "{} {}", manifest.kind.name(), manifest.key)?;
    writeln!(text, "folder    {}", folder.display())?;
    writeln!(text, "stage     {} (version {})", manifest.recipe.stage, manifest.recipe.version)?;
    writeln!(text, "config    {}", manifest.recipe.config)?;
    for (role, key) in &manifest.recipe.inputs {
        writeln!(text, "input     {role} = {key}")?;
    }
    if let Some(model) = &manifest.recipe.model {
        writeln!(text, "model     {model}")?;
    }
    let (parts, rows) = (manifest.parts.len(), manifest.rows());
    writeln!(text, "parts     {parts}, {rows} rows, {}", wherefrom_artifact::bytes(manifest.bytes() as f64))?;
    if let Some(coverage) = coverage(&manifest) {
        writeln!(text, "coverage  {coverage}")?;
    }
    for (title, facts) in [("summary", &manifest.summary), ("run", &manifest.provenance)] {
        for (name, value) in facts.iter().filter(|(name, _)| *name != "coverage") {
            writeln!(text, "{title:<9} {name} = {}", clipped(&value.to_string(), EXCERPT))?;
        }
    }
    if manifest.kind.format() == Format::Folder {
        for part in &manifest.parts {
            writeln!(text, "file      {} ({})", part.name, wherefrom_artifact::bytes(part.bytes as f64))?;
        }
        return Ok(text);
    }
    text += "\n";
    text += &match manifest.kind {
        Kind::Ranking => ranking(store, folder, &BTreeMap::new())?,
        Kind::Tokens => first::<Tokens, Example>(folder, |row| {
            format!("{} {:?} {} tokens: {}", row.example, row.docs, row.input_ids.len(), excerpt(&row.text))
        })?,
        Kind::Scores => first::<Scores, Score>(folder, score)?,
        Kind::Details => first::<Details, Detail>(folder, |row| score(&row.score))?,
        Kind::Candidates => first::<Candidates, Candidate>(folder, |row| {
            format!("query {} example {} {:.4} {}", row.query, row.example, row.score, row.source)
        })?,
        Kind::Losses => first::<Losses, Loss>(folder, |row| format!("example {} loss {:.4}", row.example, row.loss))?,
        Kind::Covariances => first::<Covariances, Covariance>(folder, |row| {
            format!("{} {} [{size}, {size}] over {} tokens", row.module, row.side.name(), row.count, size = row.size)
        })?,
        Kind::Eigenbasis => first::<Eigenbasis, Basis>(folder, |row| {
            let ends = (row.values.first().copied().unwrap_or(0.0), row.values.last().copied().unwrap_or(0.0));
            format!(
                "{} {} {} eigenvalues, {:.3e} to {:.3e}",
                row.module,
                row.side.name(),
                row.values.len(),
                ends.0,
                ends.1
            )
        })?,
        Kind::Lambda => first::<Lambda, LambdaSum>(folder, |row| {
            format!("{} {:?} over {} examples", row.module, row.shape, row.count)
        })?,
        Kind::Gradients => first::<Gradients, Factors>(folder, factors)?,
        Kind::Preconditioned => first::<Preconditioned, Factors>(folder, factors)?,
        Kind::Coordinates => first::<Coordinates, Coordinate>(folder, |row| {
            format!("{} [{}, {}] deviation {:.3e}", row.module, row.row, row.column, row.deviation)
        })?,
        Kind::Index => first::<Index, Signs>(folder, |row| {
            format!("example {} scale {:.4} {} bytes of signs", row.example, row.scale, row.signs.len())
        })?,
        Kind::SelfInfluence => strongest(store, folder, &manifest)?,
        Kind::Tokenizer | Kind::Model | Kind::Report => String::new(),
    };
    Ok(text)
}

/// The examples that influence themselves most, with their texts where the tokens are in the store.
fn strongest(store: &Store, folder: &Path, manifest: &Manifest) -> Result<String> {
    let artifact = Artifact::<SelfInfluence>::open(folder)?;
    let mut rows = artifact.rows::<OwnInfluence>()?.collect::<Result<Vec<_>>>()?;
    rows.sort_by(|one, two| two.influence.total_cmp(&one.influence).then(one.example.cmp(&two.example)));
    rows.truncate(STRONGEST);
    let tokens = manifest.recipe.inputs.get("tokens").map(|key| store.folder(Kind::Tokens, key));
    let mut texts = BTreeMap::new();
    if let Some(folder) = tokens.filter(|folder| folder.is_dir()) {
        for row in Artifact::<Tokens>::open(&folder)?.rows::<Example>()? {
            let row = row?;
            if rows.iter().any(|found| found.example == row.example) {
                texts.insert(row.example, (row.docs.join(" + "), row.text));
            }
        }
    }
    let mut text = String::new();
    if let Some(unit) = artifact.metadata("unit")? {
        let sign = artifact.metadata("sign")?.map_or(String::new(), |sign| format!("; {sign}"));
        writeln!(text, "influence on itself in {unit}{sign}")?;
    }
    let widest = texts.values().map(|(doc, _)| doc.chars().count()).max().unwrap_or(0).min(WIDEST);
    for (rank, row) in rows.iter().enumerate() {
        let (doc, said) = texts.get(&row.example).map_or(("", ""), |(doc, text)| (doc, text));
        let (influence, doc) = (significant(row.influence), clipped(doc, WIDEST));
        writeln!(
            text,
            "  {:>2} {influence:>10}  example {:<6}  {doc:<widest$}  {}",
            rank + 1,
            row.example,
            excerpt(said)
        )?;
    }
    Ok(text)
}

fn first<K: ArtifactKind, R: Row<K>>(folder: &Path, line: impl Fn(&R) -> String) -> Result<String> {
    let mut text = String::new();
    for row in Artifact::<K>::open(folder)?.rows::<R>()?.take(ROWS) {
        writeln!(text, "{}", line(&row?))?;
    }
    Ok(text)
}

fn score(row: &Score) -> String {
    format!("query {} example {} influence {:+.4e}", row.query, row.example, row.influence)
}

fn factors(row: &Factors) -> String {
    format!("row {} {} rank {} {:?} {:?}", row.row, row.module, row.rank, row.left_shape, row.right_shape)
}

/// The beginning of the text on one line.
fn excerpt(text: &str) -> String {
    clipped(&one_line(text), EXCERPT)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Four significant digits: `+65.01`, `-0.0004133`, and powers of ten beyond.
fn significant(value: f32) -> String {
    let digits = 3 - value.abs().log10().floor() as i32;
    if (0..=8).contains(&digits) { format!("{value:+.*}", digits as usize) } else { format!("{value:+.3e}") }
}

fn clipped(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.into();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}
