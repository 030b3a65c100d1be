//! Whose units of work are whose, where several processes make one artifact.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, bad_input};

/// The units of one process of several: those whose number is `index` modulo `of`, whatever is missing when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// From 0.
    pub index: usize,
    /// How many shares there are.
    pub of: usize,
}

impl Share {
    /// All units.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Whether the unit of that number is one of them.
    pub fn owns(self, unit: usize) -> bool {
        unit % self.of == self.index
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.of)
    }
}

/// `K/N` with 0 ≤ K < N.
impl FromStr for Share {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let numbers = word.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err(bad_input(format!("the share `{word}` is none: write K/N with K from 0 to N - 1, such as 0/16"))),
        }
    }
}

/// The refusal of a share that another process is in the way of: it may be tried again.
pub(crate) fn busy(what: String) -> anyhow::Error {
    Error::Busy(what).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_written_as_k_of_n() {
        assert_eq!("2/16".parse::<Share>().unwrap(), Share { index: 2, of: 16 });
        assert_eq!("2/16".parse::<Share>().unwrap().to_string(), "2/16");
        for word in ["3/3", "0/0", "1", "-1/2", "a/b", "1/2/3", ""] {
            assert!(word.parse::<Share>().unwrap_err().to_string().contains("write K/N"), "{word}");
        }
    }

    #[test]
    fn every_unit_is_somebodys_and_nobody_elses() {
        for unit in 0..50 {
            assert_eq!((0..7).filter(|&index| Share { index, of: 7 }.owns(unit)).count(), 1);
        }
    }
}
