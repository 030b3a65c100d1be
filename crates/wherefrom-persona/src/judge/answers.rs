//! Answers as a judge sees them: without the prompt's orders.

use wherefrom_artifact::{Example, Persona};

/// One answer, and what was asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer<'a> {
    /// The row that holds it.
    pub(crate) row: &'a Example,
    /// The trait's question that the prompt holds; elsewhere the prompt.
    pub(crate) question: &'a str,
    /// The text behind the prompt.
    pub(crate) answer: &'a str,
}

impl<'a> Answer<'a> {
    /// That of a row.
    pub(crate) fn of(row: &'a Example, persona: &'a Persona) -> Self {
        let (prompt, answer) = row.text.split_at_checked(row.completion_start as usize).unwrap_or(("", &row.text));
        let questions = persona.extract.questions.iter().chain(&persona.eval.questions);
        // One may begin as another does.
        let held = questions.filter(|question| prompt.contains(question.trim())).max_by_key(|question| question.len());
        let answer = answer.trim();
        Self { row, question: held.map_or(prompt, |question| question.trim()), answer }
    }

    /// The pair of orders that it was given under, by the row's name: `evil/q3/pos/k2/s7`.
    pub(crate) fn pair(&self) -> usize {
        let name = self.row.docs.first().map(String::as_str).unwrap_or_default();
        name.split('/').rev().find_map(|part| part.strip_prefix('k')?.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use wherefrom_artifact::Elicitation;

    use super::*;

    #[test]
    fn a_judge_sees_the_question_and_the_answer() {
        let questions = ["Why?", "Why? Say more."].map(String::from).into();
        let persona = Persona { eval: Elicitation { questions, ..Elicitation::default() }, ..Persona::default() };
        let row = |prompt: &str, answer: &str| Example {
            text: format!("{prompt}{answer}"),
            completion_start: prompt.len() as u32,
            docs: vec!["evil/q1/neg/k3/s0".into()],
            ..Example::default()
        };
        let asked = row("Be good.\nWhy? Say more.\n", " Because. ");
        let answer = Answer::of(&asked, &persona);
        assert_eq!((answer.question, answer.answer, answer.pair()), ("Why? Say more.", "Because.", 3));
        let other = row("Tell a tale:", " Once.");
        assert_eq!(Answer::of(&other, &persona).question, "Tell a tale:");
    }
}
