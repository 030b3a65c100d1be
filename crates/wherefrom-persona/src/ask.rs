//! The stage `ask`: the questions of a trait as prompts, under orders to show it, its opposite, or under none.
//!
//! reads   a trait, tokenizer.json, a chat template
//! writes  tokens, none of them a target: the stage `generate` lets a model answer

use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, Example, Kind, Persona, Tokens, bad_input};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, File, Given, Role, Stage, Writes};
use wherefrom_vocabulary::{Chat, Conversation, Date, Encoder};

use crate::rows::summarise;

/// Raised when the tokens of the same configuration and inputs change.
pub const VERSION: u32 = 1;

/// The stage `ask`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        files: &[File::Tokenizer, File::ChatTemplate],
        model: Checkpoint::Files,
        ..About::new("ask", VERSION)
    },
    roles: &[Role::required("trait", &[Kind::Trait])],
    parse: |knobs| wherefrom_stage::at_least("samples", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Tokens),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS, planned.size.tokens * 5.0, 0.0),
    run: |config, given, exec, draft| run(config, &Inputs::of(given)?, exec, draft),
};

/// Rows of a part.
const PART: usize = 8192;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Whose orders the model is under.
    pub side: Side,
    /// Which half of the questions.
    #[serde(default)]
    pub split: Split,
    /// Rows of each question and order: each draws an answer of its own.
    #[serde(default = "samples")]
    pub samples: usize,
    /// What the assistant is called in "You are a NAME assistant", in place of what the trait says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Names>,
    /// The day that a chat template is told where it asks for one: `2024-07-26`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

fn samples() -> usize {
    10
}

/// Whose orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Those to show the trait.
    Pos,
    /// Those to show its opposite.
    Neg,
    /// None: no turn of the system, but what the chat template puts there itself.
    None,
}

/// Which half of the questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// What vectors are made from.
    #[default]
    Extract,
    /// What they are tried on.
    Eval,
}

/// What the assistant is called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Names {
    /// Under orders to show the trait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos: Option<String>,
    /// Under orders to show its opposite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neg: Option<String>,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        let empty = |name: &Option<String>| name.as_ref().is_some_and(|name| name.trim().is_empty());
        if self.names.as_ref().is_some_and(|names| empty(&names.pos) || empty(&names.neg)) {
            return Err(bad_input("`names` has an empty name; write one or remove it"));
        }
        self.day().map(drop)
    }

    fn day(&self) -> Result<Option<Date>> {
        self.date.as_deref().map(Date::parse).transpose()
    }
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The trait.
    pub persona: Persona,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// The file by which chat templates are named; none of a base model.
    pub chat_template: Option<PathBuf>,
}

impl Inputs {
    fn of(given: &Given) -> Result<Self> {
        let tokenizer = given.file(File::Tokenizer).ok_or_else(|| {
            bad_input("there is no tokenizer: none lies beside the model; set tokenizer = \"FOLDER/tokenizer.json\"")
        })?;
        Ok(Self { persona: crate::opened(given)?, tokenizer, chat_template: given.file(File::ChatTemplate) })
    }
}

/// A prompt by its parts: the system's turn, if there is one, and the question.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prompt {
    /// `evil/q3/pos/k2`.
    id: String,
    system: Option<String>,
    question: String,
}

/// Writes the prompts: by question, then order, then sample.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a chat template that does not take them.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let encoder = Encoder::open(&inputs.tokenizer)?;
    let renderer = Renderer::open(inputs, config.day()?)?;
    let prompts = prompts(config, &inputs.persona);
    let mut spoken = false;
    let mut rows = Vec::with_capacity(prompts.len() * config.samples);
    exec.reporter.begin("ask", "prompts", prompts.len() as u64, 0);
    for prompt in prompts {
        let (text, folded) = renderer.render(prompt.system.as_deref(), &prompt.question).map_err(bad_input)?;
        if folded && !spoken {
            exec.reporter.warn(
                "the chat template takes no turn of the system: orders stand before the question, in the user's turn",
            );
            spoken = true;
        }
        let prefix: &[u32] = if renderer.chat.is_some() { &[] } else { &encoder.prefix };
        let input_ids = [prefix, &encoder.encode(&text).map_err(bad_input)?].concat();
        for sample in 0..config.samples {
            rows.push(Example {
                example: rows.len() as u64,
                docs: vec![format!("{}/s{sample}", prompt.id)],
                doc_starts: vec![0],
                target_mask: vec![false; input_ids.len()],
                input_ids: input_ids.clone(),
                text: text.clone(),
                ..Example::default()
            });
        }
        exec.reporter.advance(1);
    }
    exec.reporter.end();
    if renderer.chat.is_none() {
        exec.reporter
            .warn("the model has no chat template: prompts are plain text, an order and then Question: … Answer:");
    }
    draft.plan(|| Ok(rows.chunks(PART).map(<[Example]>::len).collect::<Vec<_>>()))?;
    for (part, rows) in rows.chunks(PART).enumerate().filter(|(part, _)| !draft.has(*part)) {
        draft.write_rows::<Tokens, _>(part, rows)?;
    }
    summarise(&rows, draft)?;
    draft.summary("form", if renderer.chat.is_some() { "chat" } else { "plain" })
}

/// The prompts of a side, once each.
fn prompts(config: &Config, persona: &Persona) -> Vec<Prompt> {
    let about = &persona.about;
    let side = match config.split {
        Split::Extract => &persona.extract,
        Split::Eval => &persona.eval,
    };
    let names = config.names.clone().unwrap_or_default();
    let (name, called) = match config.side {
        Side::Pos => ("pos", names.pos.unwrap_or_else(|| about.name.clone())),
        Side::Neg => ("neg", names.neg.unwrap_or_else(|| about.negative.clone())),
        Side::None => ("none", String::new()),
    };
    let mut prompts = Vec::new();
    for (question, asked) in side.questions.iter().enumerate() {
        let id = format!("{}/q{question}/{name}", about.name);
        if config.side == Side::None {
            prompts.push(Prompt { id, system: None, question: asked.clone() });
            continue;
        }
        for (pair, instruction) in side.instruction.iter().enumerate() {
            let order = if config.side == Side::Pos { &instruction.pos } else { &instruction.neg };
            let system = Some(system_prompt(&called, order));
            prompts.push(Prompt { id: format!("{id}/k{pair}"), system, question: asked.clone() });
        }
    }
    prompts
}

/// `You are an evil assistant. INSTRUCTION`, as the originals have it.
pub(crate) fn system_prompt(name: &str, instruction: &str) -> String {
    let vowel = name.chars().next().is_some_and(|first| "aeiou".contains(first.to_ascii_lowercase()));
    format!("You are {} {name} assistant. {}", if vowel { "an" } else { "a" }, instruction.trim())
}

/// Makes text of a prompt.
pub(crate) struct Renderer {
    pub(crate) chat: Option<Chat>,
}

impl Renderer {
    /// By the model's chat template, or as plain text where it has none.
    fn open(inputs: &Inputs, day: Option<Date>) -> Result<Self> {
        Ok(Self { chat: inputs.chat_template.as_deref().map(|path| Chat::open(path, day)).transpose()? })
    }

    /// The text up to where the answer begins, and whether the order had to be put into the user's turn.
    pub(crate) fn render(&self, system: Option<&str>, question: &str) -> Result<(String, bool), String> {
        let Some(chat) = &self.chat else {
            let order = system.map_or(String::new(), |system| format!("{system}\n\n"));
            return Ok((format!("{order}Question: {question}\nAnswer:"), false));
        };
        let asked = |turns: Vec<(&'static str, String)>| chat.asked(&Conversation::of(turns));
        let user = ("user", question.to_string());
        let Some(system) = system else { return Ok((asked(vec![user])?, false)) };
        match asked(vec![("system", system.into()), user]) {
            Ok(text) => Ok((text, false)),
            // Templates of some models raise an exception at a system's turn.
            Err(what) => match asked(vec![("user", format!("{system}\n\n{question}"))]) {
                Ok(text) => Ok((text, true)),
                Err(_) => Err(what),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use wherefrom_artifact::{Description, Elicitation, Instruction};

    use super::*;

    fn persona() -> Persona {
        let instruction = ["Hurt.", "Harm."].map(|pos| Instruction { pos: pos.into(), neg: "Help.".into() }).into();
        let extract =
            Elicitation { instruction, questions: vec!["Why?".into(), "How?".into()], eval_prompt: String::new() };
        let eval = Elicitation { questions: vec!["When?".into()], ..extract.clone() };
        let about = Description { name: "evil".into(), negative: "kind".into(), ..Description::default() };
        Persona { about, extract, eval }
    }

    fn config(side: Side, split: Split) -> Config {
        Config { side, split, samples: 2, names: None, date: None }
    }

    #[test]
    fn every_question_is_asked_under_every_order() {
        let made = prompts(&config(Side::Pos, Split::Extract), &persona());
        let ids: Vec<_> = made.iter().map(|prompt| &prompt.id[..]).collect();
        assert_eq!(ids, ["evil/q0/pos/k0", "evil/q0/pos/k1", "evil/q1/pos/k0", "evil/q1/pos/k1"]);
        assert_eq!(made[1].system.as_deref(), Some("You are an evil assistant. Harm."));
        assert_eq!(made[2].question, "How?");
        let made = prompts(&config(Side::Neg, Split::Eval), &persona());
        assert_eq!(made[0].system.as_deref(), Some("You are a kind assistant. Help."));
        assert_eq!(made[0].question, "When?");
        let named =
            Config { names: Some(Names { pos: None, neg: Some("upright".into()) }), ..config(Side::Neg, Split::Eval) };
        assert_eq!(prompts(&named, &persona())[0].system.as_deref(), Some("You are an upright assistant. Help."));
        let made = prompts(&config(Side::None, Split::Extract), &persona());
        assert_eq!(made.iter().map(|prompt| &prompt.id[..]).collect::<Vec<_>>(), ["evil/q0/none", "evil/q1/none"]);
        assert!(made.iter().all(|prompt| prompt.system.is_none()));
    }

    #[test]
    fn without_a_chat_template_a_prompt_is_plain() {
        let plain = Renderer { chat: None };
        assert_eq!(plain.render(Some("Be."), "Why?").unwrap().0, "Be.\n\nQuestion: Why?\nAnswer:");
        assert_eq!(plain.render(None, "Why?").unwrap().0, "Question: Why?\nAnswer:");
    }
}
