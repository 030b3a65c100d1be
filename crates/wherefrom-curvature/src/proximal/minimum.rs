//! Where an objective is least, when most of its curvature is known: BFGS that starts from a Gauss-Newton matrix.

use anyhow::Result;
use wherefrom_artifact::{Error, bad_input};
use wherefrom_model::BadInput;

use crate::solve::system::{add, dot};

/// Products of a step's inner conjugate gradients at most.
const PRODUCTS: usize = 300;
/// How far they go: the share of the gradient that is left.
const INNER: f64 = 0.1;
/// A step is shortened so many times at most …
const SHORTENINGS: usize = 12;
/// … until its slope has turned round by no more than this share of what it began with.
const FLAT: f64 = 0.5;

/// What is minimised, as a function of a vector that begins at 0: the attributed weights of a language model, or any others.
pub trait Objective {
    /// What gradient and curvature at a vector share.
    type Place;

    /// Numbers of the vector.
    fn size(&self) -> usize;

    /// The gradient at a vector.
    ///
    /// # Errors
    /// Those of whatever is run.
    fn gradient(&self, at: &[f64]) -> Result<(Self::Place, Vec<f64>)>;

    /// v times a matrix that is near the second derivative there, symmetric and positive definite.
    ///
    /// # Errors
    /// Those of whatever is run.
    fn curved(&self, place: &Self::Place, v: &[f64]) -> Result<Vec<f64>>;

    /// v times about the inverse of that matrix, symmetric and positive definite.
    ///
    /// # Errors
    /// Those of whatever is run.
    fn precondition(&self, v: &[f64]) -> Result<Vec<f64>>;
}

/// How an optimisation ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The vector.
    pub at: Vec<f64>,
    /// Norm of the gradient over what it was.
    pub gradient: f64,
}

/// Steps of BFGS (Nocedal and Wright 2006, algorithm 7.4) from the objective's own matrix; what the steps find of the curvature that
/// it lacks, a model's own bends, is kept in `pairs`. Ends where the gradient's norm is `tolerance` of what it was, after `steps`, or
/// where no step can be taken.
///
/// # Errors
/// Those of the objective and of [`solved`].
pub fn minimum<O: Objective>(objective: &O, tolerance: f64, steps: usize) -> Result<Ended> {
    let mut at = vec![0.0; objective.size()];
    let (mut place, mut gradient) = objective.gradient(&at)?;
    let first = length(&gradient);
    let (mut ended, mut pairs): (f64, Vec<[Vec<f64>; 2]>) = (0.0, Vec::new());
    for step in 0..=steps {
        let now = length(&gradient);
        ended = if first > 0.0 { now / first } else { 0.0 };
        if ended <= tolerance || step == steps {
            break;
        }
        // Where the steps have led to a place at which the curvature overflows, they do not converge.
        let direction = match bfgs(objective, &place, &gradient, &pairs) {
            Err(error) if step > 0 && overflows(&error) => break,
            direction => direction?,
        };
        // Along it the objective falls until its slope there turns round: a step too far is shortened to where the slope, a line
        // between its ends, is zero.
        let slope = dot(&gradient, &direction);
        let (mut far, mut next) = (1.0, None);
        for _ in 0..SHORTENINGS {
            let mut there = at.clone();
            add(&mut there, -far, &direction);
            // So far that the model overflows, or its gradient does, is too far.
            let found = match objective.gradient(&there) {
                Ok((place, gradient)) => Some((dot(&gradient, &direction), place, gradient)),
                Err(error) if overflows(&error) => None,
                Err(error) => return Err(error),
            };
            let Some((left, place, gradient)) = found.filter(|(left, ..)| left.is_finite()) else {
                far *= 0.1;
                continue;
            };
            if left >= -FLAT * slope {
                next = Some((there, place, gradient));
                break;
            }
            far *= (slope / (slope - left)).clamp(0.1, 0.9);
        }
        let Some((there, changed, steepest)) = next.filter(|_| slope > 0.0) else {
            if pairs.is_empty() {
                break;
            }
            pairs.clear();
            continue;
        };
        let difference = |to: &[f64], from: &[f64]| to.iter().zip(from).map(|(to, from)| to - from).collect();
        let pair: [Vec<f64>; 2] = [difference(&there, &at), difference(&steepest, &gradient)];
        if dot(&pair[0], &pair[1]) > 0.0 {
            pairs.push(pair);
        }
        (at, place, gradient) = (there, changed, steepest);
    }
    Ok(Ended { at, gradient: ended })
}

/// The inverse of the curvature times g, with what steps s and the changes y of the gradient along them say of it.
fn bfgs<O: Objective>(objective: &O, place: &O::Place, gradient: &[f64], pairs: &[[Vec<f64>; 2]]) -> Result<Vec<f64>> {
    let mut q = gradient.to_vec();
    let mut shares = Vec::new();
    for [s, y] in pairs.iter().rev() {
        let share = dot(s, &q) / dot(s, y);
        add(&mut q, -share, y);
        shares.push(share);
    }
    let mut direction = solved(objective, place, &q, INNER)?;
    for ([s, y], share) in pairs.iter().zip(shares.into_iter().rev()) {
        let along = dot(y, &direction) / dot(s, y);
        add(&mut direction, share - along, s);
    }
    Ok(direction)
}

/// The x with K x = b, K the objective's matrix at a place, by preconditioned conjugate gradients that end where `tolerance` of b is left.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a matrix that is not positive; those of the objective.
pub fn solved<O: Objective>(objective: &O, place: &O::Place, b: &[f64], tolerance: f64) -> Result<Vec<f64>> {
    let mut x = vec![0.0; b.len()];
    let (mut r, enough) = (b.to_vec(), tolerance * length(b));
    let mut p = objective.precondition(&r)?;
    let mut rho = dot(&r, &p);
    for _ in 0..PRODUCTS {
        let curved = objective.curved(place, &p)?;
        let along = dot(&p, &curved);
        if !(along > 0.0 && along.is_finite()) {
            return Err(bad_input(format!(
                "p . (H + D) p is {along:.1e} in conjugate gradients, and has to be positive; raise `damping`"
            )));
        }
        add(&mut x, rho / along, &p);
        add(&mut r, -rho / along, &curved);
        if length(&r) <= enough {
            break;
        }
        let z = objective.precondition(&r)?;
        let next = dot(&r, &z);
        let kept = next / rho;
        p.iter_mut().zip(z).for_each(|(p, z)| *p = z + kept * *p);
        rho = next;
    }
    Ok(x)
}

/// Whether it is the place that is refused, as one where the model overflows is, and not a file.
fn overflows(error: &anyhow::Error) -> bool {
    error.is::<BadInput>() || matches!(error.downcast_ref(), Some(Error::Input(_)))
}

fn length(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}
