//! Metasmoothness: whether the weights behind a training run answer evenly to the weights of its examples (Engstrom et al.
//! 2025, arXiv 2503.13751). Where they do not, no derivative foretells a retraining.
//!
//! ```text
//! D(z)  =  (w(z + h v) - w(z)) / h                                   w(z): the last weights under example weights z
//! S     =  sum over parameters i of |D(1)_i| sign(D(1)_i) sign(D(1 + h v)_i)  /  sum of |D(1)_i|
//! ```
//!
//! v is +1 or -1 for each example. S is 1 where every parameter goes on in the direction in which it set out, and 0 where as
//! much of the movement turns round as goes on.

use anyhow::Result;
use wherefrom_linalg::random::uniform;
use wherefrom_model::Parameters;

use crate::reverse::numbers;

/// h.
pub const STEP: f32 = 0.1;

/// Below this more than a quarter of the movement turns round within a change of the weights by 2 h.
pub const LEAST: f64 = 0.5;

/// The v of a seed, by example.
pub fn direction(seed: u64) -> impl Fn(u64) -> f32 {
    move |example| if uniform(seed, example, 0) < 0.5 { -1.0 } else { 1.0 }
}

/// S, from -1 to 1, of the last weights under example weights 1, 1 + h v and 1 + 2 h v; none where nothing moves.
///
/// # Errors
/// A device that does not hand its numbers out.
pub fn metasmoothness(ends: [&Parameters; 3]) -> Result<Option<f64>> {
    let (mut agreeing, mut all) = (0.0, 0.0);
    for name in ends[0].keys() {
        let [last, one, two] = ends.map(|end| numbers(&end[name]));
        for ((last, one), two) in last?.into_iter().zip(one?).zip(two?) {
            let [first, second] = [one - last, two - one].map(f64::from);
            all += first.abs();
            agreeing += if second == 0.0 { 0.0 } else { first * second.signum() };
        }
    }
    Ok((all > 0.0).then(|| agreeing / all))
}
