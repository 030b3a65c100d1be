//! Rates of this machine, measured: a small study with random weights of the user's widths, run as any other.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use wherefrom_artifact::{Kind, Silent, Store, bad_input};
use wherefrom_model::{Config, Model, open_device};
use wherefrom_stage::{Exec, Planned};

use crate::plan::Plan;
use crate::rates::{self, Rates, widths};

/// Widths beyond which a machine is no slower.
const WIDTHS: [usize; 2] = [640, 1536];
/// Weights of the blocks, about.
const WEIGHTS: usize = 4_000_000;
/// Operations of the first attempt on the tokens.
const OPERATIONS: f64 = 2e10;
/// A step of fewer seconds is measured again with more tokens.
const SECONDS: f64 = 0.6;
/// No attempt begins after these, and none that would take so much longer.
const LONGEST: f64 = 3.0;
const PATIENCE: f64 = 8.0;
/// Seconds of all measurements of a plan, waiting for another process's included. What is not measured by then is not known.
pub(crate) const LIMIT: u64 = 20;
/// Stack of the thread that measures, as a program's first thread has it.
const STACK: usize = 8 << 20;
/// Queries, and tokens of each, beyond which a machine is no faster.
const QUERIES: usize = 8;
const QUERY: usize = 64;
/// Bytes that are written to measure the disk.
const WRITTEN: usize = 64 << 20;
/// The steps that are measured.
const STEPS: &str = r#"
[steps.train]
stage = "tokenize"
corpus = "CORPUS"
max-tokens = 512
[steps.queries]
stage = "tokenize"
corpus = "QUERIES"
max-tokens = 512
[steps.more]
stage = "tokenize"
corpus = "MORE"
max-tokens = 512
[steps.covariances]
stage = "covariance"
inputs = { tokens = "train" }
[steps.basis]
stage = "eigenbasis"
inputs = { covariances = "covariances" }
[steps.lambda]
stage = "lambda"
inputs = { tokens = "train", eigenbasis = "basis" }
[steps.gradients]
stage = "gradients"
inputs = { tokens = "queries" }
[steps.low]
stage = "precondition"
inputs = { gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }
[steps.full]
stage = "precondition"
inputs = { gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }
rank = "full"
[steps.scores]
stage = "score"
inputs = { queries = "low", tokens = "train" }
[steps.top]
stage = "rank"
inputs = { scores = "scores", tokens = "train" }
top = 4
[steps.details]
stage = "score"
inputs = { queries = "full", tokens = "train", candidates = "top" }
detail = true
[steps.losses]
stage = "losses"
inputs = { tokens = "more" }
"#;

/// What is measured: the shape of the user's model, and how long its sequences are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Probe {
    /// The user's.
    config: Config,
    precision: String,
    modules: String,
    /// Tokens of a row of the corpus.
    row: usize,
    /// Tokens of a query, and how many there are.
    query: usize,
    queries: usize,
}

/// What was measured.
pub(crate) struct Measured {
    pub(crate) rates: Rates,
    /// Whether there was time for all of it.
    pub(crate) whole: bool,
}

/// Removes the folder.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

impl Probe {
    /// What a step needs measured, of a plan whose steps are `all`.
    pub(crate) fn new(step: &Planned, all: &[(Kind, Arc<Planned>)]) -> Option<Self> {
        let config = Config::from_json(&step.nearest(|step| step.model.clone())?).ok()?;
        let precision = step.knob("precision").and_then(|name| name.as_str().map(String::from));
        let modules = if step.knob("modules") == Some("all".into()) { "all" } else { "mlp" };
        let sizes = |kind: Kind| all.iter().filter(move |(own, _)| *own == kind).map(|(_, planned)| planned.size);
        let corpus = sizes(Kind::Tokens).max_by(|left, right| left.tokens.total_cmp(&right.tokens));
        let queries = sizes(Kind::Gradients).next();
        let length = |size: Option<wherefrom_stage::Size>, otherwise: usize| {
            let mean = size.filter(|size| size.rows > 0.0).map(|size| (size.tokens / size.rows).round() as usize);
            mean.unwrap_or(otherwise).clamp(8, 512)
        };
        Some(Self {
            config,
            precision: precision.unwrap_or_else(|| "f32".into()),
            modules: modules.into(),
            row: length(corpus, 128),
            query: length(queries, 32).min(QUERY),
            queries: queries.map_or(QUERIES, |size| size.rows as usize).clamp(1, QUERIES),
        })
    }

    /// Measures until `deadline`, in a folder of the store that is removed afterwards; what a killed process left there is removed
    /// before. One process at a time: two would slow each other down.
    ///
    /// # Errors
    /// The store cannot be written, or another process measures until `deadline`.
    pub(crate) fn run(&self, store: &Store, exec: &Exec, deadline: Instant) -> Result<Measured> {
        store.writable()?;
        let root = std::path::absolute(store.root())?;
        let lock = root.join("rates.lock");
        let alone = fs::File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
        while let Err(held) = alone.try_lock() {
            if let fs::TryLockError::Error(error) = held {
                return Err(error).with_context(|| format!("lock {}", lock.display()));
            }
            if Instant::now() >= deadline {
                return Err(bad_input(format!("another process has measured it for {LIMIT} seconds")));
            }
            thread::sleep(Duration::from_millis(100));
        }
        let folder = Temporary(root.join("rates.tmp"));
        let _absent = fs::remove_dir_all(&folder.0);
        fs::create_dir_all(folder.0.join("model"))?;
        let config = self.small();
        let model = Model::random(config.clone(), 0, &open_device(None)?);
        fs::write(folder.0.join("model/model.safetensors"), model.to_safetensors()?)?;
        fs::write(folder.0.join("model/config.json"), config.to_json().to_string())?;
        drop(model);

        let reporter = &exec.reporter;
        reporter.begin("measuring this machine, once", "small studies", 2, 0);
        let exec = Exec { reporter: Arc::new(Silent), memory: None, ..exec.clone() };
        let begun = Instant::now();
        let mut tokens = (OPERATIONS / (4.0 * weights(&config) as f64)) as usize;
        let mut fastest = Rates::from([(rates::DISK.to_string(), disk(&folder.0)?)]);
        let mut any = false;
        let whole = loop {
            let attempt = Instant::now();
            let (rates, seconds) = self.attempt(&folder.0, &config, tokens, &exec, deadline)?;
            let took = attempt.elapsed().as_secs_f64();
            reporter.advance(1);
            // What else runs on the machine makes a step slower, and never faster.
            for (name, rate) in rates {
                let known = fastest.entry(name).or_insert(rate);
                *known = known.max(rate);
            }
            // The first attempt has all the rates; those of a later one are but better.
            let Some(seconds) = seconds else { break any };
            any = true;
            let more = (1.5 * SECONDS / seconds).min(PATIENCE / took).min(30.0);
            if seconds >= SECONDS || begun.elapsed().as_secs_f64() > LONGEST || more < 1.5 {
                break true;
            }
            tokens = (tokens as f64 * more) as usize;
        };
        reporter.end();
        Ok(Measured { rates: fastest, whole })
    }

    /// One run on so many tokens, in a thread of its own, which is left to itself at `deadline`: the rates under the names of the
    /// user's widths, and the seconds of the covariances; none where it did not end.
    fn attempt(
        &self,
        folder: &Path,
        config: &Config,
        tokens: usize,
        exec: &Exec,
        deadline: Instant,
    ) -> Result<(Rates, Option<f64>)> {
        let rows = (tokens / self.row).max(2);
        let quoted = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
        let mut steps = STEPS.to_string();
        // A forward pass alone takes a third of the time.
        for (name, rows, length) in
            [("CORPUS", rows, self.row), ("MORE", 3 * rows, self.row), ("QUERIES", self.queries, self.query)]
        {
            let path = folder.join(format!("{name}-{tokens}.jsonl"));
            write_rows(&path, rows, length, config.vocab_size)?;
            steps = steps.replace(&format!("\"{name}\""), &quoted(&path));
        }
        let head = format!(
            "[model]\npath = {}\nmodules = \"{}\"\nprecision = \"{}\"\n",
            quoted(&folder.join("model")),
            self.modules,
            self.precision
        );
        let file = folder.join("probe.toml");
        fs::write(&file, head + &steps)?;
        let store = Store::new(folder.join(format!("store-{tokens}")));
        let seconds = until(deadline, {
            let (store, exec) = (store.clone(), exec.clone());
            move || {
                let mut seconds = f64::INFINITY;
                Plan::read(&file, &[], store)?.run_unrecorded(None, &exec, |done| {
                    if [Kind::Covariances, Kind::Lambda].contains(&done.kind) {
                        seconds = seconds.min(done.seconds);
                    }
                    Ok(())
                })?;
                Ok(seconds)
            }
        })?;
        let [own, users] = [config, &self.config].map(|config| format!(" {}", widths(config)));
        let found = rates::earlier(&store, &rates::machine(&exec.device), 0.0).into_iter();
        let named = found.filter_map(|(name, rate)| Some((format!("{}{users}", name.strip_suffix(&own)?), rate)));
        Ok((named.collect(), seconds))
    }

    /// A Llama of the user's widths, or narrower, with a few of its blocks, and as large a share of it in the head.
    fn small(&self) -> Config {
        let user = &self.config;
        let hidden = user.hidden_size.min(WIDTHS[0]).next_multiple_of(16);
        let intermediate = user.intermediate_size.min(WIDTHS[1]).max(1);
        let head_dim = if hidden.is_multiple_of(64) { 64 } else { 16 };
        let heads = hidden / head_dim;
        let layers = (WEIGHTS / block(hidden, intermediate)).clamp(1, user.num_hidden_layers.max(1));
        let share = (user.vocab_size * user.hidden_size) as f64
            / (user.num_hidden_layers.max(1) * block(user.hidden_size, user.intermediate_size)) as f64;
        let vocabulary = (share * (layers * block(hidden, intermediate)) as f64 / hidden as f64) as usize;
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "vocab_size": vocabulary.clamp(64, 1 << 17), "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": head_dim,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        });
        Config::from_json(&json).expect("a Llama of any widths")
    }
}

/// What `work` comes to; none where it has not ended at `deadline`: it goes on, and nobody hears of it.
fn until<T: Send + 'static>(deadline: Instant, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Option<T>> {
    let (sender, receiver) = mpsc::channel();
    let unheard = move || drop(sender.send(work()));
    thread::Builder::new().stack_size(STACK).spawn(unheard)?;
    match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(done) => done.map(Some),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        Err(mpsc::RecvTimeoutError::Disconnected) => anyhow::bail!("the measurement broke off"),
    }
}

/// Bytes a second that are written to a new file in the folder, until the disk has them.
fn disk(folder: &Path) -> Result<f64> {
    let path = folder.join("written");
    let begun = Instant::now();
    let mut file = fs::File::create(&path)?;
    file.write_all(&vec![1; WRITTEN])?;
    file.sync_all()?;
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    Ok(WRITTEN as f64 / seconds.max(1e-3))
}

/// Weights of a block, about.
fn block(hidden: usize, intermediate: usize) -> usize {
    4 * hidden * hidden + 3 * hidden * intermediate
}

fn weights(config: &Config) -> usize {
    config.num_hidden_layers * block(config.hidden_size, config.intermediate_size)
        + config.vocab_size * config.hidden_size
}

/// Rows of token ids that look drawn.
fn write_rows(path: &Path, rows: usize, length: usize, vocabulary: usize) -> Result<()> {
    let (mut text, mut state) = (String::new(), 1_u32);
    for _ in 0..rows {
        text.push_str("{\"input_ids\": [");
        for token in 0..length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = (state >> 8) as usize % vocabulary;
            write!(text, "{}{id}", if token > 0 { "," } else { "" })?;
        }
        text.push_str("]}\n");
    }
    Ok(fs::write(path, text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_in_time_is_left() {
        let soon = |millis| Instant::now() + Duration::from_millis(millis);
        let (release, held) = mpsc::channel::<()>();
        let begun = Instant::now();
        let late = until(soon(50), move || Ok(held.recv()?));
        assert_eq!(late.unwrap(), None);
        assert!(begun.elapsed() < Duration::from_secs(60));
        drop(release);
        assert_eq!(until(soon(60_000), || Ok(7)).unwrap(), Some(7));
        assert!(until(soon(60_000), || -> Result<()> { anyhow::bail!("wrong") }).is_err());
    }
}
