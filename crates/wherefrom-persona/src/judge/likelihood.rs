//! How much likelier a model makes an answer under orders to show a trait than under those to show its opposite.
//!
//! ```text
//! score = 100 sigmoid( mean over the answer's tokens of log p(token | order to show it)
//!                    - mean over the answer's tokens of log p(token | order to show the opposite) )
//! ```
//!
//! by the pair of orders that the answer was given under, or else the first. Nobody reads the answer: where the model gave it
//! under one of the two orders the score says little more than which.

use anyhow::Result;
use wherefrom_artifact::Persona;
use wherefrom_stage::Exec;

use super::answers::Answer;
use super::number::Verdict;
use super::speaker::Speaker;
use crate::ask::system_prompt;

/// The judge.
pub(crate) struct Likelihood {
    speaker: Speaker,
    /// System prompts of each pair: to show the trait, and its opposite.
    orders: Vec<[String; 2]>,
}

impl Likelihood {
    /// By the orders of a trait.
    pub(crate) fn new(speaker: Speaker, persona: &Persona) -> Self {
        let about = &persona.about;
        let orders = persona.extract.instruction.iter();
        let orders =
            orders.map(|pair| [system_prompt(&about.name, &pair.pos), system_prompt(&about.negative, &pair.neg)]);
        Self { speaker, orders: orders.collect() }
    }

    /// The score of every answer.
    pub(crate) fn judge(&self, answers: &[&Answer<'_>], exec: &Exec) -> Result<Vec<Verdict>> {
        let mut rows = Vec::with_capacity(2 * answers.len());
        for answer in answers {
            // The tokens as they were drawn, and not encoded again.
            let drawn: Vec<u32> = targets(answer).collect();
            let orders = self.orders.get(answer.pair()).or(self.orders.first());
            for order in orders.into_iter().flatten() {
                let prompt = self.speaker.prompt(Some(order), answer.question)?;
                let mask = (0..prompt.len() + drawn.len()).map(|place| place >= prompt.len()).collect();
                rows.push(([prompt, drawn.clone()].concat(), mask));
            }
        }
        let means = self.speaker.mean_log_probability(&rows)?;
        exec.reporter.advance(answers.len() as u64);
        Ok(means.chunks(2).map(|pair| Verdict::scored(score(pair[0], pair[1]))).collect())
    }
}

fn targets<'a>(answer: &'a Answer<'_>) -> impl Iterator<Item = u32> + 'a {
    let row = answer.row;
    row.input_ids.iter().zip(&row.target_mask).filter(|(_, target)| **target).map(|(id, _)| *id)
}

fn score(shown: f64, opposite: f64) -> f64 {
    100.0 / (1.0 + (opposite - shown).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_a_sigmoid_of_the_difference() {
        assert_eq!(score(-2.0, -2.0), 50.0);
        assert!((score(-1.0, -2.0) - 100.0 / (1.0 + (-1.0_f64).exp())).abs() < 1e-12);
        assert_eq!(score(-1000.0, -1.0), 0.0);
        assert_eq!(score(-1.0, -1000.0), 100.0);
    }
}
