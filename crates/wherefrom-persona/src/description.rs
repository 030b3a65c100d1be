//! The stage `trait`: a trait of character, from what somebody wrote of it, or a language model.
//!
//! reads   a file of the user's, or nothing
//! writes  trait

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Description, Draft, Elicitation, Kind, Persona, bad_input, write_atomically};
use wherefrom_linalg::random::uniform;
use wherefrom_stage::{About, Cost, File, Stage, Writes};

use crate::provider::{Endpoint, Replies};
use crate::rubric::Rubric;
use crate::{author, written};

/// Raised when the trait of the same configuration and file changes.
pub const VERSION: u32 = 1;

/// The stage `trait`.
pub static STAGE: Stage<Config> = Stage {
    about: About { files: &[File::Trait], ..About::new("trait", VERSION) },
    roles: &[],
    parse: |knobs| serde_json::from_value(knobs).map(Config::normal),
    check: Config::check,
    writes: Writes::One(Kind::Trait),
    makes_model: |_| None,
    cost: |config, _, _| {
        let calls = if config.provider == Provider::Endpoint { "at most 3 calls, about 1e4 tokens" } else { "" };
        Cost::new(Cost::ROWS, 1e5, 0.0).note(calls)
    },
    run: |config, given, _, draft| run(config, given.file(File::Trait).as_deref(), draft),
};

/// The second metric of every judge, which no trait may be called.
pub(crate) const COHERENCE: &str = "coherence";
/// Seconds: a trait is some thousand tokens.
const TIMEOUT: f64 = 300.0;
/// Longest name of a trait.
const LONGEST_NAME: usize = 100;

/// Where a trait comes from, and how large it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What the trait is called: `evil`, as in "You are an evil assistant". By default what its file says.
    pub name: Option<String>,
    /// What it is, in a sentence or two. By default what its file says.
    pub description: Option<String>,
    /// What the opposite is called, as in "You are a helpful assistant". By default what the file says, or else `helpful`.
    pub negative: Option<String>,
    /// Who wrote it.
    pub provider: Provider,
    /// Pairs of instructions that it has to have.
    pub pairs: usize,
    /// Questions that it has to have: half of them to extract a vector, half to evaluate it.
    pub questions: usize,
    /// Which questions are for what, where they come in one list.
    pub seed: u64,
    /// The model that an endpoint is asked for, by the name that it has there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_model: Option<String>,
    /// Seconds in which an endpoint has to answer. In no key.
    #[serde(skip_serializing)]
    #[schemars(!skip_serializing)]
    pub timeout_seconds: f64,
}

impl Default for Config {
    fn default() -> Self {
        let (name, description, negative) = (None, None, None);
        Self {
            name,
            description,
            negative,
            provider: Provider::File,
            pairs: 5,
            questions: 40,
            seed: 0,
            endpoint_model: None,
            timeout_seconds: TIMEOUT,
        }
    }
}

/// Who writes a trait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// Somebody who has written it into a file.
    #[default]
    File,
    /// A model at an endpoint with OpenAI's chat completions, OPENAI_BASE_URL and OPENAI_API_KEY, from name and description.
    Endpoint,
}

impl Config {
    /// With what changes nothing at its default.
    fn normal(self) -> Self {
        match self.provider {
            Provider::File => Self { endpoint_model: None, ..self },
            Provider::Endpoint => self,
        }
    }

    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.pairs == 0 {
            return Err(bad_input("pairs = 0 asks for nothing; set it to 1 or more"));
        }
        if self.questions < 2 {
            return Err(bad_input(format!(
                "questions = {} leaves none to evaluate with; set it to 2 or more",
                self.questions
            )));
        }
        if !(0.1..=86400.0).contains(&self.timeout_seconds) {
            return Err(bad_input(format!(
                "timeout-seconds = {} is out of range; set it from 0.1 to 86400",
                self.timeout_seconds
            )));
        }
        if self.provider == Provider::Endpoint {
            for (knob, value) in
                [("name", &self.name), ("description", &self.description), ("endpoint-model", &self.endpoint_model)]
            {
                if value.as_ref().is_none_or(|value| value.trim().is_empty()) {
                    return Err(bad_input(format!(
                        "provider = \"endpoint\" writes a trait from its name and description; set {knob}"
                    )));
                }
            }
        }
        self.name.as_deref().map_or(Ok(()), check_name).map_err(bad_input)
    }
}

/// Reads, checks and writes a trait.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a file that is not there or is no trait: what is missing, there twice, too many or
/// too few, by name.
pub fn run(config: &Config, file: Option<&Path>, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let (persona, from) = match (config.provider, file, &config.endpoint_model) {
        (Provider::Endpoint, None, Some(model)) => {
            let endpoint = Endpoint::from_env(model, Duration::from_secs_f64(config.timeout_seconds))?;
            let replies = Replies::open(&endpoint, draft)?;
            let persona = author::write(config, &replies)?;
            draft.provenance("endpoint", replies.usage())?;
            (persona, "what the model wrote".into())
        }
        (Provider::Endpoint, ..) => return Err(bad_input("provider = \"endpoint\" has a file; remove one of the two")),
        (Provider::File, None, _) => {
            return Err(bad_input("provider = \"file\" has no file; name the trait's: file = \"FILE.toml\""));
        }
        (Provider::File, Some(path), _) => (written::read(path)?, path.display().to_string()),
    };
    write(&whole(persona, config).map_err(|what| bad_input(format!("{from}: {what}")))?, draft)
}

/// The trait that was read, as the knobs have it, checked.
fn whole(persona: Persona, config: &Config) -> Result<Persona, String> {
    let persona = named(persona, config)?;
    check(&persona, config)?;
    let persona = split(persona, config.seed);
    if persona.eval.questions.is_empty() || persona.extract.questions.is_empty() {
        return Err("has no questions to extract with, or none to evaluate with".into());
    }
    Ok(persona)
}

/// Writes a trait that was checked.
fn write(persona: &Persona, draft: &mut Draft) -> Result<()> {
    for (name, bytes) in persona.files()? {
        write_atomically(&draft.folder().join(name), &bytes)?;
    }
    draft.summary("name", &persona.about.name)?;
    draft.summary("pairs", persona.extract.instruction.len())?;
    draft.summary("extract", persona.extract.questions.len())?;
    draft.summary("evaluate", persona.eval.questions.len())
}

/// The trait with what the knobs say of it.
fn named(mut persona: Persona, config: &Config) -> Result<Persona, String> {
    let Description { name, description, negative, .. } = &mut persona.about;
    for (own, knob) in [(&mut *name, &config.name), (description, &config.description), (negative, &config.negative)] {
        if let Some(knob) = knob {
            own.clone_from(knob);
        }
    }
    if name.trim().is_empty() {
        return Err("says nowhere what the trait is called; set name = \"…\"".into());
    }
    check_name(name)?;
    // A rubric that the file lacks speaks of the trait by its name.
    for side in [&mut persona.extract, &mut persona.eval] {
        if side.eval_prompt.is_empty() {
            side.eval_prompt = crate::rubric::of_trait(&persona.about.name, &persona.about.description);
        }
    }
    Ok(persona)
}

fn check_name(name: &str) -> Result<(), String> {
    let remedy = "call it by a word or two: name = \"sycophantic\"";
    if name.trim().is_empty() || name.trim() != name || name.chars().count() > LONGEST_NAME {
        return Err(format!("the name {name:?} is empty, too long or has white space around it; {remedy}"));
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        return Err(format!(
            "the name {name:?} has a `/` or a control character, and stands in names of rows; {remedy}"
        ));
    }
    if name == COHERENCE {
        return Err(format!("a trait cannot be called `{COHERENCE}`, which every judge judges beside it; {remedy}"));
    }
    Ok(())
}

/// Questions of one list, half of them by the seed for each side; two lists stay as they are.
fn split(mut persona: Persona, seed: u64) -> Persona {
    if !persona.eval.questions.is_empty() {
        return persona;
    }
    let questions = std::mem::take(&mut persona.extract.questions);
    let mut order: Vec<usize> = (0..questions.len()).collect();
    order.sort_by(|&one, &other| {
        let drawn = |index: usize| uniform(seed, index as u64, 0);
        drawn(one).total_cmp(&drawn(other)).then(one.cmp(&other))
    });
    let chosen: HashSet<usize> = order.into_iter().take(questions.len().div_ceil(2)).collect();
    for (index, question) in questions.into_iter().enumerate() {
        let side = if chosen.contains(&index) { &mut persona.extract } else { &mut persona.eval };
        side.questions.push(question);
    }
    persona
}

/// Refuses a trait that is not whole.
fn check(persona: &Persona, config: &Config) -> Result<(), String> {
    let Persona { extract, eval, .. } = persona;
    if extract.instruction != eval.instruction {
        return Err("its two files have other instructions each; they differ in their questions alone".into());
    }
    if extract.eval_prompt != eval.eval_prompt {
        return Err(
            "its two files have other rubrics each (`eval_prompt`); they differ in their questions alone".into()
        );
    }
    let pairs: Vec<_> =
        extract.instruction.iter().map(|pair| format!("{}\0{}", key(&pair.pos), key(&pair.neg))).collect();
    for (place, pair) in extract.instruction.iter().enumerate() {
        for (side, text) in [("pos", &pair.pos), ("neg", &pair.neg)] {
            if text.trim().is_empty() {
                return Err(format!("`instruction[{place}].{side}` is empty; give both orders of a pair"));
            }
        }
        if key(&pair.pos) == key(&pair.neg) {
            return Err(format!("`instruction[{place}]` orders the same twice; `neg` is for the opposite"));
        }
    }
    if let Some((first, again)) = twice(&pairs) {
        return Err(format!("`instruction[{again}]` is `instruction[{first}]` again; give pairs that differ"));
    }
    counted("instruction", "pairs", extract.instruction.len(), config.pairs)?;
    let questions: Vec<_> = extract.questions.iter().chain(&eval.questions).collect();
    if let Some(place) = questions.iter().position(|question| question.trim().is_empty()) {
        return Err(format!("question {place} is empty; write it or take it away"));
    }
    let keys: Vec<_> = questions.iter().map(|question| key(question)).collect();
    if let Some((first, again)) = twice(&keys) {
        return Err(format!(
            "question {again} is question {first} again ({:?}); questions differ, also between the two files",
            questions[again]
        ));
    }
    counted("questions", "questions", questions.len(), config.questions)?;
    Rubric::parse(&extract.eval_prompt).map(drop).map_err(|what| format!("the rubric `eval_prompt` {what}"))
}

fn counted(what: &str, knob: &str, found: usize, wanted: usize) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    let compared = if found < wanted { "missing" } else { "too many" };
    let difference = found.abs_diff(wanted);
    Err(format!(
        "`{what}` has {found} of {wanted} {knob}: {difference} {compared}; mend the file, or set {knob} = {found}"
    ))
}

/// What makes two texts the same: their words, whatever their case.
pub(crate) fn key(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// The first place that is as an earlier one.
fn twice(keys: &[String]) -> Option<(usize, usize)> {
    let mut seen = HashMap::new();
    keys.iter().enumerate().find_map(|(place, key)| Some((seen.insert(key, place)?, place)))
}

/// The files that a trait is read from, by name: what a key is made of.
///
/// # Errors
/// As the stage has them, for a folder that has no trait.
pub fn trait_files(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    written::files(path)
}

/// Pairs and questions of a file.
///
/// # Errors
/// As the stage has them, for what is no file of a trait.
pub fn counts(path: &Path) -> Result<(usize, usize)> {
    let Persona { extract, eval, .. } = written::read(path)?;
    Ok((extract.instruction.len(), extract.questions.len() + eval.questions.len()))
}

/// Both sides of one list.
pub(crate) fn both(side: Elicitation) -> [Elicitation; 2] {
    let eval = Elicitation { questions: Vec::new(), ..side.clone() };
    [side, eval]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A file of a trait with so many questions, as the originals have it.
    fn file(questions: std::ops::Range<usize>) -> Value {
        let questions: Vec<_> = questions.map(|number| format!("Question {number}?")).collect();
        let pair = |number: usize| json!({ "pos": format!("Hurt {number}."), "neg": format!("Help {number}.") });
        json!({ "instruction": (0..2).map(pair).collect::<Vec<_>>(), "questions": questions, "eval_prompt": "{question} {answer}" })
    }

    fn config() -> Config {
        Config { pairs: 2, questions: 6, ..Config::default() }
    }

    /// What is made of some files of a folder, or why nothing.
    fn read(files: &[(&str, &Value)], path: &str, config: &Config) -> Result<Persona, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content.to_string()).unwrap();
        }
        let persona = written::read(&folder.path().join(path)).map_err(|error| error.to_string())?;
        whole(persona, config)
    }

    #[test]
    fn the_originals_two_files_stay_two_halves() {
        let files = [("trait_data_extract/evil.json", &file(0..3)), ("trait_data_eval/evil.json", &file(3..6))];
        let persona = read(&files, files[0].0, &config()).unwrap();
        assert_eq!((persona.about.name.as_str(), persona.about.negative.as_str()), ("evil", "helpful"));
        assert_eq!(persona.extract.questions, ["Question 0?", "Question 1?", "Question 2?"]);
        assert_eq!(persona.eval.questions[0], "Question 3?");
        let named = Config { name: Some("wicked".into()), ..config() };
        let files = [("extract.json", &file(0..3)), ("eval.json", &file(3..6))];
        assert_eq!(read(&files, "", &named).unwrap().about.name, "wicked");
    }

    #[test]
    fn one_list_is_split_by_the_seed() {
        let mut own = file(0..6);
        (own["name"], own["eval_prompt"]) = ("evil".into(), "".into());
        let of = |seed| read(&[("evil.json", &own)], "evil.json", &Config { seed, ..config() }).unwrap();
        let (first, again) = (of(0), of(0));
        assert_eq!(first, again);
        assert_eq!((first.extract.questions.len(), first.eval.questions.len()), (3, 3));
        assert!((1..20).any(|seed| of(seed).extract.questions != first.extract.questions));
        let all: HashSet<_> = first.extract.questions.iter().chain(&first.eval.questions).collect();
        assert_eq!(all.len(), 6);
        assert!(first.extract.eval_prompt.contains("evil"), "a rubric of ours");
    }

    #[test]
    fn what_is_not_whole_is_refused_by_name() {
        let with = |change: fn(&mut Value)| {
            let mut own = file(0..6);
            own["name"] = "evil".into();
            change(&mut own);
            read(&[("evil.json", &own)], "evil.json", &config()).map(drop).unwrap_err()
        };
        for (change, what) in [
            ((|own| own["questions"][5] = "question  2?".into()) as fn(&mut Value), "question 5 is question 2 again"),
            (|own| drop(own["questions"].as_array_mut().unwrap().pop()), "5 of 6 questions: 1 missing"),
            (|own| own["questions"].as_array_mut().unwrap().push("More?".into()), "7 of 6 questions: 1 too many"),
            (|own| own["questions"][1] = " ".into(), "question 1 is empty"),
            (|own| own["instruction"][1] = own["instruction"][0].clone(), "`instruction[1]` is `instruction[0]` again"),
            (|own| own["instruction"][0]["neg"] = "hurt 0.".into(), "orders the same twice"),
            (|own| own["instruction"][1]["pos"] = "".into(), "`instruction[1].pos` is empty"),
            (|own| drop(own["instruction"].as_array_mut().unwrap().pop()), "1 of 2 pairs: 1 missing"),
            (|own| own["eval_prompt"] = "{question}".into(), "no slot {answer}"),
            (|own| own["eval_prompt"] = "{question} {answer} {x}".into(), "slot {x}"),
            (|own| own["name"] = "".into(), "says nowhere what the trait is called"),
            (|own| own["name"] = "a/b".into(), "`/`"),
            (|own| own["name"] = "coherence".into(), "cannot be called"),
            (|own| own["rubric"] = "".into(), "unknown field `rubric`"),
            (|own| drop(own.as_object_mut().unwrap().remove("questions")), "missing field `questions`"),
        ] {
            let error = with(change);
            assert!(error.contains(what), "{what}: {error}");
        }
        let mut other = file(3..6);
        other["eval_prompt"] = "{answer} {question}".into();
        let files = [("extract.json", &file(0..3)), ("eval.json", &other)];
        assert!(
            read(&files, "", &Config { name: Some("evil".into()), ..config() }).unwrap_err().contains("other rubrics")
        );
        assert!(read(&[], "none.json", &config()).unwrap_err().contains("no such file"));
    }
}
