//! What a module's gradient is multiplied with: (Lambda + damping)^-1, and the basis in which that is done.

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor};
use wherefrom_artifact::{Artifact, Basis, Eigenbasis, Error, Lambda, LambdaSum, Reporter, Side};

use crate::method::{Damping, Method};
use crate::tensors::{Rotation, rotation, tensor};

/// The fit that a method makes use of.
#[derive(Clone, Copy)]
pub(crate) struct Curvature<'a> {
    method: Method,
    damping: Damping,
    eigenbasis: Option<&'a Artifact<Eigenbasis>>,
    lambda: Option<&'a Artifact<Lambda>>,
}

/// One module's curvature, ready to multiply with.
pub(crate) struct Inverse {
    pub(crate) rotation: Option<Rotation>,
    /// 1 / (Lambda + damping) [out, in]; none for the identity. Zero where all of Lambda is: the module adds nothing.
    pub(crate) reciprocal: Option<Tensor<2>>,
    /// What is added to Lambda; none where there is none, or it is all zero.
    pub(crate) damping: Option<f64>,
}

impl Inverse {
    /// P(V) = Q_S [(Q_S^T V Q_A) / (Lambda + damping)] Q_A^T of a whole matrix [out, in].
    pub(crate) fn apply(&self, mut whole: Tensor<2>) -> Tensor<2> {
        if let Some(basis) = &self.rotation {
            whole = basis.activation.rows_into(basis.gradient.columns_into(whole));
        }
        if let Some(reciprocal) = &self.reciprocal {
            whole = whole * reciprocal.clone();
        }
        match &self.rotation {
            Some(basis) => basis.activation.rows_back(basis.gradient.columns_back(whole)),
            None => whole,
        }
    }
}

impl<'a> Curvature<'a> {
    /// What the method does not need is left aside.
    pub(crate) fn new(
        method: Method,
        damping: Damping,
        eigenbasis: Option<&'a Artifact<Eigenbasis>>,
        lambda: Option<&'a Artifact<Lambda>>,
    ) -> Result<Self> {
        let (eigenbasis, lambda) =
            (eigenbasis.filter(|_| method.uses_eigenbasis()), lambda.filter(|_| method.uses_lambda()));
        for (role, missing) in [
            ("eigenbasis", method.uses_eigenbasis() && eigenbasis.is_none()),
            ("lambda", method.uses_lambda() && lambda.is_none()),
        ] {
            if missing {
                let what = format!("method {} needs an input `{role}`: wire it to a step", method.name());
                return Err(Error::Input(what).into());
            }
        }
        Ok(Self { method, damping, eigenbasis, lambda })
    }

    /// The curvature of one module [out, in]; nothing else is read.
    pub(crate) fn of(
        &self,
        module: &str,
        shape: [usize; 2],
        device: &Device,
        reporter: &dyn Reporter,
    ) -> Result<Inverse> {
        let rotation = || self.eigenbasis.map(|basis| rotation(basis, module, shape, device)).transpose();
        let lambda = || match (self.method, self.lambda, self.eigenbasis) {
            (Method::Kfac, _, Some(eigenbasis)) => kronecker(eigenbasis, module).map(Some),
            (Method::Adam, Some(lambda), _) => {
                fitted(lambda, module).map(|squares| Some(squares.into_iter().map(f64::sqrt).collect()))
            }
            (_, Some(lambda), _) => fitted(lambda, module).map(Some),
            _ => Ok(None),
        };
        let (rotation, lambda) = rayon::join(rotation, lambda);
        let (rotation, Some(lambda)) = (rotation?, lambda?) else {
            return Ok(Inverse { rotation: None, reciprocal: None, damping: None });
        };
        let [rows, columns] = shape;
        if lambda.len() != rows * columns {
            return Err(Error::Mismatch(format!(
                "lambda has no [{rows}, {columns}] for module {module}: fit it with the same `modules`"
            ))
            .into());
        }
        let mean = lambda.iter().sum::<f64>() / lambda.len() as f64;
        if lambda.iter().all(|&value| value == 0.0) {
            reporter.warn(&format!("lambda of {module} is all zero: the module contributes nothing"));
            return Ok(Inverse { rotation, reciprocal: Some(Tensor::zeros(shape, device)), damping: None });
        }
        let damping = match self.damping {
            Damping::Relative(share) => share * mean,
            Damping::Absolute(value) => value,
        };
        self.check_damping(module, &lambda, damping, mean, reporter)?;
        // The reciprocal is taken in float64.
        let reciprocal: Vec<f32> = lambda.iter().map(|&value| (1.0 / (value + damping)) as f32).collect();
        if reciprocal.iter().any(|value| !value.is_finite()) {
            return Err(Error::Input(format!(
                "Lambda + damping of {module} reaches zero: raise `damping` (the default is {{ relative = 0.1 }})"
            ))
            .into());
        }
        Ok(Inverse { rotation, reciprocal: Some(tensor(reciprocal, shape, device)), damping: Some(damping) })
    }
}

impl Curvature<'_> {
    /// Float32 leaves something of an element of Lambda that is zero, and its reciprocal is as large as that is small: without
    /// a damping above it, what is divided by it is rounding. Without any, that is refused.
    fn check_damping(
        &self,
        module: &str,
        lambda: &[f64],
        damping: f64,
        mean: f64,
        reporter: &dyn Reporter,
    ) -> Result<()> {
        let rounding = f64::from(f32::EPSILON);
        // Lambda is squares of sums that have a gradient's norm, squared the sum of all of Lambda, for scale; eigenvalues
        // of a covariance have the largest for theirs.
        let floor = match self.method {
            Method::Kfac => rounding * lambda.iter().fold(0.0, |largest: f64, value| largest.max(*value)),
            Method::Adam => rounding * lambda.iter().map(|value| value * value).sum::<f64>().sqrt(),
            _ => rounding.powi(2) * lambda.iter().sum::<f64>(),
        };
        let below = lambda.iter().filter(|&&value| value + damping < floor).count();
        if below == 0 {
            return Ok(());
        }
        let enough = format!("{:.0e}", 100.0 * floor / mean);
        let what = format!(
            "damping {damping:.0e} of {module} is below what float32 leaves of a zero of Lambda ({floor:.0e}), and {below} of \
             {} elements are such zeros: what is divided by them is rounding; set damping to {{ relative = {enough} }} or more \
             (0.1 is usual)",
            lambda.len()
        );
        if damping == 0.0 {
            return Err(Error::Input(what).into());
        }
        reporter.warn(&what);
        Ok(())
    }
}

/// E_z[...] of a module: the sum over its count.
fn fitted(lambda: &Artifact<Lambda>, module: &str) -> Result<Vec<f64>> {
    let Some(row) = lambda.module::<LambdaSum>(module)?.pop() else { return Ok(Vec::new()) };
    let scale = 1.0 / row.count.max(1) as f64;
    Ok(row.lambda.iter().map(|&value| f64::from(value) * scale).collect())
}

/// Lambda = (tokens / examples) l_S l_A^T: the factors are means per token, of an expert its own, Lambda is per sequence. Of Shampoo's, which are
/// means per sequence of gradients squared, l_S l_A^T / tr(S) (Morwani et al. 2024, arXiv 2406.17748).
fn kronecker(eigenbasis: &Artifact<Eigenbasis>, module: &str) -> Result<Vec<f64>> {
    // Of several blocks, one after the other.
    let mut sides = [Vec::new(), Vec::new()];
    let shampoo = eigenbasis.manifest().summary.contains_key("factors");
    for row in eigenbasis.module::<Basis>(module)? {
        if row.is_standard() && !shampoo {
            return Err(Error::Input(format!(
                "method kfac has no product of means over tokens for {module}, which is no linear map of the blocks; use \"ekfac\" \
                 or \"diagonal\", or factors = \"shampoo\" of the covariances"
            ))
            .into());
        }
        let positive = row.values.iter().map(|&value| f64::from(value).max(0.0));
        sides[usize::from(row.side == Side::Activation)].extend(positive);
    }
    let [s, a] = &sides;
    let count = |name: &str| {
        eigenbasis.manifest().count(name).with_context(|| format!("the eigenbasis' manifest has no summary `{name}`"))
    };
    let scale = match shampoo {
        true => s.iter().sum::<f64>().max(f64::MIN_POSITIVE).recip(),
        false => {
            let own = module
                .rsplit_once('.')
                .and_then(|(expert, _)| eigenbasis.manifest().summary.get("expert_tokens")?.get(expert));
            let tokens = own.and_then(serde_json::Value::as_u64).map_or_else(|| count("tokens"), Ok)?;
            tokens as f64 / count("examples")?.max(1) as f64
        }
    };
    Ok(s.iter().flat_map(|s| a.iter().map(move |a| scale * s * a)).collect())
}
