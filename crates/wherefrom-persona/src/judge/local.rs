//! A checkpoint as the judge: the number is read from its distribution over the tokens behind the rubric, and nothing is drawn.
//!
//! Where the tokenizer has a token for each number from 0 to 100, that is one distribution. Where numbers take several tokens, as
//! their digits do, the tree of all of them is walked, twelve distributions at most:
//!
//! ```text
//! p(n) = product over the tokens of n of p(token | those before)  *  p(no further digit)
//! ```
//!
//! the last factor where the tree goes on behind n. Nobody believes a judge unseen: it is asked about answers that people have
//! labelled first, and is refused where it cannot tell them apart.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use wherefrom_artifact::{Labelled, Persona, Status, bad_input};
use wherefrom_stage::Exec;

use super::answers::Answer;
use super::asked::rubrics;
use super::number::{LARGEST, Verdict, expected};
use super::speaker::Speaker;
use crate::rubric::Rubric;

/// Labelled answers that a judge is tried on.
const LABELLED: usize = 20;
/// Least of each kind among them.
const EACH: usize = 5;
/// Least area under the curve that lets it judge.
const GATE: f64 = 0.9;
/// Probability below which what follows a digit is not looked at.
const NEGLIGIBLE: f64 = 1e-3;

/// The judge.
pub(crate) struct Local {
    speaker: Speaker,
    tree: Tree,
    rubrics: [Rubric; 2],
    minimum_mass: f64,
    gate: Gate,
}

/// How the judge did on labelled answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Gate {
    /// Answers.
    answers: usize,
    /// Those that it gave no number.
    without_number: usize,
    /// Probability that an answer that shows the trait has the larger score, ties by half; no number is the least of all.
    auroc: f64,
}

impl Local {
    /// A judge that has passed its trial.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a trait without labelled answers, and for a judge that cannot tell them apart.
    pub(crate) fn new(speaker: Speaker, persona: &Persona, minimum_mass: f64, exec: &Exec) -> Result<Self> {
        let labelled = &persona.about.labelled;
        let shows = labelled.iter().filter(|answer| answer.shows).count();
        if labelled.len() < LABELLED || shows < EACH || labelled.len() - shows < EACH {
            return Err(bad_input(format!(
                "provider = \"local\" is tried on answers of which you know whether they show the trait, and {} has {} ({shows} of them \
                 show it); write {LABELLED} or more, {EACH} or more of either kind, into its file as `labelled`: {{question, answer, shows}}",
                persona.about.name,
                labelled.len()
            )));
        }
        let tree = Tree::of(&speaker)?;
        let mut judge = Self { speaker, tree, rubrics: rubrics(persona)?, minimum_mass, gate: Gate::default() };
        judge.gate = judge.tried(labelled, exec)?;
        if judge.gate.auroc < GATE {
            let Gate { answers, without_number, auroc } = judge.gate;
            return Err(bad_input(format!(
                "this model cannot judge {}: of {answers} labelled answers it gives {without_number} no number, and its scores tell those \
                 that show the trait from those that do not with an area under the curve of {auroc:.3}, where {GATE} is asked for; take a \
                 larger model, a rule or an endpoint",
                persona.about.name
            )));
        }
        Ok(judge)
    }

    fn tried(&self, labelled: &[Labelled], exec: &Exec) -> Result<Gate> {
        exec.reporter.begin("try the judge", "answers", labelled.len() as u64, 0);
        let texts: Vec<_> = labelled.iter().map(|row| (row.question.as_str(), row.answer.as_str())).collect();
        let verdicts = self.verdicts(&self.rubrics[0], &texts)?;
        exec.reporter.end();
        let (shown, others): (Vec<_>, Vec<_>) = labelled.iter().zip(&verdicts).partition(|(row, _)| row.shows);
        let scores =
            |rows: Vec<(&Labelled, &Verdict)>| rows.into_iter().map(|(_, verdict)| verdict.score).collect::<Vec<_>>();
        Ok(Gate {
            answers: labelled.len(),
            without_number: verdicts.iter().filter(|verdict| verdict.status != Status::Scored).count(),
            auroc: auroc(&scores(shown), &scores(others)),
        })
    }

    /// How it did.
    pub(crate) fn gate(&self) -> Gate {
        self.gate
    }

    /// The trait and the coherence of every answer.
    pub(crate) fn judge(&self, answers: &[&Answer<'_>], exec: &Exec) -> Result<Vec<[Verdict; 2]>> {
        let texts: Vec<_> = answers.iter().map(|answer| (answer.question, answer.answer)).collect();
        let [own, coherence] = &self.rubrics;
        let (own, coherence) = (self.verdicts(own, &texts)?, self.verdicts(coherence, &texts)?);
        exec.reporter.advance(answers.len() as u64);
        Ok(own.into_iter().zip(coherence).map(|(own, coherence)| [own, coherence]).collect())
    }

    fn verdicts(&self, rubric: &Rubric, texts: &[(&str, &str)]) -> Result<Vec<Verdict>> {
        let prompts = texts.iter().map(|(question, answer)| self.speaker.prompt(None, &rubric.fill(question, answer)));
        let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
        let next = |paths: &[(usize, Vec<u32>)]| {
            self.speaker.next(paths.iter().map(|(row, path)| [&prompts[*row][..], path].concat()).collect())
        };
        let numbers = self.tree.walk(prompts.len(), &next)?;
        Ok(numbers.into_iter().map(|numbers| expected(numbers, self.minimum_mass)).collect())
    }
}

/// The whole numbers from 0 to 100 as the tokenizer writes them.
#[derive(Debug, Clone, PartialEq)]
struct Tree {
    /// By the tokens of a beginning: which tokens follow in a number. The empty beginning among them.
    inner: BTreeMap<Vec<u32>, Vec<u32>>,
    /// By tokens.
    numbers: BTreeMap<Vec<u32>, u32>,
    /// Tokens that begin with a digit.
    digits: Vec<u32>,
}

/// Distributions [vocabulary] behind rows that go on with some tokens.
type Next<'a> = dyn Fn(&[(usize, Vec<u32>)]) -> Result<Vec<Vec<f64>>> + 'a;

impl Tree {
    fn of(speaker: &Speaker) -> Result<Self> {
        let mut written = Vec::new();
        for number in 0..=LARGEST {
            written.push(speaker.encoder.encode(&number.to_string()).map_err(bad_input)?);
        }
        let mut digits = Vec::new();
        for id in 0..speaker.model.config.vocab_size as u32 {
            // What cannot be decoded alone is a part of a character, and no digit.
            let text = speaker.encoder.decode(&[id]).unwrap_or_default();
            if text.starts_with(|character: char| character.is_ascii_digit()) {
                digits.push(id);
            }
        }
        Self::new(&written, digits)
    }

    fn new(written: &[Vec<u32>], digits: Vec<u32>) -> Result<Self> {
        let (mut inner, mut numbers) = (BTreeMap::<_, Vec<u32>>::new(), BTreeMap::new());
        for (number, ids) in (0..).zip(written) {
            if ids.is_empty() || numbers.insert(ids.clone(), number).is_some() {
                return Err(bad_input(
                    "the model's tokenizer writes two numbers alike, so it can judge nothing; take another judge",
                ));
            }
            for end in 0..ids.len() {
                let next = inner.entry(ids[..end].to_vec()).or_default();
                if !next.contains(&ids[end]) {
                    next.push(ids[end]);
                }
            }
        }
        Ok(Self { inner, numbers, digits })
    }

    /// The probability of every number behind each of so many rows.
    fn walk(&self, rows: usize, next: &Next<'_>) -> Result<Vec<Vec<(u32, f64)>>> {
        let mut found = vec![Vec::new(); rows];
        let mut open: Vec<(usize, Vec<u32>, f64)> = (0..rows).map(|row| (row, Vec::new(), 1.0)).collect();
        while !open.is_empty() {
            let paths: Vec<_> = open.iter().map(|(row, path, _)| (*row, path.clone())).collect();
            let mut after = Vec::new();
            for ((row, path, before), distribution) in open.into_iter().zip(next(&paths)?) {
                let of = |id: u32| distribution.get(id as usize).copied().unwrap_or(0.0);
                if let Some(number) = self.numbers.get(&path) {
                    let further: f64 = self.digits.iter().map(|id| of(*id)).sum();
                    found[row].push((*number, before * (1.0 - further).max(0.0)));
                }
                for id in &self.inner[&path] {
                    let (longer, probability) = ([&path[..], &[*id]].concat(), before * of(*id));
                    match self.numbers.get(&longer) {
                        _ if self.inner.contains_key(&longer) && probability >= NEGLIGIBLE => {
                            after.push((row, longer, probability))
                        }
                        Some(number) => found[row].push((*number, probability)),
                        None => {}
                    }
                }
            }
            open = after;
        }
        Ok(found)
    }
}

/// The share of pairs in which the first has the larger score, ties by half; NaN is the least of all.
fn auroc(shown: &[f64], others: &[f64]) -> f64 {
    let value = |score: &f64| if score.is_nan() { f64::NEG_INFINITY } else { *score };
    let won = |one: &f64, other: &f64| match value(one).total_cmp(&value(other)) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    let sum: f64 = shown.iter().flat_map(|one| others.iter().map(move |other| won(one, other))).sum();
    sum / (shown.len() * others.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digits are tokens: the id is the digit, and 10 is the end of the text.
    fn digits() -> Tree {
        let written: Vec<Vec<u32>> = (0..=LARGEST)
            .map(|number| number.to_string().bytes().map(|byte| u32::from(byte - b'0')).collect())
            .collect();
        Tree::new(&written, (0..10).collect()).unwrap()
    }

    /// A distribution with these probabilities.
    fn with(probabilities: &[(usize, f64)]) -> Vec<f64> {
        let mut distribution = vec![0.0; 11];
        probabilities.iter().for_each(|(id, probability)| distribution[*id] = *probability);
        distribution
    }

    #[test]
    fn digits_are_walked_and_end_where_no_digit_follows() {
        let tree = digits();
        // Twelve at most: the empty beginning, 1 to 9, and 10.
        assert_eq!(tree.inner.len(), 11);
        let next = |paths: &[(usize, Vec<u32>)]| {
            let of = |path: &[u32]| match path {
                [] => with(&[(8, 0.5), (1, 0.25), (0, 0.125), (10, 0.125)]),
                [8] => with(&[(5, 0.5), (10, 0.5)]),
                [1] => with(&[(0, 1.0)]),
                // 100, 1000 and so on are as likely as 10.
                [1, 0] => with(&[(0, 0.5), (10, 0.5)]),
                other => panic!("asked for {other:?}"),
            };
            Ok(paths.iter().map(|(_, path)| of(path)).collect())
        };
        let mut numbers = tree.walk(1, &next).unwrap().remove(0);
        numbers.retain(|(_, probability)| *probability > 0.0);
        numbers.sort_by_key(|(number, _)| *number);
        assert_eq!(numbers, [(0, 0.125), (8, 0.25), (10, 0.125), (85, 0.25), (100, 0.125)]);
        let verdict = expected(numbers, 0.25);
        assert_eq!((verdict.mass, verdict.score), (0.875, (2.0 + 1.25 + 21.25 + 12.5) / 0.875));
    }

    #[test]
    fn numbers_of_one_token_take_one_distribution() {
        let written: Vec<Vec<u32>> = (0..=LARGEST).map(|number| vec![number]).collect();
        let tree = Tree::new(&written, (0..=LARGEST).collect()).unwrap();
        let next = |paths: &[(usize, Vec<u32>)]| {
            assert!(paths.iter().all(|(_, path)| path.is_empty()));
            Ok(paths.iter().map(|_| (0..=100).map(|number| if number == 70 { 1.0 } else { 0.0 }).collect()).collect())
        };
        let numbers = tree.walk(2, &next).unwrap();
        assert_eq!(expected(numbers[1].clone(), 0.25).score, 70.0);
        let alike: Vec<Vec<u32>> = (0..=LARGEST).map(|_| vec![3]).collect();
        assert!(Tree::new(&alike, Vec::new()).is_err());
    }

    #[test]
    fn a_judge_without_a_number_tells_nothing() {
        assert_eq!(auroc(&[80.0, 90.0], &[10.0, 20.0]), 1.0);
        assert_eq!(auroc(&[f64::NAN, 90.0], &[10.0, f64::NAN]), (0.0 + 0.5 + 1.0 + 1.0) / 4.0);
        assert_eq!(auroc(&[5.0], &[5.0]), 0.5);
    }
}
