//! Conjugate gradients and the Neumann series, for all queries side by side, with what is kept of them between runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, bad_input};

use super::sample::{Sample, Sampling};
use super::system::{Product, Space, System, add, dot, norm};
use super::{Config, Solver};

/// Between two checkpoints, and their share of the time at most a twentieth.
const INTERVAL: Duration = Duration::from_secs(20);
/// Products that find how long a step of the Neumann series may be.
const POWER_STEPS: usize = 10;

/// How a query stands after a step.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Settled {
    /// Norm of b - K x over that of b; of the Neumann series before the step.
    pub(super) residual: f64,
    /// How far the step has moved the influences of the sample's documents, over their norm; of the Neumann series, whose
    /// documents change, the query's influence on itself, b . x.
    pub(super) change: f64,
}

/// A query on its way.
pub(super) struct Query {
    /// The solution.
    pub(super) x: Vec<f64>,
    /// b - K x; after the first step of the Neumann series b itself, since each step has a K of its own.
    pub(super) r: Vec<f64>,
    /// The direction of the next step of conjugate gradients.
    pub(super) p: Vec<f64>,
    pub(super) told: Told,
}

/// What a checkpoint says of a query, beside its vectors.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) number: u64,
    /// r . P r, for the r of p.
    rho: f64,
    /// Norm of b.
    size: f64,
    /// x times the gradient of each document of the sample.
    influences: Vec<f64>,
    history: Vec<Settled>,
}

/// All queries after so many steps.
pub(super) struct State {
    pub(super) queries: Vec<Query>,
    pub(super) steps: usize,
    /// s of the Neumann series.
    pub(super) length: Option<f64>,
}

impl State {
    /// At x = 0, of right sides b by query.
    pub(super) fn new(sides: BTreeMap<u64, Vec<f64>>) -> Self {
        let query = |(number, b): (u64, Vec<f64>)| {
            let told = Told { number, rho: 0.0, size: norm(&b), influences: Vec::new(), history: Vec::new() };
            Query { x: vec![0.0; b.len()], r: b, p: Vec::new(), told }
        };
        Self { queries: sides.into_iter().map(query).collect(), steps: 0, length: None }
    }

    pub(super) fn of(&self, number: u64) -> Result<&Query> {
        self.queries.iter().find(|query| query.told.number == number).with_context(|| format!("query {number}"))
    }

    /// What was measured of each query after each step, in three digits.
    pub(super) fn by_query(&self, of: impl Fn(&Settled) -> f64) -> Vec<Vec<f64>> {
        let digits = |value: f64| format!("{value:.2e}").parse().unwrap_or(value);
        self.queries
            .iter()
            .map(|query| query.told.history.iter().map(|settled| digits(of(settled))).collect())
            .collect()
    }

    /// Goes on to the last step, or until every query is done.
    ///
    /// # Errors
    /// A query whose p^T K p is not positive; those of the products and of the draft.
    pub(super) fn solve(
        &mut self,
        config: &Config,
        system: &System<'_>,
        sampling: &Sampling<'_>,
        draft: &Draft,
    ) -> Result<()> {
        let mut sample = sampling.draw(0)?;
        let (mut kept, mut cost) = ((Instant::now(), self.steps), Duration::ZERO);
        while self.steps < config.steps {
            let moving = self.queries.iter().filter(|query| !query.is_done(config)).count() as u64;
            if moving == 0 {
                break;
            }
            system.exec.reporter.begin(&self.said(config), "tokens", moving * sample.tokens, 0);
            match config.solver {
                Solver::Neumann if self.steps > 0 => {
                    let length = match self.length {
                        Some(length) => length,
                        None => *self.length.insert(step_length(system, &sample, &self.queries)?),
                    };
                    sample = sampling.draw(self.steps as u64)?;
                    self.neumann(length, config, system, &sample)?;
                }
                _ => self.conjugate(config, system, &sample)?,
            }
            system.exec.reporter.end();
            self.steps += 1;
            if kept.0.elapsed() > INTERVAL.max(20 * cost) {
                let start = Instant::now();
                self.save(draft, config)?;
                (kept, cost) = ((Instant::now(), self.steps), start.elapsed());
            }
        }
        if kept.1 < self.steps { self.save(draft, config) } else { Ok(()) }
    }

    /// `solve, step 3 of 20 (residual 0.83, influences moved by 0.041)`, of the query that is farthest.
    fn said(&self, config: &Config) -> String {
        let largest = |of: fn(&Settled) -> f64| {
            let last = self.queries.iter().filter_map(|query| query.told.history.last());
            last.map(of).fold(0.0, f64::max)
        };
        let step = format!("solve, step {} of {}", self.steps + 1, config.steps);
        match self.steps {
            0 => step,
            _ => {
                let (residual, change) = (largest(|settled| settled.residual), largest(|settled| settled.change));
                format!("{step} (residual {residual:.1e}, influences moved by {change:.1e})")
            }
        }
    }

    fn moving(&mut self, config: &Config) -> Vec<&mut Query> {
        self.queries.iter_mut().filter(|query| !query.is_done(config)).collect()
    }

    fn conjugate(&mut self, config: &Config, system: &System<'_>, sample: &Sample) -> Result<()> {
        let step = self.steps + 1;
        let mut moving = self.moving(config);
        system.each(&mut moving, |query| query.begin(system.space))?;
        let directions: Vec<_> = moving.iter().map(|query| &query.p[..]).collect();
        let products = system.products(sample, &directions)?;
        let mut work: Vec<_> = moving.into_iter().zip(products).collect();
        system.each(&mut work, |(query, product)| query.conjugate(config, system.space, product, step))
    }

    fn neumann(&mut self, length: f64, config: &Config, system: &System<'_>, sample: &Sample) -> Result<()> {
        let moving = self.moving(config);
        let solutions: Vec<_> = moving.iter().map(|query| &query.x[..]).collect();
        let products = system.products(sample, &solutions)?;
        let mut work: Vec<_> = moving.into_iter().zip(products).collect();
        system.each(&mut work, |(query, product)| query.neumann(length, system.space, product))
    }
}

impl Query {
    fn is_done(&self, config: &Config) -> bool {
        let reached = |settled: &Settled| settled.residual <= config.tolerance;
        let zero = self.told.history.is_empty() && self.r.iter().all(|&value| value == 0.0);
        zero || config.solver == Solver::ConjugateGradients && self.told.history.last().is_some_and(reached)
    }

    /// p = P r, where nothing has been done yet.
    fn begin(&mut self, space: &Space) -> Result<()> {
        if self.told.history.is_empty() {
            self.p = space.precondition(&self.r)?;
            self.told.rho = dot(&self.r, &self.p);
        }
        Ok(())
    }

    /// x += a p with a = r . P r / p . K p, which is the best length for p; from x = 0 that is EK-FAC's answer.
    fn conjugate(&mut self, config: &Config, space: &Space, product: &Product, step: usize) -> Result<()> {
        let Self { x, r, p, told, .. } = self;
        let curved = dot(p, &product.vector);
        if !(curved > 0.0 && curved.is_finite()) {
            return Err(bad_input(format!(
                "query {}: p . (H + D) p is {curved:.1e} in step {step} of conjugate gradients, and has to be positive; raise \
                 `damping`, or take fewer `steps`",
                told.number
            )));
        }
        let length = told.rho / curved;
        add(x, length, p);
        let rest: Vec<f64> = r.iter().zip(&product.vector).map(|(r, curved)| r - length * curved).collect();
        told.influences.resize(product.slopes.len(), 0.0);
        add(&mut told.influences, length, &product.slopes);
        let moved = length.abs() * norm(&product.slopes) / norm(&told.influences);
        told.history.push(Settled { residual: dot(&rest, &rest).sqrt() / told.size, change: moved });
        if config.solver == Solver::Neumann {
            p.clear();
            return Ok(());
        }
        *r = rest;
        let mut next = space.precondition(r)?;
        let rho = dot(r, &next);
        add(&mut next, rho / told.rho, p);
        (*p, told.rho) = (next, rho);
        Ok(())
    }

    /// x += s P (b - K x).
    fn neumann(&mut self, length: f64, space: &Space, product: &Product) -> Result<()> {
        let Self { x, r: b, told, .. } = self;
        let rest: Vec<f64> = b.iter().zip(&product.vector).map(|(b, curved)| b - curved).collect();
        let residual = dot(&rest, &rest).sqrt() / told.size;
        if !residual.is_finite() {
            return Err(bad_input(format!("query {}: the Neumann series has no end; raise `damping`", told.number)));
        }
        let step = space.precondition(&rest)?;
        add(x, length, &step);
        let change = (length * dot(b, &step) / dot(b, x)).abs();
        told.history.push(Settled { residual, change });
        Ok(())
    }
}

/// 1 over the largest eigenvalue of P K, of a sample and by power iteration, which finds less: the series converges for up
/// to twice that length.
fn step_length(system: &System<'_>, sample: &Sample, queries: &[Query]) -> Result<f64> {
    let first = queries.iter().find(|query| query.r.iter().any(|&value| value != 0.0)).context("a query")?;
    let (mut u, mut largest) = (first.r.clone(), 0.0);
    for _ in 0..POWER_STEPS {
        let y = system.space.precondition(&u)?;
        let curved = system.products(sample, &[&y])?.remove(0).vector;
        // y . K y / y . P^-1 y.
        largest = dot(&y, &curved) / dot(&y, &u);
        u = curved;
    }
    Ok(1.0 / largest)
}
