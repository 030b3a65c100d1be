//! How many items the longest row of a Parquet list has, told before they are decoded: a few bytes may stand for thousands
//! of millions of them.

use std::sync::Arc;

use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader as _};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use wherefrom_artifact::ParquetFile;

/// Items of the longest row of a column of lists.
///
/// # Errors
/// What is wrong with a page.
pub(crate) fn longest_row(file: &ParquetFile, column: &ColumnChunkMetaData, rows: usize) -> Result<u64, String> {
    let failed = |error: parquet::errors::ParquetError| error.to_string();
    let mut pages = SerializedPageReader::new(Arc::new(file.clone()), column, rows, None).map_err(failed)?;
    let width = 16 - column.column_descr().max_rep_level().unsigned_abs().leading_zeros();
    let mut runs = Runs::default();
    while let Some(page) = pages.get_next_page().map_err(failed)? {
        match &page {
            Page::DictionaryPage { .. } => {}
            Page::DataPage { buf, num_values, rep_level_encoding: Encoding::RLE, .. } => {
                let cut = || "the repetition levels of a page are cut off".to_string();
                let (length, levels) = buf.split_first_chunk().ok_or_else(cut)?;
                let levels = levels.get(..u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
                runs.read(levels, width, u64::from(*num_values));
            }
            Page::DataPageV2 { buf, num_values, rep_levels_byte_len, .. } => {
                let levels = buf.get(..*rep_levels_byte_len as usize).unwrap_or_default();
                runs.read(levels, width, u64::from(*num_values));
            }
            Page::DataPage { rep_level_encoding, .. } => {
                return Err(format!("the repetition levels of a page are {rep_level_encoding:?}, and RLE is read"));
            }
        }
    }
    Ok(runs.longest.max(runs.current))
}

/// Repetition levels: a row begins at each that is 0.
#[derive(Default)]
struct Runs {
    current: u64,
    longest: u64,
}

impl Runs {
    /// Reads `left` levels of `width` bits: runs of one level, and groups of eight.
    fn read(&mut self, levels: &[u8], width: u32, mut left: u64) {
        let mut bytes = levels.iter().copied();
        while left > 0 {
            let (mut header, mut shift) = (0_u64, 0);
            loop {
                let Some(byte) = bytes.next() else { return };
                header |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            if header & 1 == 0 {
                let count = (header >> 1).min(left);
                left -= count;
                let level = (0..width.div_ceil(8)).fold(0, |level, _| level | bytes.next().unwrap_or(0));
                self.add(level == 0, count);
                continue;
            }
            for _ in 0..header >> 1 {
                // Eight levels are `width` bytes.
                let Some(first) = bytes.next() else { return };
                let group = (1..width)
                    .fold(u128::from(first), |group, byte| group | u128::from(bytes.next().unwrap_or(0)) << (8 * byte));
                for place in 0..8.min(left) as u32 {
                    self.add(group >> (place * width) & ((1 << width) - 1) == 0, 1);
                }
                left -= left.min(8);
            }
        }
    }

    fn add(&mut self, begins: bool, count: u64) {
        if begins && count > 0 {
            self.longest = self.longest.max(self.current).max(1);
            self.current = 1;
        } else {
            self.current += count;
        }
    }
}
