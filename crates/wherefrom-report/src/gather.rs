//! What is shown of each query, read from the artifacts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use anyhow::Result;
use serde::Serialize;
use tokenizers::Tokenizer;
use wherefrom_artifact::text::{about_boundary, boundary, clipped, one_line};
use wherefrom_artifact::{Asked, Cell, CellColumn, Cells, Detail, Error, Example, Loss, Ranked, Score, visible};

use crate::duplicates::{Near, Runs, near};
use crate::groups::{Grouped, Listed, Names};
use crate::layers::Grid;
use crate::pieces::Pieces;
use crate::statistics::{Distribution, Influences, describe};
use crate::{Config, Inputs};

/// Characters of a query's name that is taken from its prompt.
const NAME: usize = 60;
/// Characters of prompt and of completion in the table of all queries.
const EXCERPT: usize = 70;

/// All that the page shows, as the artifacts have it.
pub(crate) struct Gathered {
    /// Queries of the ranking, in order.
    pub(crate) queries: Vec<u32>,
    pub(crate) grid: Grid,
    pub(crate) grouped: Grouped,
    /// Columns that come with the sequences.
    pub(crate) columns: Vec<CellColumn>,
    cells: HashMap<u64, Cells>,
    tokenizer: Option<Tokenizer>,
    ranked: BTreeMap<u32, Vec<Ranked>>,
    examples: HashMap<u64, Example>,
    details: HashMap<(u32, u64), Detail>,
    asked: HashMap<u32, Example>,
    losses: HashMap<u32, Loss>,
    influences: BTreeMap<u32, Influences>,
    /// Bytes that all queries begin with.
    shared: usize,
}

/// One query as the page has it, in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct View {
    query: u32,
    /// As the queries' file has it, or else how its prompt begins.
    name: String,
    /// As tables have it.
    id: String,
    /// `prompt | completion`, on one line.
    #[serde(skip)]
    text: String,
    /// What of that stands about the place where the two meet.
    #[serde(skip)]
    excerpt: String,
    /// What is measured: log p of the targets, each segment times its weight.
    #[serde(skip)]
    log_p: Option<f64>,
    prompt: String,
    completion: String,
    contrast: String,
    /// Segments of the query: one, or for a contrast two.
    asked: Vec<Segment>,
    rows: Vec<Shown>,
    distribution: Option<Distribution>,
    /// Influence by group, for each column of groups.
    groups: Vec<Listed>,
    /// Mean over the proponents of each layer's share of the sizes.
    profile: Option<Vec<f64>>,
}

/// A segment of a query.
#[derive(Debug, Serialize)]
struct Segment {
    /// What its log-probability counts: 1, or -1 for a rival.
    weight: f32,
    #[serde(flatten)]
    pieces: Pieces,
    /// Positions of the targets.
    targets: Vec<usize>,
    /// log p of each target, nats; none where there are no losses.
    log_p: Option<Vec<f64>>,
}

/// A training sequence that is shown.
#[derive(Debug, Serialize)]
struct Shown {
    positive: bool,
    rank: u32,
    example: u64,
    doc: String,
    /// First token and name of each document, where there are several.
    docs: Vec<(u32, String)>,
    influence: f32,
    /// What comes with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cells: Vec<Cell>,
    /// Its group in each column of groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<Option<usize>>,
    /// Of all influence of its sign on the query.
    share: Option<f64>,
    #[serde(flatten)]
    pieces: Pieces,
    by_token: Option<Scaled>,
    by_module: Option<Scaled>,
    /// Layer around which its influence lies.
    centre: Option<f64>,
    /// |a|_2 / |a|_1 of the shares by token: above 2/3 it rests on one or two.
    ratio: Option<f64>,
    near: Option<Near>,
    /// Share of the query's runs of tokens that the sequence has.
    quotes: Option<f64>,
}

/// Numbers as thousandths of the largest, which keeps the page small.
#[derive(Debug, Serialize)]
struct Scaled {
    largest: f32,
    thousandths: Vec<i16>,
}

/// A line of the table of all queries.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub(crate) query: u32,
    pub(crate) name: String,
    pub(crate) id: String,
    /// Side file, where the page has no room.
    pub(crate) file: Option<String>,
    pub(crate) text: String,
    #[serde(skip)]
    pub(crate) excerpt: String,
    #[serde(skip)]
    pub(crate) log_p: Option<f64>,
    #[serde(skip)]
    pub(crate) targets: usize,
    #[serde(skip)]
    pub(crate) strongest: [Option<f32>; 2],
    #[serde(skip)]
    pub(crate) distribution: Option<Distribution>,
    #[serde(skip)]
    pub(crate) profile: Option<Vec<f64>>,
    #[serde(skip)]
    pub(crate) shown: usize,
}

impl Gathered {
    /// Reads the ranking's first `top` of each sign, and what belongs to them.
    pub(crate) fn read(config: &Config, inputs: &Inputs) -> Result<Self> {
        let mut ranked: BTreeMap<u32, Vec<Ranked>> = BTreeMap::new();
        for row in inputs.ranking.rows::<Ranked>()? {
            let row = row?;
            if row.rank as usize <= config.top {
                ranked.entry(row.query).or_default().push(row);
            }
        }
        ranked.values_mut().for_each(|rows| rows.sort_by_key(|row| (!row.positive, row.rank)));
        let wanted: BTreeSet<u64> = ranked.values().flatten().map(|row| row.example).collect();
        let pairs: BTreeSet<(u32, u64)> = ranked.values().flatten().map(|row| (row.query, row.example)).collect();
        let mut gathered = Self {
            queries: ranked.keys().copied().collect(),
            ranked,
            tokenizer: inputs.tokenizer.as_deref().map(wherefrom_vocabulary::open).transpose()?,
            ..Self::empty()
        };
        if let Some(columns) = &inputs.columns {
            gathered.grouped = Grouped::of_columns(columns)?;
            for row in columns.by_example()? {
                let (example, cells) = row?;
                if gathered.columns.len() < cells.columns.len() {
                    gathered.columns = cells.columns.to_vec();
                }
                if wanted.contains(&example) {
                    gathered.cells.insert(example, cells);
                }
            }
        }
        let mut names = Names::new();
        for row in inputs.tokens.rows::<Example>()? {
            let row = row?;
            names.add(&row);
            if wanted.contains(&row.example) {
                gathered.examples.insert(row.example, row);
            }
        }
        gathered.grouped.add_names(names);
        if let Some(missing) = wanted.iter().find(|example| !gathered.examples.contains_key(example)) {
            return mismatch(format!(
                "the ranking names example {missing}, which the tokens do not have; wire the tokens that were ranked"
            ));
        }
        if let Some(details) = &inputs.details {
            let modules: Vec<String> = match details.metadata("modules")? {
                Some(names) => serde_json::from_str(&names)?,
                None => Vec::new(),
            };
            gathered.grid = Grid::new(modules);
            for row in details.rows::<Detail>()? {
                let row = row?;
                let pair = (row.score.query, row.score.example);
                if pairs.contains(&pair) && gathered.details.insert(pair, row).is_some() {
                    return mismatch(format!("the details have query {} and example {} twice", pair.0, pair.1));
                }
            }
        }
        if let Some(queries) = &inputs.queries {
            for row in queries.rows::<Example>()? {
                let row = row?;
                gathered.asked.insert(query_number(row.example)?, row);
            }
            if let Some(missing) = gathered.queries.iter().find(|query| !gathered.asked.contains_key(query)) {
                return mismatch(format!(
                    "the ranking names query {missing}, which the queries do not have; wire the queries that were asked"
                ));
            }
        }
        if let Some(losses) = &inputs.losses {
            for row in losses.rows::<Loss>()? {
                let row = row?;
                gathered.losses.insert(query_number(row.example)?, row);
            }
        }
        if let Some(scores) = &inputs.scores {
            let examples = inputs.tokens.examples();
            for row in scores.rows::<Score>()? {
                let row = row?;
                if row.example >= examples {
                    return mismatch(format!(
                        "the scores name example {}, which the tokens do not have; wire the scores of these tokens",
                        row.example
                    ));
                }
                gathered.influences.entry(row.query).or_default().push(row.influence);
                gathered.grouped.add(row.query, row.example, row.influence);
            }
            gathered.influences.values_mut().for_each(Influences::sort);
        }
        gathered.shared = gathered.beginning();
        Ok(gathered)
    }

    fn empty() -> Self {
        Self {
            queries: Vec::new(),
            grid: Grid::default(),
            grouped: Grouped::default(),
            columns: Vec::new(),
            cells: HashMap::new(),
            tokenizer: None,
            ranked: BTreeMap::new(),
            examples: HashMap::new(),
            details: HashMap::new(),
            asked: HashMap::new(),
            losses: HashMap::new(),
            influences: BTreeMap::new(),
            shared: 0,
        }
    }

    /// Everything of one query.
    pub(crate) fn query(&self, query: u32, config: &Config) -> Result<View> {
        let ranked = self.ranked.get(&query).map_or(&[][..], Vec::as_slice);
        let influences = self.influences.get(&query);
        let distribution = influences.map(|found| describe(found, config.samples, config.seed, query));
        let asked = self.asked.get(&query);
        let words = self.words(query);
        let asked_runs = asked.map(|example| {
            // The first segment is the completion itself; a rival is not what a sequence quotes.
            let first = example.parts().next().map_or(0..0, |(tokens, _)| tokens);
            Runs::new(&example.input_ids[first])
        });
        let runs: Vec<Runs> = ranked.iter().map(|row| Runs::new(&self.examples[&row.example].input_ids)).collect();
        let mut rows = Vec::new();
        let (mut profile, mut profiled) = (vec![0.0; self.grid.layers.len()], 0);
        for ((row, runs), near) in ranked.iter().zip(&runs).zip(near(&runs)) {
            let quotes = asked_runs.as_ref().map(|asked| rounded(asked.found_in(runs)));
            let sum = distribution.as_ref().map(|found| found.sums[usize::from(!row.positive)]);
            let share = sum.filter(|sum| *sum > 0.0).map(|sum| rounded(f64::from(row.influence.abs()) / sum));
            let shown = Shown { near, quotes, share, ..self.shown(row)? };
            if let Some(detail) = self.details.get(&(query, row.example)).filter(|_| row.positive) {
                let by_layer = self.grid.by_layer(&detail.by_module);
                let sum: f64 = by_layer.iter().map(|share| share.abs()).sum();
                if sum > 0.0 {
                    profile.iter_mut().zip(&by_layer).for_each(|(into, share)| *into += share.abs() / sum);
                    profiled += 1;
                }
            }
            rows.push(shown);
        }
        profile.iter_mut().for_each(|share| *share = rounded(*share / f64::from(profiled.max(1))));
        Ok(View {
            query,
            name: self.name(query, &words),
            id: visible(&words.id),
            text: line(&words, usize::MAX),
            excerpt: line(&words, EXCERPT),
            prompt: visible(&words.prompt),
            completion: visible(&words.completion),
            contrast: visible(&words.contrast),
            groups: self.grouped.query(query, rounded),
            log_p: self.losses.get(&query).map(|loss| -f64::from(loss.loss)),
            asked: asked.map(|example| self.asked(query, example)).transpose()?.unwrap_or_default(),
            rows,
            distribution: distribution.map(thinned),
            profile: (profiled > 0).then_some(profile),
        })
    }

    /// What a query is called: its id, or, where that is only the number of its row, how its prompt begins, behind what all
    /// prompts begin with.
    fn name(&self, query: u32, asked: &Asked) -> String {
        let number =
            asked.id.strip_prefix("row ").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        let own = opening(asked).get(self.shared..).map(|text| clipped(&one_line(text), NAME)).unwrap_or_default();
        match (number || asked.id.is_empty(), own.is_empty()) {
            (true, false) => visible(&own),
            (_, true) if asked.id.is_empty() => format!("query {query}"),
            _ => visible(&asked.id),
        }
    }

    /// The words of a query; where the queries are not wired the ranking may have them.
    fn words(&self, query: u32) -> Asked {
        let ranked = || Some(self.ranked.get(&query)?.first()?.asked.clone());
        self.asked.get(&query).map(Example::asked).or_else(ranked).unwrap_or_default()
    }

    /// Bytes of what all queries begin with, up to a word of their own: the template of a chat, or a question that is always asked.
    fn beginning(&self) -> usize {
        let mut all = self.queries.iter().map(|&query| opening(&self.words(query)).to_string());
        let Some(mut shared) = all.next().filter(|_| self.queries.len() > 1) else { return 0 };
        for other in all {
            let same = shared.char_indices().zip(other.chars()).find(|((_, own), other)| own != other);
            shared.truncate(same.map_or(shared.len().min(other.len()), |((at, _), _)| at));
        }
        shared.rfind(char::is_whitespace).map_or(0, |at| at + 1)
    }

    fn asked(&self, query: u32, example: &Example) -> Result<Vec<Segment>> {
        let loss = self.losses.get(&query);
        if loss.is_some_and(|loss| loss.by_token.len() != example.input_ids.len()) {
            return mismatch(format!(
                "query {query} has other tokens than its losses; wire the losses of the step `queries`"
            ));
        }
        let segment = |(tokens, weight): (Range<usize>, f32)| {
            let (ids, mask) = (&example.input_ids[tokens.clone()], &example.target_mask[tokens.clone()]);
            let targets: Vec<usize> = (0..mask.len()).filter(|&position| mask[position]).collect();
            let log_p = |loss: &Loss| {
                targets.iter().map(|&target| rounded(-f64::from(loss.by_token[tokens.start + target]))).collect()
            };
            Segment { weight, pieces: self.pieces(ids), log_p: loss.map(log_p), targets }
        };
        Ok(example.parts().map(segment).collect())
    }

    fn shown(&self, row: &Ranked) -> Result<Shown> {
        let example = &self.examples[&row.example];
        let detail = self.details.get(&(row.query, row.example));
        if detail.is_some_and(|detail| detail.by_token.len() != example.input_ids.len()) {
            return mismatch(format!(
                "example {} has other tokens than its details; wire the tokens that the details were scored on",
                row.example
            ));
        }
        if detail.is_some_and(|detail| detail.by_module.len() != self.grid.modules.len()) {
            return mismatch("the details have shares by module and no `wherefrom.modules` of as many names".into());
        }
        let several = example.docs.len() > 1;
        let docs = example.doc_starts.iter().zip(&example.docs).filter(|_| several);
        let by_layer = detail.map(|detail| self.grid.by_layer(&detail.by_module));
        Ok(Shown {
            positive: row.positive,
            rank: row.rank,
            example: row.example,
            doc: visible(&row.doc),
            docs: docs.map(|(start, name)| (*start, visible(name))).collect(),
            influence: row.influence,
            cells: self
                .cells
                .get(&row.example)
                .map(|cells| cells.values.iter().map(shown).collect())
                .unwrap_or_default(),
            groups: self.grouped.of(row.example),
            share: None,
            pieces: self.pieces(&example.input_ids),
            by_token: detail.map(|detail| Scaled::new(&detail.by_token)),
            by_module: detail.map(|detail| Scaled::new(&detail.by_module)),
            centre: by_layer.as_deref().and_then(|shares| self.grid.centre_of_mass(shares)).map(rounded),
            ratio: detail.and_then(|detail| ratio(&detail.by_token)),
            near: None,
            quotes: None,
        })
    }

    /// Whether the queries' own tokens are there.
    pub(crate) fn has_queries(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Whether tokens have text.
    pub(crate) fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    fn pieces(&self, ids: &[u32]) -> Pieces {
        Pieces::new(self.tokenizer.as_ref(), ids)
    }
}

impl View {
    /// Its line in the table of all queries.
    pub(crate) fn summary(self, file: Option<String>) -> Summary {
        let strongest = |positive| {
            let row = self.rows.iter().find(|row| row.positive == positive)?;
            Some(row.influence)
        };
        Summary {
            query: self.query,
            id: self.id,
            file,
            text: self.text,
            excerpt: self.excerpt,
            log_p: self.log_p,
            targets: self.asked.iter().map(|asked| asked.targets.len()).sum(),
            strongest: [strongest(true), strongest(false)],
            shown: self.rows.len(),
            name: self.name,
            distribution: self.distribution,
            profile: self.profile,
        }
    }
}

impl Scaled {
    fn new(values: &[f32]) -> Self {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = if largest > 0.0 { 1000.0 / largest } else { 0.0 };
        Self { largest, thousandths: values.iter().map(|value| (value * scale).round() as i16).collect() }
    }
}

/// What a query begins with.
fn opening(asked: &Asked) -> &str {
    if asked.prompt.trim().is_empty() { &asked.completion } else { &asked.prompt }
}

/// `prompt | completion`, or the text alone, on one line and safe to show, at most so many characters of each; of a contrast with
/// what it is against.
fn line(asked: &Asked, length: usize) -> String {
    let text = match &asked.prompt[..] {
        "" => about_boundary("", &one_line(&asked.completion), length),
        prompt => {
            let [prompt, completion] = boundary(prompt, &asked.completion);
            about_boundary(&prompt, &completion, length)
        }
    };
    let against = match &asked.contrast[..] {
        "" => String::new(),
        contrast => format!(" (against {})", clipped(&boundary(&asked.prompt, contrast)[1], length)),
    };
    visible(&(text + &against))
}

/// A value that is safe to show.
fn shown(cell: &Cell) -> Cell {
    if let Cell::Text(text) = cell { Cell::Text(visible(text)) } else { cell.clone() }
}

/// |a|_2 / |a|_1; none where all shares are 0.
fn ratio(shares: &[f32]) -> Option<f64> {
    let sum: f64 = shares.iter().map(|&share| f64::from(share.abs())).sum();
    let squares: f64 = shares.iter().map(|&share| f64::from(share).powi(2)).sum();
    (sum > 0.0).then(|| rounded(squares.sqrt() / sum))
}

/// Five significant digits.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(4 - value.abs().log10().floor() as i32);
    if scale.is_finite() { (value * scale).round() / scale } else { value }
}

fn thinned(mut distribution: Distribution) -> Distribution {
    for (x, share) in &mut distribution.tail {
        (*x, *share) = (rounded(*x), rounded(*share));
    }
    distribution
}

fn query_number(row: u64) -> Result<u32> {
    u32::try_from(row).or_else(|_| mismatch(format!("there is no query {row}: queries have numbers below 2^32")))
}

fn mismatch<T>(what: String) -> Result<T> {
    Err(Error::Mismatch(what).into())
}
