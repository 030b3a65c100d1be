//! `wherefrom check`: what reduced precision and batching do to a model's own gradients and scores.
//!
//! It is a study of a few rows, made in a folder that is thrown away: EK-FAC fitted on the rows, each row a query and a
//! training example, once in float32 and once in each reduced precision; and the gradients once more, one row a batch.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wherefrom_artifact::{
    Artifact, Detail, Details, Example, Factors, Gradients, MANIFEST, Manifest, Store, Tokens, bad_input,
};
use wherefrom_inspect::spearman;
use wherefrom_model::{Config, Coverage, Precision};
use wherefrom_pipeline::{Plan, adapter_folder, model_folder};
use wherefrom_stage::Exec;

use crate::compare::{Agreement, Spread, agreement};
use crate::sample;

/// Least cosine of an example's gradient in reduced precision with the one in float32, in any module.
const COSINE: f64 = 0.99;
/// Least rank correlation of influences in reduced precision with those in float32, in any module.
const SPEARMAN: f64 = 0.95;
/// Least cosine of a gradient from a padded batch with the one of the row alone, in float32.
const BATCH_COSINE: f64 = 0.9999;
/// Longest row.
const TOKENS: usize = 64;
/// Modules that a table shows when none fails.
const SHOWN: usize = 5;

/// What may be in reduced precision alone, with all else in float32: what the table calls it, and where gradients, curvature
/// and scan are in float32 (`$` stands for the precision).
const PARTS: [(&str, &str, [&str; 3]); 3] = [
    ("curvature", "covariances and Lambda alone", ["f32-", "$", "f32-"]),
    ("queries", "the queries' gradients alone", ["$", "f32-", "f32-"]),
    ("scan", "the scan alone", ["f32-", "f32-", "$"]),
];

/// What is checked.
#[derive(Debug, Clone)]
pub struct Check {
    /// As `path` of `[model]`.
    pub model: String,
    /// The adapters on it: folders, or names of the hub.
    pub adapters: Vec<String>,
    /// What is attributed where there are any.
    pub attribute: Option<String>,
    /// Rows of any form that `tokenize` reads; none for rows of the check's own.
    pub corpus: Option<PathBuf>,
    /// As `modules` of `[model]`: `mlp`, `all`, or globs.
    pub modules: Vec<String>,
    /// Rows taken from the beginning of the corpus.
    pub rows: usize,
    /// Compared with float32.
    pub precisions: Vec<Precision>,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Tables for people.
    pub text: String,
    /// A sentence for each threshold that is not met; none if all is well.
    pub failures: Vec<String>,
}

/// Runs the check.
///
/// # Errors
/// What a study of the model would be refused for.
pub fn check(check: &Check, exec: &Exec) -> Result<Verdict> {
    if check.rows < 2 {
        return Err(bad_input("--rows: two rows at least, or there is nothing to rank"));
    }
    // The study lies elsewhere, and its relative paths are taken from there.
    let model = std::path::absolute(model_folder(Path::new(&check.model), &*exec.reporter)?)?;
    let place = |adapter: &String| Ok(std::path::absolute(adapter_folder(Path::new(adapter), &*exec.reporter)?)?);
    let adapters = check.adapters.iter().map(place).collect::<Result<Vec<_>>>()?;
    let folder = Scratch::new()?;
    let (corpus, source) = sample::corpus(check, &model, &folder.0, TOKENS, exec)?;
    let study = Study { check, model, adapters, folder: &folder.0, pipeline: folder.0.join("check.toml"), exec };
    std::fs::write(&study.pipeline, study.text(&corpus))?;
    study.report(&source)
}

/// A folder that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("wherefrom-check-{}", wherefrom_artifact::unique()));
        std::fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _kept = std::fs::remove_dir_all(&self.0);
    }
}

struct Study<'a> {
    check: &'a Check,
    model: PathBuf,
    adapters: Vec<PathBuf>,
    folder: &'a Path,
    pipeline: PathBuf,
    exec: &'a Exec,
}

/// One precision's artifacts.
struct Made {
    gradients: PathBuf,
    alone: PathBuf,
    details: PathBuf,
}

impl Study<'_> {
    /// The study as a pipeline: steps `f32-gradients` and so on.
    fn text(&self, corpus: &Path) -> String {
        let quote = |text: &str| toml::Value::String(text.into()).to_string();
        let modules = match &self.check.modules[..] {
            [one] if !one.contains(['.', '*']) => quote(one),
            globs => toml::Value::Array(globs.iter().map(|glob| glob.as_str().into()).collect()).to_string(),
        };
        let adapters: Vec<_> = self.adapters.iter().map(|adapter| quote(&adapter.display().to_string())).collect();
        let attribute = self.check.attribute.iter().map(|word| format!("attribute = {}\n", quote(word)));
        let adapted = format!("adapter = [{}]\n{}", adapters.join(", "), attribute.collect::<String>());
        let context = Config::load(&self.model).map_or(TOKENS, |config| config.max_position_embeddings);
        let window = TOKENS.min(context);
        let mut text = format!(
            "[model]\npath = {}\n{adapted}modules = {modules}\n[steps.rows]\nstage = \"tokenize\"\ncorpus = {}\nmax-tokens = {window}\n",
            quote(&self.model.display().to_string()),
            quote(&corpus.display().to_string())
        );
        for name in [Precision::F32].iter().chain(&self.check.precisions).map(|precision| precision.name()) {
            let mut step = |step: &str, knobs: &str| {
                let _always = write!(text, "[steps.{name}-{step}]\n{}\n", knobs.replace("$", &format!("{name}-")));
            };
            let precision = format!("precision = \"{name}\"");
            // True labels: a label that is drawn turns with the last bit of a logit, which is no fault of the gradients.
            let fit = format!("labels = \"empirical\"\n{precision}");
            step("covariance", &format!("stage = \"covariance\"\ninputs = {{ tokens = \"rows\" }}\n{fit}"));
            step("basis", "stage = \"eigenbasis\"\ninputs = { covariances = \"$covariance\" }");
            step(
                "lambda",
                &format!("stage = \"lambda\"\ninputs = {{ tokens = \"rows\", eigenbasis = \"$basis\" }}\n{fit}"),
            );
            step("gradients", &format!("stage = \"gradients\"\ninputs = {{ tokens = \"rows\" }}\n{precision}"));
            step(
                "ihvp",
                "stage = \"precondition\"\ninputs = { gradients = \"$gradients\", eigenbasis = \"$basis\", lambda = \"$lambda\" }",
            );
            step(
                "scores",
                &format!(
                    "stage = \"score\"\ninputs = {{ queries = \"$ihvp\", tokens = \"rows\" }}\ndetail = true\n{precision}"
                ),
            );
            for (part, _, [gradients, curvature, scan]) in PARTS.iter().filter(|_| name != Precision::F32.name()) {
                step(
                    &format!("{part}-ihvp"),
                    &format!(
                        "stage = \"precondition\"\ninputs = {{ gradients = \"{gradients}gradients\", \
                         eigenbasis = \"{curvature}basis\", lambda = \"{curvature}lambda\" }}"
                    ),
                );
                let precision = if *scan == "$" { &precision } else { "" };
                step(
                    part,
                    &format!(
                        "stage = \"score\"\ninputs = {{ queries = \"${part}-ihvp\", tokens = \"rows\" }}\ndetail = true\n\
                         {precision}"
                    ),
                );
            }
        }
        text
    }

    /// Runs up to a step, in a store of that name, with so many padded tokens in a batch; its folder.
    fn make(&self, store: &str, step: &str, batch_tokens: usize) -> Result<PathBuf> {
        let plan = Plan::read(&self.pipeline, &[], Store::new(self.folder.join(store)))?;
        let exec = Exec { batch_tokens, ..self.exec.clone() };
        let done = plan.run_unrecorded(Some(step), &exec, |_| Ok(()))?;
        Ok(done.into_iter().find(|done| done.name == step).context("the step that was asked for")?.folder)
    }

    fn made(&self, precision: Precision) -> Result<Made> {
        let name = precision.name();
        let together = TOKENS * self.check.rows;
        Ok(Made {
            gradients: self.make("batched", &format!("{name}-gradients"), together)?,
            alone: self.make("alone", &format!("{name}-gradients"), 1)?,
            details: self.make("batched", &format!("{name}-scores"), together)?,
        })
    }

    fn report(&self, source: &str) -> Result<Verdict> {
        let base = self.made(Precision::F32)?;
        let tokens = Artifact::<Tokens>::open(&self.make("batched", "rows", 1)?)?;
        let lengths: Vec<_> =
            tokens.rows::<Example>()?.map(|row| row.map(|row| row.input_ids.len())).collect::<Result<_>>()?;
        let mut verdict = Verdict { text: String::new(), failures: Vec::new() };
        let (shortest, longest) = (lengths.iter().min().copied(), lengths.iter().max().copied());
        writeln!(verdict.text, "model     {}", self.check.model)?;
        writeln!(verdict.text, "device    {}", self.exec.device)?;
        writeln!(
            verdict.text,
            "rows      {} of {} to {} tokens: {source}",
            lengths.len(),
            shortest.unwrap_or(0),
            longest.unwrap_or(0)
        )?;
        coverage(&Manifest::read(&base.gradients)?, &mut verdict)?;

        let header = "gradient cosine            influence Spearman";
        writeln!(verdict.text, "\nagainst f32 {:44}  {header}\n{:56}  min       median     rank correlation", "", "")?;
        let mut batches = vec![(Precision::F32, agreement_of(&base.alone, &base.gradients)?)];
        for &precision in &self.check.precisions {
            match self.made(precision) {
                Ok(made) => {
                    self.precision(precision, &base, &made, &mut verdict)?;
                    batches.push((precision, agreement_of(&made.alone, &made.gradients)?));
                }
                Err(error) if wherefrom_model_refuses(&error) => return Err(error),
                Err(error) => {
                    writeln!(verdict.text, "{:<5} does not run: {error:#}", precision.name())?;
                    verdict.failures.push(format!("{} does not run on this model: {error:#}", precision.name()));
                }
            }
        }
        writeln!(verdict.text, "\nin a padded batch, against alone {:23}  gradient cosine   largest difference", "")?;
        for (precision, by_module) in batches {
            batch(precision, &by_module, &mut verdict)?;
        }
        Ok(verdict)
    }

    /// The table of one reduced precision.
    fn precision(&self, precision: Precision, base: &Made, made: &Made, verdict: &mut Verdict) -> Result<()> {
        let name = precision.name();
        let gradients = agreement_of(&base.gradients, &made.gradients)?;
        let (by_module, total) = ranks(&base.details, &made.details)?;
        let all = Spread::of(gradients.values().flatten().map(|agreement| agreement.cosine));
        writeln!(verdict.text, "{name:<5} {:<50}  {:.6}  {:.6}   {total:.4}", "all modules", all.least, all.median)?;
        let mut rows: Vec<_> = gradients
            .iter()
            .map(|(module, examples)| {
                let cosines = Spread::of(examples.iter().map(|agreement| agreement.cosine));
                (module, cosines, by_module.get(module).copied().unwrap_or(f64::NAN))
            })
            .collect();
        // What is not a number comes first.
        let worse = |cosine: f64, rank: f64| if (cosine + rank).is_nan() { -2.0 } else { cosine.min(rank) };
        rows.sort_by(|x, y| worse(x.1.least, x.2).total_cmp(&worse(y.1.least, y.2)));
        let fails = |cosines: &Spread, rank: f64| !meets(cosines.least, COSINE) || !meets(rank, SPEARMAN);
        let failing: Vec<_> = rows
            .iter()
            .filter(|(_, cosines, rank)| fails(cosines, *rank))
            .map(|(module, ..)| module.as_str())
            .collect();
        for (module, cosines, rank) in rows.iter().take(SHOWN.max(failing.len())) {
            let mark = if fails(cosines, *rank) { "  FAILS" } else { "" };
            writeln!(
                verdict.text,
                "      {module:<50}  {:.6}  {:.6}   {rank:.4}{mark}",
                cosines.least, cosines.median
            )?;
        }
        if rows.len() > SHOWN.max(failing.len()) {
            writeln!(verdict.text, "      and {} modules that agree better", rows.len() - SHOWN.max(failing.len()))?;
        }
        for (part, what, _) in PARTS {
            let details = self.make("batched", &format!("{name}-{part}"), TOKENS * self.check.rows)?;
            let (_, total) = ranks(&base.details, &details)?;
            writeln!(verdict.text, "      {what:<50}  {:18}   {total:.4}", "")?;
        }
        if !failing.is_empty() {
            verdict.failures.push(format!(
                "{name} is not to be trusted on this model: gradient cosine below {COSINE} or Spearman of influences below \
                 {SPEARMAN} in {} of {} modules: {}",
                failing.len(),
                rows.len(),
                failing.join(", ")
            ));
        } else if !meets(total, SPEARMAN) {
            verdict.failures.push(format!("{name}: Spearman of influences {total:.4} is below {SPEARMAN}"));
        }
        Ok(())
    }
}

/// Whether a threshold is met; not-a-number meets none.
fn meets(value: f64, least: f64) -> bool {
    value >= least
}

/// A refusal that has nothing to do with this model: the device has no such type.
fn wherefrom_model_refuses(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("does not compute in")
}

fn coverage(manifest: &Manifest, verdict: &mut Verdict) -> Result<()> {
    let Some(text) = wherefrom_inspect::Attributed::of(manifest).map(|attributed| attributed.whole()) else {
        return Ok(());
    };
    writeln!(verdict.text, "coverage  {text}")?;
    let coverage: Coverage = serde_json::from_value(manifest.summary["coverage"].clone())?;
    if let Some(trained) = coverage.trained.filter(|_| coverage.is_thin()) {
        writeln!(
            verdict.text,
            "warning   less than half of the {} parameters that adapters trained: influence through the others is not seen; \
             `modules = \"all\"` covers most",
            trained.total
        )?;
    } else if coverage.is_thin() {
        writeln!(
            verdict.text,
            "warning   less than half of the {} parameters outside embeddings and head: influence through the others is \
             not seen; `modules = \"all\"` covers most",
            coverage.without_embeddings()
        )?;
    }
    Ok(())
}

fn batch(precision: Precision, by_module: &BTreeMap<String, Vec<Agreement>>, verdict: &mut Verdict) -> Result<()> {
    let least = if precision == Precision::F32 { BATCH_COSINE } else { COSINE };
    let all = by_module.values().flatten();
    let cosine = Spread::of(all.clone().map(|agreement| agreement.cosine)).least;
    let difference = all.map(|agreement| agreement.difference).fold(0.0, f64::max);
    let failing = |examples: &&Vec<Agreement>| examples.iter().any(|agreement| !meets(agreement.cosine, least));
    let failing: Vec<_> =
        by_module.iter().filter(|(_, examples)| failing(examples)).map(|(module, _)| module.as_str()).collect();
    let mark = if failing.is_empty() { "" } else { "  FAILS" };
    let name = precision.name();
    writeln!(verdict.text, "{name:<5} {:<50}  {cosine:.6}          {difference:.1e}{mark}", "all modules, the least")?;
    if !failing.is_empty() {
        verdict.failures.push(format!(
            "in {name}, gradients depend on the batch: cosine below {least} with the row alone in {} of {} modules: {}",
            failing.len(),
            by_module.len(),
            failing.join(", ")
        ));
    }
    Ok(())
}

/// By module, of each example's gradient in one artifact with that in another of the same rows.
fn agreement_of(one: &Path, other: &Path) -> Result<BTreeMap<String, Vec<Agreement>>> {
    let rows = |folder: &Path| Artifact::<Gradients>::open(folder)?.rows::<Factors>();
    let mut found: BTreeMap<String, Vec<Agreement>> = BTreeMap::new();
    for pair in rows(one)?.zip(rows(other)?) {
        let (x, y) = (pair.0?, pair.1?);
        anyhow::ensure!((x.row, &x.module) == (y.row, &y.module), "gradients in the same order");
        found.entry(x.module.clone()).or_default().push(agreement(&x, &y));
    }
    Ok(found)
}

/// Rank correlation over all pairs: by module, and of the whole.
fn ranks(one: &Path, other: &Path) -> Result<(BTreeMap<String, f64>, f64)> {
    let read = |folder: &Path| -> Result<(Vec<String>, Vec<Detail>)> {
        let details = Artifact::<Details>::open(folder)?;
        let names = serde_json::from_value(details.manifest().summary["modules"].clone())?;
        let mut rows = details.rows::<Detail>()?.collect::<Result<Vec<Detail>>>()?;
        rows.sort_by_key(|row| (row.score.query, row.score.example));
        Ok((names, rows))
    };
    let ((names, x), (_, y)) = (read(one)?, read(other)?);
    let column = |rows: &[Detail], value: &dyn Fn(&Detail) -> f32| -> Vec<f64> {
        rows.iter().map(|row| f64::from(value(row))).collect()
    };
    let correlation = |value: &dyn Fn(&Detail) -> f32| spearman(&column(&x, value), &column(&y, value));
    let by_module = names.into_iter().enumerate().map(|(m, name)| (name, correlation(&|row| row.by_module[m])));
    Ok((by_module.collect(), correlation(&|row| row.score.influence)))
}

/// The first rows of a step's tokens as rows of ids.
pub(crate) fn first_rows(folder: &Path, rows: usize, into: &Path) -> Result<()> {
    debug_assert!(folder.join(MANIFEST).exists());
    let tokens = Artifact::<Tokens>::open(folder)?;
    let mut text = String::new();
    for row in tokens.rows::<Example>()?.take(rows) {
        let row = row?;
        let value = serde_json::json!({ "input_ids": row.input_ids, "target_mask": row.target_mask });
        writeln!(text, "{value}")?;
    }
    Ok(std::fs::write(into, text)?)
}
