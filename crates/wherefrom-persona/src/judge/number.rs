//! A number out of what a judge would say, or did.
//!
//! ```text
//! score  =  sum of n p(n) / sum of p(n)      over the whole numbers n from 0 to 100 that are among the tokens
//! ```
//!
//! where the sum of p(n), the mass, is not below `minimum-mass`; elsewhere there is no score.

use wherefrom_artifact::Status;

/// Largest score.
pub(crate) const LARGEST: u32 = 100;

/// What one judge makes of one answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// 0 to 100; NaN where there is none.
    pub(crate) score: f64,
    /// Probability of whole numbers from 0 to 100, in all; NaN where none was read.
    pub(crate) mass: f64,
    /// How the score came about.
    pub(crate) status: Status,
    /// The judge's words.
    pub(crate) reply: String,
}

impl Verdict {
    /// A number that was computed.
    pub(crate) fn scored(score: f64) -> Self {
        Self { score, mass: f64::NAN, status: Status::Scored, reply: String::new() }
    }

    /// There was nothing to judge.
    pub(crate) fn empty() -> Self {
        Self { score: f64::NAN, mass: f64::NAN, status: Status::Empty, reply: String::new() }
    }
}

/// The number that a token stands for: digits, with white space around them or not, as Python's `int` reads them.
pub(crate) fn number(token: &str) -> Option<u32> {
    let digits = token.trim();
    let all = !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().ok()).flatten().filter(|number| *number <= LARGEST)
}

/// The mean number, by probability, and what probability there is of numbers.
pub(crate) fn expected(numbers: impl IntoIterator<Item = (u32, f64)>, minimum_mass: f64) -> Verdict {
    let (mut mass, mut sum) = (0.0, 0.0);
    for (number, probability) in numbers {
        mass += probability;
        sum += f64::from(number) * probability;
    }
    let reply = String::new();
    if mass < minimum_mass || mass <= 0.0 {
        return Verdict { score: f64::NAN, mass, status: Status::Refusal, reply };
    }
    Verdict { score: sum / mass, mass, status: Status::Scored, reply }
}

/// The first whole number of a text; none where it is above 100, or there is none.
pub(crate) fn first_number(text: &str) -> Option<u32> {
    let start = text.find(|character: char| character.is_ascii_digit())?;
    let rest = &text[start..];
    let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    number(&rest[..end])
}

/// The mean over draws of the numbers that were read in what a judge wrote; none where fewer than the share `minimum` have one.
pub(crate) fn parsed(replies: &[String], minimum: f64) -> Verdict {
    let numbers: Vec<f64> = replies.iter().filter_map(|reply| first_number(reply)).map(f64::from).collect();
    let reply = replies.join("\n");
    let share = numbers.len() as f64 / replies.len().max(1) as f64;
    if numbers.is_empty() || share < minimum {
        return Verdict { score: f64::NAN, mass: f64::NAN, status: Status::Refusal, reply };
    }
    let score = numbers.iter().sum::<f64>() / numbers.len() as f64;
    Verdict { score, mass: f64::NAN, status: Status::Parsed, reply }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[(&str, f64)]) -> Verdict {
        expected(tokens.iter().filter_map(|&(token, probability)| Some((number(token)?, probability))), 0.25)
    }

    #[test]
    fn a_mass_of_a_quarter_is_a_score_and_less_is_none() {
        let judged = of(&[("80", 0.125), ("40", 0.125), ("REFUSAL", 0.75)]);
        assert_eq!(judged, Verdict { score: 60.0, mass: 0.25, ..Verdict::scored(0.0) });
        let judged = of(&[("80", 0.125), ("40", 0.124), ("REFUSAL", 0.751)]);
        assert_eq!((judged.status, judged.mass), (Status::Refusal, 0.249));
        assert!(judged.score.is_nan());
    }

    #[test]
    fn whole_numbers_from_0_to_100_count() {
        // As `int` reads them: "07" is 7. What is beyond 100, negative or no whole number is not there.
        let judged = of(&[("07", 0.25), ("101", 0.25), (" 9", 0.25), ("-1", 0.125), ("8.5", 0.125)]);
        assert_eq!((judged.score, judged.mass, judged.status), (8.0, 0.5, Status::Scored));
        assert_eq!(of(&[("0", 0.5), ("100", 0.5)]).score, 50.0);
        for token in ["", "REFUSAL", "1e1", "٣", "１", "+7", "99999999999999999999"] {
            assert_eq!(number(token), None, "{token}");
        }
        assert!(of(&[("REFUSAL", 1.0)]).score.is_nan() && of(&[]).score.is_nan());
    }

    #[test]
    fn a_text_is_read_for_its_first_number() {
        assert_eq!(first_number("Score: 85/100"), Some(85));
        assert_eq!(first_number("101 and 7"), None);
        assert_eq!(first_number("REFUSAL"), None);
        let judged = parsed(&["80".into(), "a 90.".into(), "no".into(), "70".into(), "".into()], 0.25);
        assert_eq!((judged.score, judged.status), (80.0, Status::Parsed));
        assert_eq!(
            parsed(&["no".into(), "none".into(), "7".into(), "".into(), "x".into()], 0.25).status,
            Status::Refusal
        );
    }
}
