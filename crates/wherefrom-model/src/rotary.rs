//! Rotary positions: which frequencies turn the parts of a head, and how they are stretched to a longer context.

use std::f64::consts::PI;
use std::ops::Range;

use wherefrom_linalg::kernels::RotationTable;

/// Rotary positions over the first `dims` values of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Values of a head that turn; where odd, one more does.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched to a longer context.
    pub scaling: Scaling,
}

/// Variants of rope scaling.
#[derive(Debug, Clone, PartialEq)]
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
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): the same, by the place of the frequency in their list.
    Yarn {
        /// The factor.
        factor: f64,
        /// Frequencies that turn so often in the context, or more often, are left.
        fast: f64,
        /// Those that turn so often, or less often, are divided by the factor.
        slow: f64,
        /// The context before stretching.
        context: f64,
        /// Whether the places of both are whole numbers.
        truncate: bool,
        /// What cos and sin are multiplied by.
        amplitude: f64,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): each frequency divided by a factor of its own.
    Long {
        /// The factors of sequences that fit the context.
        short: Vec<f64>,
        /// Those of longer ones.
        long: Vec<f64>,
        /// The context before stretching.
        context: f64,
        /// What cos and sin are multiplied by, of short sequences, too.
        amplitude: f64,
    },
}

impl Rotary {
    /// cos and sin for rows at these positions; `spans` are the sequences that see themselves alone, of which each is short or
    /// long by itself, whatever stands beside it.
    pub(crate) fn table(&self, positions: &[usize], spans: &[Range<usize>], head_dim: usize) -> RotationTable {
        match &self.scaling {
            Scaling::Long { amplitude, .. } => {
                let list = |span: &Range<usize>| usize::from(self.is_long(span.len()));
                let rows = spans.iter().flat_map(|span| span.clone().map(move |row| (list(span), positions[row])));
                RotationTable::of_several(&rows.collect::<Vec<_>>(), head_dim, &self.long_lists(), *amplitude)
            }
            Scaling::Yarn { amplitude, .. } => {
                let rows: Vec<_> = positions.iter().map(|&position| (0, position)).collect();
                RotationTable::of_several(&rows, head_dim, &[self.frequencies()], *amplitude)
            }
            _ => RotationTable::new(positions.to_vec(), head_dim, &self.frequencies()),
        }
    }

    /// The same of the last token alone of sequences of these lengths.
    pub(crate) fn table_of_last(&self, lengths: &[usize], head_dim: usize) -> RotationTable {
        let (lists, amplitude) = match &self.scaling {
            Scaling::Long { amplitude, .. } => (self.long_lists().to_vec(), *amplitude),
            Scaling::Yarn { amplitude, .. } => (vec![self.frequencies()], *amplitude),
            _ => (vec![self.frequencies()], 1.0),
        };
        let rows: Vec<_> = lengths.iter().map(|&length| (usize::from(self.is_long(length)), length - 1)).collect();
        RotationTable::of_rows(&rows, head_dim, &lists, amplitude)
    }

    /// Whether a sequence of that length turns all its tokens by other frequencies than a short one.
    pub(crate) fn is_long(&self, length: usize) -> bool {
        matches!(self.scaling, Scaling::Long { context, .. } if length as f64 > context)
    }

    /// Frequencies of short and of long sequences.
    fn long_lists(&self) -> [Vec<f64>; 2] {
        let Scaling::Long { short, long, .. } = &self.scaling else { return [self.frequencies(), Vec::new()] };
        [short, long].map(|factors| self.plain().zip(factors).map(|(frequency, factor)| frequency / factor).collect())
    }

    /// f(i) = theta^(-2 i / dims), for 2 i < dims.
    fn plain(&self) -> impl Iterator<Item = f64> {
        let Self { dims, theta, .. } = *self;
        (0..dims.div_ceil(2)).map(move |i| theta.powf(-2.0 * i as f64 / dims as f64))
    }

    /// The same, then scaled.
    fn frequencies(&self) -> Vec<f64> {
        match self.scaling {
            Scaling::Default | Scaling::Long { .. } => self.plain().collect(),
            Scaling::Linear { factor } => self.plain().map(|frequency| frequency / factor).collect(),
            Scaling::Llama3 { factor, low, high, context } => {
                // Waves in the old context: `low` or fewer count as long, `high` or more as short.
                let scaled = |frequency: f64| {
                    let waves = context * frequency / (2.0 * PI);
                    let short = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - short) * frequency / factor + short * frequency
                };
                self.plain().map(scaled).collect()
            }
            Scaling::Yarn { factor, fast, slow, context, truncate, .. } => {
                let dims = self.dims as f64;
                // The place of the frequency that turns so often.
                let place = |turns: f64| dims * (context / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut first, mut last) = (place(fast), place(slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                (first, last) = (first.max(0.0), last.min(dims - 1.0));
                if first == last {
                    last += 0.001;
                }
                let scaled = |(i, frequency): (usize, f64)| {
                    let long = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    long * frequency / factor + (1.0 - long) * frequency
                };
                self.plain().enumerate().map(scaled).collect()
            }
        }
    }
}
