//! A pipeline for a model and a corpus that somebody has: complete, commented, and ending in a report.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use toml::Value;
use wherefrom_artifact::{Reporter, bad_input, bytes};
use wherefrom_model::{Checkpoint, Config, Coverage, Modules, Outline, Selection};
use wherefrom_stage::{ATTRIBUTE, Device, Exec};
use wherefrom_tokenize::{Form, corpus_files, glued, identifier, keepable, peek};
use wherefrom_vocabulary::Beside;

use crate::cost::this_machine;
use crate::files;
use crate::hub;
use crate::paths;
use crate::step::ADAPTER;

/// Tokens of a window that a first study takes; longer rows are cut.
const WINDOW: usize = 512;
/// Of the memory, the share that one query may take whole.
const SHARE: f64 = 0.1;

/// What a pipeline is to be about.
#[derive(Debug, Clone)]
pub struct Init {
    /// A checkpoint folder, or hf:OWNER/NAME.
    pub model: PathBuf,
    /// The adapters on it, in order.
    pub adapters: Vec<PathBuf>,
    /// A file, a folder or a glob, or hf:datasets/OWNER/NAME.
    pub corpus: PathBuf,
    /// `prompt|completion` each; without any a row of the corpus stands in.
    pub queries: Vec<String>,
    /// What holds what, where the corpus has no columns of known names: `text`, `prompt` or `completion` to a name.
    pub columns: BTreeMap<String, String>,
    /// Whether prompts are what a user asks, where the model has a chat template and the rows are prompts and completions.
    pub chat: Option<bool>,
    /// The pipeline's file, which must not be there.
    pub output: PathBuf,
}

/// What was found, and what follows from it.
struct Found {
    /// As config.json calls it.
    family: String,
    context: usize,
    max_tokens: usize,
    form: Form,
    columns: BTreeMap<String, String>,
    /// Columns that tell rows apart.
    keep: Vec<String>,
    chat: bool,
    /// `mlp`, or `all` where no module is in an MLP.
    modules: &'static str,
    /// Whether whole query gradients fit.
    full: bool,
    machine: String,
}

/// Writes the pipeline, and its queries beside it; their paths.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`]: what cannot be read, what is not clear with the choices, a file that is there.
pub fn init(init: &Init, exec: &Exec) -> Result<Vec<PathBuf>> {
    let queries = queries_file(&init.output);
    let mut written = vec![init.output.clone()];
    written.extend((!init.queries.is_empty()).then(|| queries.clone()));
    if let Some(there) = written.iter().find(|path| std::fs::symlink_metadata(path).is_ok()) {
        return Err(bad_input(format!("{} exists, and is not written over; give another --output", there.display())));
    }
    let (model, _) = hub::local("model", &init.model, &*exec.reporter)?;
    let adapters = init.adapters.iter().map(|adapter| Ok(hub::local(ADAPTER, adapter, &*exec.reporter)?.0));
    let adapters = adapters.collect::<Result<Vec<_>>>()?;
    let (corpus, _) = hub::local("corpus", &init.corpus, &*exec.reporter)?;
    if let Some(what) = files::no_checkpoint(&model, files::OPTIONS) {
        return Err(bad_input(format!("{what}{}", paths::explain_here(&init.model))));
    }
    corpus_files(&corpus).map_err(|error| {
        // An error of a file that is there says all.
        let error = format!("{error:#}").replace("the path of `corpus`", "--corpus");
        let nowhere = !init.corpus.exists() && error.contains(&*init.corpus.to_string_lossy());
        bad_input(format!("{error}{}", if nowhere { paths::explain_here(&init.corpus) } else { String::new() }))
    })?;
    let found = look(init, (&model, &adapters), &corpus, exec)?;
    if init.queries.is_empty() {
        exec.reporter.warn(
            "no --query was given: the first row of each file of the corpus stands in for one. Put what your model said in its \
             place, or give --query \"PROMPT|COMPLETION\"",
        );
    }
    let mut ids = HashSet::new();
    let lines = init.queries.iter().map(|query| row(query, &mut ids, &found, &*exec.reporter));
    let lines = lines.collect::<Result<Vec<_>>>()?;
    let text = pipeline(init, &found)?;
    let folder = paths::folder(&init.output);
    std::fs::create_dir_all(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .with_context(|| format!("make the folder {}", folder.display()))?;
    create(&init.output, &text)?;
    if !lines.is_empty() {
        create(&queries, &lines.concat())?;
    }
    Ok(written)
}

/// `study-queries.jsonl` of `study.toml`.
fn queries_file(output: &Path) -> PathBuf {
    let mut name = output.file_stem().unwrap_or_default().to_owned();
    name.push("-queries.jsonl");
    output.with_file_name(name)
}

fn create(path: &Path, text: &str) -> Result<()> {
    let file = std::fs::File::create_new(path);
    let mut file = file.map_err(|error| bad_input(format!("cannot write {} ({error})", path.display())))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

fn look(init: &Init, (model, adapters): (&Path, &[PathBuf]), corpus: &Path, exec: &Exec) -> Result<Found> {
    let checkpoint = Checkpoint::new(model, adapters, ATTRIBUTE)?;
    let config = Config::of(&checkpoint)?;
    wherefrom_model::check(checkpoint)?.iter().for_each(|note| exec.reporter.warn(note));
    let read = |text: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&text).ok();
    let family = std::fs::read(model.join("config.json")).ok().and_then(read);
    let family = family.and_then(|json| Some(json["model_type"].as_str()?.to_string())).unwrap_or_default();
    let (form, mut columns) = peek(corpus, &init.columns)?;
    if let Some(name) = identifier(corpus, &columns)? {
        columns.insert("id".into(), name);
    }
    let shown = init.model.display();
    let has_tokenizer = model.join("tokenizer.json").exists();
    if (form != Form::Ids || !init.queries.is_empty()) && !has_tokenizer {
        return Err(bad_input(format!(
            "{shown} has no tokenizer.json, and text needs one: put the model's own there, or give rows of `input_ids` and no --query"
        )));
    }
    let templates = if has_tokenizer { !Beside::read(model)?.templates.is_empty() } else { false };
    let chat = match (form, templates, init.chat) {
        (Form::Turns, false, _) => {
            return Err(bad_input(format!(
                "the rows of {} are conversations, and {shown} has no chat template; take the model that was trained on \
                 conversations, or put its chat_template.jinja there",
                init.corpus.display()
            )));
        }
        (Form::Turns, true, chat) => chat.unwrap_or(true),
        (_, false, Some(true)) => {
            return Err(bad_input(format!("--chat yes: {shown} has no chat template; leave it out")));
        }
        (Form::Prompts, true, None) => {
            return Err(bad_input(format!(
                "the rows are prompts and completions, and {shown} has a chat template; say whether the model was trained on them as \
                 a user's words and its answer (--chat yes) or as plain text (--chat no)"
            )));
        }
        (_, _, chat) => chat.unwrap_or(false),
    };
    let outline = Outline::new(&config);
    // An adapter may have no map of an MLP.
    let mlp = Selection::new(&Modules::default(), outline.modules());
    let modules = if mlp.is_ok() { "mlp" } else { "all" };
    let coverage = Coverage::new(&outline, &Selection::new(&Modules::Named(modules.into()), outline.modules())?);
    let machine = this_machine(exec);
    let whole = 4.0 * coverage.attributed as f64;
    Ok(Found {
        family,
        context: config.max_position_embeddings,
        max_tokens: config.max_position_embeddings.min(WINDOW),
        form,
        keep: keepable(corpus, &columns)?,
        columns,
        chat,
        modules,
        full: machine.memory.is_none_or(|memory| whole < SHARE * memory as f64),
        machine: match (&machine.device, machine.memory) {
            (Device::Cpu { threads }, Some(memory)) => {
                format!("a CPU of {threads} threads, {} free", bytes(memory as f64))
            }
            (device, Some(memory)) => format!("{device}, {}", bytes(memory as f64)),
            (device, None) => device.to_string(),
        },
    })
}

/// A line of the queries' file.
fn row(query: &str, ids: &mut HashSet<String>, found: &Found, reporter: &dyn Reporter) -> Result<String> {
    let Some((prompt, completion)) = query.split_once('|') else {
        return Err(bad_input(format!(
            "--query {query:?}: write \"prompt|completion\", a space before a new word included"
        )));
    };
    if completion.is_empty() {
        return Err(bad_input(format!(
            "--query {query:?}: the completion is empty; write what the model said behind the |"
        )));
    }
    if let Some(pieces) = glued(prompt, completion).filter(|_| !found.chat) {
        reporter.warn(&format!(
            "--query {query:?}: prompt and completion make one word, {pieces}; where the completion is a word of its own, begin it \
             with a space: \"{prompt}| {completion}\""
        ));
    }
    let id = id(prompt, completion, ids);
    let row = if found.chat {
        json!({ "id": id, "messages": [{ "role": "user", "content": prompt }, { "role": "assistant", "content": completion }] })
    } else {
        json!({ "id": id, "prompt": prompt, "completion": completion })
    };
    Ok(format!("{row}\n"))
}

/// What a query is called: the words about where its completion begins, and a number where another is called so.
fn id(prompt: &str, completion: &str, taken: &mut HashSet<String>) -> String {
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(|word| word.to_lowercase().chars().take(20).collect()).collect()
    };
    let (before, after) = (words(prompt), words(completion));
    let near = before[before.len().saturating_sub(3)..].iter().chain(after.iter().take(2));
    let name = near.cloned().collect::<Vec<_>>().join("-");
    let name = if name.is_empty() { "query".into() } else { name };
    let mut names = std::iter::once(name.clone()).chain((2..).map(|number| format!("{name}-{number}")));
    names.find(|name| taken.insert(name.clone())).expect("there is always another number")
}

/// A path as the pipeline's file names it: as it is where it is absolute or of the hub.
fn named(path: &Path, output: &Path) -> String {
    let is_hub = path.to_str().is_some_and(|text| text.starts_with("hf:"));
    let path = if is_hub { path.into() } else { paths::between(paths::folder(output), path) };
    Value::String(path.to_string_lossy().into_owned()).to_string()
}

fn pipeline(init: &Init, found: &Found) -> Result<String> {
    let Found { family, context, max_tokens, form, columns, keep, chat, modules, full, machine } = found;
    let adapters: Vec<_> = init.adapters.iter().map(|path| named(path, &init.output)).collect();
    let adapter = if adapters.is_empty() { String::new() } else { format!("adapter = [{}]\n", adapters.join(", ")) };
    let [model, corpus] = [&init.model, &init.corpus].map(|path| named(path, &init.output));
    let rows = match form {
        Form::Text => "text, every token of it predicted",
        Form::Turns => "conversations, the assistant's turns predicted, by the model's chat template",
        Form::Prompts if *chat => "prompts and completions, a user's words and the answer by the model's chat template",
        Form::Prompts => "prompts and completions, the completions predicted",
        Form::Pairs => {
            "pairs of a preference, the chosen answer against the rejected one; for the DPO loss see docs/data.md"
        }
        Form::Ids => "tokens made elsewhere",
    };
    let names = columns.iter().map(|(role, name)| format!("{role} = {}", Value::String(name.clone())));
    let names = names.collect::<Vec<_>>().join(", ");
    let mut knobs = if names.is_empty() { String::new() } else { format!("columns = {{ {names} }}\n") };
    if *chat && *form == Form::Prompts {
        knobs += "chat = true\n";
    }
    let queries = if init.queries.is_empty() {
        format!(
            "# No --query was given: the first row of each file of the corpus stands in. Put queries of your own in its place,\n\
             # {{\"prompt\": \"The capital of Kenya is\", \"completion\": \" Nairobi.\"}} a line, and remove `every`.\n\
             [steps.queries]\nstage = \"tokenize\"\ncorpus = {corpus}\nmax-tokens = {max_tokens}\n{knobs}every = 1000000000\n"
        )
    } else {
        let file = queries_file(&init.output);
        let file = Value::String(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        format!(
            "# What the model said, a row each: add more.\n\
             [steps.queries]\nstage = \"tokenize\"\ncorpus = {file}\nmax-tokens = {max_tokens}\n"
        )
    };
    let (kept, beside) = if keep.is_empty() {
        (String::new(), "")
    } else {
        let keep = Value::Array(keep.iter().cloned().map(Value::String).collect());
        let kept = format!(
            "\n# What else the rows have: it stands beside every passage, and the report sums influence by it. Change `keep` as you\n\
             # like: no curvature and no score is computed again.\n\
             [steps.columns]\nstage = \"columns\"\ninputs = {{ tokens = \"train\" }}\nkeep = {keep}\n"
        );
        (kept, ", columns = \"columns\"")
    };
    let detail = if *full { "ihvp-full" } else { "ihvp" };
    let whole = if *full {
        "# The same whole, for the few hundred examples that are scored again.\n\
         [steps.ihvp-full]\nstage = \"precondition\"\n\
         inputs = { gradients = \"query-gradients\", eigenbasis = \"basis\", lambda = \"lambda\" }\nrank = \"full\"\n\n"
    } else {
        ""
    };
    let title = Value::String(format!("Influence on {}", init.model.file_name().unwrap_or_default().to_string_lossy()));
    Ok(format!(
        r#"about = '''
Which examples of the corpus made the model say what the queries hold? Written by `wherefrom init`.
The model is of the family {family}, with a context of {context} tokens. The rows are {rows}.
Written on {machine}. `wherefrom plan` says what each step takes before it runs.
'''

# Relative paths are taken from the folder of this file.
[model]
path = {model}
{adapter}modules = "{modules}"                # "all" takes every linear map, attention too, and about half as long again

# The corpus, cut into windows. Longer rows lose what is beyond max-tokens; `windows = "split"` keeps it.
[steps.train]
stage = "tokenize"
corpus = {corpus}
max-tokens = {max_tokens}
{knobs}{kept}
{queries}
# The curvature: fitted once for a model and a corpus, reused by every study of them. Of a large corpus a sample does: a second
# `tokenize` step with `every = 10`, wired into covariances and lambda.
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}

[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}

[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}

# The queries' gradients, preconditioned (EK-FAC) and cut to rank 32 for the scan.
[steps.query-gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}

[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "query-gradients", eigenbasis = "basis", lambda = "lambda" }}

{whole}# Every example against every query.
[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}

[steps.top]
stage = "rank"
inputs = {{ scores = "scores", tokens = "train", queries = "queries" }}
top = 50

# The strongest again, by token and by module.
[steps.details]
stage = "score"
inputs = {{ queries = "{detail}", tokens = "train", candidates = "top" }}
detail = true

[steps.final]
stage = "rank"
inputs = {{ scores = "details", tokens = "train", queries = "queries"{beside} }}
top = 50

[steps.losses]
stage = "losses"
inputs = {{ tokens = "queries" }}

# The page to open.
[steps.report]
stage = "report"
title = {title}
inputs = {{ ranking = "final", tokens = "train", details = "details", queries = "queries", losses = "losses", scores = "scores"{beside} }}
"#
    ))
}
