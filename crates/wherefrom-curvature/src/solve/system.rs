//! K v = (H + D) v over all attributed maps, and P v, EK-FAC's inverse of it.

use std::ops::Range;

use anyhow::{Context as _, Result, bail};
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use wherefrom_artifact::Reporter;
use wherefrom_linalg::kernels::product;
use wherefrom_model::{Batch, Linearised, Model, Module, Selection, Tap};
use wherefrom_stage::Exec;

use super::sample::Sample;
use crate::inverse::{Curvature, Inverse};
use crate::tensors::{tensor, values};

/// The attributed maps as one vector: the modules one after another, each row by row.
pub(crate) struct Space {
    modules: Vec<Module>,
    places: Vec<Range<usize>>,
    inverses: Vec<Inverse>,
    pub(crate) device: Device,
}

impl Space {
    pub(crate) fn new(
        curvature: &Curvature<'_>,
        modules: &[Module],
        device: &Device,
        reporter: &dyn Reporter,
    ) -> Result<Self> {
        let mut end = 0;
        let place = |module: &Module| {
            end += module.in_features * module.out_features;
            end - module.in_features * module.out_features..end
        };
        let places = modules.iter().map(place).collect();
        let inverse =
            |module: &Module| curvature.of(&module.name, [module.out_features, module.in_features], device, reporter);
        let inverses = modules.iter().map(inverse).collect::<Result<_>>()?;
        Ok(Self { modules: modules.to_vec(), places, inverses, device: device.clone() })
    }

    /// Numbers of a vector.
    pub(crate) fn size(&self) -> usize {
        self.places.last().map_or(0, |place| place.end)
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.modules.iter().position(|module| module.name == name).with_context(|| format!("module {name}"))
    }

    /// Where a module's numbers are.
    pub(crate) fn place(&self, name: &str) -> Result<Range<usize>> {
        Ok(self.places[self.index(name)?].clone())
    }

    /// A module's [out, in] of a vector.
    pub(crate) fn matrix(&self, name: &str, vector: &[f64]) -> Result<Tensor<2>> {
        Ok(self.part(self.index(name)?, vector, 1.0))
    }

    fn part(&self, index: usize, vector: &[f64], scale: f64) -> Tensor<2> {
        let Module { out_features, in_features, .. } = self.modules[index];
        let part = vector[self.places[index].clone()].iter().map(|&value| (scale * value) as f32).collect();
        tensor(part, [out_features, in_features], &self.device)
    }

    /// Takes modules out of which Lambda is all zero: they contribute nothing.
    pub(crate) fn only_curved(&self, vector: &mut [f64]) {
        for (place, _) in self.places.iter().zip(&self.inverses).filter(|(_, inverse)| inverse.damping.is_none()) {
            vector[place.clone()].fill(0.0);
        }
    }

    /// into += D v.
    pub(crate) fn add_damping(&self, into: &mut [f64], v: &[f64]) {
        for (place, inverse) in self.places.iter().zip(&self.inverses) {
            add(&mut into[place.clone()], inverse.damping.unwrap_or(0.0), &v[place.clone()]);
        }
    }

    /// P v.
    pub(crate) fn precondition(&self, v: &[f64]) -> Result<Vec<f64>> {
        let norm = norm(v);
        let mut preconditioned = vec![0.0; v.len()];
        for (index, inverse) in self.inverses.iter().enumerate() {
            let part = values(inverse.apply(self.part(index, v, 1.0 / norm)))?;
            let into = preconditioned[self.places[index].clone()].iter_mut();
            into.zip(part).for_each(|(into, value)| *into = norm * f64::from(value));
        }
        Ok(preconditioned)
    }
}

/// K at the weights of a model.
#[derive(Clone, Copy)]
pub(crate) struct System<'a> {
    pub(crate) space: &'a Space,
    pub(crate) model: &'a Model,
    pub(crate) selection: &'a Selection,
    pub(crate) exec: &'a Exec,
}

/// What K makes of a vector v.
pub(crate) struct Product {
    /// K v.
    pub(crate) vector: Vec<f64>,
    /// v times the gradient of each document's loss.
    pub(crate) slopes: Vec<f64>,
}

impl System<'_> {
    /// K v of each vector, with H of the sample: the model runs forward once a batch, whatever the number of vectors.
    pub(crate) fn products(&self, sample: &Sample, vectors: &[&[f64]]) -> Result<Vec<Product>> {
        let Self { space, model, selection, exec } = *self;
        let mut moving: Vec<Moving> = vectors.iter().map(|v| Moving::new(space, v, sample.documents)).collect();
        for (group, batch) in &sample.batches {
            let linearised = model.linearised(batch, selection)?;
            // As many at once as there are threads, so that no more than these hold activations.
            for some in moving.chunks_mut(exec.device.side_by_side()) {
                self.each(some, |one| one.add(space, &linearised, group))?;
            }
            exec.reporter.advance((batch.rows() * vectors.len()) as u64);
        }
        let scale = 1.0 / sample.documents as f64;
        let finish = |(moving, v): (Moving, &&[f64])| {
            let Moving { norm, mut sum, mut slopes, .. } = moving;
            slopes.iter_mut().for_each(|slope| *slope *= norm);
            sum.iter_mut().for_each(|sum| *sum *= norm * scale);
            space.add_damping(&mut sum, v);
            space.only_curved(&mut sum);
            Product { vector: sum, slopes }
        };
        Ok(moving.into_iter().zip(vectors).map(finish).collect())
    }

    /// H v with H of one batch, summed over its documents.
    pub(crate) fn batch_product(&self, batch: &Batch, v: &[f64]) -> Result<Vec<f64>> {
        let mut moving = Moving::new(self.space, v, batch.len());
        let places: Vec<_> = (0..batch.len()).collect();
        moving.add(self.space, &self.model.linearised(batch, self.selection)?, &places)?;
        let Moving { norm, sum, .. } = moving;
        Ok(sum.into_iter().map(|value| norm * value).collect())
    }

    /// Does something with each item, side by side on the CPU.
    pub(crate) fn each<T: Send>(
        &self,
        items: &mut [T],
        work: impl Fn(&mut T) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        match self.exec.device.side_by_side() {
            1 => items.iter_mut().try_for_each(work),
            _ => items.par_iter_mut().try_for_each(work),
        }
    }
}

/// A vector on its way through the batches, of length 1 in float32.
struct Moving {
    norm: f64,
    direction: Vec<Tensor<2>>,
    sum: Vec<f64>,
    slopes: Vec<f64>,
}

impl Moving {
    fn new(space: &Space, v: &[f64], documents: usize) -> Self {
        let norm = norm(v);
        let direction = (0..space.modules.len()).map(|index| space.part(index, v, 1.0 / norm)).collect();
        Self { norm, direction, sum: vec![0.0; v.len()], slopes: vec![0.0; documents] }
    }

    /// Adds what a batch of these documents does.
    fn add(&mut self, space: &Space, linearised: &Linearised<'_>, group: &[usize]) -> Result<()> {
        let sum = &mut self.sum;
        let visit = &mut |tap: Tap<'_>| {
            let part = values(product(tap.output_gradients.transpose(), tap.activations))?;
            let into = sum[space.places[tap.index].clone()].iter_mut();
            into.zip(part).for_each(|(into, value)| *into += f64::from(value));
            Ok(())
        };
        let slopes = linearised.product(&self.direction, visit)?;
        if slopes.iter().any(|slope| !slope.is_finite()) {
            bail!("a Gauss-Newton product is not finite");
        }
        group.iter().zip(slopes).for_each(|(&place, slope)| self.slopes[place] += slope);
        Ok(())
    }
}

/// x . y
pub(crate) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Euclidean norm; 1 of a vector of zeros, so that it can be divided by.
pub(crate) fn norm(x: &[f64]) -> f64 {
    let square = dot(x, x);
    if square > 0.0 { square.sqrt() } else { 1.0 }
}

/// x += a y
pub(crate) fn add(x: &mut [f64], a: f64, y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += a * y);
}
