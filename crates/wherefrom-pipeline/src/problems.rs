//! Everything that is wrong with a pipeline, gathered so that one error says it all.

use anyhow::Result;
use wherefrom_artifact::bad_input;

/// Other steps with the same fault, from which on they are counted.
const FEW: usize = 8;

/// Problems found so far, in the order in which they are reported.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    unknown: Vec<Problem>,
    other: Vec<Problem>,
    /// What `--set` has changed: a fault there is the command's.
    pub(crate) sets: Vec<Setting>,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    place: String,
    what: String,
}

/// A `--set` that was applied.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// As it was given.
    pub(crate) text: String,
    /// The step whose knob it sets; none for `[model]`.
    pub(crate) step: Option<String>,
    pub(crate) knob: String,
}

impl Problem {
    /// Of a step.
    pub(crate) fn of_step(name: &str, what: &str) -> Self {
        Self { place: format!("step `{name}`"), what: what.into() }
    }

    /// The step's name, and what follows it: of "step `a`: inputs.b" the two are `a` and ": inputs.b".
    fn step(&self) -> Option<(&str, &str)> {
        self.place.strip_prefix("step `")?.split_once('`')
    }
}

impl Setting {
    fn caused(&self, problem: &Problem) -> bool {
        let knob = format!("`{}", self.knob);
        let names = problem.what.match_indices(&knob).any(|(at, _)| {
            problem.what[at + knob.len()..].starts_with(['`', ' ']) && !problem.what[..at].contains("did you mean")
        });
        let names = names || [" ", ":"].iter().any(|end| problem.what.starts_with(&format!("{}{end}", self.knob)));
        match (&self.step, problem.step()) {
            (Some(own), Some((step, place))) => own == step && (names || place.ends_with(&format!(".{}", self.knob))),
            (Some(_), None) => false,
            (None, _) => names || self.knob == "path" && problem.what.starts_with("`model`"),
        }
    }
}

impl Problems {
    /// No problem yet of what was set so.
    pub(crate) fn of(sets: &[Setting]) -> Self {
        Self { sets: sets.to_vec(), ..Self::default() }
    }

    /// A key, step or stage that does not exist, with the nearest one that does.
    pub(crate) fn unknown(&mut self, place: &str, what: &str, name: &str, known: &[&str]) {
        self.unknown
            .push(Problem { place: place.into(), what: format!("unknown {what} `{name}`{}", hint(name, known)) });
    }

    /// Anything else.
    pub(crate) fn other(&mut self, place: &str, what: &str) {
        self.other.push(Problem { place: place.into(), what: what.into() });
    }

    /// One error of all problems, if there are any: a line for each, however many steps have it.
    pub(crate) fn check(&self, more: &[Problem]) -> Result<()> {
        let mut faults: Vec<(&Problem, Vec<&str>)> = Vec::new();
        let all = || self.unknown.iter().chain(&self.other).chain(more);
        // Where there is no model, nothing lies beside it.
        let no_model = all().any(|problem| problem.what.starts_with("`model`: "));
        for problem in all().filter(|problem| !no_model || !problem.what.contains("none lies beside the model")) {
            let alike = |other: &Problem| match (problem.step(), other.step()) {
                (Some((_, place)), Some((_, its))) => place == its && problem.what == other.what,
                _ => problem == other,
            };
            let step = problem.step().map(|(name, _)| name);
            match faults.iter_mut().find(|(first, _)| alike(first)) {
                None => faults.push((problem, Vec::new())),
                Some((first, others)) => others.extend(
                    step.filter(|name| first.step().map(|(own, _)| own) != Some(name) && !others.contains(name)),
                ),
            }
        }
        let line = |(problem, others): &(&Problem, Vec<&str>)| match (problem.step(), others.len()) {
            // Of a few steps their names come first, of many what is wrong with all of them.
            (Some((name, place)), FEW..) => {
                let named = [&[name], &others[..2]].concat().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
                let place = place.trim_start_matches(": ");
                let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
                format!("{place}{} ({} steps: {}, ...)", problem.what, others.len() + 1, named.join(", "))
            }
            _ => {
                let others: Vec<_> = others.iter().map(|name| format!("`{name}`")).collect();
                let others = if others.is_empty() { String::new() } else { format!(" (and {})", others.join(", ")) };
                format!("{}{others}: {}", problem.place, problem.what)
            }
        };
        let line = |fault: &(&Problem, Vec<&str>)| match self.sets.iter().find(|set| set.caused(fault.0)) {
            Some(set) => format!("--set {}: {}", set.text, line(fault)),
            None => line(fault),
        };
        let lines: Vec<String> = faults.iter().map(line).collect();
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
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
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
    fn one_fault_of_several_steps_is_one_line() {
        let mut problems = Problems::default();
        for step in ["a", "b", "c", "b"] {
            problems.other(&format!("step `{step}`"), "`model`: no such model");
        }
        problems.other("step `a`: inputs.x", "no step `y`");
        problems.other("step `c`: inputs.x", "no step `y`");
        let text = problems.check(&[Problem::of_step("d", "`model`: no such model")]).unwrap_err().to_string();
        let lines =
            ["step `a` (and `b`, `c`, `d`): `model`: no such model", "step `a`: inputs.x (and `c`): no step `y`"];
        assert_eq!(text, lines.join("\n"));
    }

    #[test]
    fn the_fault_of_many_steps_comes_before_them() {
        let mut problems = Problems::default();
        for step in 0..36 {
            problems.other(&format!("step `s{step}`"), "`model`: no such model");
            problems.other(&format!("step `s{step}`: inputs.x"), "no step `y`");
        }
        let text = problems.check(&[]).unwrap_err().to_string();
        let lines = [
            "`model`: no such model (36 steps: `s0`, `s1`, `s2`, ...)",
            "inputs.x: no step `y` (36 steps: `s0`, `s1`, `s2`, ...)",
        ];
        assert_eq!(text, lines.join("\n"));
    }

    #[test]
    fn what_a_setting_brought_about_is_blamed_on_it() {
        let set = |step: Option<&str>, knob: &str| Setting {
            text: "x".into(),
            step: step.map(String::from),
            knob: knob.into(),
        };
        let problem = |place: &str, what: &str| Problem { place: place.into(), what: what.into() };
        let damping = set(Some("ihvp"), "damping");
        assert!(damping.caused(&problem("step `ihvp`", "`damping = 3`: out of range")));
        assert!(damping.caused(&problem("step `ihvp`", "damping = 3 is out of range")));
        assert!(damping.caused(&problem("step `ihvp`", "unknown key `damping`; did you mean `lamping`?")));
        assert!(!damping.caused(&problem("step `ihvp`", "unknown key `lamping`; did you mean `damping`?")));
        assert!(!damping.caused(&problem("step `other`", "`damping = 3`: out of range")));
        assert!(!damping.caused(&problem("step `ihvp`", "`damping-more = 3`: out of range")));
        assert!(set(None, "path").caused(&problem("step `a`", "`model`: no such folder")));
        assert!(set(Some("a"), "tokens").caused(&problem("step `a`: inputs.tokens", "no step `y`")));
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
