//! Activation and gradient covariances, summed over tokens.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::kinds::columns::{Columns, batch, filled, floats, lists, numbers, shape, shapes, string_lists, strings};
use crate::kinds::definition::{Column, Definition, Once, Tensors, Values, first, mismatch};
use crate::kinds::{Covariances, Export, Format, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "covariances",
    version: 2,
    format: Format::Arrow,
    columns: &[
        Column::new("module", Values::Utf8),
        Column::new("side", Values::Utf8),
        Column::new("shared_with", Values::ListOfUtf8).optional(),
        Column::new("count", Values::UInt64),
        Column::new("shape", Values::ListOfUInt32),
        Column::new("matrix", Values::ListOfFloat32),
    ],
    show: |folder, _| {
        first::<Covariances, Covariance>(folder, |row| {
            let [rows, columns] = row.shape();
            format!("{} {} [{rows}, {columns}] over {} tokens", row.module, row.side.name(), row.count)
        })
    },
    export: Export::Tensors(|folder| {
        Tensors::of::<Covariances, Covariance>(folder, |tensors, row| {
            for module in row.modules() {
                let name = tensors.block(format!("{module}.{}", row.side.name()));
                tensors.count(&name, row.count);
                tensors.push(format!("{name}.sum"), row.shape().to_vec(), row.matrix.clone());
            }
        })
    }),
    states: &[Fact::Model],
    says: |wired| wired.stated(&[Fact::Model]),
    once: Once::Never,
    check: |batch| <Covariance as Row<Covariances>>::from_batch(batch)?.iter().try_for_each(Covariance::check),
};

/// How much an element of a covariance may differ from its mirror image, over the geometric mean of the diagonal's two.
const ASYMMETRY: f64 = 1e-3;

/// Which covariance: of a module's inputs, or of its output gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// A = E[a a^T].
    Activation,
    /// S = E[d d^T].
    Gradient,
}

impl Side {
    /// As in the `side` column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Activation => "activation",
            Self::Gradient => "gradient",
        }
    }

    pub(crate) fn from_name(name: &str) -> Result<Self> {
        match name {
            "activation" => Ok(Self::Activation),
            "gradient" => Ok(Self::Gradient),
            other => Err(Error::Mismatch(format!("side `{other}` is neither `activation` nor `gradient`")).into()),
        }
    }
}

/// A sum of outer products over `count` tokens: [n, n], row-major, or its diagonal alone, [n, 1].
#[derive(Debug, Clone, PartialEq)]
pub struct Covariance {
    /// Module name.
    pub module: String,
    /// Which side.
    pub side: Side,
    /// Later modules that read the same input, and hence have this matrix.
    pub shared_with: Vec<String>,
    /// Tokens summed over.
    pub count: u64,
    /// n.
    pub size: usize,
    /// Row-major values.
    pub matrix: Vec<f32>,
}

impl Covariance {
    /// Whether the diagonal alone is there.
    pub fn is_diagonal(&self) -> bool {
        self.size > 1 && self.matrix.len() == self.size
    }

    fn shape(&self) -> [usize; 2] {
        [self.size, if self.is_diagonal() { 1 } else { self.size }]
    }

    /// Every module that has this matrix.
    pub fn modules(&self) -> impl Iterator<Item = &String> {
        [&self.module].into_iter().chain(&self.shared_with)
    }
}

impl Covariance {
    /// Refuses what is no sum of products: numbers that are not symmetric, a diagonal below zero, a sum over nothing.
    fn check(&self) -> Result<()> {
        let (name, n) = (format!("the {} covariance of {}", self.side.name(), self.module), self.size);
        let diagonal = self.is_diagonal();
        let at = |i: usize, j: usize| f64::from(self.matrix[if diagonal { i } else { i * n + j }]);
        if self.count == 0 && self.matrix.iter().any(|&value| value != 0.0) {
            return mismatch(format!("{name} is the sum over no tokens and is not zero"));
        }
        if let Some(i) = (0..n).find(|&i| at(i, i) < 0.0) {
            return mismatch(format!("{name} has {} at [{i}, {i}]: a sum of squares is not negative", at(i, i)));
        }
        for i in 0..n {
            for j in 0..if diagonal { 0 } else { i } {
                let scale = (at(i, i) * at(j, j)).sqrt();
                let (element, mirrored) = (at(i, j), at(j, i));
                if (element - mirrored).abs() > ASYMMETRY * scale + f64::from(f32::MIN_POSITIVE) {
                    return mismatch(format!(
                        "{name} is not symmetric: {element} at [{i}, {j}], {mirrored} at [{j}, {i}]"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Row<Covariances> for Covariance {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("side", strings(rows.iter().map(|row| row.side.name()))),
            ("shared_with", string_lists(rows.iter().map(|row| &row.shared_with[..]))),
            ("count", numbers::<UInt64Type>(rows.iter().map(|row| row.count))),
            ("shape", shapes(rows.iter().map(Self::shape))),
            ("matrix", lists::<Float32Type>(rows.iter().map(|row| &row.matrix))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.matrix.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, side, count) = (columns.utf8("module")?, columns.utf8("side")?, columns.u64("count")?);
        let (shapes, matrix) = (columns.list("shape")?, columns.list("matrix")?);
        let row = |i| -> Result<Self> {
            let (module, matrix, [size, width]) = (module.value(i), floats(matrix, i), shape(shapes, i)?);
            filled(&format!("matrix of {module}"), [size, if width == 1 { 1 } else { size }], &matrix)?;
            let (side, shared_with) = (Side::from_name(side.value(i))?, columns.texts("shared_with", i));
            Ok(Self { module: module.into(), side, shared_with, count: count.value(i), size, matrix })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(
            module in text(), shared_with in many_texts(0..3), count in 1..=u64::MAX, x in vec(-1e6_f32..1e6, 3),
        ) {
            let matrix: Vec<f32> = x.iter().flat_map(|row| x.iter().map(move |column| row * column)).collect();
            let row = |side| {
                let (module, shared_with, matrix) = (module.clone(), shared_with.clone(), matrix.clone());
                Covariance { module, side, shared_with, count, size: 3, matrix }
            };
            let diagonal = Covariance { matrix: x.iter().map(|x| x * x).collect(), ..row(Side::Gradient) };
            assert!(diagonal.is_diagonal() && !row(Side::Gradient).is_diagonal());
            round_trip::<Covariances, _>(&[row(Side::Activation), row(Side::Gradient), diagonal]);
        }
    }
}
