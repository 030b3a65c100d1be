//! Where a query's answer comes from, if that is known: the examples that have its value in a column.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use wherefrom_artifact::{Artifact, Cell, Columns, bad_input};

/// What comes with the examples, and with the queries.
#[derive(Debug, Clone)]
pub struct Known {
    /// Of the training tokens.
    pub columns: Artifact<Columns>,
    /// Of the queries.
    pub query_columns: Artifact<Columns>,
}

impl Known {
    /// The sources of each of so many queries. A query without a value has none.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a column that one of the tables does not have.
    pub(crate) fn sources(&self, column: &str, queries: usize) -> Result<Vec<BTreeSet<u64>>> {
        let mut having: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for (example, value) in values("columns", &self.columns, column)? {
            having.entry(value).or_default().insert(example);
        }
        let mut sources = vec![BTreeSet::new(); queries];
        for (query, value) in values("query-columns", &self.query_columns, column)? {
            if let (Some(of_query), Some(examples)) = (sources.get_mut(query as usize), having.get(&value)) {
                of_query.clone_from(examples);
            }
        }
        Ok(sources)
    }
}

/// Number and value of every row that has one.
fn values(role: &str, table: &Artifact<Columns>, column: &str) -> Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    for row in table.by_example()? {
        let (example, cells) = row?;
        let mut named = cells.iter().filter(|(name, _)| *name == column);
        let Some((_, cell)) = named.next() else {
            let names: Vec<_> = cells.iter().map(|(name, _)| name).collect();
            return Err(bad_input(format!(
                "{role} has no column `{column}`, but {}: name it in `keep` of the step `columns`",
                names.join(", ")
            )));
        };
        if !matches!(cell, Cell::Null | Cell::Several) {
            found.push((example, cell.to_string()));
        }
    }
    Ok(found)
}
