//! What is measured, and what has to be there before.

use wherefrom_artifact::Kind;
use wherefrom_curvature::{covariance, eigenbasis, lambda, precondition, self_influence};
use wherefrom_gradients::{losses, project_gradients};
use wherefrom_model::{Modules, Precision};

use crate::shape::{SHAPES, Shape};

/// A model with its training sequences and queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The model of `just demo` and its corpus.
    Quickstart,
    /// The shape of SmolLM2-135M: random weights, random tokens.
    Smollm2,
    /// A shape that a card is measured with: random weights in float16, random tokens.
    Shape(&'static Shape),
}

impl Subject {
    /// What `just bench` measures.
    pub(crate) const ALL: [Self; 2] = [Self::Quickstart, Self::Smollm2];

    /// The subject of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(SHAPES.iter().map(Self::Shape)).find(|subject| subject.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quickstart => "quickstart",
            Self::Smollm2 => "smollm2",
            Self::Shape(shape) => shape.name,
        }
    }

    /// The modules that curvature and gradients are of: all MLPs, of a large shape those of the first block. The backward pass
    /// is whole either way.
    pub(crate) fn modules(self) -> Modules {
        match self {
            Self::Shape(shape) if !shape.is_small() => Modules::Globs(vec!["model.layers.0.mlp.*".into()]),
            _ => Modules::default(),
        }
    }

    /// Tokens of a batch. Of SmolLM2 4 sequences, as the other tools are given, but for what they do not do.
    pub(crate) fn batch_tokens(self, work: Work) -> usize {
        match (self, work.precision().0) {
            (Self::Quickstart, _) => 4096,
            (Self::Shape(shape), _) => shape.batch_tokens,
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
            Self::Shape(shape) => shape.sequences,
        }
    }

    /// The eigenvectors that Lambda is summed in.
    pub(crate) fn basis(self) -> Work {
        if matches!(self, Self::Shape(_)) { Work::Axes } else { Work::Eigenbasis }
    }

    /// What is measured, in order.
    pub(crate) fn phases(self) -> Vec<Work> {
        if let Self::Shape(shape) = self {
            return Self::on_a_card(shape);
        }
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

    /// What is measured on a card: what matters most comes first, for time may run out.
    fn on_a_card(shape: &Shape) -> Vec<Work> {
        let scan = Work::Scan(Self::QUERIES);
        let mut phases = vec![Work::Forward, Work::Taps, scan, Work::Covariance, Work::Lambda];
        phases.extend(Rounded::ALL.map(Work::F16));
        phases.extend([Work::Gradients, Work::Losses, Work::SelfInfluence, Work::Details]);
        if shape.is_small() {
            phases.extend([Work::Precondition, Work::Projected, Work::Scan(64)]);
        }
        phases
    }
}

/// What is measured in bfloat16, or on a card in float16, as well.
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
    Losses,
    SelfInfluence,
    /// Gradients of the training sequences, projected at random.
    Projected,
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
    /// The same in float16.
    F16(Rounded),
    Weights,
    /// Eigenvectors that are the axes: time does not depend on values.
    Axes,
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
            Self::Losses => "losses",
            Self::SelfInfluence => "self-influence",
            Self::Projected => "project-gradients",
            Self::Precondition => "precondition",
            Self::PreconditionFull => "precondition-full",
            Self::Scan(queries) => return format!("scan-{queries}"),
            Self::ScanFull => "scan-full",
            Self::Details => "details",
            Self::Flat(sequences) => return format!("flat-{sequences}"),
            Self::Bf16(rounded) => return format!("{}-bf16", rounded.wide().name()),
            Self::F16(rounded) => return format!("{}-f16", rounded.wide().name()),
            Self::Weights => "weights",
            Self::Axes => "axes",
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
            Self::F16(rounded) => (rounded.wide(), Precision::F16),
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
            Self::Bf16(_) | Self::F16(_) | Self::Forward | Self::Taps | Self::TapsAlone => return None,
            Self::Covariance | Self::CovariancePasses => Kind::Covariances,
            Self::Eigenbasis | Self::Axes => Kind::Eigenbasis,
            Self::Lambda | Self::LambdaPasses => Kind::Lambda,
            Self::Gradients => Kind::Gradients,
            Self::Losses => Kind::Losses,
            Self::SelfInfluence => Kind::SelfInfluence,
            Self::Projected => Kind::ProjectedGradients,
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
        let basis = subject.basis();
        let mut needs = match self {
            Self::Bf16(rounded) | Self::F16(rounded) => return rounded.wide().needs(subject),
            Self::Forward | Self::Taps | Self::TapsAlone | Self::Covariance | Self::CovariancePasses => vec![tokens],
            Self::Losses | Self::Projected => vec![tokens],
            Self::Eigenbasis => return vec![Self::Covariance],
            Self::Lambda | Self::LambdaPasses => vec![tokens, basis],
            Self::SelfInfluence => vec![tokens, basis, Self::Lambda],
            Self::Gradients => vec![Self::Queries],
            Self::Precondition | Self::PreconditionFull => return vec![Self::Gradients, basis, Self::Lambda],
            Self::Scan(_) | Self::ScanFull | Self::Flat(_) => vec![tokens, self.scanned(subject)],
            Self::Details => vec![tokens, self.scanned(subject), Self::Candidates],
            Self::Tokens(_) | Self::Queries if subject == Subject::Quickstart => return vec![Self::Corpus],
            Self::Weights | Self::Corpus | Self::Candidates | Self::Tokens(_) | Self::Queries => return Vec::new(),
            Self::Axes => Vec::new(),
            Self::Random(_) => Vec::new(),
        };
        if subject != Subject::Quickstart {
            needs.push(Self::Weights);
        }
        needs
    }

    /// The queries that a scan reads.
    pub(crate) fn scanned(self, subject: Subject) -> Self {
        match self {
            Self::Scan(queries) if matches!(subject, Subject::Shape(_)) => Self::Random(queries),
            Self::Details if matches!(subject, Subject::Shape(_)) => Self::Random(Subject::QUERIES),
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
            Self::Losses => losses::VERSION,
            Self::SelfInfluence => self_influence::VERSION,
            Self::Projected => project_gradients::VERSION,
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
        for subject in Subject::ALL.into_iter().chain(SHAPES.iter().map(Subject::Shape)) {
            assert_eq!(Subject::named(subject.name()), Some(subject));
            for work in subject.phases() {
                for work in work.needs(subject).into_iter().chain([work]) {
                    assert_eq!(Work::parse(&work.name(), subject), Some(work));
                }
            }
        }
    }
}
