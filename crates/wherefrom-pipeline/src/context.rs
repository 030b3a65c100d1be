//! What can be told of a step's tokens before anything is made: whether its windows are within the context of every model that
//! will read them, and whether a prompt and its completion make one word.

use wherefrom_artifact::Kind;

use crate::plan::Plan;
use crate::problems::Problems;
use crate::step::{Source, Step};

/// The knob of `tokenize`.
const KNOB: &str = "max-tokens";

impl Plan {
    /// Notes steps whose `max-tokens` is more than a model that reads their tokens has positions.
    pub(crate) fn check_contexts(&self, problems: &mut Problems) {
        for (index, step) in self.steps.iter().enumerate() {
            let Some(longest) = step.config()[KNOB].as_u64() else { continue };
            let reads = |reader: &&Step| {
                reader.wires.iter().any(|wire| wire.used && wire.role == "tokens" && wire.source == Source::Step(index))
            };
            let readers = self.steps.iter().filter(reads);
            let contexts =
                readers.filter_map(|reader| Some((self.model(reader)?.max_position_embeddings as u64, reader)));
            if let Some((context, reader)) =
                contexts.min_by_key(|(context, _)| *context).filter(|(context, _)| longest > *context)
            {
                problems.other(
                    &format!("step `{}`", step.name),
                    &format!(
                        "`{KNOB} = {longest}` is more than the model of step `{}` can read, which has {context} positions; set it \
                         to {context} or less",
                        reader.name
                    ),
                );
            }
        }
    }

    /// Steps that keep prompts for the model to complete, where nothing completes them: other stages refuse such rows, and late.
    pub fn uncompleted(&self) -> Vec<String> {
        let keeps = |step: &Step| step.config()["untargeted"] == "keep";
        let read_by = |index: usize| {
            let reads =
                move |reader: &&Step| reader.wires.iter().any(|wire| wire.used && wire.source == Source::Step(index));
            self.steps.iter().filter(reads)
        };
        let kept = self.steps.iter().enumerate().filter(|(_, step)| keeps(step));
        let uncompleted = kept.filter(|&(index, _)| {
            read_by(index).next().is_some() && !read_by(index).any(|reader| reader.kind == Kind::Tokens)
        });
        let line = |(_, step): (usize, &Step)| {
            format!(
                "step `{}` keeps rows without a completion (untargeted = \"keep\"), and no `generate` step completes them: a row \
                 that has none will be refused where it is measured",
                step.name
            )
        };
        uncompleted.map(line).collect()
    }

    /// Of steps that are still to be made, what will be said of their rows; once a corpus.
    pub fn row_warnings(&self) -> Vec<String> {
        let mut said = Vec::new();
        for step in self.steps.iter().filter(|step| step.is_to_be_made() && step.config()[KNOB].is_u64()) {
            let corpus = step.wires.iter().find(|wire| wire.role == "corpus").and_then(|wire| self.place(&wire.source));
            for line in
                corpus.map(|corpus| wherefrom_tokenize::row_warnings(step.config(), &corpus)).into_iter().flatten()
            {
                if !said.contains(&line) {
                    said.push(line);
                }
            }
        }
        said
    }
}
