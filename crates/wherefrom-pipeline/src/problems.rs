//! Everything that is wrong with a pipeline, gathered so that one error says it all.

use anyhow::Result;
use wherefrom_artifact::bad_input;

/// Problems found so far, in the order in which they are reported.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    unknown: Vec<String>,
    other: Vec<String>,
}

impl Problems {
    /// A key, step or stage that does not exist, with the nearest one that does.
    pub(crate) fn unknown(&mut self, place: &str, what: &str, name: &str, known: &[&str]) {
        self.unknown.push(format!("{place}: unknown {what} `{name}`{}", hint(name, known)));
    }

    /// Anything else.
    pub(crate) fn other(&mut self, place: &str, what: &str) {
        self.other.push(format!("{place}: {what}"));
    }

    /// One error of all problems, if there are any.
    pub(crate) fn check(&self, more: &[String]) -> Result<()> {
        let mut lines: Vec<&str> = Vec::new();
        for line in self.unknown.iter().chain(&self.other).chain(more) {
            if !lines.contains(&line.as_str()) {
                lines.push(line);
            }
        }
        if lines.is_empty() { Ok(()) } else { Err(bad_input(lines.join("\n"))) }
    }
}

/// `; did you mean ...?`, or what there is to choose from.
pub(crate) fn hint(name: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return "; there are none here".into();
    }
    match nearest(name, known) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; known are {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// The known name most like `name`, if any is alike.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |other: &str| {
        let begins = !name.is_empty() && (other.starts_with(name) || name.starts_with(other));
        // Two letters that changed places count once: `tpo`.
        let slipped = 3 * strsim::osa_distance(name, other) <= name.len();
        strsim::jaro_winkler(name, other) + if begins || slipped { 0.2 } else { 0.0 }
    };
    let best = known.iter().max_by(|left, right| likeness(left).total_cmp(&likeness(right)))?;
    (likeness(best) > 0.75).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_offered() {
        assert_eq!(nearest("covariances", &["tokenize", "covariance", "rank"]), Some("covariance"));
        assert_eq!(nearest("max_tokens", &["max-tokens", "column"]), Some("max-tokens"));
        assert_eq!(nearest("zzz", &["max-tokens", "column"]), None);
    }

    #[test]
    fn unknown_keys_come_first() {
        let mut problems = Problems::default();
        problems.other("step `a`", "no stage");
        problems.unknown("step `b`", "key", "tpo", &["top"]);
        let text = problems.check(&[]).unwrap_err().to_string();
        assert_eq!(text, "step `b`: unknown key `tpo`; did you mean `top`?\nstep `a`: no stage");
    }
}
