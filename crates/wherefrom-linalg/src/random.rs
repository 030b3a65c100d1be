//! Random numbers that are a pure function of what they are for.
//!
//! A sampled label must be the same in every batch, shard and restart, so there is no generator
//! with a state to carry: the number is a hash of (seed, example, position).

/// Weyl increment of splitmix64, 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Uniform number in [0, 1) for one (seed, example, position).
///
/// Each of the three words is absorbed by one round of the splitmix64 finaliser:
/// `h = mix(mix(mix(seed + G) + example + G) + position + G)`, then the upper 53 bits over 2^53.
pub fn uniform(seed: u64, example: u64, position: u64) -> f64 {
    let hash = [seed, example, position].into_iter().fold(0, absorb);
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal number for one (seed, stream, index), by Box and Muller's transform of two
/// uniform numbers: `sqrt(-2 ln(1 - u)) cos(2 pi v)`.
pub fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    let u = uniform(seed, stream, index.wrapping_mul(2));
    let v = uniform(seed, stream, index.wrapping_mul(2).wrapping_add(1));
    (-2.0 * (1.0 - u).ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

/// One absorption step: splitmix64's finaliser of `state + word + GOLDEN`.
fn absorb(state: u64, word: u64) -> u64 {
    let mut z = state.wrapping_add(word).wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
