//! Preconditioned queries on the device, one layout per module.

use anyhow::{Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use whence_artifact::{Artifact, Error, Factors, Preconditioned};
use whence_linalg::kernels::{paired_sums, product};
use whence_model::{Module, Modules, Selection};

/// Every query's matrix for one module.
pub(crate) enum ModuleQueries {
    /// P_q = L_q R_q^T.
    Low(Box<LowRank>),
    /// P_q whole: [Q, out * in].
    Full(Box<Tensor<2>>),
}

/// Factors side by side, smaller ranks filled with zeros.
pub(crate) struct LowRank {
    /// [out, Q r].
    left: Tensor<2>,
    /// [in, Q r].
    right: Tensor<2>,
    /// r.
    rank: usize,
}

/// All queries, by module of the selection.
pub(crate) struct Queries {
    pub(crate) count: usize,
    pub(crate) selection: Selection,
    pub(crate) modules: Vec<ModuleQueries>,
    /// `method` of the parts' metadata.
    pub(crate) method: String,
}

impl Queries {
    /// Loads every query; the modules are those the artifact holds.
    pub(crate) fn load(artifact: &Artifact<Preconditioned>, modules: &[Module], device: &Device) -> Result<Self> {
        let Some(method) = artifact.metadata("method")? else {
            bail!(Error::Mismatch("the queries have no metadata whence.method: write it as FORMAT.md says".into()));
        };
        let rows = artifact.rows::<Factors>()?.collect::<Result<Vec<_>>>()?;
        let mut names: Vec<_> = rows.iter().map(|row| escape(&row.module)).collect();
        names.sort_unstable();
        names.dedup();
        let selection = Selection::new(&Modules::Globs(names), modules)?;
        let count = rows.iter().map(|row| row.row as usize + 1).max().unwrap_or(0);
        let modules =
            selection.modules().iter().map(|module| gather(module, &rows, count, device)).collect::<Result<_>>()?;
        Ok(Self { count, selection, modules, method })
    }
}

/// Module names have no glob characters, but a stranger's might.
fn escape(name: &str) -> String {
    name.chars().flat_map(|c| if "*?[]{}".contains(c) { vec!['[', c, ']'] } else { vec![c] }).collect()
}

fn gather(module: &Module, rows: &[Factors], count: usize, device: &Device) -> Result<ModuleQueries> {
    let (out_features, in_features) = (module.out_features, module.in_features);
    let mut own: Vec<_> = rows.iter().filter(|row| row.module == module.name).collect();
    own.sort_by_key(|row| row.row);
    let full = own.iter().filter(|row| row.rank == 0).count();
    if own.len() != count || (full != 0 && full != count) {
        bail!(Error::Mismatch(format!(
            "module {} has {} of {count} queries, {full} of them whole: precondition them in one step",
            module.name,
            own.len()
        )));
    }
    let mismatch = || {
        Error::Mismatch(format!(
            "the queries of module {} do not have its shape: they come from another model",
            module.name
        ))
    };
    if full == count {
        let size = out_features * in_features;
        let mut values = Vec::with_capacity(count * size);
        for row in own {
            if row.left_shape != [out_features, in_features] {
                bail!(mismatch());
            }
            values.extend_from_slice(&row.left);
        }
        return Ok(ModuleQueries::Full(Box::new(Tensor::from_data(TensorData::new(values, [count, size]), device))));
    }
    let rank = own.iter().map(|row| row.rank).max().unwrap_or(0);
    let width = count * rank;
    let (mut left, mut right) = (vec![0.0; out_features * width], vec![0.0; in_features * width]);
    for (q, row) in own.iter().enumerate() {
        if row.left_shape != [out_features, row.rank] || row.right_shape != [in_features, row.rank] {
            bail!(mismatch());
        }
        for (into, from, n) in [(&mut left, &row.left, out_features), (&mut right, &row.right, in_features)] {
            for i in 0..n {
                let place = i * width + q * rank;
                into[place..place + row.rank].copy_from_slice(&from[i * row.rank..(i + 1) * row.rank]);
            }
        }
    }
    Ok(ModuleQueries::Low(Box::new(LowRank {
        left: Tensor::from_data(TensorData::new(left, [out_features, width]), device),
        right: Tensor::from_data(TensorData::new(right, [in_features, width]), device),
        rank,
    })))
}

/// <P_q, G_z> of every query and sequence, from tokens: a [batch * tokens, in], d [batch * tokens, out] -> [batch, Q].
///
/// Low rank: <L R^T, sum_t d_t a_t^T> = sum_t (L^T d_t) . (R^T a_t). Full: G_z is formed and multiplied.
pub(crate) fn scan(
    queries: &ModuleQueries,
    count: usize,
    a: Tensor<2>,
    d: Tensor<2>,
    batch: usize,
    tokens: usize,
) -> Tensor<2> {
    match queries {
        ModuleQueries::Low(low) => {
            paired_sums(product(d, low.left.clone()), product(a, low.right.clone()), batch, count)
        }
        ModuleQueries::Full(matrices) => {
            let ([_, in_features], [_, out_features]) = (a.dims(), d.dims());
            let d = d.reshape([batch, tokens, out_features]).swap_dims(1, 2);
            let gradients = d.matmul(a.reshape([batch, tokens, in_features]));
            product(gradients.reshape([batch, out_features * in_features]), (**matrices).clone().transpose())
        }
    }
}

/// d_t^T P_q a_t of every token, for one query: `[rows, in]`, `[rows, out]` -> `[rows]`.
pub(crate) fn by_token(queries: &ModuleQueries, query: usize, a: Tensor<2>, d: Tensor<2>) -> Tensor<1> {
    let ([rows, in_features], [_, out_features]) = (a.dims(), d.dims());
    let products = match queries {
        ModuleQueries::Low(low) => {
            let columns = |x: &Tensor<2>| x.clone().narrow(1, query * low.rank, low.rank);
            product(d, columns(&low.left)) * product(a, columns(&low.right))
        }
        ModuleQueries::Full(matrices) => {
            let matrix = (**matrices).clone().narrow(0, query, 1).reshape([out_features, in_features]);
            product(d, matrix) * a
        }
    };
    products.sum_dim(1).reshape([rows])
}
