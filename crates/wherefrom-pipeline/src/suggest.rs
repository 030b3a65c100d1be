//! What to add to a pipeline.

use wherefrom_artifact::Kind;

use crate::plan::Plan;
use crate::step::{Source, Step};

impl Plan {
    /// The lines of a report on the last ranking; none where there is no ranking, or a report.
    pub fn report_lines(&self) -> Option<String> {
        let reports = |step: &Step| step.kind == Kind::Report && self.before(step, "ranking").is_some();
        if self.steps.iter().any(|step| reports(step) || step.name == "report") {
            return None;
        }
        let ranking = self.steps.iter().rev().find(|step| step.kind == Kind::Ranking)?;
        let scores = self.before(ranking, "scores")?;
        let asked = |scores| {
            let queries = self.before(scores, "queries")?;
            self.before(self.before(queries, "gradients").unwrap_or(queries), "tokens")
        };
        let all = match scores.kind {
            Kind::Details => self.before(scores, "candidates").and_then(|top| self.before(top, "scores")),
            _ => Some(scores),
        };
        let (tokens, asked) = (self.before(ranking, "tokens"), asked(scores));
        let of_queries = |step: &&Step| {
            step.kind == Kind::Losses
                && asked.is_some()
                && self.before(step, "tokens").map(|of| &of.name) == asked.map(|of| &of.name)
        };
        let losses = self.steps.iter().find(of_queries);
        // What the queries cost the model is a short pass over them: a step more, where there is none.
        let free = |name: &&str| self.steps.iter().all(|step| step.name != *name);
        let more = if losses.is_none() { ["losses", "query-losses"].into_iter().find(free).zip(asked) } else { None };
        let more_lines = more.map_or_else(String::new, |(name, asked)| {
            format!("[steps.{name}]\nstage = \"losses\"\ninputs = {{ tokens = \"{}\" }}\n\n", asked.name)
        });
        let of_these = |step: &&Step| {
            step.kind == Kind::Columns && self.before(step, "tokens").map(|of| &of.name) == tokens.map(|of| &of.name)
        };
        let wires = [
            ("ranking", Some(ranking)),
            ("tokens", tokens),
            ("details", Some(scores).filter(|scores| scores.kind == Kind::Details)),
            ("queries", asked),
            ("losses", losses),
            ("scores", all.filter(|scores| scores.kind == Kind::Scores)),
            ("columns", self.steps.iter().find(of_these)),
        ];
        let wires = wires.into_iter().filter_map(|(role, step)| Some((role, &step?.name[..])));
        let wires = wires.chain(more.map(|(name, _)| ("losses", name)));
        let wires = wires.map(|(role, name)| format!("{role} = \"{name}\"")).collect::<Vec<_>>().join(", ");
        Some(format!("{more_lines}[steps.report]\nstage = \"report\"\ninputs = {{ {wires} }}"))
    }

    /// The step that a role of another is wired to.
    fn before(&self, step: &Step, role: &str) -> Option<&Step> {
        step.wires.iter().find(|wire| wire.role == role).and_then(|wire| match wire.source {
            Source::Step(before) => Some(&self.steps[before]),
            _ => None,
        })
    }
}
