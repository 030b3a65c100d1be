//! Eigenvalues and eigenvectors of the covariances.

use anyhow::Result;
use arrow::datatypes::Float32Type;
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, filled, floats, lists, shapes, string_lists, strings};
use crate::kinds::definition::{Column, Definition, Once, Tensors, Values, first, mismatch};
use crate::kinds::{Eigenbasis, Export, Format, Row, Side};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "eigenbasis",
    version: 2,
    format: Format::Arrow,
    columns: &[
        Column::new("module", Values::Utf8),
        Column::new("side", Values::Utf8),
        Column::new("shared_with", Values::ListOfUtf8).optional(),
        Column::new("values", Values::ListOfFloat32),
        Column::new("shape", Values::ListOfUInt32),
        Column::new("vectors", Values::ListOfFloat32),
    ],
    show: |folder, _| {
        first::<Eigenbasis, Basis>(folder, |row| {
            let [least, largest]: [fn(f32, f32) -> f32; 2] = [f32::min, f32::max];
            let [least, largest] = [least, largest].map(|of| row.values.iter().copied().reduce(of).unwrap_or(0.0));
            let (module, side, count) = (&row.module, row.side.name(), row.values.len());
            format!("{module} {side} {count} eigenvalues, {least:.3e} to {largest:.3e}")
        })
    },
    export: Export::Tensors(|folder| {
        Tensors::of::<Eigenbasis, Basis>(folder, |tensors, row| {
            for module in row.modules() {
                let name = tensors.block(format!("{module}.{}", row.side.name()));
                tensors.push(format!("{name}.values"), vec![row.values.len()], row.values.clone());
                if !row.is_standard() {
                    tensors.push(format!("{name}.vectors"), row.shape().to_vec(), row.vectors.clone());
                }
            }
        })
    }),
    states: &[Fact::Model],
    says: |wired| wired.own(Fact::Eigenbasis, &[Fact::Model]),
    once: Once::Never,
    check: |batch| <Basis as Row<Eigenbasis>>::from_batch(batch)?.iter().try_for_each(Basis::check),
};

/// How much the length of an eigenvector may differ from 1.
const LENGTH: f64 = 1e-3;

/// Eigenvalues ascending, eigenvectors as the columns of [n, n], row-major; or the diagonal of a covariance of which nothing else
/// is there, in its order, and no vectors: the standard basis.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// Module name.
    pub module: String,
    /// Which side.
    pub side: Side,
    /// Later modules whose matrix this is too.
    pub shared_with: Vec<String>,
    /// Eigenvalues, of the mean over tokens.
    pub values: Vec<f32>,
    /// Row-major eigenvectors; none in the standard basis.
    pub vectors: Vec<f32>,
}

impl Basis {
    /// Whether this is the standard basis.
    pub fn is_standard(&self) -> bool {
        self.vectors.is_empty()
    }

    fn shape(&self) -> [usize; 2] {
        [self.values.len(), if self.is_standard() { 0 } else { self.values.len() }]
    }

    /// Every module that has this matrix.
    pub fn modules(&self) -> impl Iterator<Item = &String> {
        [&self.module].into_iter().chain(&self.shared_with)
    }
}

impl Basis {
    /// Refuses eigenvectors that are not of unit length.
    fn check(&self) -> Result<()> {
        let (name, n) = (format!("the {} eigenbasis of {}", self.side.name(), self.module), self.values.len());
        if self.is_standard() {
            return Ok(());
        }
        let mut squares = vec![0.0_f64; n];
        for vectors in self.vectors.chunks_exact(n.max(1)) {
            squares.iter_mut().zip(vectors).for_each(|(sum, &value)| *sum += f64::from(value).powi(2));
        }
        match squares.iter().position(|square| (square.sqrt() - 1.0).abs() > LENGTH) {
            Some(column) => {
                mismatch(format!("{name}: eigenvector {column} has length {}, not 1", squares[column].sqrt()))
            }
            None => Ok(()),
        }
    }
}

impl Row<Eigenbasis> for Basis {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("side", strings(rows.iter().map(|row| row.side.name()))),
            ("shared_with", string_lists(rows.iter().map(|row| &row.shared_with[..]))),
            ("values", lists::<Float32Type>(rows.iter().map(|row| &row.values))),
            ("shape", shapes(rows.iter().map(Self::shape))),
            ("vectors", lists::<Float32Type>(rows.iter().map(|row| &row.vectors))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.vectors.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, side) = (columns.utf8("module")?, columns.utf8("side")?);
        let (eigenvalues, vectors) = (columns.list("values")?, columns.list("vectors")?);
        let row = |i| -> Result<Self> {
            let (module, values, vectors) = (module.value(i), floats(eigenvalues, i), floats(vectors, i));
            let (side, shared_with) = (Side::from_name(side.value(i))?, columns.texts("shared_with", i));
            let basis = Self { module: module.into(), side, shared_with, values, vectors };
            filled(&format!("vectors of {module}"), basis.shape(), &basis.vectors)?;
            Ok(basis)
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
            module in text(), shared_with in many_texts(0..3), values in many_numbers(2), angle in 0.0_f32..6.0,
        ) {
            let (sin, cos) = angle.sin_cos();
            let row = |side| {
                let (module, shared_with, values) = (module.clone(), shared_with.clone(), values.clone());
                Basis { module, side, shared_with, values, vectors: vec![cos, -sin, sin, cos] }
            };
            let standard = Basis { vectors: Vec::new(), ..row(Side::Gradient) };
            round_trip::<Eigenbasis, _>(&[row(Side::Activation), row(Side::Gradient), standard]);
        }
    }
}
