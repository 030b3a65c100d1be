//! Rows of an artifact: part by part, module by module.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use arrow::record_batch::RecordBatch;

use crate::artifact::Artifact;
use crate::kinds::{ArtifactKind, Found, Row};

impl<K: ArtifactKind> Artifact<K> {
    /// The rows of one part, digest checked.
    pub fn read<R: Row<K>>(&self, part: usize) -> Result<Vec<R>> {
        let mut rows = Vec::new();
        for batch in self.batches(part, &[])? {
            rows.extend(R::from_batch(&batch?).with_context(|| self.folder().display().to_string())?);
        }
        Ok(rows)
    }

    /// The rows of one part, digest checked, one record batch in memory at a time.
    pub fn rows_in<R: Row<K>>(&self, part: usize) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let folder = self.folder().display().to_string();
        let rows = move |batch: Result<RecordBatch>| R::from_batch(&batch?).with_context(|| folder.clone());
        Ok(self.batches(part, &[])?.flat_map(move |batch| one_by_one(rows(batch))))
    }

    /// The rows of one module in one part, shared ones too, digest checked; the values of the others are not read.
    pub fn rows_of<R: Row<K>>(&self, part: usize, module: &str) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let (folder, module) = (self.folder().display().to_string(), module.to_string());
        let rows = move |batch: Result<RecordBatch>| -> Result<Vec<R>> {
            let batch = batch?;
            let names = Found(&batch).utf8("module").with_context(|| folder.clone())?;
            let shared = |row| Found(&batch).texts("shared_with", row).contains(&module);
            let own = (0..batch.num_rows()).filter(|&row| names.value(row) == module || shared(row));
            let rows = own.map(|row| R::from_batch(&batch.slice(row, 1)));
            Ok(rows.collect::<Result<Vec<_>>>().with_context(|| folder.clone())?.into_iter().flatten().collect())
        };
        Ok(self.batches(part, &[])?.flat_map(move |batch| one_by_one(rows(batch))))
    }

    /// The names of the modules, in the order in which rows name them first.
    pub fn modules(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for batch in self.all_batches()? {
            let batch = batch?;
            for name in Found(&batch).utf8("module")?.iter().flatten() {
                if !names.iter().any(|known| known == name) {
                    names.push(name.into());
                }
            }
        }
        Ok(names)
    }

    /// The rows of one module in every part, in order.
    pub fn module<R: Row<K>>(&self, module: &str) -> Result<Vec<R>> {
        let mut rows = Vec::new();
        for part in self.parts_of(module)? {
            for row in self.rows_of(part, module)? {
                rows.push(row?);
            }
        }
        Ok(rows)
    }

    /// The parts with rows of one module, shared ones too. All are looked through the first time: who asks for every module
    /// in turn does not open every part for each.
    fn parts_of(&self, module: &str) -> Result<Vec<usize>> {
        let known = match self.by_module.get() {
            Some(known) => known,
            None => {
                let found = self.find_modules()?;
                self.by_module.get_or_init(|| found)
            }
        };
        Ok(known.get(module).cloned().unwrap_or_default())
    }

    fn find_modules(&self) -> Result<HashMap<String, Vec<usize>>> {
        let mut found: HashMap<String, Vec<usize>> = HashMap::new();
        for part in 0..self.parts() {
            for batch in self.batches(part, &[])? {
                let batch = batch?;
                let columns = Found(&batch);
                let names = columns.utf8("module")?;
                for row in 0..batch.num_rows() {
                    for name in [names.value(row).into()].into_iter().chain(columns.texts("shared_with", row)) {
                        let parts = found.entry(name).or_default();
                        if parts.last() != Some(&part) {
                            parts.push(part);
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// The rows of every part, digests checked, one record batch in memory at a time.
    pub fn rows<R: Row<K>>(&self) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let folder = self.folder().display().to_string();
        let rows = move |batch: Result<RecordBatch>| R::from_batch(&batch?).with_context(|| folder.clone());
        Ok(self.all_batches()?.flat_map(move |batch| one_by_one(rows(batch))))
    }
}

fn one_by_one<R>(rows: Result<Vec<R>>) -> Vec<Result<R>> {
    match rows {
        Ok(rows) => rows.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}
