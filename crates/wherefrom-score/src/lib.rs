//! Influence of training sequences on queries: influence(q, z) = (1/N) sum over modules of <P(G_q), G_z>.
//!
//! Positive: one more copy of z in training raises log p(completion). Unit: nats per added copy.
//!
//! reads   preconditioned, tokens, model, and candidates or a ranking
//! writes  scores, or details

mod bm25;
pub mod filter;
pub mod gradient_products;
mod queries;
pub mod similarity;
pub mod test_support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Candidate, Candidates, Detail, Details, Draft, Error, Example, Kind, Preconditioned, Ranked, Ranking,
    Score, Scores, Share, Span, Tokens, check_training_examples,
};
use wherefrom_linalg::kernels::weighted_squares;
use wherefrom_model::{ACTIVATION_BYTES, Batch, Coverage, Labels, Measurement, Module, Precision, Selection};
use wherefrom_pass::{Corpus, Units, limit, open, place, sequence, sizes_of};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::queries::{Queries, Survey, by_token, scan};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `score`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("score", VERSION).split() },
    roles: &[
        Role::required("queries", &[Kind::Preconditioned]),
        Role::required("tokens", &[Kind::Tokens]),
        Role::optional("candidates", &[Kind::Candidates, Kind::Ranking]),
    ],
    parse: |knobs| at_least("training-examples", 1, knobs),
    check: Config::check,
    writes: Writes::By(|config| if config.detail { Kind::Details } else { Kind::Scores }),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let candidates = match given.kind("candidates")? {
            None => None,
            Some(Kind::Ranking) => Some(Pairs::Ranking(given.open("candidates")?)),
            Some(_) => Some(Pairs::Candidates(given.open("candidates")?)),
        };
        let (queries, tokens) = (given.open("queries")?, given.open("tokens")?);
        run(config, &Inputs { queries, tokens, model: given.model()?, candidates }, exec, draft)
    },
};

/// Bytes of queries that a part has scores of. More are scored in a further pass over the model, and so is what has no room
/// beside the model.
const QUERY_BYTES: usize = 6 << 30;

/// Bytes of queries on a GPU whose memory nobody knows.
const GPU_QUERY_BYTES: usize = 2 << 30;

/// Bytes of whole queries at once: few pairs are worth their matrices, and so another pass over the model is cheap.
const WHOLE_QUERY_BYTES: usize = 3 << 30;

/// Queries from which on a scan goes by way of gradients: see `wherefrom_linalg::kernels::scan`.
const MANY_QUERIES: usize = 24;

/// Tokens from which on one thread multiplies a batch as well as two multiply twice as many.
const LONG_BATCH: usize = 512;
/// Bytes of weights that threads with batches of their own may have widened.
const WIDENED_BYTES: u64 = 1 << 28;

/// What is computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Take every pair apart by module and by token (writes `details`).
    pub detail: bool,
    /// N of the influence; by default the rows of the tokens artifact.
    pub training_examples: Option<u64>,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        check_training_examples(self.training_examples)
    }
}

/// Pairs to score, where not all are wanted.
#[derive(Debug, Clone)]
pub enum Pairs {
    /// A filter's.
    Candidates(Artifact<Candidates>),
    /// An earlier pass'.
    Ranking(Artifact<Ranking>),
}

/// What is scored.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Preconditioned query gradients.
    pub queries: Artifact<Preconditioned>,
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
    /// Only these pairs.
    pub candidates: Option<Pairs>,
}

/// Some queries against some examples: what a part holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Unit {
    queries: Range<usize>,
    span: Span,
}

/// Scores every pair, or the candidates; a part per span of examples and group of queries.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    run_in_groups(config, inputs, exec, draft, QUERY_BYTES)
}

/// The same with another limit on the bytes of queries on the device at once.
fn run_in_groups(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft, query_bytes: usize) -> Result<()> {
    config.check()?;
    let limit = limit(exec);
    let model = open(&inputs.model, config.precision, exec)?;
    let survey = Survey::new(&inputs.queries, model.modules())?;
    let most = if survey.whole() { WHOLE_QUERY_BYTES.min(query_bytes) } else { query_bytes };
    // One at least.
    let most_held = survey.bytes(survey.count).min(most.max(survey.bytes(1)));
    let (model, _) = place(model, survey.selection.modules(), &inputs.tokens, exec, most_held as u64)?;
    let wanted = match &inputs.candidates {
        Some(pairs) => Some(read_pairs(pairs, survey.count, inputs.tokens.examples())?),
        None => None,
    };
    let scale = 1.0 / config.training_examples.unwrap_or_else(|| inputs.tokens.examples()) as f32;

    // What the queries' gradients are of; of most, and of older ones, the log-probability of a completion.
    let measured = inputs.queries.manifest().summary.get("measured");
    let said = |name: &str| measured.and_then(|measured| measured[name].as_str());
    let log_probability = Measurement::LogProbability;
    let unit = match &survey.method[..] {
        "identity" => "gradient product / N".into(),
        "adam" => "gradient product over Adam's roots / N".into(),
        _ => format!("{} per added copy", said("unit").unwrap_or(log_probability.unit())),
    };
    draft.metadata("unit", unit);
    draft.metadata(
        "sign",
        format!("positive = one more copy raises {}", said("raises").unwrap_or(log_probability.sign())),
    );
    draft.metadata("method", survey.method.clone());
    let names: Vec<_> = survey.selection.modules().iter().map(|module| &module.name).collect();
    draft.metadata("modules", serde_json::to_string(&names)?);
    draft.summary("modules", &names)?;
    // Experts that no query makes use of are attributed, and have no row.
    match inputs.queries.manifest().summary.get("coverage") {
        Some(coverage) if model.modules().iter().any(|module| module.routed.is_some()) => {
            draft.summary("coverage", coverage)?;
        }
        _ => draft.summary("coverage", Coverage::new(&model.outline, &survey.selection))?,
    }

    let corpus = Corpus::new("score", &model, &inputs.tokens, exec);
    // One group as a rule: what a part holds has room in memory beside the model.
    let footprint = model.footprint(exec.batch_of(inputs.tokens.tokens()));
    let beside = |bytes: u64| bytes.saturating_sub(footprint.total()).max(bytes / 4) as usize;
    let held = limit.map_or(GPU_QUERY_BYTES, beside).min(if survey.whole() { WHOLE_QUERY_BYTES } else { usize::MAX });
    let groups = |unit: &Unit| survey.groups(unit.queries.clone(), held);
    let work = |unit: &Unit| (unit.span.len() * groups(unit).len()) as u64;
    let units = Units::plan(draft, || units(&survey, inputs, wanted.as_ref(), query_bytes, draft.share()), work)?;
    let mut loaded: Option<Queries> = None;
    units.each(corpus.task, exec, |part, unit| {
        let mut examples = inputs.tokens.read_span(&unit.span)?;
        if let Some(wanted) = &wanted {
            examples.retain(|example| wants(wanted, example.example, &unit.queries));
        }
        let (mut details, mut scores) = (Vec::new(), Vec::new());
        let groups = groups(&unit);
        let others = ((unit.span.len() - examples.len()) * groups.len()) as u64;
        for numbers in groups {
            let queries = match loaded.take() {
                Some(queries) if queries.numbers == numbers => queries,
                // The earlier ones are gone before the next are there.
                _ => survey.load(&inputs.queries, numbers, &model.device)?,
            };
            let taken = footprint.weight_bytes() + survey.bytes(queries.numbers.len()) as u64;
            let pass = Pass {
                corpus,
                selection: &survey.selection,
                queries: &queries,
                scale,
                lengths: None,
                room: limit.map_or(0, |bytes| bytes.saturating_sub(taken) as usize),
            };
            match config.detail || wanted.is_some() {
                true => details.extend(pass.details(&examples, wanted.as_ref())?),
                false => scores.extend(pass.scores(&examples)?),
            }
            loaded = Some(queries);
        }
        scores.extend(details.iter().map(|row: &Detail| row.score));
        if config.detail {
            details.sort_by_key(|row| (row.score.query, row.score.example));
            draft.write_rows::<Details, _>(part, &details)?;
        } else {
            scores.sort_by_key(|row| (row.query, row.example));
            draft.write_rows::<Scores, _>(part, &scores)?;
        }
        // Those that are no candidates.
        exec.reporter.advance(others);
        Ok(())
    })
}

/// Groups of queries that fit, each with the spans in which it has a candidate.
fn units(
    survey: &Survey,
    inputs: &Inputs,
    wanted: Option<&Wanted>,
    query_bytes: usize,
    share: Share,
) -> Result<Vec<Unit>> {
    let spans = inputs.tokens.spans(share)?;
    let mut units = Vec::new();
    for queries in survey.groups(0..survey.count, query_bytes) {
        let any = |span: &&Span| {
            let last = span.first_example + span.len() as u64;
            wanted.is_none_or(|wanted| {
                wanted
                    .range(span.first_example..last)
                    .any(|(_, set)| set.iter().any(|&q| queries.contains(&(q as usize))))
            })
        };
        units.extend(spans.iter().filter(any).map(|span| Unit { queries: queries.clone(), span: *span }));
    }
    Ok(units)
}

/// Candidates: the queries of each example.
type Wanted = BTreeMap<u64, BTreeSet<u32>>;

/// Whether the example is a candidate of one of the queries.
fn wants(wanted: &Wanted, example: u64, queries: &Range<usize>) -> bool {
    wanted.get(&example).is_some_and(|set| set.iter().any(|&q| queries.contains(&(q as usize))))
}

fn read_pairs(pairs: &Pairs, queries: usize, examples: u64) -> Result<Wanted> {
    let rows: Vec<(u32, u64)> = match pairs {
        Pairs::Candidates(artifact) => {
            artifact.rows::<Candidate>()?.map(|row| row.map(|row| (row.query, row.example))).collect::<Result<_>>()?
        }
        Pairs::Ranking(artifact) => {
            artifact.rows::<Ranked>()?.map(|row| row.map(|row| (row.query, row.example))).collect::<Result<_>>()?
        }
    };
    let mut wanted = Wanted::new();
    for (query, example) in rows {
        if query as usize >= queries || example >= examples {
            return Err(Error::Mismatch(format!(
                "candidates name query {query} and example {example}, but there are {queries} queries and {examples} examples"
            ))
            .into());
        }
        wanted.entry(example).or_default().insert(query);
    }
    if wanted.is_empty() {
        return Err(Error::Mismatch("there is no candidate to score".into()).into());
    }
    Ok(wanted)
}

/// What every batch of a run needs.
struct Pass<'a> {
    corpus: Corpus<'a>,
    selection: &'a Selection,
    queries: &'a Queries,
    /// 1 / N.
    scale: f32,
    /// Of the queries' gradients, where cosines are asked for.
    lengths: Option<&'a [f64]>,
    /// Bytes that model and queries leave.
    room: usize,
}

impl Pass<'_> {
    /// How many batches of a scan run side by side, and their tokens.
    ///
    /// On the CPU a batch a thread, as long as that leaves them long: no thread then waits for another. The matrices of
    /// many queries are multiplied out once a batch, so that theirs is one and large: of what memory is left, and no more
    /// than 2 GiB of activations.
    fn shape(&self) -> (usize, usize) {
        let (model, asked) = (self.corpus.model, self.corpus.exec.batch_tokens);
        if self.queries.numbers.len() >= MANY_QUERIES {
            return (1, model.batch_tokens(asked, self.room.clamp(ACTIVATION_BYTES, 2 * ACTIVATION_BYTES)));
        }
        let threads = self.corpus.exec.device.side_by_side();
        // Weights that are read or widened for every batch are so for all of its threads.
        let footprint = model.footprint(asked);
        if !footprint.holds_weights || threads as u64 * footprint.widened > WIDENED_BYTES {
            return (1, model.batch_tokens(asked, ACTIVATION_BYTES));
        }
        match model.batch_tokens(asked / threads, ACTIVATION_BYTES / threads) {
            tokens if tokens >= LONG_BATCH => (threads, tokens),
            _ => (1, model.batch_tokens(asked, ACTIVATION_BYTES)),
        }
    }

    /// Every query against every example.
    fn scores(&self, examples: &[Example]) -> Result<Vec<Score>> {
        let (together, tokens) = self.shape();
        let batches: Vec<_> = self.corpus.batches_of(examples, tokens).collect();
        let one = |(group, batch): &(Vec<usize>, Batch)| self.batch_scores(examples, group, batch);
        let rows: Result<Vec<_>> = match together {
            1 => batches.iter().map(one).collect(),
            // A thread that waits inside a batch takes up no other: only whoever has none left helps.
            _ => {
                let next = AtomicUsize::new(0);
                let rows = rayon::broadcast(|_| {
                    let own = std::iter::from_fn(|| batches.get(next.fetch_add(1, Ordering::Relaxed)));
                    own.map(one).collect::<Result<Vec<_>>>()
                });
                rows.into_iter().collect::<Result<Vec<_>>>().map(|rows| rows.concat())
            }
        };
        Ok(rows?.concat())
    }

    /// Every query against the examples of a batch, which stand at the places `group`.
    fn batch_scores(&self, examples: &[Example], group: &[usize], batch: &Batch) -> Result<Vec<Score>> {
        let (first, count) = (self.queries.numbers.start, self.queries.numbers.len());
        let Corpus { model, exec, .. } = self.corpus;
        let mut total = Tensor::<2>::zeros([batch.len(), count], &model.device);
        let mut squares = vec![0.0; batch.len()];
        model.taps(batch, &Labels::Empirical, self.selection, &mut |tap| {
            let (module, sequences) = (&self.queries.modules[tap.index], &tap.tokens.sequences);
            let [d, a] = tap.operands();
            if self.lengths.is_some() {
                let own = values(weighted_squares(None, d.clone(), a.clone(), sequences))?;
                squares.iter_mut().zip(own).for_each(|(sum, own)| *sum += f64::from(own));
            }
            let products = scan(module, count, a, d, sequences);
            total = total.clone() + products;
            Ok(())
        })?;
        let mut total: Vec<f32> = values(total)?;
        if let Some(lengths) = self.lengths {
            // A gradient of zeros is like no other.
            let divisors = squares.iter().flat_map(|square: &f64| lengths.iter().map(|length| length * square.sqrt()));
            let divided = |value: f32, by: f64| if by > 0.0 { (f64::from(value) / by) as f32 } else { value };
            total.iter_mut().zip(divisors).for_each(|(value, by)| *value = divided(*value, by));
        }
        if let Some(place) = total.iter().position(|influence| !influence.is_finite()) {
            let what = format!("its influence on query {}", first + place % count);
            let sequence = sequence(&examples[group[place / count]]);
            return Err(model.overflow(sequence, &what, &Labels::Empirical));
        }
        exec.reporter.advance(group.len() as u64);
        let row = |(&index, influences): (&usize, &[f32])| {
            let example = examples[index].example;
            let score = move |(query, influence): (usize, &f32)| Score {
                query: (first + query) as u32,
                example,
                influence: self.scale * influence,
            };
            influences.iter().enumerate().map(score).collect::<Vec<_>>()
        };
        Ok(group.iter().zip(total.chunks_exact(count)).flat_map(row).collect())
    }

    /// The wanted pairs, by module and by token.
    fn details(&self, examples: &[Example], wanted: Option<&Wanted>) -> Result<Vec<Detail>> {
        let queries = self.queries;
        let mut rows: Vec<Detail> = Vec::new();
        // place[(query, index in `examples`)] = row
        let mut place = BTreeMap::new();
        for (index, example) in examples.iter().enumerate() {
            for query in queries.numbers.start as u32..queries.numbers.end as u32 {
                if wanted.is_none_or(|wanted| wanted.get(&example.example).is_some_and(|set| set.contains(&query))) {
                    place.insert((query, index), rows.len());
                    rows.push(Detail {
                        score: Score { query, example: example.example, influence: 0.0 },
                        by_module: vec![0.0; queries.modules.len()],
                        by_token: vec![0.0; example.input_ids.len()],
                    });
                }
            }
        }
        self.corpus.taps(examples, self.selection, |group, tap| {
            let (module, positions, sequences) = (tap.index, &tap.tokens.positions, &tap.tokens.sequences);
            let [all_d, all_a] = tap.operands();
            for query in queries.numbers.clone() {
                let chosen: Vec<_> =
                    (0..group.len()).filter(|&b| place.contains_key(&(query as u32, group[b]))).collect();
                let chosen_rows: Vec<_> = chosen.iter().flat_map(|&b| sequences.of(b)).collect();
                if chosen_rows.is_empty() {
                    continue;
                }
                let (mut a, mut d) = (all_a.clone(), all_d.clone());
                if chosen_rows.len() < sequences.rows() {
                    let indices = indices(&chosen_rows, &self.corpus.model.device);
                    (a, d) = (a.select(0, indices.clone()), d.select(0, indices));
                }
                let tokens = values(by_token(&queries.modules[module], query - queries.numbers.start, a, d))?;
                let mut tokens = tokens.into_iter();
                for b in chosen {
                    let row = &mut rows[place[&(query as u32, group[b])]];
                    let mut sum = 0.0_f64;
                    for (&position, value) in positions[sequences.of(b)].iter().zip(&mut tokens) {
                        row.by_token[position] += self.scale * value;
                        sum += f64::from(self.scale * value);
                    }
                    row.by_module[module] += sum as f32;
                }
            }
            Ok(())
        })?;
        for row in &mut rows {
            row.score.influence = row.by_module.iter().map(|&value| f64::from(value)).sum::<f64>() as f32;
        }
        // Where a token's share is not finite, the sum is not.
        if let Some((&(query, index), _)) = place.iter().find(|(_, row)| !rows[**row].score.influence.is_finite()) {
            let what = format!("its influence on query {query}");
            return Err(self.corpus.model.overflow(sequence(&examples[index]), &what, &Labels::Empirical));
        }
        Ok(rows)
    }
}

/// Rows as an index on the device.
fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let queries = planned.size_of("queries").rows;
    // A number, or "full".
    let rank = planned.input("queries").map_or(Some(32.0), |step| step.config["rank"].as_f64());
    let query = 4.0 * sizes.query(rank);
    let most = if rank.is_some() { QUERY_BYTES } else { WHOLE_QUERY_BYTES } as f64;
    // One at least.
    let sizes = sizes.fitting(machine.memory, (queries * query).min(most.max(query)));
    let footprint = sizes.footprint.total() as f64;
    let beside = machine.memory.map_or(GPU_QUERY_BYTES as f64, |all| (all as f64 - footprint).max(all as f64 / 4.0));
    let together = (beside.min(most) / query.max(1.0)).floor().clamp(1.0, queries.max(1.0));
    let groups = (queries / together).ceil().max(1.0);
    // Of each query.
    let pairs = planned.input("candidates").map_or(rows, |candidates| chosen(candidates).min(rows));
    let scanned = if rows > 0.0 { tokens * rows.min(pairs * queries) / rows } else { 0.0 };
    let batches = (scanned / machine.batch_tokens as f64).ceil();
    let by_pairs = config.detail || planned.input("candidates").is_some();
    let work = |module: &Module| {
        let (sum, size) =
            ((module.in_features + module.out_features) as f64, (module.in_features * module.out_features) as f64);
        // Of experts the tokens that they see.
        let (tokens, scanned) = (module.share() * tokens, module.share() * scanned);
        match (rank, by_pairs) {
            (Some(rank), true) => sum * rank * pairs * queries * tokens / rows.max(1.0),
            (None, true) => size * pairs * queries * tokens / rows.max(1.0),
            // By way of the tokens or of the gradients: see `wherefrom_linalg::kernels::scan`.
            (Some(rank), false) => {
                let by_gradients = size * (scanned + batches * queries * rank + queries * rows);
                (sum * rank * queries * scanned).min(by_gradients)
            }
            (None, false) => size * (scanned + queries * rows),
        }
    };
    let work = 2.0 * sizes.modules.iter().map(work).sum::<f64>();
    let row = if config.detail { 1000.0 } else { 12.0 };
    let note = if groups > 1.0 { format!("{groups} groups of queries") } else { String::new() };
    let flops = groups * sizes.scan(scanned) + work;
    let cost = Cost::new(footprint + together * query, queries * pairs * row, flops).reads(queries * query);
    cost.note(sizes.footprint.note()).note(note)
}

/// Pairs of a query that a planned ranking has, both signs, or a filter.
fn chosen(candidates: &Planned) -> f64 {
    let signs = if candidates.input("scores").is_some() { 2.0 } else { 1.0 };
    candidates.config["top"].as_f64().map_or(200.0, |top| signs * top)
}
