//! Examples by what they have in common, and how much influence each group has.

use std::collections::HashMap;

/// What a group is called whose rows have no value.
pub const NONE: &str = "(none)";
const UNGROUPED: u32 = u32::MAX;

/// Groups of examples: each is in one.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    /// By what: the name of a column.
    pub name: String,
    /// What the members of each group have in common.
    pub labels: Vec<String>,
    /// Members of each.
    pub sizes: Vec<u64>,
    /// Of each example.
    of: Vec<u32>,
    known: HashMap<String, u32>,
}

impl Groups {
    /// No groups yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Puts an example into the group of a label; an empty one is [`NONE`].
    pub fn add(&mut self, example: u64, label: &str) {
        let label = if label.is_empty() { NONE } else { label };
        let group = self.known.get(label).copied().unwrap_or_else(|| {
            let group = self.labels.len() as u32;
            self.known.insert(label.into(), group);
            self.labels.push(label.into());
            self.sizes.push(0);
            group
        });
        self.sizes[group as usize] += 1;
        let place = example as usize;
        if place >= self.of.len() {
            self.of.resize(place + 1, UNGROUPED);
        }
        self.of[place] = group;
    }

    /// The group of an example.
    pub fn of(&self, example: u64) -> Option<usize> {
        let group = self.of.get(usize::try_from(example).ok()?).copied()?;
        (group != UNGROUPED).then_some(group as usize)
    }

    /// Sums of nothing, one for each group.
    pub fn sums(&self) -> Vec<Sum> {
        vec![Sum::default(); self.labels.len()]
    }
}

/// Influence of a group on a query.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sum {
    /// Members that were scored.
    pub rows: u64,
    /// Sum of the influences above 0.
    pub positive: f64,
    /// Sum of those below 0, itself below 0.
    pub negative: f64,
}

impl Sum {
    /// Takes in one influence.
    pub fn add(&mut self, influence: f32) {
        self.rows += 1;
        if influence > 0.0 {
            self.positive += f64::from(influence);
        } else {
            self.negative += f64::from(influence);
        }
    }

    /// Takes in another group.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.positive += other.positive;
        self.negative += other.negative;
    }

    /// Sum of the influences.
    pub fn signed(&self) -> f64 {
        self.positive + self.negative
    }

    /// Sum of their sizes.
    pub fn absolute(&self) -> f64 {
        self.positive - self.negative
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_one_group_and_counts_once() {
        let mut groups = Groups::new("lang");
        for (example, label) in [(0, "en"), (1, "ko"), (2, "en"), (4, "")] {
            groups.add(example, label);
        }
        assert_eq!(
            (&groups.labels[..], &groups.sizes[..]),
            (&["en", "ko", NONE].map(String::from)[..], &[2, 1, 1][..])
        );
        assert_eq!(
            [0, 1, 2, 3, 4, 9].map(|example| groups.of(example)),
            [Some(0), Some(1), Some(0), None, Some(2), None]
        );
        let mut sums = groups.sums();
        for (example, influence) in [(0, 2.0), (2, -0.5), (1, 1.0)] {
            sums[groups.of(example).unwrap()].add(influence);
        }
        assert_eq!((sums[0].rows, sums[0].signed(), sums[0].absolute()), (2, 1.5, 2.5));
        assert_eq!((sums[1].signed(), sums[2]), (1.0, Sum::default()));
    }
}
