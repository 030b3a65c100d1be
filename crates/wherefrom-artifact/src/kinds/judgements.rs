//! What a judge makes of every answer, a number for each thing that it judges.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, numbers, strings};
use crate::kinds::definition::{Column, Definition, Once, Values, first, mismatch};
use crate::kinds::{Export, Format, Judgements, Row};
use crate::origin::{Fact, Origin};

pub(super) const DEFINITION: Definition = Definition {
    name: "judgements",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("metric", Values::Utf8),
        Column::new("score", Values::Float32).with_gaps(),
        Column::new("mass", Values::Float32).with_gaps(),
        Column::new("status", Values::Utf8),
        Column::new("reply", Values::Utf8),
    ],
    show: |folder, _| {
        first::<Judgements, Judgement>(folder, |row| {
            let score = if row.score.is_nan() { "none".into() } else { format!("{:.1}", row.score) };
            format!("example {} {} {score} ({})", row.example, row.metric, row.status.name())
        })
    },
    export: Export::None,
    states: &[Fact::Tokens],
    says: |wired| match wired.role {
        "judgements" => wired.stated(&[Fact::Tokens]),
        // A stage that takes several says itself which tokens each is of.
        _ => Origin::new(),
    },
    once: Once::Named(&["example", "metric"]),
    check,
};

/// The judgement of one answer by one metric.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// Row number of the answer.
    pub example: u64,
    /// What was judged: the trait's name, or `coherence`.
    pub metric: String,
    /// 0 to 100; NaN where there is none.
    pub score: f32,
    /// Probability that the judge gave to whole numbers from 0 to 100, in all; NaN where no probabilities were read.
    pub mass: f32,
    /// How the score came about, or why there is none.
    pub status: Status,
    /// The judge's words, where it said any.
    pub reply: String,
}

/// How a score came about, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Computed: from probabilities, likelihoods or a rule.
    Scored,
    /// Read in what the judge wrote.
    Parsed,
    /// The judge gave no number.
    Refusal,
    /// There was no answer to judge.
    Empty,
}

impl Status {
    const ALL: [Self; 4] = [Self::Scored, Self::Parsed, Self::Refusal, Self::Empty];

    /// As in the column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scored => "scored",
            Self::Parsed => "parsed",
            Self::Refusal => "refusal",
            Self::Empty => "empty",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether there is a score with it.
    pub fn has_score(self) -> bool {
        matches!(self, Self::Scored | Self::Parsed)
    }
}

/// Two judgements are equal where they say the same, also that there is no number.
impl PartialEq for Judgement {
    fn eq(&self, other: &Self) -> bool {
        let same = |one: f32, other: f32| one == other || one.is_nan() && other.is_nan();
        (self.example, &self.metric, self.status, &self.reply)
            == (other.example, &other.metric, other.status, &other.reply)
            && same(self.score, other.score)
            && same(self.mass, other.mass)
    }
}

/// A score is there with the statuses that have one, and only there, and is from 0 to 100.
fn check(batch: &RecordBatch) -> Result<()> {
    for Judgement { example, metric, score, status, .. } in Judgement::from_batch(batch)? {
        if status.has_score() == score.is_nan() {
            return mismatch(format!("example {example} is `{}` by {metric} with the score {score}", status.name()));
        }
        if status.has_score() && !(0.0..=100.0).contains(&score) {
            return mismatch(format!(
                "example {example} has the score {score} by {metric}, and scores go from 0 to 100"
            ));
        }
    }
    Ok(())
}

impl Row<Judgements> for Judgement {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("metric", strings(rows.iter().map(|row| &*row.metric))),
            ("score", numbers::<Float32Type>(rows.iter().map(|row| row.score))),
            ("mass", numbers::<Float32Type>(rows.iter().map(|row| row.mass))),
            ("status", strings(rows.iter().map(|row| row.status.name()))),
            ("reply", strings(rows.iter().map(|row| &*row.reply))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.metric.len() + self.reply.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, metric, status) = (columns.u64("example")?, columns.utf8("metric")?, columns.utf8("status")?);
        let (score, mass, reply) = (columns.f32("score")?, columns.f32("mass")?, columns.utf8("reply")?);
        let row = |i| {
            let Some(status) = Status::from_name(status.value(i)) else {
                return mismatch(format!(
                    "example {} has the status {:?}; known are scored, parsed, refusal and empty",
                    example.value(i),
                    status.value(i)
                ));
            };
            Ok(Self {
                example: example.value(i),
                metric: metric.value(i).into(),
                score: score.value(i),
                mass: mass.value(i),
                status,
                reply: reply.value(i).into(),
            })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(
            example: u64, metric in text(), score in 0.0f32..=100.0, mass in 0.0f32..=1.0, status in 0usize..4, reply in text(),
        ) {
            let status = Status::ALL[status];
            let score = if status.has_score() { score } else { f32::NAN };
            let mass = if status == Status::Scored { mass } else { f32::NAN };
            round_trip::<Judgements, _>(&[Judgement { example, metric, score, mass, status, reply }]);
        }
    }

    #[test]
    fn a_score_goes_with_its_status() {
        let row = |score, status| {
            let (metric, reply) = ("evil".into(), String::new());
            check(&Judgement::to_batch(&[Judgement { example: 3, metric, score, mass: 1.0, status, reply }]).unwrap())
        };
        row(100.0, Status::Scored).unwrap();
        row(f32::NAN, Status::Refusal).unwrap();
        for (score, status) in [(f32::NAN, Status::Parsed), (1.0, Status::Empty), (100.5, Status::Scored)] {
            assert!(row(score, status).unwrap_err().to_string().contains("example 3"), "{score} {status:?}");
        }
    }
}
