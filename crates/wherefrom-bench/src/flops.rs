//! Floating point operations of a token, from shapes alone. Attention, norms and softmax are left out.

use anyhow::Result;
use wherefrom_curvature::covariance;
use wherefrom_model::{Config, Modules, Outline, Selection};

use crate::random::RANK;
use crate::work::{Subject, Work};

/// Sums over a model's shapes.
pub(crate) struct Shapes {
    /// in · out of every linear map and of the vocabulary head.
    forward: f64,
    /// in · out of the MLP modules.
    products: f64,
    /// in + out of the MLP modules.
    sums: f64,
    /// in² + out², a shared input counted once.
    squares: f64,
}

impl Shapes {
    /// Of a model and the modules that are attributed.
    pub(crate) fn new(config: &Config, modules: &Modules) -> Result<Self> {
        let outline = Outline::new(config);
        let all = outline.modules();
        let selection = Selection::new(modules, all)?;
        let product = |module: &wherefrom_model::Module| (module.in_features * module.out_features) as f64;
        let chosen = selection.modules();
        Ok(Self {
            forward: all.iter().map(product).sum::<f64>() + (config.vocab_size * config.hidden_size) as f64,
            products: chosen.iter().map(product).sum(),
            sums: chosen.iter().map(|module| (module.in_features + module.out_features) as f64).sum(),
            squares: covariance::summed(chosen, 1) as f64,
        })
    }

    /// Operations of a token in that work, by the cheapest way that is known; `length` is tokens of a sequence.
    ///
    /// ```text
    /// forward      2 F           forward and backward   4 F
    /// covariance   4 F + C       half of a symmetric product
    /// lambda       4 F + 2 C + 2 P
    /// scan         4 F + 2 Q r S    or 4 F + 2 P + 2 Q P (1 + r / batch) / length    or, full, 4 F + 2 P + 2 Q P / length
    /// ```
    pub(crate) fn of(&self, subject: Subject, work: Work, length: f64) -> Option<f64> {
        let floor = 4.0 * self.forward;
        Some(match work.precision().0 {
            Work::Forward => floor / 2.0,
            Work::Taps | Work::TapsAlone | Work::Gradients => floor,
            Work::Covariance => floor + self.squares,
            Work::CovariancePasses => 3.0 * floor + self.squares,
            Work::Lambda => floor + 2.0 * (self.squares + self.products),
            Work::LambdaPasses => 3.0 * floor + 2.0 * (self.squares + self.products),
            Work::Scan(queries) => {
                let by_gradients = self.multiplied_out(queries, length, subject.batch_tokens(work));
                self.by_factors(queries).min(by_gradients)
            }
            Work::Flat(_) => self.by_factors(Subject::QUERIES),
            Work::ScanFull => self.by_gradients(Subject::QUERIES, length),
            _ => return None,
        })
    }

    /// Of a scan that multiplies each token with the queries' factors.
    pub(crate) fn by_factors(&self, queries: usize) -> f64 {
        4.0 * self.forward + 2.0 * (queries * RANK) as f64 * self.sums
    }

    /// Of a scan that forms each sequence's gradient and multiplies it with whole queries.
    pub(crate) fn by_gradients(&self, queries: usize, length: f64) -> f64 {
        4.0 * self.forward + 2.0 * self.products + 2.0 * queries as f64 * self.products / length
    }

    /// Of a scan that forms each sequence's gradient, and each query's matrix from its factors once a batch.
    pub(crate) fn multiplied_out(&self, queries: usize, length: f64, batch_tokens: usize) -> f64 {
        let batch = batch_tokens as f64 / length;
        4.0 * self.forward
            + 2.0 * self.products
            + 2.0 * queries as f64 * self.products * (1.0 + RANK as f64 / batch) / length
    }

    /// Bytes of so many queries of rank r.
    pub(crate) fn factors(&self, queries: usize) -> f64 {
        4.0 * (queries * RANK) as f64 * self.sums
    }

    /// Bytes of so many whole queries.
    pub(crate) fn whole(&self, queries: usize) -> f64 {
        4.0 * queries as f64 * self.products
    }
}
