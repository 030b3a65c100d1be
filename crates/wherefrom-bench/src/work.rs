//! What is measured, and what has to be there before.

use wherefrom_artifact::Kind;
use wherefrom_curvature::{covariance, eigenbasis, lambda, precondition};
use wherefrom_model::Precision;

/// A model with its training sequences and queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The model of `just demo` and its corpus.
    Quickstart,
    /// The shape of SmolLM2-135M: random weights, random tokens.
    Smollm2,
}

impl Subject {
    pub(crate) const ALL: [Self; 2] = [Self::Quickstart, Self::Smollm2];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quickstart => "quickstart",
            Self::Smollm2 => "smollm2",
        }
    }

    /// Tokens of a batch. Of SmolLM2 4 sequences, as the other tools are given, but for what they do not do.
    pub(crate) fn batch_tokens(self, work: Work) -> usize {
        match (self, work.precision().0) {
            (Self::Quickstart, _) => 4096,
            (_, Work::Scan(64)) => 3072,
            // What so many queries leave of the memory.
            (_, Work::Scan(256)) => 2048,
            (Self::Smollm2, _) => 4 * Self::LENGTH,
        }
    }

    /// Tokens of a random sequence, and of a random query.
    pub(crate) const LENGTH: usize = 256;
    pub(crate) const QUERY_LENGTH: usize = 64;
    /// Queries that are preconditioned.
    pub(crate) const QUERIES: usize = 8;

    /// Training sequences of most phases.
    pub(crate) fn sequences(self) -> usize {
        match self {
            Self::Quickstart => 1000,
            Self::Smollm2 => 24,
        }
    }

    /// What is measured, in order.
    pub(crate) fn phases(self) -> Vec<Work> {
        let mut phases = vec![
            Work::Forward,
            Work::Taps,
            Work::TapsAlone,
            Work::Covariance,
            Work::CovariancePasses,
            Work::Eigenbasis,
            Work::Lambda,
            Work::LambdaPasses,
            Work::Gradients,
            Work::Precondition,
            Work::PreconditionFull,
            Work::Scan(1),
            Work::Scan(8),
            Work::Scan(64),
            Work::Scan(256),
            Work::ScanFull,
            Work::Details,
        ];
        phases.extend(Rounded::ALL.map(Work::Bf16));
        if self == Self::Quickstart {
            phases.extend([1_000, 10_000, 100_000].map(Work::Flat));
        }
        phases
    }
}

/// What is measured in bfloat16 as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounded {
    Forward,
    Taps,
    Covariance,
    Lambda,
    /// The queries of rank 32.
    Scan,
}

impl Rounded {
    const ALL: [Self; 5] = [Self::Forward, Self::Taps, Self::Covariance, Self::Lambda, Self::Scan];

    /// The same in float32.
    fn wide(self) -> Work {
        match self {
            Self::Forward => Work::Forward,
            Self::Taps => Work::Taps,
            Self::Covariance => Work::Covariance,
            Self::Lambda => Work::Lambda,
            Self::Scan => Work::Scan(Subject::QUERIES),
        }
    }
}

/// A piece of work, most often one that writes an artifact. What follows `Details` is made and not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Logits of every position.
    Forward,
    /// Forward and activation-only backward, MLP modules tapped: the floor of every scan.
    Taps,
    /// The same on one thread.
    TapsAlone,
    Covariance,
    /// A third of the modules in each pass.
    CovariancePasses,
    Eigenbasis,
    Lambda,
    /// A third of the modules in each pass.
    LambdaPasses,
    Gradients,
    /// Rank 32.
    Precondition,
    PreconditionFull,
    /// So many queries of rank 32.
    Scan(usize),
    /// The queries whole.
    ScanFull,
    /// Two candidates a query.
    Details,
    /// The scan of the queries over so many sequences.
    Flat(usize),
    /// In bfloat16, of what was made in float32 before.
    Bf16(Rounded),
    Weights,
    Corpus,
    /// So many training sequences.
    Tokens(usize),
    Queries,
    /// So many random queries of rank 32.
    Random(usize),
    Candidates,
}

impl Work {
    pub(crate) fn name(self) -> String {
        let name = match self {
            Self::Forward => "forward",
            Self::Taps => "forward-backward",
            Self::TapsAlone => "forward-backward-1-thread",
            Self::Covariance => "covariance",
            Self::CovariancePasses => "covariance-3-passes",
            Self::Eigenbasis => "eigenbasis",
            Self::Lambda => "lambda",
            Self::LambdaPasses => "lambda-3-passes",
            Self::Gradients => "gradients",
            Self::Precondition => "precondition",
            Self::PreconditionFull => "precondition-full",
            Self::Scan(queries) => return format!("scan-{queries}"),
            Self::ScanFull => "scan-full",
            Self::Details => "details",
            Self::Flat(sequences) => return format!("flat-{sequences}"),
            Self::Bf16(rounded) => return format!("{}-bf16", rounded.wide().name()),
            Self::Weights => "weights",
            Self::Corpus => "corpus",
            Self::Tokens(sequences) => return format!("tokens-{sequences}"),
            Self::Queries => "queries",
            Self::Random(queries) => return format!("random-{queries}"),
            Self::Candidates => "candidates",
        };
        name.into()
    }

    /// What it does, and in what.
    pub(crate) fn precision(self) -> (Self, Precision) {
        match self {
            Self::Bf16(rounded) => (rounded.wide(), Precision::Bf16),
            wide => (wide, Precision::F32),
        }
    }

    /// The work of that name among a subject's phases and what they need.
    pub(crate) fn parse(name: &str, subject: Subject) -> Option<Self> {
        let mut all = subject.phases();
        let mut next = 0;
        while let Some(work) = all.get(next) {
            all.extend(work.needs(subject));
            next += 1;
        }
        all.into_iter().find(|work| work.name() == name)
    }

    /// Training sequences that are read.
    pub(crate) fn sequences(self, subject: Subject) -> usize {
        match (self.precision().0, subject) {
            (Self::Flat(sequences), _) => sequences,
            (Self::CovariancePasses | Self::LambdaPasses, Subject::Smollm2) => 4,
            (Self::Scan(_) | Self::ScanFull, Subject::Smollm2) => 32,
            (Self::TapsAlone, Subject::Smollm2) => 20,
            _ => subject.sequences(),
        }
    }

    /// What it writes; none where it is a loop of its own over the model.
    pub(crate) fn kind(self) -> Option<Kind> {
        Some(match self.precision().0 {
            Self::Bf16(_) | Self::Forward | Self::Taps | Self::TapsAlone => return None,
            Self::Covariance | Self::CovariancePasses => Kind::Covariances,
            Self::Eigenbasis => Kind::Eigenbasis,
            Self::Lambda | Self::LambdaPasses => Kind::Lambda,
            Self::Gradients => Kind::Gradients,
            Self::Precondition | Self::PreconditionFull | Self::Random(_) => Kind::Preconditioned,
            Self::Scan(_) | Self::ScanFull | Self::Flat(_) => Kind::Scores,
            Self::Details => Kind::Details,
            Self::Weights => Kind::Model,
            Self::Corpus | Self::Tokens(_) | Self::Queries => Kind::Tokens,
            Self::Candidates => Kind::Candidates,
        })
    }

    /// What it reads.
    pub(crate) fn needs(self, subject: Subject) -> Vec<Self> {
        let tokens = Self::Tokens(self.sequences(subject));
        let mut needs = match self {
            Self::Bf16(rounded) => return rounded.wide().needs(subject),
            Self::Forward | Self::Taps | Self::TapsAlone | Self::Covariance | Self::CovariancePasses => vec![tokens],
            Self::Eigenbasis => return vec![Self::Covariance],
            Self::Lambda | Self::LambdaPasses => vec![tokens, Self::Eigenbasis],
            Self::Gradients => vec![Self::Queries],
            Self::Precondition | Self::PreconditionFull => {
                return vec![Self::Gradients, Self::Eigenbasis, Self::Lambda];
            }
            Self::Scan(_) | Self::ScanFull | Self::Flat(_) => vec![tokens, self.scanned()],
            Self::Details => vec![tokens, Self::PreconditionFull, Self::Candidates],
            Self::Tokens(_) | Self::Queries if subject == Subject::Quickstart => return vec![Self::Corpus],
            Self::Weights | Self::Corpus | Self::Candidates | Self::Tokens(_) | Self::Queries => return Vec::new(),
            Self::Random(_) => Vec::new(),
        };
        if subject == Subject::Smollm2 {
            needs.push(Self::Weights);
        }
        needs
    }

    /// The queries that a scan reads.
    pub(crate) fn scanned(self) -> Self {
        match self {
            Self::ScanFull | Self::Details => Self::PreconditionFull,
            Self::Scan(queries) if queries != Subject::QUERIES => Self::Random(queries),
            _ => Self::Precondition,
        }
    }

    /// Version of the stage that does it.
    pub(crate) fn version(self) -> u32 {
        match self.precision().0 {
            Self::Covariance | Self::CovariancePasses => covariance::VERSION,
            Self::Eigenbasis => eigenbasis::VERSION,
            Self::Lambda | Self::LambdaPasses => lambda::VERSION,
            Self::Gradients => wherefrom_gradients::VERSION,
            Self::Precondition | Self::PreconditionFull => precondition::VERSION,
            Self::Scan(_) | Self::ScanFull | Self::Flat(_) | Self::Details => wherefrom_score::VERSION,
            Self::Corpus => wherefrom_tokenize::tokenize::VERSION,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that a process started for a phase finds it, and what it needs.
    #[test]
    fn every_name_is_found_again() {
        for subject in Subject::ALL {
            for work in subject.phases() {
                for work in work.needs(subject).into_iter().chain([work]) {
                    assert_eq!(Work::parse(&work.name(), subject), Some(work));
                }
            }
        }
    }
}
