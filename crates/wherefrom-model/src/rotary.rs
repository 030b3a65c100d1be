//! Frequencies of rotary positions.

use std::f64::consts::PI;

/// Rotary positions over the first `dims` values of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Values of a head that turn; where odd, one more does.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched to a longer context.
    pub scaling: Scaling,
}

/// Variants of rope scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// None.
    Default,
    /// Every frequency divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long waves divided by the factor, short ones left, the rest between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves longer than context / low are long.
        low: f64,
        /// Waves shorter than context / high are short.
        high: f64,
        /// The context before stretching.
        context: f64,
    },
}

impl Rotary {
    /// f(i) = theta^(-2 i / dims), then scaled; for 2 i < dims.
    pub(crate) fn frequencies(&self) -> Vec<f64> {
        let plain = (0..self.dims.div_ceil(2)).map(|i| self.theta.powf(-2.0 * i as f64 / self.dims as f64));
        plain.map(|frequency| self.scaling.scale(frequency)).collect()
    }
}

impl Scaling {
    fn scale(self, frequency: f64) -> f64 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, context } => {
                // Waves in the old context: `low` or fewer count as long, `high` or more as short.
                let waves = context * frequency / (2.0 * PI);
                let short = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - short) * frequency / factor + short * frequency
            }
        }
    }
}
