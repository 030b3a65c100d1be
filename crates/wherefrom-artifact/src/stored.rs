//! Dense values in half the bytes: float16, with a scale beside each list.
//!
//! value = stored * scale. The scale is a power of two, so that it costs no digit, and brings the largest number of a
//! list to between 2^14 and 2^15: the smallest that keeps all eleven digits is 2^29 times smaller, and what is more than
//! 2^40 times smaller becomes zero.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{Array as _, ArrayRef, AsArray as _, Float32Array, ListBuilder, PrimitiveBuilder};
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Schema};
use arrow::record_batch::RecordBatch;
use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kinds::Kind;

/// How a stage stores its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// float32.
    #[default]
    F32,
    /// float16 with a scale.
    F16,
}

impl Stored {
    /// Bytes of a number.
    pub fn bytes(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::F16 => 2.0,
        }
    }
}

/// The column that holds the scales of another.
pub(crate) fn scale_of(column: &str) -> String {
    format!("{column}_scale")
}

/// The kind's columns, its matrices in float16 if so asked.
pub(crate) fn schema(kind: Kind, stored: Stored) -> Schema {
    let schema = kind.schema();
    if stored == Stored::F32 {
        return schema;
    }
    let fields = schema.fields().iter().flat_map(|field| {
        if !kind.halved(field.name()) {
            return vec![field.clone()];
        }
        let item = Field::new_list_field(DataType::Float16, true);
        let list = Field::new(field.name(), DataType::List(Arc::new(item)), false);
        vec![Arc::new(list), Arc::new(Field::new(scale_of(field.name()), DataType::Float32, false))]
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// What float16 has changed: relative errors of the values that are not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Losses {
    values: u64,
    largest: f64,
    squares: f64,
    zeroed: u64,
}

impl Losses {
    fn add(&mut self, value: f32, stored: f32) {
        if value != 0.0 {
            let error = (f64::from(stored) / f64::from(value) - 1.0).abs();
            self.values += 1;
            self.largest = self.largest.max(error);
            self.squares += error * error;
            self.zeroed += u64::from(stored == 0.0);
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            largest: self.largest.max(other.largest),
            squares: self.squares + other.squares,
            zeroed: self.zeroed + other.zeroed,
        }
    }

    /// For the manifest: largest and root-mean-square relative error, and how many values are so small beside the
    /// largest of their list that they became zero.
    pub(crate) fn summary(&self) -> Value {
        let rms = (self.squares / self.values.max(1) as f64).sqrt();
        let short = |value: f64| format!("{value:.2e}").parse::<f64>().unwrap_or(value);
        json!({
            "type": "f16",
            "largest_relative_error": short(self.largest),
            "rms_relative_error": short(rms),
            "zeroed": self.zeroed,
        })
    }
}

/// The batch with the kind's matrices in float16 and their scales beside them.
pub(crate) fn halve(kind: Kind, batch: &RecordBatch, losses: &mut Losses) -> Result<RecordBatch> {
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !kind.halved(field.name()) {
            columns.push((field.name().clone(), column.clone()));
            continue;
        }
        let lists = column.as_list_opt::<i32>().with_context(|| format!("column `{}` has no lists", field.name()))?;
        let mut halves = ListBuilder::new(PrimitiveBuilder::<Float16Type>::new());
        let mut scales = Vec::new();
        for row in 0..lists.len() {
            let values = lists.value(row);
            let values = values.as_primitive::<Float32Type>().values();
            let scale = scale(values);
            for &value in values {
                let half = f16::from_f32(value / scale);
                losses.add(value, half.to_f32() * scale);
                halves.values().append_value(half);
            }
            halves.append(true);
            scales.push(scale);
        }
        columns.push((field.name().clone(), Arc::new(halves.finish())));
        columns.push((scale_of(field.name()), Arc::new(Float32Array::from(scales))));
    }
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// The power of two that brings the largest of the values to 2^14 or more and below 2^15.
fn scale(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return 1.0;
    }
    // A normal number's power of two; below 2^-112 the scale would not be normal itself.
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    2.0_f32.powi((exponent - 14).max(-126))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_brings_the_largest_into_place_and_back() {
        for largest in [1.0_f32, 3.9, 1e-30, 65504.0, 2.5e37, f32::MIN_POSITIVE, 3.3e38] {
            let values = [largest, -largest / 3.0, largest / 1e6, 0.0];
            let scale = scale(&values);
            for value in values {
                let half = f16::from_f32(value / scale);
                assert!(half.is_finite(), "{value} over {scale}");
                // Half a unit of the eleventh digit, or of the smallest number that float16 has.
                let most = (value.abs() * 2.0_f32.powi(-11)).max(scale * 2.0_f32.powi(-25));
                assert!((half.to_f32() * scale - value).abs() <= most, "{value} by {scale}");
            }
        }
        assert_eq!(scale(&[0.0]), 1.0);
    }
}
