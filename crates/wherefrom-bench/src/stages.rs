//! Every piece of work that writes an artifact, done by the stage that does it in a study.

use anyhow::Result;
use wherefrom_artifact::Draft;
use wherefrom_curvature::precondition::Rank;
use wherefrom_curvature::{covariance, eigenbasis, lambda, precondition, self_influence};
use wherefrom_gradients::{losses, project_gradients};
use wherefrom_score::Pairs;
use wherefrom_stage::Exec;
use wherefrom_tokenize::tokenize;

use crate::place::{Place, root};
use crate::random;
use crate::work::{Subject, Work};

/// Fills the draft of the work's artifact.
pub(crate) fn fill(place: &Place, work: Work, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let tokens = || place.open(Work::Tokens(work.sequences(place.subject)));
    let basis = || place.open(place.subject.basis());
    let modules = place.subject.modules();
    let (work, precision) = work.precision();
    match work {
        Work::Covariance | Work::CovariancePasses => {
            let inputs = covariance::Inputs { tokens: tokens()?, model: place.model()?.into() };
            covariance::run(&covariance::Config { modules, precision, ..Default::default() }, &inputs, exec, draft)
        }
        Work::Eigenbasis => {
            let inputs = eigenbasis::Inputs { covariances: place.open(Work::Covariance)? };
            eigenbasis::run(&eigenbasis::Config {}, &inputs, exec, draft)
        }
        Work::Lambda | Work::LambdaPasses => {
            let inputs = lambda::Inputs { tokens: tokens()?, eigenbasis: Some(basis()?), model: place.model()?.into() };
            lambda::run(&lambda::Config { seed: 1, modules, precision, ..Default::default() }, &inputs, exec, draft)
        }
        Work::Gradients => {
            let inputs = wherefrom_gradients::Inputs {
                tokens: place.open(Work::Queries)?,
                vectors: None,
                model: place.model()?.into(),
            };
            let config = wherefrom_gradients::Config { modules, ..Default::default() };
            wherefrom_gradients::run(&config, &inputs, exec, draft)
        }
        Work::Losses => {
            let inputs = losses::Inputs { tokens: tokens()?, model: place.model()?.into() };
            losses::run(&losses::Config::default(), &inputs, exec, draft)
        }
        Work::SelfInfluence => {
            let inputs = self_influence::Inputs {
                tokens: tokens()?,
                model: place.model()?.into(),
                eigenbasis: Some(basis()?),
                lambda: Some(place.open(Work::Lambda)?),
            };
            self_influence::run(&self_influence::Config { modules, ..Default::default() }, &inputs, exec, draft)
        }
        Work::Projected => {
            let inputs = project_gradients::Inputs { tokens: tokens()?, model: place.model()?.into() };
            project_gradients::run(&project_gradients::Config::default(), &inputs, exec, draft)
        }
        Work::Precondition | Work::PreconditionFull => {
            let rank = if work == Work::Precondition { Rank::Low(random::RANK) } else { Rank::Full };
            let config = precondition::Config { rank, ..Default::default() };
            let inputs = precondition::Inputs {
                gradients: place.open(Work::Gradients)?,
                eigenbasis: Some(basis()?),
                lambda: Some(place.open(Work::Lambda)?),
            };
            precondition::run(&config, &inputs, exec, draft)
        }
        Work::Scan(_) | Work::ScanFull | Work::Flat(_) | Work::Details => {
            let detail = work == Work::Details;
            let config = wherefrom_score::Config { detail, precision, ..Default::default() };
            let candidates = if detail { Some(Pairs::Candidates(place.open(Work::Candidates)?)) } else { None };
            let queries = place.open(work.scanned(place.subject))?;
            let inputs =
                wherefrom_score::Inputs { queries, tokens: tokens()?, model: place.model()?.into(), candidates };
            wherefrom_score::run(&config, &inputs, exec, draft)
        }
        Work::Corpus => {
            let inputs = tokenize::Inputs {
                corpus: root().join("data/corpora/quickstart.jsonl"),
                tokenizer: Some(place.model()?.join("tokenizer.json")),
                chat_template: None,
            };
            tokenize::run(&tokenize::Config::new(96), &inputs, exec, draft)
        }
        Work::Weights => match place.subject {
            Subject::Shape(shape) => random::half_weights(shape, draft),
            _ => random::weights(&place.shape(), draft),
        },
        Work::Axes => random::axes(&place.config()?, &modules, draft),
        Work::Tokens(count) => match place.subject {
            Subject::Quickstart => random::repeated(&place.open(Work::Corpus)?, count, draft),
            _ => random::tokens(&place.config()?, 0, count, Subject::LENGTH, draft),
        },
        Work::Queries => match place.subject {
            Subject::Quickstart => random::repeated(&place.open(Work::Corpus)?, Subject::QUERIES, draft),
            _ => random::tokens(&place.config()?, 1, Subject::QUERIES, Subject::QUERY_LENGTH, draft),
        },
        Work::Random(queries) => random::preconditioned(&place.config()?, queries, draft),
        Work::Candidates => random::candidates(Subject::QUERIES, draft),
        Work::Bf16(_) | Work::F16(_) | Work::Forward | Work::Taps | Work::TapsAlone => {
            anyhow::bail!("{} writes no artifact", work.name())
        }
    }
}
