//! The stage `columns`: what comes with the rows of a corpus, as a table beside their tokens.
//!
//! reads   a corpus, its tokens
//! writes  columns
//!
//! The corpus is read twice: once for the types of the columns, which a file of JSON lines does not say, and once for their
//! values. No stage that runs a model reads them, so that another choice of columns computes nothing again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Cell, CellColumn, CellType, Cells, Draft, Example, Kept, Kind, Row as _, Tokens, bad_input,
};
use wherefrom_stage::{About, Cost, Exec, File, Role, Stage, Writes};
use wherefrom_vocabulary::json;
use wherefrom_vocabulary::ordered::{Json, Object};

use crate::corpus::{Corpus, Place, Raw, RawRow, Rows};
use crate::row::Names;
use crate::words::near;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `columns`.
pub static STAGE: Stage<Config> = Stage {
    about: About { files: &[File::Corpus], ..About::new("columns", VERSION) },
    roles: &[Role::required("tokens", &[Kind::Tokens])],
    parse: serde_json::from_value,
    check: Config::check,
    writes: Writes::One(Kind::Columns),
    makes_model: |_| None,
    cost: |config, planned, _| Cost::new(Cost::ROWS, planned.size.rows * 16.0 * config.keep.len() as f64, 0.0),
    run: |config, given, exec, draft| {
        run(config, &Inputs { corpus: given.required_file(File::Corpus)?, tokens: given.open("tokens")? }, exec, draft)
    },
};

/// Names that wherefrom gives columns of its own, in this table and in those it is joined to.
pub(crate) const OWN: [&str; 12] = [
    "example",
    "doc",
    "query",
    "query_id",
    "sign",
    "rank",
    "influence",
    "prompt",
    "completion",
    "contrast",
    "text",
    "share",
];
/// Rows read at once.
const CHUNK: usize = 512;
/// Rows of a batch that is written.
const BATCH: usize = 8192;
/// Bytes of a corpus that [`check`] looks through for a column.
const LOOKED: u64 = 1 << 30;
/// Columns named where one is missing.
const NAMED: usize = 40;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Columns of the corpus; `a.b` is the field `b` of the column `a`.
    pub keep: Vec<String>,
}

impl Config {
    /// Refuses a choice of no columns, and a column that is there twice.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.keep.is_empty() {
            return Err(bad_input("keep = [] keeps nothing; name columns of the corpus: keep = [\"source\"]"));
        }
        let mut seen = BTreeSet::new();
        match self.keep.iter().find(|name| !seen.insert(kept_name(name))) {
            Some(twice) => Err(bad_input(format!("keep: `{twice}` is there twice; name it once"))),
            None => Ok(()),
        }
    }
}

/// Where rows and their numbers come from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The corpus: a file, a folder or a glob.
    pub corpus: PathBuf,
    /// The tokens that were made of it.
    pub tokens: Artifact<Tokens>,
}

/// The name of a kept column: its own, or `row_NAME` where that is one of wherefrom's.
fn kept_name(name: &str) -> String {
    if OWN.contains(&name) { format!("row_{name}") } else { name.into() }
}

/// Writes what is kept of each document in the windows of the tokens.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a column that no row has, for values that are lists or objects, and for tokens of
/// another corpus.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let id = inputs.tokens.manifest().recipe.config["columns"]["id"].as_str().unwrap_or("id").to_string();
    let reader = Reader::open(&inputs.corpus, &config.keep, &id)?;
    let examples = inputs.tokens.examples();
    exec.reporter.begin("look at columns", "bytes", reader.corpus.bytes(), 0);
    let survey = reader.survey(u64::MAX, |bytes| exec.reporter.advance(bytes))?;
    exec.reporter.end();
    reader.check(&survey)?;
    let column = |(name, values): (&String, Option<CellType>)| CellColumn {
        name: kept_name(name),
        values: values.unwrap_or(CellType::Text),
    };
    let columns: Arc<[CellColumn]> = config.keep.iter().zip(survey.types.iter().copied()).map(column).collect();
    draft.keep(&columns);
    draft.summary("columns", &*columns)?;
    draft.summary("rows", survey.rows)?;
    draft.parts(inputs.tokens.parts());

    exec.reporter.begin("columns", "examples", examples, 0);
    let mut walk =
        Walk { reader: &reader, rows: reader.corpus.rows(Place::default()), chunk: Vec::new().into_iter(), at: None };
    for part in (0..inputs.tokens.parts()).filter(|&part| !draft.has(part)).collect::<Vec<_>>() {
        let mut examples = inputs.tokens.rows_in::<Example>(part)?;
        let mut next = || -> Result<Option<Vec<Kept>>> {
            let mut kept = Vec::new();
            for example in examples.by_ref().take(BATCH) {
                let example = example?;
                let known = example.rows.len() == example.docs.len();
                if !known && (example.docs.len() != 1 || survey.rows != inputs.tokens.examples()) {
                    return Err(bad_input(
                        "the tokens do not say which rows of the corpus they are of; make them with the stage `tokenize`",
                    ));
                }
                let rows = if known { example.rows } else { vec![example.example] };
                for (doc, row) in example.docs.into_iter().zip(rows) {
                    let cells = walk.to(row, &doc, &columns).with_context(|| format!("example {}", example.example))?;
                    kept.push(Kept { example: example.example, doc, cells });
                }
                exec.reporter.advance(1);
            }
            Ok((!kept.is_empty()).then_some(kept))
        };
        draft.write_each(part, std::iter::from_fn(|| next().transpose()).map(|rows| Kept::to_batch(&rows?)))?;
    }
    exec.reporter.end();
    Ok(())
}

/// Refuses columns that the corpus does not have, as far as its beginning or the schemas of its tables say.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the columns that there are.
pub fn check(corpus: &Path, keep: &[String]) -> Result<()> {
    let reader = Reader::open(corpus, keep, "id")?;
    let survey = reader.survey(LOOKED, |_| {})?;
    if survey.whole { reader.check(&survey) } else { Ok(()) }
}

/// A corpus, and what is read of it.
struct Reader<'a> {
    corpus: Corpus,
    keep: &'a [String],
    id: String,
    /// Columns of the files: those of `keep`, or the ones whose fields it names.
    roots: Vec<String>,
}

/// What the rows have.
#[derive(Default)]
struct Survey {
    rows: u64,
    /// Of each kept column; none where every row lacks it or has null.
    types: Vec<Option<CellType>>,
    /// Whether a row or a table has it.
    there: Vec<bool>,
    /// Names of all columns.
    names: BTreeSet<String>,
    /// Whether the whole corpus was looked at.
    whole: bool,
}

impl<'a> Reader<'a> {
    fn open(corpus: &Path, keep: &'a [String], id: &str) -> Result<Self> {
        let first = |name: &String| name.split('.').next().unwrap_or_default().to_string();
        let roots: BTreeSet<String> = keep.iter().flat_map(|name| [name.clone(), first(name)]).collect();
        let roots: Vec<_> = roots.into_iter().collect();
        let read = roots.iter().cloned().chain([id.to_string()]).collect();
        Ok(Self { corpus: Corpus::open(corpus, Names::kept(read))?, keep, id: id.into(), roots })
    }

    /// Looks at rows up to so many bytes of the corpus; where `most` is a limit, until every column has been found.
    fn survey(&self, most: u64, mut each: impl FnMut(u64)) -> Result<Survey> {
        let mut survey =
            Survey { types: vec![None; self.keep.len()], there: vec![false; self.keep.len()], ..Survey::default() };
        let mut rows = self.corpus.rows(Place::default());
        let mut read = 0;
        loop {
            let chunk = rows.chunk(CHUNK)?;
            survey.whole = chunk.is_empty();
            each(rows.bytes_read() - read);
            read = rows.bytes_read();
            if survey.whole || most < u64::MAX && (read > most || survey.there.iter().all(|there| *there)) {
                return Ok(survey);
            }
            for raw in &chunk {
                survey.rows += 1;
                let shown = |what: String| bad_input(format!("{}: {what}", self.corpus.shown(raw.place)));
                let object = self.object(raw).map_err(shown)?;
                for (index, name) in self.keep.iter().enumerate() {
                    let Some(value) = found(&object, name) else { continue };
                    survey.there[index] = true;
                    let cell = cell(value).map_err(|what| shown(format!("`{name}` is {what}")))?;
                    if let Some(kind) = type_of(&cell) {
                        survey.types[index] = Some(survey.types[index].map_or(kind, |known| known.join(kind)));
                    }
                }
                if survey.names.len() < NAMED {
                    survey.names.extend(object.into_keys());
                }
            }
        }
    }

    /// The columns of a row; the values of those that are not kept are not read.
    fn object(&self, raw: &RawRow) -> Result<Object, String> {
        match &raw.raw {
            Raw::Text(_) => Ok(Object::new()),
            Raw::Json(bytes) => json::object(bytes, &|key| key == self.id || self.roots.iter().any(|root| root == key)),
            Raw::Object(object) => object.clone(),
        }
    }

    /// Refuses columns that are nowhere.
    fn check(&self, survey: &Survey) -> Result<()> {
        let Some((name, _)) = self.keep.iter().zip(&survey.there).find(|(_, there)| !**there) else { return Ok(()) };
        let mut names = survey.names.clone();
        names.extend(self.corpus.columns()?);
        let known: Vec<&str> = names.iter().map(String::as_str).take(NAMED).collect();
        let near = near(name, known.iter().copied());
        let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let has = match &known[..] {
            [] => "has no columns at all".into(),
            known => format!("has the columns {}", known.join(", ")),
        };
        Err(bad_input(format!("keep: no row has a column `{name}`; {} {has}{near}", self.corpus.path().display())))
    }
}

/// A walk through the corpus beside that through its tokens.
struct Walk<'a> {
    reader: &'a Reader<'a>,
    rows: Rows<'a>,
    chunk: std::vec::IntoIter<RawRow>,
    /// The row that was read last.
    at: Option<(RawRow, Object)>,
}

impl Walk<'_> {
    /// What is kept of row `row`, which has to be the one of the document; rows come in order.
    fn to(&mut self, row: u64, doc: &str, columns: &Arc<[CellColumn]>) -> Result<Cells> {
        let other = |what: &str| {
            let path = self.reader.corpus.path().display();
            bad_input(format!("row {row} of {path} {what}; give the corpus that the tokens were made from"))
        };
        while self.at.as_ref().is_none_or(|(raw, _)| raw.place.total < row) {
            let raw = match self.chunk.next() {
                Some(raw) => raw,
                None => {
                    self.chunk = self.rows.chunk(CHUNK)?.into_iter();
                    self.chunk.next().ok_or_else(|| other("is not there"))?
                }
            };
            // What is passed over need not be understood.
            if raw.place.total == row {
                let object = self.reader.object(&raw).map_err(bad_input)?;
                self.at = Some((raw, object));
            }
        }
        let Some((raw, object)) = self.at.as_ref().filter(|(raw, _)| raw.place.total == row) else {
            return Err(other("comes after a later one"));
        };
        let name = match object.get(&self.reader.id) {
            Some(Json::String(id)) => id.clone(),
            Some(Json::Number(id)) => id.to_string(),
            _ => self.reader.corpus.document(raw.place),
        };
        let rest = doc.strip_prefix(&name[..]).unwrap_or("-");
        if !rest.is_empty() && !rest.starts_with("/piece-") && !rest.starts_with("/sample-") {
            return Err(other(&format!("is named `{name}`, and its tokens `{doc}`")));
        }
        let value = |(name, column): (&String, &CellColumn)| {
            let value = found(object, name).map(cell).transpose().map_err(bad_input)?;
            Ok(value.unwrap_or_default().of(column.values))
        };
        let values = self.reader.keep.iter().zip(&**columns).map(value).collect::<Result<_>>()?;
        Ok(Cells { columns: columns.clone(), values })
    }
}

/// The value of a column, or of a field: of `a.b` that column, or the field `b` of the column `a`.
fn found<'a>(object: &'a Object, name: &str) -> Option<&'a Json> {
    object.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        if let Json::Object(inner) = object.get(first)? { found(inner, rest) } else { None }
    })
}

/// A plain value, or what it is.
fn cell(value: &Json) -> Result<Cell, String> {
    Ok(match value {
        Json::Null => Cell::Null,
        Json::Bool(value) => Cell::Boolean(*value),
        Json::String(text) => Cell::Text(text.clone()),
        Json::Number(number) => match (number.as_i64(), number.is_u64(), number.as_f64()) {
            (Some(value), _, _) => Cell::Integer(value),
            // Beyond 2^63: as text no digit is lost.
            (None, false, Some(value)) => Cell::Number(value),
            _ => Cell::Text(number.to_string()),
        },
        Json::Array(_) | Json::Object(_) => {
            let fields =
                if matches!(value, Json::Object(_)) { ", or name a field of it: keep = [\"a.b\"]" } else { "" };
            return Err(format!("{}; keep takes text, numbers, dates, true and false{fields}", value.name()));
        }
    })
}

fn type_of(cell: &Cell) -> Option<CellType> {
    match cell {
        Cell::Null | Cell::Several => None,
        Cell::Text(_) => Some(CellType::Text),
        Cell::Integer(_) => Some(CellType::Integer),
        Cell::Number(_) => Some(CellType::Number),
        Cell::Boolean(_) => Some(CellType::Boolean),
    }
}
