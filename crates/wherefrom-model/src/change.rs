//! Vectors added to the residual stream, and directions taken out of it, on the way forward: steering.

use anyhow::Result;
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::{round_like, widen};

use crate::batch::Batch;
use crate::decoder::scatter_rows;
use crate::error::bad_input;
use crate::site::Site;

/// At which tokens of a prompt of n tokens and its continuation a vector is added; positions t count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// t >= n - 1: what predicts the continuation, the prompt's last token among it (Chen et al. 2025, arXiv 2507.21509).
    #[default]
    Response,
    /// t >= n: the continuation alone, whose first token is then the unsteered one.
    AfterPrompt,
    /// t < n.
    Prompt,
    /// Every t.
    All,
}

impl At {
    /// Whether the token at `position` is one of them, of a prompt of so many tokens.
    pub fn holds(self, position: usize, prompt: usize) -> bool {
        match self {
            Self::Response => position + 1 >= prompt,
            Self::AfterPrompt => position >= prompt,
            Self::Prompt => position < prompt,
            Self::All => true,
        }
    }
}

/// A vector that is added to the residual stream h at a site.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// Between the first block and the last one's end, before the final norm: from 1 to the number of blocks.
    pub site: usize,
    /// At which tokens.
    pub at: At,
    /// As wide as the stream, already times its coefficient.
    pub vector: Vec<f32>,
}

impl Addition {
    /// The number of a site that can be steered.
    ///
    /// # Errors
    /// [`crate::BadInput`] for the embeddings, for the site after the final norm, and for one that is not there.
    pub fn site(site: Site, blocks: usize) -> Result<usize> {
        match site {
            Site::Stream(number) if (1..=blocks).contains(&number) => Ok(number),
            _ => Err(bad_input(format!(
                "nothing can be added to the residual stream at site {site}; use a number from 1 to {blocks}: site 0 is the \
                 embeddings, and the last is before the final norm, which is not what `hidden_states` of transformers ends in"
            ))),
        }
    }
}

/// What happens to the stream at a site.
#[allow(clippy::large_enum_variant)] // A batch has a few.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Vectors [n, hidden] are added at n of the batch's rows.
    Add { site: usize, rows: Tensor<1, Int>, vectors: Tensor<2> },
    /// A vector [1, hidden] is added at all rows.
    AddToAll { site: usize, vector: Tensor<2> },
    /// h - <h, u> u at all rows, with u [1, hidden] of length 1.
    Ablate { site: usize, unit: Tensor<2> },
}

impl Change {
    fn site(&self) -> usize {
        match self {
            Self::Add { site, .. } | Self::AddToAll { site, .. } | Self::Ablate { site, .. } => *site,
        }
    }
}

impl Batch {
    /// The batch with a vector added at a site, at all tokens.
    #[must_use]
    pub fn adding(mut self, site: usize, vector: &[f32]) -> Self {
        let vector = self.vectors(vector.to_vec(), 1);
        self.changes.push(Change::AddToAll { site, vector });
        self
    }

    /// The batch with a direction taken out of the stream at a site, at all tokens: h - <h, v> v / |v|^2.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a vector of zeros, which has no direction.
    pub fn ablating(mut self, site: usize, vector: &[f32]) -> Result<Self> {
        let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 || !norm.is_finite() {
            return Err(bad_input(format!(
                "a vector of length {norm} has no direction that could be taken out at site {site}"
            )));
        }
        let unit = self.vectors(vector.iter().map(|&x| (f64::from(x) / norm) as f32).collect(), 1);
        self.changes.push(Change::Ablate { site, unit });
        Ok(self)
    }

    /// The batch with each sequence's additions, where its tokens begin at these positions and its prompt has so many tokens.
    #[must_use]
    pub fn steered(mut self, additions: &[&[Addition]], first: &[usize], prompts: &[usize]) -> Self {
        let sites: std::collections::BTreeSet<_> = additions.iter().copied().flatten().map(|one| one.site).collect();
        for site in sites {
            let (mut rows, mut vectors) = (Vec::new(), Vec::new());
            for (sequence, own) in self.tokens.sequences.iter().enumerate() {
                let start = own.start;
                for addition in additions[sequence].iter().filter(|addition| addition.site == site) {
                    let held =
                        own.clone().filter(|row| addition.at.holds(first[sequence] + row - start, prompts[sequence]));
                    for row in held {
                        rows.push(row as i32);
                        vectors.extend_from_slice(&addition.vector);
                    }
                }
            }
            if !rows.is_empty() {
                let vectors = self.vectors(vectors, rows.len());
                let count = rows.len();
                let rows = Tensor::from_data(TensorData::new(rows, [count]), &self.ids.device());
                self.changes.push(Change::Add { site, rows, vectors });
            }
        }
        self
    }

    fn vectors(&self, values: Vec<f32>, count: usize) -> Tensor<2> {
        let width = values.len() / count;
        Tensor::from_data(TensorData::new(values, [count, width]), &self.ids.device())
    }

    /// The stream at a site after what is done to it there.
    pub(crate) fn changed(&self, site: usize, mut x: Tensor<2>) -> Tensor<2> {
        for change in self.changes.iter().filter(|change| change.site() == site) {
            x = match change {
                Change::Add { rows, vectors, .. } => {
                    let vectors = round_like(vectors.clone(), &x);
                    scatter_rows(x, rows.clone(), vectors)
                }
                Change::AddToAll { vector, .. } => {
                    let vector = round_like(vector.clone(), &x);
                    x + vector
                }
                Change::Ablate { unit, .. } => ablate(x, unit),
            };
        }
        x
    }

    /// From the gradient behind what is done at a site to that before it. What is added stays as it is, and taking a direction
    /// out is its own transpose.
    pub(crate) fn changed_backward(&self, site: usize, mut d: Tensor<2>) -> Tensor<2> {
        for change in self.changes.iter().rev().filter(|change| change.site() == site) {
            if let Change::Ablate { unit, .. } = change {
                d = ablate(d, unit);
            }
        }
        d
    }
}

/// x - <x, u> u
fn ablate(x: Tensor<2>, unit: &Tensor<2>) -> Tensor<2> {
    let along = (widen(x.clone()) * unit.clone()).sum_dim(1);
    let part = round_like(along * unit.clone(), &x);
    x - part
}
