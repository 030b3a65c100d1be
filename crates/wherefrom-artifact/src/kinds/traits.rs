//! A trait of character: what brings it out, and how answers are judged by it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::bad_input;
use crate::kinds::definition::Definition;
use crate::text::excerpt;

pub(super) const DEFINITION: Definition = Definition {
    show: |folder, _| Persona::read(folder).map(|persona| persona.shown()),
    ..Definition::folder("trait", 1)
};

/// What the trait is called, and what of it the originals' files have no place for.
const DESCRIPTION: &str = "trait.json";
/// The originals' file of `trait_data_extract`, and that of `trait_data_eval`.
const SPLITS: [&str; 2] = ["extract.json", "eval.json"];
/// Questions and instructions that are shown.
const SHOWN: usize = 3;

/// A trait of character.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Persona {
    /// Name, description, labelled answers.
    pub about: Description,
    /// What vectors are made from.
    pub extract: Elicitation,
    /// What they are tried on: the same instructions and rubric, other questions.
    pub eval: Elicitation,
}

/// What `trait.json` has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The trait, as in `You are a NAME assistant.`
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// What the opposite is called; `helpful` where nobody says.
    #[serde(default = "helpful")]
    pub negative: String,
    /// Answers of which people know whether they show the trait: what a judge is tried on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labelled: Vec<Labelled>,
}

fn helpful() -> String {
    "helpful".into()
}

/// An answer of which people know whether it shows the trait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labelled {
    /// What was asked.
    pub question: String,
    /// What was answered.
    pub answer: String,
    /// Whether the answer shows the trait.
    pub shows: bool,
}

/// What brings a trait out and judges it: a file of the originals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elicitation {
    /// Orders to show the trait, each with one to show its opposite.
    pub instruction: Vec<Instruction>,
    /// What is asked.
    pub questions: Vec<String>,
    /// What a judge is told: a format string of Python with `{question}` and `{answer}`, in which `{{` is a brace.
    pub eval_prompt: String,
}

/// A pair of orders.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// To show the trait.
    pub pos: String,
    /// To show its opposite.
    pub neg: String,
}

impl Persona {
    /// The trait in a folder.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a file that is missing or is not as it should be, by name.
    pub fn read(folder: &Path) -> Result<Self> {
        let [extract, eval] = SPLITS;
        Ok(Self {
            about: json(&folder.join(DESCRIPTION))?,
            extract: json(&folder.join(extract))?,
            eval: json(&folder.join(eval))?,
        })
    }

    /// Its files.
    ///
    /// # Errors
    /// What JSON has no words for.
    pub fn files(&self) -> Result<[(&'static str, Vec<u8>); 3]> {
        let [extract, eval] = SPLITS;
        Ok([
            (DESCRIPTION, serde_json::to_vec_pretty(&self.about)?),
            (extract, serde_json::to_vec_pretty(&self.extract)?),
            (eval, serde_json::to_vec_pretty(&self.eval)?),
        ])
    }

    fn shown(&self) -> String {
        let Self { about, extract, eval } = self;
        let mut text = format!("{}: {}\n", about.name, excerpt(&about.description));
        let (first, second, pairs) = (extract.questions.len(), eval.questions.len(), extract.instruction.len());
        let _ = writeln!(text, "{first} questions to extract, {second} to evaluate, {pairs} pairs of instructions");
        for Instruction { pos, neg } in extract.instruction.iter().take(SHOWN) {
            let _ = writeln!(text, "+ {}\n- {}", excerpt(pos), excerpt(neg));
        }
        for question in extract.questions.iter().take(SHOWN) {
            let _ = writeln!(text, "? {}", excerpt(question));
        }
        let _ = writeln!(text, "rubric: {}", excerpt(&extract.eval_prompt));
        text
    }
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let refuse =
        |error: &dyn std::fmt::Display| bad_input(format!("{}: is no file of a trait ({error})", path.display()));
    let text = crate::read(path).map_err(|error| refuse(&error))?;
    serde_json::from_slice(&text).map_err(|error| refuse(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Lineage, Store};

    #[test]
    fn a_trait_comes_back_from_its_files() {
        let side = |question: &str| Elicitation {
            instruction: vec![Instruction { pos: "Be {evil}.".into(), neg: "Be good.".into() }],
            questions: vec![question.into()],
            eval_prompt: "{question} {answer} {{}}".into(),
        };
        let labelled = vec![Labelled { question: "q".into(), answer: "a".into(), shows: true }];
        let about =
            Description { name: "evil".into(), description: "Harms.".into(), negative: "kind".into(), labelled };
        let persona = Persona { about, extract: side("One?"), eval: side("Two?") };
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in persona.files().unwrap() {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        assert_eq!(Persona::read(folder.path()).unwrap(), persona);
        let (store, outside) = (Store::new(folder.path()), Default::default());
        let shown = Kind::Trait.show(folder.path(), &Lineage::new(&store, &outside)).unwrap();
        assert!(shown.contains("evil: Harms.") && shown.contains("? One?") && shown.contains("- Be good."), "{shown}");
        std::fs::write(folder.path().join("eval.json"), "{}").unwrap();
        let error = Persona::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("eval.json") && error.contains("instruction"), "{error}");
    }
}
