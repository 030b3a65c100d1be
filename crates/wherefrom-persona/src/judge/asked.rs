//! A judge at an endpoint: two questions an answer, by the trait's rubric and by that of coherence.
//!
//! A model that tells the probabilities of its first token is asked once, for one token, and its number is the expected one. One
//! that does not is asked five times for a text, of which the first numbers are averaged. Which of the two it is the first answer of a part
//! decides, so that it is the same whoever runs again.

use anyhow::Result;
use wherefrom_artifact::{Draft, Persona, Reporter, bad_input};

use super::Config;
use super::answers::Answer;
use super::number::{Verdict, expected, number, parsed};
use crate::provider::{Endpoint, Question, Replies, Usage};
use crate::rubric::{COHERENCE, Rubric};

/// Draws of a model that tells no probabilities.
const DRAWS: u32 = 5;
/// Tokens in which such a model has to come to a number.
const TEXT_TOKENS: u32 = 16;

/// The judge.
pub(crate) struct Asked<'a> {
    replies: Replies<'a>,
    rubrics: [Rubric; 2],
    minimum_mass: f64,
    concurrency: usize,
}

impl<'a> Asked<'a> {
    /// With what earlier runs were answered.
    pub(crate) fn new(endpoint: &'a Endpoint, persona: &Persona, config: &Config, draft: &Draft) -> Result<Self> {
        Ok(Self {
            replies: Replies::open(endpoint, draft)?,
            rubrics: rubrics(persona)?,
            minimum_mass: config.minimum_mass,
            concurrency: config.concurrency,
        })
    }

    /// The trait and the coherence of every answer.
    pub(crate) fn judge(&self, answers: &[&Answer<'_>], reporter: &dyn Reporter) -> Result<Vec<[Verdict; 2]>> {
        let Some(first) = answers.first() else { return Ok(Vec::new()) };
        let tells = self.replies.get(&once(&self.rubrics[0], first))?.top.is_some();
        let judge = |index: usize| {
            let [of_trait, coherence] = &self.rubrics;
            Ok([self.verdict(of_trait, answers[index], tells)?, self.verdict(coherence, answers[index], tells)?])
        };
        self.replies.side_by_side(answers.len(), self.concurrency, reporter, judge)
    }

    fn verdict(&self, rubric: &Rubric, answer: &Answer<'_>, tells: bool) -> Result<Verdict> {
        if tells {
            let reply = self.replies.get(&once(rubric, answer))?;
            if let Some(top) = reply.top {
                let numbers = top.iter().filter_map(|(token, logprob)| Some((number(token)?, logprob.min(0.0).exp())));
                return Ok(Verdict { reply: reply.text, ..expected(numbers, self.minimum_mass) });
            }
        }
        let draw = |draw: u32| {
            let question =
                Question { max_tokens: TEXT_TOKENS, temperature: 1.0, logprobs: false, draw, ..once(rubric, answer) };
            Ok(self.replies.get(&question)?.text)
        };
        Ok(parsed(&(0..DRAWS).map(draw).collect::<Result<Vec<_>>>()?, self.minimum_mass))
    }

    /// What was asked for in this run.
    pub(crate) fn usage(&self) -> Usage {
        self.replies.usage()
    }
}

/// The trait's rubric, and that of coherence.
pub(crate) fn rubrics(persona: &Persona) -> Result<[Rubric; 2]> {
    let own = Rubric::parse(&persona.extract.eval_prompt)
        .map_err(|what| bad_input(format!("the rubric of the trait {} {what}", persona.about.name)))?;
    Ok([own, Rubric::parse(COHERENCE).map_err(bad_input)?])
}

/// For one token and its rivals.
fn once(rubric: &Rubric, answer: &Answer<'_>) -> Question {
    Question {
        messages: vec![("user", rubric.fill(answer.question, answer.answer))],
        max_tokens: 1,
        temperature: 0.0,
        logprobs: true,
        draw: 0,
    }
}
