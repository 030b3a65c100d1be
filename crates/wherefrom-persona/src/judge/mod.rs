//! The stage `judge`: how strongly each answer shows a trait, and whether it hangs together.
//!
//! reads   tokens (answers), a trait; a model where it judges; given judgements
//! writes  judgements: two a row, by the trait's name and by `coherence`

mod answers;
mod asked;
mod given;
mod likelihood;
mod local;
mod number;
mod rule;
mod speaker;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Example, Judgement, Judgements, Kind, Persona, Status, Tokens, bad_input};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, File, Given, Machine, Planned, Role, Stage, Writes};

use self::answers::Answer;
use self::asked::Asked;
use self::number::Verdict;
pub use self::rule::{Per, Rule};
use crate::description::COHERENCE;
use crate::provider::Endpoint;

/// Raised when judgements of the same configuration and inputs change.
pub const VERSION: u32 = 1;

/// The stage `judge`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        files: &[File::Tokenizer, File::ChatTemplate, File::Judgements],
        model: Checkpoint::RunsWhere("provider", &["local", "likelihood"]),
        ..About::new("judge", VERSION)
    },
    roles: &[Role::required("tokens", &[Kind::Tokens]), Role::required("trait", &[Kind::Trait])],
    parse: |knobs| serde_json::from_value(knobs).map(Config::normal),
    check: Config::check,
    writes: Writes::One(Kind::Judgements),
    makes_model: |_| None,
    cost,
    run,
};

/// Tokens of a rubric, about, as `plan` counts them.
const RUBRIC_TOKENS: f64 = 350.0;
/// Rows judged between two looks at the progress.
const CHUNK: usize = 16;

/// Who judges, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Who judges.
    pub provider: Provider,
    /// What is counted, with `provider = "rule"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Least probability of whole numbers from 0 to 100, in all, for a judge to have given one.
    #[serde(default = "minimum_mass")]
    pub minimum_mass: f64,
    /// The model that an endpoint is asked for, by the name that it has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_model: Option<String>,
    /// Questions that an endpoint has at once. In no key.
    #[serde(default = "concurrency", skip_serializing)]
    #[schemars(!skip_serializing)]
    pub concurrency: usize,
    /// Seconds in which an endpoint has to answer. In no key.
    #[serde(default = "timeout", skip_serializing)]
    #[schemars(!skip_serializing)]
    pub timeout_seconds: f64,
}

fn minimum_mass() -> f64 {
    0.25
}

fn concurrency() -> usize {
    8
}

fn timeout() -> f64 {
    60.0
}

/// Who judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// A pattern that is counted: exact, and offline. Its coherence counts repetition alone.
    Rule,
    /// The step's checkpoint, which has to tell 20 labelled answers of the trait apart first.
    Local,
    /// The step's checkpoint: how much likelier it makes the answer under orders to show the trait than under those to show
    /// its opposite. Circular where it gave the answer under these orders. Its coherence counts repetition alone.
    Likelihood,
    /// A model at an endpoint with OpenAI's chat completions, OPENAI_BASE_URL and OPENAI_API_KEY.
    Endpoint,
    /// Judgements in a file.
    File,
}

impl Config {
    /// With what changes nothing at its default.
    fn normal(mut self) -> Self {
        if self.provider != Provider::Rule {
            self.rule = None;
        }
        if ![Provider::Local, Provider::Endpoint].contains(&self.provider) {
            self.minimum_mass = minimum_mass();
        }
        if self.provider != Provider::Endpoint {
            self.endpoint_model = None;
        }
        self
    }

    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if !(self.minimum_mass > 0.0 && self.minimum_mass <= 1.0) {
            return Err(bad_input(format!(
                "minimum-mass = {} is out of range; set it above 0 and to 1 at most",
                self.minimum_mass
            )));
        }
        if !(1..=256).contains(&self.concurrency) {
            return Err(bad_input(format!("concurrency = {} is out of range; set it from 1 to 256", self.concurrency)));
        }
        if !(0.1..=86400.0).contains(&self.timeout_seconds) {
            return Err(bad_input(format!(
                "timeout-seconds = {} is out of range; set it from 0.1 to 86400",
                self.timeout_seconds
            )));
        }
        match (self.provider, &self.rule, &self.endpoint_model) {
            (Provider::Rule, None, _) => {
                Err(bad_input("provider = \"rule\" has no rule; write what is counted: rule = { pattern = \"!\" }"))
            }
            (Provider::Rule, Some(rule), _) => rule::Counter::new(rule).map(drop).map_err(bad_input),
            (Provider::Endpoint, _, None) => {
                Err(bad_input("provider = \"endpoint\" asks no model; name it: endpoint-model = \"gpt-4.1-mini\""))
            }
            _ => Ok(()),
        }
    }

    /// How long an endpoint is waited for.
    fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds)
    }
}

/// Who judges, ready.
enum Judge<'a> {
    Rule(rule::Counter),
    Local(Box<local::Local>),
    Likelihood(Box<likelihood::Likelihood>),
    Endpoint(Box<Asked<'a>>),
    File(given::Given),
}

impl Judge<'_> {
    /// The trait and the coherence of every answer; none is empty.
    fn judge(&self, answers: &[&Answer<'_>], exec: &Exec) -> Result<Vec<[Verdict; 2]>> {
        let counted = |answer: &Answer<'_>| Verdict::scored(rule::coherence(answer.answer));
        match self {
            Self::Rule(rule) => {
                let judge = |answer: &&Answer<'_>| {
                    let score = rule.score(answer.answer).map_err(bad_input)?;
                    exec.reporter.advance(1);
                    Ok([Verdict::scored(score), counted(answer)])
                };
                answers.iter().map(judge).collect()
            }
            Self::Local(local) => local.judge(answers, exec),
            Self::Likelihood(likelihood) => {
                let scores = likelihood.judge(answers, exec)?;
                Ok(scores.into_iter().zip(answers).map(|(score, answer)| [score, counted(answer)]).collect())
            }
            Self::Endpoint(asked) => asked.judge(answers, &*exec.reporter),
            Self::File(given) => answers
                .iter()
                .map(|answer| {
                    exec.reporter.advance(1);
                    given.verdicts(answer.row)
                })
                .collect(),
        }
    }
}

/// Facts about judgements.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Judgements by status.
    statuses: BTreeMap<String, u64>,
    /// Scores by metric: how many, and their sum.
    scores: BTreeMap<String, (u64, f64)>,
}

impl Counts {
    /// Of these rows.
    pub(crate) fn of(rows: &[Judgement]) -> Self {
        let mut counts = Self::default();
        for row in rows {
            *counts.statuses.entry(row.status.name().into()).or_default() += 1;
            if row.status.has_score() {
                let (count, sum) = counts.scores.entry(row.metric.clone()).or_default();
                (*count, *sum) = (*count + 1, *sum + f64::from(row.score));
            }
        }
        counts
    }

    fn add(&mut self, other: Self) {
        other.statuses.into_iter().for_each(|(status, count)| *self.statuses.entry(status).or_default() += count);
        for (metric, (count, sum)) in other.scores {
            let own = self.scores.entry(metric).or_default();
            *own = (own.0 + count, own.1 + sum);
        }
    }
}

/// Judges every row, and writes the parts that are not there yet.
fn run(config: &Config, given: &Given, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let (tokens, persona) = (given.open::<Tokens>("tokens")?, crate::opened(given)?);
    let endpoint = match (config.provider, &config.endpoint_model) {
        (Provider::Endpoint, Some(model)) => Some(Endpoint::from_env(model, config.patience())?),
        _ => None,
    };
    run_with(config, &Inputs { tokens, persona, given, endpoint }, exec, draft)
}

/// What is judged, and what by.
struct Inputs<'a> {
    tokens: Artifact<Tokens>,
    persona: Persona,
    given: &'a Given,
    endpoint: Option<Endpoint>,
}

fn run_with(config: &Config, inputs: &Inputs<'_>, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let Inputs { tokens, persona, .. } = inputs;
    let judge = ready(config, inputs, exec, draft)?;
    let parts = draft.plan(|| Ok(tokens.manifest().parts.iter().map(|part| part.rows).collect::<Vec<_>>()))?;
    let done = (0..parts.len()).filter(|&part| draft.has(part)).map(|part| parts[part]).sum();
    exec.reporter.begin("judge", "answers", parts.iter().sum(), done);
    let mut counts = Counts::default();
    for part in 0..parts.len() {
        let name = format!("counts-{part:05}");
        if !draft.has(part) {
            let examples = tokens.read::<Example>(part)?;
            let mut rows = Vec::with_capacity(2 * examples.len());
            for chunk in examples.chunks(chunk(config)) {
                rows.extend(judged(&judge, persona, chunk, exec)?);
            }
            draft.checkpoint(&name, &serde_json::to_vec(&Counts::of(&rows))?)?;
            draft.write_rows::<Judgements, _>(part, &rows)?;
        }
        let of_part = draft.restore(&name)?.context("a part that is there was counted")?;
        counts.add(serde_json::from_slice(&of_part)?);
    }
    exec.reporter.end();
    if let Judge::Endpoint(asked) = &judge {
        let usage = asked.usage();
        draft.provenance("endpoint", usage)?;
    }
    if let Judge::Local(local) = &judge {
        draft.summary("gate", local.gate())?;
    }
    summarise(&counts, parts.iter().sum(), &persona.about.name, draft)
}

/// Answers at once: to an endpoint as many as there are, so that none waits for another.
fn chunk(config: &Config) -> usize {
    if config.provider == Provider::Endpoint { usize::MAX } else { CHUNK }
}

/// The judge that the knobs ask for.
fn ready<'a>(config: &Config, inputs: &'a Inputs<'_>, exec: &Exec, draft: &Draft) -> Result<Judge<'a>> {
    let Inputs { persona, given, endpoint, .. } = inputs;
    Ok(match config.provider {
        Provider::Rule => {
            let rule = config.rule.as_ref().context("a rule was asked for")?;
            Judge::Rule(rule::Counter::new(rule).map_err(bad_input)?)
        }
        Provider::Local => {
            let model = speaker::Speaker::open(given, exec)?;
            Judge::Local(Box::new(local::Local::new(model, persona, config.minimum_mass, exec)?))
        }
        Provider::Likelihood => {
            exec.reporter.warn(
                "provider = \"likelihood\" is circular for answers that the model gave under the orders it is asked about",
            );
            Judge::Likelihood(Box::new(likelihood::Likelihood::new(speaker::Speaker::open(given, exec)?, persona)))
        }
        Provider::Endpoint => {
            let endpoint = endpoint.as_ref().context("an endpoint was asked for")?;
            Judge::Endpoint(Box::new(Asked::new(endpoint, persona, config, draft)?))
        }
        Provider::File => {
            let path = given.file(File::Judgements).ok_or_else(|| {
                bad_input("provider = \"file\" has no file; name that of the judgements: file = \"FILE.jsonl\"")
            })?;
            Judge::File(given::Given::read(&path, &persona.about.name)?)
        }
    })
}

/// The judgements of some rows.
fn judged(judge: &Judge<'_>, persona: &Persona, examples: &[Example], exec: &Exec) -> Result<Vec<Judgement>> {
    let answers: Vec<_> = examples.iter().map(|row| Answer::of(row, persona)).collect();
    let (empty, said): (Vec<&Answer<'_>>, Vec<&Answer<'_>>) =
        answers.iter().partition(|answer| answer.answer.trim().is_empty());
    exec.reporter.advance(empty.len() as u64);
    let mut verdicts: BTreeMap<u64, [Verdict; 2]> =
        said.iter().map(|answer| answer.row.example).zip(judge.judge(&said, exec)?).collect();
    verdicts.extend(empty.iter().map(|answer| (answer.row.example, [Verdict::empty(), Verdict::empty()])));
    let metrics = [persona.about.name.as_str(), COHERENCE];
    let rows = verdicts.into_iter().flat_map(|(example, verdicts)| {
        metrics.into_iter().zip(verdicts).map(move |(metric, verdict)| Judgement {
            example,
            metric: metric.into(),
            score: verdict.score as f32,
            mass: verdict.mass as f32,
            status: verdict.status,
            reply: verdict.reply,
        })
    });
    Ok(rows.collect())
}

/// Writes them.
pub(crate) fn summarise(counts: &Counts, answers: u64, name: &str, draft: &mut Draft) -> Result<()> {
    draft.summary("answers", answers)?;
    for status in [Status::Scored, Status::Parsed, Status::Refusal, Status::Empty] {
        draft.summary(status.name(), counts.statuses.get(status.name()).copied().unwrap_or(0))?;
    }
    let mean = |metric: &str| counts.scores.get(metric).map(|(count, sum)| sum / *count as f64);
    draft.summary("mean_trait", mean(name))?;
    draft.summary("mean_coherence", mean(COHERENCE))
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let size = planned.size_of("tokens");
    let disk = 100.0 * size.rows;
    match config.provider {
        Provider::Rule | Provider::File => Cost::new(Cost::ROWS, disk, 0.0),
        Provider::Endpoint => {
            let (calls, tokens) = (2.0 * size.rows, 2.0 * (size.rows * RUBRIC_TOKENS + size.tokens));
            let note = format!(
                "at most {calls:.0} calls, about {tokens:.2e} tokens; five times as many where none has logprobs"
            );
            Cost::new(Cost::ROWS, disk, 0.0).note(note)
        }
        Provider::Local => speaker::cost(planned, machine, 2.0 * 3.0 * (size.tokens + size.rows * RUBRIC_TOKENS), disk),
        Provider::Likelihood => speaker::cost(planned, machine, 2.0 * size.tokens, disk),
    }
}
