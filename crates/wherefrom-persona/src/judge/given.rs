//! Judgements that are given: JSON lines of `{"example" or "id", "metric", "score"}`, a score null where there is none.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use wherefrom_artifact::{Example, Status, bad_input};

use super::number::Verdict;
use crate::description::COHERENCE;

/// Scores by row, and whether they are of coherence.
pub(crate) struct Given {
    scores: HashMap<(Named, bool), Option<f64>>,
    shown: String,
}

/// What a line calls its row.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Named {
    Example(u64),
    Id(String),
}

/// A line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    example: Option<u64>,
    id: Option<String>,
    metric: String,
    score: Option<f64>,
}

impl Given {
    /// The judgements of the trait and of coherence in a file.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] with file and line.
    pub(crate) fn read(path: &Path, name: &str) -> Result<Self> {
        let shown = path.display().to_string();
        let text = wherefrom_artifact::read_text(path)
            .map_err(|error| bad_input(format!("{shown}: cannot be read ({error}); give JSON lines of judgements")))?;
        let mut scores = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let refuse = |what: String| bad_input(format!("{shown}:{}: {what}", number + 1));
            let line: Line = serde_json::from_str(line).map_err(|error| {
                refuse(format!("is no judgement ({error}); write {{\"example\" or \"id\", \"metric\", \"score\"}}"))
            })?;
            let row = match (line.example, line.id) {
                (Some(example), None) => Named::Example(example),
                (None, Some(id)) => Named::Id(id),
                _ => return Err(refuse("names its row by neither or by both of `example` and `id`; give one".into())),
            };
            let coherence = line.metric == COHERENCE;
            if !coherence && line.metric != name {
                return Err(refuse(format!(
                    "judges `{}`, and the trait is `{name}`; write that, or `{COHERENCE}`",
                    line.metric
                )));
            }
            if line.score.is_some_and(|score| !(0.0..=100.0).contains(&score)) {
                return Err(refuse("has a score that is not from 0 to 100; mend it, or write null".into()));
            }
            if scores.insert((row.clone(), coherence), line.score).is_some() {
                let row = match row {
                    Named::Example(example) => example.to_string(),
                    Named::Id(id) => id,
                };
                return Err(refuse(format!("judges {row} by {} again; keep one", line.metric)));
            }
        }
        Ok(Self { scores, shown })
    }

    /// The judgements of a row.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for one that is not there.
    pub(crate) fn verdicts(&self, row: &Example) -> Result<[Verdict; 2]> {
        let (number, id) = (row.example, row.docs.first().cloned().unwrap_or_default());
        let of = |coherence: bool| -> Result<Verdict> {
            let names = [Named::Example(number), Named::Id(id.clone())];
            let mut found = names.into_iter().filter_map(|name| self.scores.get(&(name, coherence)));
            let refuse = |what: &str, remedy: &str| {
                let metric = if coherence { COHERENCE } else { "the trait" };
                bad_input(format!("{}: row {number} ({id}) is {what} by {metric}; {remedy}", self.shown))
            };
            let score =
                found.next().ok_or_else(|| refuse("not judged", "add it, with a score of null if there is none"))?;
            if found.next().is_some() {
                return Err(refuse("judged twice", "keep the line with its `example` or that with its `id`"));
            }
            Ok(match score {
                Some(score) => Verdict::scored(*score),
                None => Verdict { status: Status::Refusal, ..Verdict::empty() },
            })
        };
        Ok([of(false)?, of(true)?])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prop_assert;
    use wherefrom_artifact::Error;
    use wherefrom_tests::{damage, damaged, hold, memory};

    use super::*;

    fn read(text: &str) -> Result<Given> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given.jsonl");
        std::fs::write(&path, text).unwrap();
        Given::read(&path, "evil")
    }

    #[test]
    fn a_row_is_judged_by_its_number_or_its_name() {
        let given = read(concat!(
            "{\"id\": \"evil/q0/pos/k0/s0\", \"metric\": \"evil\", \"score\": 70.5}\n\n",
            "{\"example\": 4, \"metric\": \"coherence\", \"score\": null}\n"
        ))
        .unwrap();
        let row = Example { example: 4, docs: vec!["evil/q0/pos/k0/s0".into()], ..Example::default() };
        let [own, coherence] = given.verdicts(&row).unwrap();
        assert_eq!((own.score, own.status), (70.5, Status::Scored));
        assert!(coherence.score.is_nan() && coherence.status == Status::Refusal);
        // A name that is a number is no row number.
        let line = |key: &str, score: u32| {
            format!(
                "{{{key}, \"metric\": \"evil\", \"score\": {score}}}\n{{{key}, \"metric\": \"coherence\", \"score\": 9}}\n"
            )
        };
        let named = [1, 2].map(|id| Example { example: id - 1, docs: vec![id.to_string()], ..Example::default() });
        let given_by_name = read(&[line("\"id\": \"1\"", 10), line("\"id\": \"2\"", 20)].concat()).unwrap();
        assert_eq!(named.each_ref().map(|row| given_by_name.verdicts(row).unwrap()[0].score), [10.0, 20.0]);
        let both = read(&[line("\"id\": \"1\"", 10), line("\"example\": 0", 20)].concat()).unwrap();
        assert!(both.verdicts(&named[0]).unwrap_err().to_string().contains("judged twice by the trait"));
        let error = given.verdicts(&Example { example: 5, ..row }).unwrap_err().to_string();
        assert!(error.contains("row 5") && error.contains("coherence"), "{error}");
    }

    #[test]
    fn bad_lines_are_named() {
        let line = "{\"example\": 1, \"metric\": \"evil\", \"score\": 1}\n";
        for (text, what) in [
            ("{\"example\": 1, \"metric\": \"evil\", \"score\": 101}", "from 0 to 100"),
            ("{\"metric\": \"evil\", \"score\": 1}", "neither"),
            ("{\"example\": 1, \"metric\": \"kind\", \"score\": 1}", "`kind`"),
            ("{\"example\": 1", "no judgement"),
            (&format!("{line}{line}"), "again"),
        ] {
            let error = read(text).map(drop).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("given.jsonl:"), "{error}");
        }
    }

    #[test]
    fn fuzz_judgements_of_a_file_are_read_or_refused() {
        let text = concat!(
            "{\"example\": 0, \"metric\": \"evil\", \"score\": 92.5}\n",
            "{\"id\": \"q\\u00e9\", \"metric\": \"coherence\", \"score\": null}\n"
        );
        let folder = memory();
        let path = folder.path().join("judged.jsonl");
        hold(300, damage(), |damage| {
            std::fs::write(&path, damaged(text.into(), &damage)).unwrap();
            if let Err(error) = Given::read(&path, "evil") {
                let named = matches!(error.downcast_ref(), Some(Error::Input(what)) if what.contains("judged.jsonl"));
                prop_assert!(named, "no refusal by name: {error:?}");
            }
            Ok(())
        });
    }
}
