//! Rows to record batches of bounded size: the offsets of a batch's lists and texts have 32 bits, and whoever reads one has
//! all of it in memory.

use anyhow::Result;
use arrow::record_batch::RecordBatch;

use crate::error::bad_input;
use crate::kinds::Row;

/// Bytes of a record batch, about.
pub const BATCH_BYTES: usize = 1 << 28;
/// Bytes of a row at most: its longest list has as many values of four bytes as 32 bits can count.
const ROW: usize = 4 * i32::MAX as usize;

/// The rows, in order, in batches of so many bytes; a row that has more is alone.
///
/// # Errors
/// A row that no batch holds.
pub fn in_batches<'a, K, R: Row<K>>(
    rows: &'a [R],
    bytes: usize,
) -> impl Iterator<Item = Result<RecordBatch>> + use<'a, K, R> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let first = rest.first()?.bytes();
        if first > ROW {
            rest = &[];
            return Some(Err(bad_input(format!(
                "a row of {first} bytes is more than a record batch holds; attribute fewer `modules`, or take shorter windows"
            ))));
        }
        let mut held = 0;
        let fit = rest.iter().take_while(|row| {
            held += row.bytes();
            held <= bytes
        });
        let (batch, after) = rest.split_at(fit.count().max(1));
        rest = after;
        Some(R::to_batch(batch))
    })
}

/// As [`in_batches`], of rows that are made as they are asked for: no more are there than one batch has, and the next.
///
/// # Errors
/// As [`in_batches`], and those of the rows.
pub fn into_batches<K, R: Row<K>>(
    rows: impl Iterator<Item = Result<R>>,
    bytes: usize,
) -> impl Iterator<Item = Result<RecordBatch>> {
    let mut rows = rows.peekable();
    let next = move || -> Result<Option<RecordBatch>> {
        let (mut batch, mut held) = (Vec::new(), 0);
        let fits = |row: &Result<R>, first: bool, held: usize| {
            first || row.as_ref().is_ok_and(|row| held + row.bytes() <= bytes)
        };
        while let Some(row) = rows.next_if(|row| fits(row, batch.is_empty(), held)) {
            batch.push(row?);
            held += batch[batch.len() - 1].bytes();
            if held > bytes {
                break;
            }
        }
        in_batches::<K, R>(&batch, usize::MAX).next().transpose()
    };
    let mut next = Some(next);
    std::iter::from_fn(move || {
        let made = next.as_mut()?().transpose()?;
        if made.is_err() {
            next = None;
        }
        Some(made)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{Factors, Gradients};

    fn factors(row: u64, values: usize) -> Factors {
        let (left, right) = (vec![row as f32; values], vec![1.0; 2]);
        let module = format!("m{row}");
        Factors { row, module, rank: 1, left_shape: [values, 1], left, right_shape: [2, 1], right }
    }

    #[test]
    fn no_batch_has_more_than_its_bytes_and_all_rows_come_back() {
        let rows: Vec<Factors> =
            [10, 10, 300, 1, 1, 1, 50].into_iter().zip(0..).map(|(n, row)| factors(row, n)).collect();
        for limit in [0, 1, 250, 400, 1000, 2000, usize::MAX] {
            let batches: Vec<_> = in_batches::<Gradients, _>(&rows, limit).map(Result::unwrap).collect();
            let mut back = Vec::new();
            for batch in &batches {
                let some = <Factors as Row<Gradients>>::from_batch(batch).unwrap();
                let held: usize = some.iter().map(<Factors as Row<Gradients>>::bytes).sum();
                assert!(some.len() == 1 || held <= limit, "{held} bytes where {limit} are allowed");
                back.extend(some);
            }
            assert_eq!(back, rows);
            let made: Vec<_> = into_batches::<Gradients, _>(rows.iter().cloned().map(Ok), limit).collect();
            assert_eq!(made.into_iter().map(Result::unwrap).collect::<Vec<_>>(), batches, "{limit}");
            assert_eq!(batches.len() == rows.len(), limit < 300, "{limit}");
        }
        assert_eq!(in_batches::<Gradients, Factors>(&[], 10).count(), 0);
        let broken = [Ok(factors(0, 1)), Err(bad_input("no row")), Ok(factors(1, 1))];
        let made: Vec<_> = into_batches::<Gradients, _>(broken.into_iter(), 1000).map(|batch| batch.is_ok()).collect();
        assert_eq!(made, [true, false]);
    }
}
