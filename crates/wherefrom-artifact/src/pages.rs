//! Pages of a Parquet column whose levels, counts and lengths are walked before a decoder believes them.
//!
//! A few bytes may stand for thousands of millions of values, and a decoder makes room for as many as they say.

use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use crate::ParquetFile;

/// Bytes of all values of a page whose texts share their beginnings, written out.
const SHARED: u64 = 128 << 20;

/// The pages of one column of one row group.
pub(crate) struct CheckedPages {
    pages: SerializedPageReader<ParquetFile>,
    column: ColumnChunkMetaData,
    dictionary: bool,
    rows: Rows,
}

impl CheckedPages {
    pub(crate) fn open(file: &ParquetFile, column: &ColumnChunkMetaData, rows: usize) -> Result<Self> {
        let pages = SerializedPageReader::new(file.clone().into(), column, rows, None)?;
        Ok(Self { pages, column: column.clone(), dictionary: false, rows: Rows::default() })
    }

    /// Items of the longest row, all pages read.
    pub(crate) fn longest_row(mut self) -> Result<u64> {
        while self.get_next_page()?.is_some() {}
        Ok(self.rows.longest.max(self.rows.current))
    }

    fn checked(&mut self, page: Option<Page>) -> Result<Option<Page>> {
        if let Some(page) = &page {
            let descriptor = self.column.column_descr();
            check(page, descriptor, &mut self.rows, self.dictionary)
                .map_err(|what| ParquetError::General(format!("column {}: {what}", self.column.column_path())))?;
            self.dictionary |= page.is_dictionary_page();
        }
        Ok(page)
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        self.checked(page)
    }
    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }
    fn skip_next_page(&mut self) -> Result<()> {
        self.dictionary |= self.pages.peek_next_page()?.is_some_and(|page| page.is_dict);
        self.pages.skip_next_page()
    }
    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }
    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        let page = self.pages.take_deferred_dictionary()?;
        self.checked(page)
    }
    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// The one column of a row group.
pub(crate) struct OneColumn(pub(crate) Option<CheckedPages>);

impl Iterator for OneColumn {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(|pages| Ok(Box::new(pages) as Box<dyn PageReader>))
    }
}

impl PageIterator for OneColumn {}

/// How many items rows have: a row begins at each repetition level that is 0.
#[derive(Default)]
struct Rows {
    current: u64,
    longest: u64,
}

impl Rows {
    fn add(&mut self, level: u64, count: u64) {
        if level == 0 && count > 0 {
            self.longest = self.longest.max(self.current).max(1);
            self.current = 1;
        } else {
            self.current += count;
        }
    }
}

fn check(page: &Page, column: &ColumnDescriptor, rows: &mut Rows, dictionary: bool) -> std::result::Result<(), String> {
    let (max_rep, max_def) =
        (column.max_rep_level().unsigned_abs().into(), column.max_def_level().unsigned_abs().into());
    let cut = || "the levels of a page are cut off".to_string();
    let (rep, def, values, count, encoding) = match page {
        Page::DictionaryPage { buf, num_values, .. } => {
            return check_values(buf, (*num_values).into(), Encoding::PLAIN, column, false);
        }
        Page::DataPage { buf, num_values, encoding, rep_level_encoding, def_level_encoding, .. } => {
            let mut rest = &buf[..];
            let mut levels = |max: u64, encoding: &Encoding| {
                if max == 0 {
                    return Ok(&[][..]);
                }
                if *encoding != Encoding::RLE {
                    return Err(format!("the levels of a page are {encoding:?}, and RLE is read"));
                }
                let (length, after) = rest.split_first_chunk().ok_or_else(cut)?;
                let (levels, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
                rest = after;
                Ok(levels)
            };
            let (rep, def) = (levels(max_rep, rep_level_encoding)?, levels(max_def, def_level_encoding)?);
            (rep, def, rest, *num_values, *encoding)
        }
        Page::DataPageV2 { buf, num_values, encoding, rep_levels_byte_len, def_levels_byte_len, .. } => {
            let (rep, after) = buf.split_at_checked(*rep_levels_byte_len as usize).ok_or_else(cut)?;
            let (def, values) = after.split_at_checked(*def_levels_byte_len as usize).ok_or_else(cut)?;
            (rep, def, values, *num_values, *encoding)
        }
    };
    let count = u64::from(count);
    if max_rep > 0 {
        levels(rep, max_rep, count, &mut |level, times| rows.add(level, times))?;
    }
    let mut present = count;
    if max_def > 0 {
        present = 0;
        levels(def, max_def, count, &mut |level, times| present += if level == max_def { times } else { 0 })?;
    }
    // What a decoder takes as the number of values that it may be asked for.
    if let Page::DataPageV2 { num_nulls, .. } = page
        && count.checked_sub((*num_nulls).into()).is_none_or(|stated| stated < present)
    {
        return Err(format!("a page of {count} values has {present} that are none of its {num_nulls} nulls"));
    }
    check_values(values, present, encoding, column, dictionary)
}

/// Levels up to `max`: runs of one level, and groups of eight.
fn levels(
    bytes: &[u8],
    max: u64,
    mut left: u64,
    each: &mut dyn FnMut(u64, u64),
) -> std::result::Result<(), &'static str> {
    let width = (u64::BITS - max.leading_zeros()) as usize;
    let mut reader = Bytes(bytes);
    while left > 0 {
        let header = reader.varint()?;
        if header & 1 == 0 {
            let times = (header >> 1).min(left);
            let level =
                reader.take(width.div_ceil(8))?.iter().rev().fold(0, |level, byte| level << 8 | u64::from(*byte));
            if level > max {
                return Err("a level is higher than its column's");
            }
            each(level, times);
            left -= times;
            continue;
        }
        // The last group may be cut after what it holds.
        let levels = (header >> 1).saturating_mul(8).min(left);
        let bytes = reader.take_up_to((header >> 1).saturating_mul(width as u64))?;
        if (bytes.len() as u64) * 8 < levels * width as u64 {
            return Err("the levels of a page are cut off");
        }
        for place in 0..levels as usize {
            let level = bits(bytes, place * width, width);
            if level > max {
                return Err("a level is higher than its column's");
            }
            each(level, 1);
        }
        left -= levels;
    }
    Ok(())
}

/// Counts and lengths that a decoder makes room for: of `present` values.
fn check_values(
    values: &[u8],
    present: u64,
    encoding: Encoding,
    column: &ColumnDescriptor,
    dictionary: bool,
) -> std::result::Result<(), String> {
    let lengths = |values: &[u8]| {
        let mut lengths = Vec::new();
        let consumed = deltas(values, present, &mut |length| lengths.push(i64::from(length as i32)))?;
        if lengths.iter().any(|length| *length < 0) {
            return Err("a text has a negative length");
        }
        Ok((lengths, consumed))
    };
    match encoding {
        Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => {
            if !dictionary {
                return Err("a page needs a dictionary that is not there".into());
            }
            if values.first().is_some_and(|width| *width > 32) {
                return Err("the places in a dictionary are too wide".into());
            }
        }
        // Texts, each behind its length. A decoder that has read them all divides by the number that is left, if there are bytes.
        Encoding::PLAIN if column.physical_type() == Type::BYTE_ARRAY => {
            let mut reader = Bytes(values);
            for _ in 0..present {
                let length = reader.take(4)?.try_into().map_or(0, u32::from_le_bytes);
                reader.take(length as usize)?;
            }
            if !reader.0.is_empty() {
                return Err("a page has more bytes than its texts".into());
            }
        }
        // Truth values, after their length.
        Encoding::RLE => {
            let (length, rest) = values.split_first_chunk().ok_or("the values of a page are cut off")?;
            if u32::from_le_bytes(*length) as usize > rest.len() {
                return Err("the values of a page are cut off".into());
            }
        }
        Encoding::DELTA_BINARY_PACKED => {
            deltas(values, present, &mut |_| {})?;
        }
        Encoding::DELTA_LENGTH_BYTE_ARRAY => {
            let (lengths, consumed) = lengths(values)?;
            if lengths.iter().sum::<i64>() as usize > values.len() - consumed {
                return Err("the texts of a page are cut off".into());
            }
        }
        Encoding::DELTA_BYTE_ARRAY => {
            let (prefixes, first) = lengths(values)?;
            let (suffixes, second) = lengths(&values[first..])?;
            let (mut last, mut own, mut all) = (0, 0, 0);
            for (prefix, suffix) in prefixes.iter().zip(&suffixes) {
                if *prefix > last {
                    return Err("a text shares more than the one before it has".into());
                }
                last = prefix + suffix;
                own += suffix;
                all += last;
            }
            if own as usize > values.len() - first - second {
                return Err("the texts of a page are cut off".into());
            }
            if all as u64 > SHARED {
                return Err(format!(
                    "the texts of a page have {all} bytes; up to {SHARED} are read: write smaller pages"
                ));
            }
        }
        Encoding::BYTE_STREAM_SPLIT => {
            let width = match column.physical_type() {
                Type::INT32 | Type::FLOAT => 4,
                Type::INT64 | Type::DOUBLE => 8,
                _ => column.type_length().unsigned_abs().into(),
            };
            if present.checked_mul(width) != Some(values.len() as u64) {
                return Err("a page has another size than its values".into());
            }
        }
        _ => {}
    }
    Ok(())
}

/// Walks numbers that are packed as differences, one for each value that is `present`; gives where they end.
fn deltas(bytes: &[u8], present: u64, each: &mut dyn FnMut(i64)) -> std::result::Result<usize, &'static str> {
    let mut reader = Bytes(bytes);
    let (block, parts, count) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let mut value = reader.zigzag()?;
    // A decoder that is asked for a number where there are none counts below zero.
    if count != present {
        return Err("a page has another number of numbers than values");
    }
    if block == 0 || parts == 0 || !block.is_multiple_of(128) || !block.is_multiple_of(parts) {
        return Err("the blocks of a page are malformed");
    }
    let size = (block / parts) as usize;
    let mut left = count as usize;
    if left > 0 {
        each(value);
        left -= 1;
    }
    while left > 0 {
        let least = reader.zigzag()?;
        for width in reader.take(parts as usize)? {
            if left == 0 {
                break;
            }
            let (width, here) = (usize::from(*width), size.min(left));
            if width > 64 {
                return Err("a number of a page is too wide");
            }
            let packed = reader.take_up_to((width as u64).saturating_mul(size as u64) / 8)?;
            if packed.len() * 8 < here * width {
                return Err("the numbers of a page are cut off");
            }
            for place in 0..here {
                value = value.wrapping_add(least).wrapping_add(bits(packed, place * width, width) as i64);
                each(value);
            }
            left -= here;
        }
    }
    Ok(bytes.len() - reader.0.len())
}

/// `width` bits of `bytes` from bit `from` on, the lowest first; there are as many.
fn bits(bytes: &[u8], from: usize, width: usize) -> u64 {
    let window = &bytes[(from / 8).min(bytes.len())..(from + width).div_ceil(8).min(bytes.len())];
    let number = window.iter().rev().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    (number >> (from % 8) & ((1 << width) - 1)) as u64
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> std::result::Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("a page is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn take_up_to(&mut self, count: u64) -> std::result::Result<&'a [u8], &'static str> {
        self.take(usize::try_from(count).unwrap_or(usize::MAX).min(self.0.len()))
    }

    fn varint(&mut self) -> std::result::Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of a page has no end")
    }

    fn zigzag(&mut self) -> std::result::Result<i64, &'static str> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::types::{ColumnPath, Type as Schema};

    use super::*;

    #[test]
    fn a_page_of_texts_and_a_dictionary_end_with_their_last_text() {
        let text = Schema::primitive_type_builder("text", Type::BYTE_ARRAY).build().unwrap();
        let column = ColumnDescriptor::new(Arc::new(text), 0, 0, ColumnPath::from("text"));
        let page = [&2_u32.to_le_bytes()[..], b"ab", &0_u32.to_le_bytes()].concat();
        let checked = |values: &[u8], present: u64| check_values(values, present, Encoding::PLAIN, &column, false);
        assert_eq!(checked(&page, 2), Ok(()));
        assert_eq!(checked(&[], 0), Ok(()));
        for (values, present) in [(&page[..], 1), (&page, 0)] {
            assert!(checked(values, present).unwrap_err().contains("more bytes than its texts"));
        }
        let dictionary = |num_values: u32| {
            let (buf, encoding) = (page.clone().into(), Encoding::PLAIN);
            check(
                &Page::DictionaryPage { buf, num_values, encoding, is_sorted: false },
                &column,
                &mut Rows::default(),
                false,
            )
        };
        assert_eq!(dictionary(2), Ok(()));
        assert!(dictionary(0).unwrap_err().contains("more bytes than its texts"));
        for (values, present) in [(&page[..], 3), (&page[..5], 1), (&page[..3], 1)] {
            assert!(checked(values, present).unwrap_err().contains("cut off"), "{present}");
        }
    }
}
