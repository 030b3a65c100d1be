//! Influence by group: of the columns that come with the corpus, and of the beginnings of document names.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use wherefrom_artifact::text::beginning;
use wherefrom_artifact::{Artifact, CellType, Columns, Example, Groups, Sum, visible};

/// Most groups of a column: what has more is no group, but a name.
const GROUPS: usize = 1000;
/// Groups of document names, at most and at least.
const NAMED: std::ops::RangeInclusive<usize> = 2..=60;
/// Groups of a column that are listed for a query; the rest are one line.
const LISTED: usize = 40;

/// How examples are grouped, and what each query makes of it.
#[derive(Default)]
pub(crate) struct Grouped {
    groups: Vec<Groups>,
    sums: BTreeMap<u32, Vec<Vec<Sum>>>,
}

/// A column of groups, for the page.
#[derive(Debug, Serialize)]
pub(crate) struct Grouping<'a> {
    name: &'a str,
    labels: Vec<String>,
    sizes: &'a [u64],
}

/// The groups of one column for one query.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    /// Group, positive and negative sum; by falling size of the influence.
    groups: Vec<(usize, f64, f64)>,
    /// How many more there are, their examples, and their sums.
    rest: Option<(usize, u64, f64, f64)>,
    /// Positive and negative sum over all groups.
    total: (f64, f64),
}

impl Grouped {
    /// Groups by every column that has few enough values: no fractions, and nothing that is another in most rows, as names are.
    pub(crate) fn of_columns(columns: &Artifact<Columns>) -> Result<Self> {
        let mut groups: Vec<Groups> = Vec::new();
        let mut dropped: Vec<bool> = Vec::new();
        for row in columns.by_example()? {
            let (example, cells) = row?;
            if groups.is_empty() {
                groups = cells.iter().map(|(name, _)| Groups::new(name)).collect();
                dropped = cells.columns.iter().map(|column| column.values == CellType::Number).collect();
            }
            let open = groups.iter_mut().zip(&mut dropped).zip(&cells.values).filter(|((_, dropped), _)| !**dropped);
            for ((groups, dropped), cell) in open {
                groups.add(example, &cell.to_string());
                *dropped = groups.labels.len() > GROUPS;
            }
        }
        let mut kept = dropped.iter();
        groups.retain(|groups| kept.next() == Some(&false) && groups.labels.len() > 1 && repeats(groups));
        Ok(Self { groups, sums: BTreeMap::new() })
    }

    /// A further column: what the documents' names begin with, where nearly all have such a beginning.
    pub(crate) fn add_names(&mut self, names: Names) {
        let few = NAMED.contains(&names.groups.labels.len());
        if few && names.without * 20 <= names.groups.sizes.iter().sum::<u64>() {
            self.groups.push(names.groups);
        }
    }

    /// Takes in the influence of an example on a query.
    pub(crate) fn add(&mut self, query: u32, example: u64, influence: f32) {
        let sums = self.sums.entry(query).or_insert_with(|| self.groups.iter().map(Groups::sums).collect());
        for (groups, sums) in self.groups.iter().zip(sums) {
            if let Some(group) = groups.of(example) {
                sums[group].add(influence);
            }
        }
    }

    /// The groups of an example, one of each column.
    pub(crate) fn of(&self, example: u64) -> Vec<Option<usize>> {
        self.groups.iter().map(|groups| groups.of(example)).collect()
    }

    /// What the page says of the columns.
    pub(crate) fn groupings(&self) -> Vec<Grouping<'_>> {
        let labels = |groups: &Groups| groups.labels.iter().map(|label| visible(label)).collect();
        let all = self.groups.iter();
        all.map(|groups| Grouping { name: &groups.name, labels: labels(groups), sizes: &groups.sizes }).collect()
    }

    /// The groups of a query, a list for each column; none without scores.
    pub(crate) fn query(&self, query: u32, rounded: impl Fn(f64) -> f64) -> Vec<Listed> {
        let listed = |sums: &Vec<Sum>| {
            let mut order: Vec<usize> = (0..sums.len()).filter(|&group| sums[group].rows > 0).collect();
            order.sort_by(|&left, &right| {
                sums[right].absolute().total_cmp(&sums[left].absolute()).then(left.cmp(&right))
            });
            let mut rest = Sum::default();
            let beyond = order.len().saturating_sub(LISTED);
            order.iter().skip(LISTED).for_each(|&group| rest.merge(&sums[group]));
            let mut total = rest;
            order.iter().take(LISTED).for_each(|&group| total.merge(&sums[group]));
            let line = |&group: &usize| (group, rounded(sums[group].positive), rounded(sums[group].negative));
            Listed {
                groups: order.iter().take(LISTED).map(line).collect(),
                rest: (beyond > 0).then(|| (beyond, rest.rows, rounded(rest.positive), rounded(rest.negative))),
                total: (rounded(total.positive), rounded(total.negative)),
            }
        };
        self.sums.get(&query).map(|columns| columns.iter().map(listed).collect()).unwrap_or_default()
    }
}

/// Whether a group has two examples or more, on average.
fn repeats(groups: &Groups) -> bool {
    2 * groups.labels.len() as u64 <= groups.sizes.iter().sum()
}

/// Beginnings of document names.
pub(crate) struct Names {
    groups: Groups,
    /// Examples whose documents have none.
    without: u64,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self { groups: Groups::new("document"), without: 0 }
    }

    /// Takes in the next example.
    pub(crate) fn add(&mut self, example: &Example) {
        // More is no group: what was found so far says so.
        if self.groups.labels.len() > *NAMED.end() {
            return;
        }
        let mut found = example.docs.iter().map(|doc| beginning(doc));
        let label = found.next().flatten();
        let same = found.all(|other| other == label);
        self.without += u64::from(label.is_none());
        self.groups.add(example.example, if same { label.unwrap_or_default() } else { "(several)" });
    }
}
