//! Preconditioned queries on the device, one layout per module.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use anyhow::{Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use wherefrom_artifact::{Artifact, Error, Factors, Preconditioned};
use wherefrom_linalg::kernels::{self, Ragged, example_products, product, widen};
use wherefrom_model::{Module, Modules, Selection};

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
    /// [Q r, in].
    right: Tensor<2>,
    /// r.
    rank: usize,
}

/// What there is of queries, before their matrices are loaded.
pub(crate) struct Survey {
    /// Number of queries.
    pub(crate) count: usize,
    pub(crate) selection: Selection,
    /// `method` of the parts' metadata.
    pub(crate) method: String,
    /// By module: the rank of its widest query, or none where they are whole.
    ranks: Vec<Option<usize>>,
}

/// Some of the queries on a device, by module of the selection.
pub(crate) struct Queries {
    /// Their numbers.
    pub(crate) numbers: Range<usize>,
    pub(crate) modules: Vec<ModuleQueries>,
}

/// Floats of one query's matrices, or its factors.
fn floats(module: &Module, rank: Option<usize>) -> usize {
    match rank {
        Some(rank) => rank * (module.in_features + module.out_features),
        None => module.in_features * module.out_features,
    }
}

impl Survey {
    /// Looks through every query; the modules are those the artifact holds.
    pub(crate) fn new(artifact: &Artifact<Preconditioned>, modules: &[Module]) -> Result<Self> {
        let Some(method) = artifact.metadata("method")? else {
            bail!(Error::Mismatch("the queries have no metadata wherefrom.method: write it as FORMAT.md says".into()));
        };
        // Per module: how many queries, how many of them whole, largest rank.
        let mut found: BTreeMap<String, (usize, usize, usize)> = BTreeMap::new();
        let (mut count, mut seen) = (0, HashSet::new());
        for row in artifact.rows::<Factors>()? {
            let row = row?;
            if !seen.insert((row.module.clone(), row.row)) {
                bail!(Error::Mismatch(format!("query {} of module {} is there twice", row.row, row.module)));
            }
            count = count.max(row.row as usize + 1);
            let (rows, whole, rank) = found.entry(row.module).or_default();
            *rows += 1;
            *whole += usize::from(row.rank == 0);
            *rank = row.rank.max(*rank);
        }
        let names: Vec<_> = found.keys().map(|name| escape(name)).collect();
        let selection = Selection::new(&Modules::Globs(names), modules)?;
        let rank = |module: &Module| {
            let (rows, whole, rank) = found[&module.name];
            // A query that routes nothing to an expert has no row for it.
            if (rows != count && module.routed.is_none()) || (whole != 0 && whole != rows) {
                bail!(Error::Mismatch(format!(
                    "module {} has {rows} of {count} queries, {whole} of them whole: precondition them in one step",
                    module.name
                )));
            }
            Ok((whole == 0).then_some(rank))
        };
        let ranks = selection.modules().iter().map(rank).collect::<Result<_>>()?;
        Ok(Self { count, selection, method, ranks })
    }

    /// Whether queries are whole matrices.
    pub(crate) fn whole(&self) -> bool {
        self.ranks.iter().any(Option::is_none)
    }

    /// Bytes of so many queries.
    pub(crate) fn bytes(&self, queries: usize) -> usize {
        let each: usize = self.selection.modules().iter().zip(&self.ranks).map(|(m, &rank)| 4 * floats(m, rank)).sum();
        queries * each
    }

    /// Consecutive queries of these, as many at a time as have their matrices in `bytes`, at least one.
    pub(crate) fn groups(&self, queries: Range<usize>, bytes: usize) -> Vec<Range<usize>> {
        let size = (bytes / self.bytes(1).max(1)).max(1);
        queries.clone().step_by(size).map(|start| start..(start + size).min(queries.end)).collect()
    }

    /// Loads some of the queries, one row in memory at a time beside what is kept.
    pub(crate) fn load(
        &self,
        artifact: &Artifact<Preconditioned>,
        numbers: Range<usize>,
        device: &Device,
    ) -> Result<Queries> {
        let modules = self.selection.modules();
        let count = numbers.len();
        let mut places: Vec<_> = modules.iter().zip(&self.ranks).map(|(m, &rank)| Place::new(m, rank, count)).collect();
        let by_name: HashMap<&str, usize> = modules.iter().enumerate().map(|(i, m)| (&m.name[..], i)).collect();
        for row in artifact.rows::<Factors>()? {
            let row = row?;
            if let (Some(&index), true) = (by_name.get(&row.module[..]), numbers.contains(&(row.row as usize))) {
                places[index].put(&modules[index], row.row as usize - numbers.start, &row)?;
            }
        }
        let modules = places.into_iter().zip(modules).map(|(place, module)| place.on(device, module, count)).collect();
        Ok(Queries { numbers, modules })
    }
}

/// Module names have no glob characters, but a stranger's might.
fn escape(name: &str) -> String {
    name.chars().flat_map(|c| if "*?[]{}".contains(c) { vec!['[', c, ']'] } else { vec![c] }).collect()
}

/// Where one module's queries are gathered: whole matrices one after the other, or factors side by side.
struct Place {
    rank: Option<usize>,
    left: Vec<f32>,
    right: Vec<f32>,
    /// Columns of the factors: queries times rank.
    width: usize,
}

impl Place {
    fn new(module: &Module, rank: Option<usize>, count: usize) -> Self {
        let width = count * rank.unwrap_or(0);
        let (left, right) = match rank {
            Some(_) => (module.out_features * width, module.in_features * width),
            None => (count * module.out_features * module.in_features, 0),
        };
        Self { rank, left: vec![0.0; left], right: vec![0.0; right], width }
    }

    /// Puts the `q`-th query where it belongs.
    fn put(&mut self, module: &Module, q: usize, row: &Factors) -> Result<()> {
        let (out_features, in_features) = (module.out_features, module.in_features);
        let fits = match self.rank {
            None => row.left_shape == [out_features, in_features],
            Some(_) => row.left_shape == [out_features, row.rank] && row.right_shape == [in_features, row.rank],
        };
        if !fits {
            bail!(Error::Mismatch(format!(
                "the queries of module {} do not have its shape: they come from another model",
                module.name
            )));
        }
        let Some(rank) = self.rank else {
            self.left[q * row.left.len()..][..row.left.len()].copy_from_slice(&row.left);
            return Ok(());
        };
        for (into, from) in self.left.chunks_exact_mut(self.width).zip(row.left.chunks_exact(row.rank)) {
            into[q * rank..q * rank + row.rank].copy_from_slice(from);
        }
        for (direction, into) in
            self.right[q * rank * in_features..].chunks_exact_mut(in_features).take(row.rank).enumerate()
        {
            for (into, from) in into.iter_mut().zip(row.right.chunks_exact(row.rank)) {
                *into = from[direction];
            }
        }
        Ok(())
    }

    fn on(self, device: &Device, module: &Module, count: usize) -> ModuleQueries {
        let (out_features, in_features) = (module.out_features, module.in_features);
        let tensor = |values, shape: [usize; 2]| Tensor::from_data(TensorData::new(values, shape), device);
        match self.rank {
            None => ModuleQueries::Full(Box::new(tensor(self.left, [count, out_features * in_features]))),
            Some(rank) => ModuleQueries::Low(Box::new(LowRank {
                left: tensor(self.left, [out_features, self.width]),
                right: tensor(self.right, [self.width, in_features]),
                rank,
            })),
        }
    }
}

/// <P_q, G_z> of every query and sequence, from tokens: a [rows, in], d [rows, out] -> [sequences, Q].
///
/// Low rank: <L R^T, sum_t d_t a_t^T> = sum_t (L^T d_t) . (R^T a_t). Full: G_z is formed and multiplied.
pub(crate) fn scan(queries: &ModuleQueries, count: usize, a: Tensor<2>, d: Tensor<2>, sequences: &Ragged) -> Tensor<2> {
    match queries {
        ModuleQueries::Low(low) => kernels::scan(&low.left, &low.right, d, a, sequences, count),
        ModuleQueries::Full(matrices) => product(example_products(d, a, sequences), (**matrices).clone().transpose()),
    }
}

/// d_t^T P_q a_t of every token, for the `query`-th of those loaded: `[rows, in]`, `[rows, out]` -> `[rows]`.
pub(crate) fn by_token(queries: &ModuleQueries, query: usize, a: Tensor<2>, d: Tensor<2>) -> Tensor<1> {
    let ([rows, in_features], [_, out_features]) = (a.dims(), d.dims());
    let products = match queries {
        ModuleQueries::Low(low) => {
            let own = |x: &Tensor<2>, dim: usize| x.clone().narrow(dim, query * low.rank, low.rank);
            product(d, own(&low.left, 1)) * product(a, own(&low.right, 0).transpose())
        }
        ModuleQueries::Full(matrices) => {
            let matrix = (**matrices).clone().narrow(0, query, 1).reshape([out_features, in_features]);
            product(d, matrix) * widen(a)
        }
    };
    products.sum_dim(1).reshape([rows])
}
