//! Arrow columns from vectors and back.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{
    ArrayRef, AsArray as _, BooleanArray, BooleanBuilder, Float32Array, ListArray, ListBuilder, PrimitiveArray,
    PrimitiveBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array, UInt64Array,
};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, UInt32Type};

use crate::error::Error;
use crate::stored::scale_of;

pub(super) fn lists<T: ArrowPrimitiveType>(rows: impl Iterator<Item = impl AsRef<[T::Native]>>) -> ArrayRef {
    let rows: Vec<_> = rows.collect();
    let lengths = rows.iter().map(|row| row.as_ref().len());
    let mut builder = ListBuilder::new(PrimitiveBuilder::<T>::with_capacity(lengths.sum()));
    for row in rows {
        builder.values().append_slice(row.as_ref());
        builder.append(true);
    }
    Arc::new(builder.finish())
}

pub(super) fn bool_lists<'a>(rows: impl Iterator<Item = &'a [bool]>) -> ArrayRef {
    let mut builder = ListBuilder::new(BooleanBuilder::new());
    for row in rows {
        builder.values().append_slice(row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

pub(super) fn string_lists<'a>(rows: impl Iterator<Item = &'a [String]>) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for row in rows {
        row.iter().for_each(|text| builder.values().append_value(text));
        builder.append(true);
    }
    Arc::new(builder.finish())
}

pub(super) fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter(columns)?)
}

pub(super) fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

pub(super) fn numbers<T: ArrowPrimitiveType>(values: impl Iterator<Item = T::Native>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_iter_values(values))
}

/// Columns of one batch, found by name (the types were checked when the part was opened).
pub(crate) struct Columns<'a>(pub(crate) &'a RecordBatch);

impl<'a> Columns<'a> {
    pub(super) fn any(&self, name: &str) -> Result<&'a ArrayRef> {
        let what = || Error::Mismatch(format!("column `{name}` is missing")).into();
        self.0.column_by_name(name).ok_or_else(what)
    }
    pub(crate) fn u64(&self, name: &str) -> Result<&'a UInt64Array> {
        Ok(self.any(name)?.as_primitive())
    }
    pub(crate) fn u32(&self, name: &str) -> Result<&'a UInt32Array> {
        Ok(self.any(name)?.as_primitive())
    }
    pub(crate) fn f32(&self, name: &str) -> Result<&'a Float32Array> {
        Ok(self.any(name)?.as_primitive())
    }
    pub(crate) fn utf8(&self, name: &str) -> Result<&'a StringArray> {
        Ok(self.any(name)?.as_string())
    }
    pub(super) fn list(&self, name: &str) -> Result<&'a ListArray> {
        Ok(self.any(name)?.as_list())
    }
}

pub(super) fn values<T: ArrowPrimitiveType>(list: &ListArray, row: usize) -> Vec<T::Native> {
    list.value(row).as_primitive::<T>().values().to_vec()
}

impl Columns<'_> {
    /// Texts of a column that may be missing.
    pub(crate) fn texts(&self, name: &str, row: usize) -> Vec<String> {
        self.0.column_by_name(name).map(|list| texts(list.as_list(), row)).unwrap_or_default()
    }

    /// Values of a matrix, stored as float32 or as float16 with a scale.
    pub(super) fn matrix(&self, name: &str, row: usize) -> Result<Vec<f32>> {
        let list = self.list(name)?;
        let mut values = match list.value_type() {
            DataType::Float16 => {
                list.value(row).as_primitive::<Float16Type>().values().iter().map(|value| value.to_f32()).collect()
            }
            _ => floats(list, row),
        };
        if let Some(scales) = self.0.column_by_name(&scale_of(name)) {
            let scale = scales.as_primitive::<Float32Type>().value(row);
            values.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(values)
    }
}

pub(super) fn floats(list: &ListArray, row: usize) -> Vec<f32> {
    values::<Float32Type>(list, row)
}

pub(super) fn bools(list: &ListArray, row: usize) -> Vec<bool> {
    let array: BooleanArray = list.value(row).as_boolean().clone();
    array.values().iter().collect()
}

pub(super) fn texts(list: &ListArray, row: usize) -> Vec<String> {
    list.value(row).as_string::<i32>().iter().flatten().map(str::to_string).collect()
}

pub(super) fn shape(list: &ListArray, row: usize) -> Result<[usize; 2]> {
    match values::<UInt32Type>(list, row)[..] {
        [rows, columns] => Ok([rows as usize, columns as usize]),
        ref other => Err(Error::Mismatch(format!("shape {other:?} has not two numbers")).into()),
    }
}

/// Refuses values that are not as many as their shape says.
pub(super) fn filled(what: &str, shape: [usize; 2], values: &[f32]) -> Result<()> {
    if shape[0].checked_mul(shape[1]) == Some(values.len()) {
        return Ok(());
    }
    Err(Error::Mismatch(format!("{what} has {} values, not {} x {}", values.len(), shape[0], shape[1])).into())
}

pub(super) fn shapes(shapes: impl Iterator<Item = [usize; 2]>) -> ArrayRef {
    lists::<UInt32Type>(shapes.map(|[rows, columns]| vec![to_u32(rows), to_u32(columns)]))
}

pub(super) fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
