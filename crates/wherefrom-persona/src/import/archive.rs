//! The archive that `torch.save` writes: a ZIP file of stored entries, found by the directory at its end.
//!
//! ```text
//! entry          "PK\3\4" .. name length u16 at 26, extra length u16 at 28, name, extra, data
//! directory      "PK\1\2" .. flags u16 at 8, method u16 at 10, crc u32 at 16, sizes u32 at 20 and 24, lengths of name, extra and
//!                comment u16 at 28, 30 and 32, place of the entry u32 at 42, name, extra, comment
//! end            "PK\5\6" .. entries u16 at 10, directory's size u32 at 12 and place u32 at 16, comment
//! ```
//!
//! What is compressed, encrypted, of several volumes or beyond 4 GiB is refused; torch writes none of these for a tensor of this size.

use std::collections::BTreeMap;

/// Entries at most; an archive of one tensor has seven.
const ENTRIES: usize = 64;
/// Bytes of the record at the end, without its comment.
const END: usize = 22;
/// Of the directory, without names.
const ENTRY: usize = 46;
/// Of an entry's own header, without its name.
const HEADER: usize = 30;

/// The data of each entry by its name.
///
/// # Errors
/// What is wrong with it.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, &[u8]>, String> {
    // A comment may stand behind the record.
    let from = bytes.len().saturating_sub(END + usize::from(u16::MAX));
    let end = bytes[from..].windows(END).rposition(|window| window.starts_with(b"PK\x05\x06"));
    let end =
        &bytes[from + end.ok_or("is no archive as `torch.save` writes it; save it again with torch 1.6 or later")?..];
    let count = number(end, 10, 2)?;
    if count > ENTRIES {
        return Err(format!("has {count} entries; a file of one tensor has seven"));
    }
    let mut directory = bytes.get(number(end, 16, 4)?..).ok_or_else(cut)?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        if !directory.starts_with(b"PK\x01\x02") {
            return Err(cut());
        }
        let [own, extra, comment] = [28, 30, 32].map(|place| number(directory, place, 2));
        let (own, extra, comment) = (own?, extra?, comment?);
        let name = std::str::from_utf8(directory.get(ENTRY..ENTRY + own).ok_or_else(cut)?)
            .map_err(|_| "has an entry whose name is not UTF-8")?;
        let (flags, method) = (number(directory, 8, 2)?, number(directory, 10, 2)?);
        if method != 0 || flags & 1 != 0 {
            return Err(format!("its entry `{name}` is compressed or encrypted, which torch never does"));
        }
        let [size, place] = [24, 42].map(|place| number(directory, place, 4));
        let data = data(bytes, place?, size?).ok_or_else(|| format!("is cut off in its entry `{name}`"))?;
        if crc32fast::hash(data) as usize != number(directory, 16, 4)? {
            return Err(format!("its entry `{name}` is damaged: its checksum is another"));
        }
        if entries.insert(name.to_string(), data).is_some() {
            return Err(format!("has two entries `{name}`"));
        }
        directory = directory.get(ENTRY + own + extra + comment..).ok_or_else(cut)?;
    }
    Ok(entries)
}

/// So many bytes behind the header that stands at a place.
fn data(bytes: &[u8], place: usize, size: usize) -> Option<&[u8]> {
    let header = bytes.get(place..).filter(|header| header.starts_with(b"PK\x03\x04"))?;
    let before = HEADER + number(header, 26, 2).ok()? + number(header, 28, 2).ok()?;
    header.get(before..)?.get(..size)
}

/// A little-endian number of so many bytes at a place.
fn number(bytes: &[u8], place: usize, length: usize) -> Result<usize, String> {
    let bytes = bytes.get(place..place + length).ok_or_else(cut)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

fn cut() -> String {
    "is a damaged archive: its directory is cut off".into()
}
