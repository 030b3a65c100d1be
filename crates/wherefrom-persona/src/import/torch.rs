//! `TRAIT_OVER_diff.pt` of the originals: one bare tensor [sites, width] of raw differences of means. Row l is the stream after l
//! blocks, but for the last, which transformers hands out after the final norm.

use std::collections::BTreeMap;

use half::{bf16, f16};

use super::archive::entries;
use super::pickle::{Numbers, View, view};
use super::{Found, Last, matrix, over, rows_of};

/// Entries that say nothing of the numbers.
const PASSED: [&str; 4] = [".format_version", ".storage_alignment", "version", ".data/serialization_id"];

pub(super) fn read(bytes: &[u8], stem: &str) -> Result<Vec<Found>, String> {
    let archive = Archive::open(bytes)?;
    let tensor = view(archive.entry("data.pkl")?)?;
    let storage = archive.entry(&format!("data/{}", tensor.key))?;
    let [_, width] = matrix(&tensor.shape)?;
    let values = values(&tensor, storage)?;
    let (name, tokens) = named(stem);
    Ok(rows_of(width, &values, Last::PostNorm, 0, name, tokens))
}

/// Trait and tokens by the name of the file: `evil_response_avg_diff`.
fn named(stem: &str) -> (&str, Option<wherefrom_artifact::Over>) {
    let Some(stem) = stem.strip_suffix("_diff") else { return ("", None) };
    for known in ["_response_avg", "_prompt_avg", "_prompt_last"] {
        if let Some(name) = stem.strip_suffix(known) {
            return (name, over(&known[1..]));
        }
    }
    ("", None)
}

/// The numbers of a view, row by row.
fn values(view: &View, storage: &[u8]) -> Result<Vec<f32>, String> {
    let View { numbers, key, count, offset, shape, stride } = view;
    let each = if *numbers == Numbers::F32 { 4 } else { 2 };
    if count.checked_mul(each) != Some(storage.len()) {
        return Err(format!(
            "says that its storage `{key}` has {count} numbers of {each} bytes, and it has {} bytes",
            storage.len()
        ));
    }
    let ([sites, width], &[down, across]) = (matrix(shape)?, &stride[..]) else {
        return Err(format!("has strides {stride:?} for the shape {shape:?}"));
    };
    let last = (sites - 1).checked_mul(down).zip((width - 1).checked_mul(across));
    let last = last.and_then(|(down, across)| offset.checked_add(down)?.checked_add(across));
    if last.is_none_or(|last| last >= *count) {
        return Err(format!(
            "has numbers behind the end of its storage `{key}`: shape {shape:?}, strides {stride:?}, offset {offset}, {count} numbers"
        ));
    }
    let number = |place: usize| {
        let bytes = &storage[place * each..][..each];
        match (numbers, bytes) {
            (Numbers::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Numbers::F16, &[a, b, ..]) => f16::from_le_bytes([a, b]).to_f32(),
            (_, bytes) => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    };
    Ok((0..sites).flat_map(|i| (0..width).map(move |j| offset + i * down + j * across)).map(number).collect())
}

/// The entries of an archive, whose names all have one beginning.
struct Archive<'a> {
    entries: BTreeMap<String, &'a [u8]>,
    beginning: String,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let entries = entries(bytes)?;
        let folder = |before: &&str| before.ends_with('/') && before.matches('/').count() == 1;
        let beginning = entries.keys().find_map(|name| name.strip_suffix("data.pkl").filter(folder));
        let beginning = beginning.ok_or("has no data.pkl; give a tensor that `torch.save` wrote")?.to_string();
        for name in entries.keys() {
            let own = name.strip_prefix(&beginning).unwrap_or(name);
            if !(["data.pkl", "byteorder"].contains(&own) || own.starts_with("data/") || PASSED.contains(&own)) {
                return Err(format!("has an entry `{name}`, which a file of one tensor does not have"));
            }
        }
        let archive = Self { entries, beginning };
        if archive.entry("byteorder").is_ok_and(|order| order != b"little") {
            return Err("is not little-endian; save it again on a machine that is".into());
        }
        Ok(archive)
    }

    fn entry(&self, name: &str) -> Result<&'a [u8], String> {
        let name = format!("{}{name}", self.beginning);
        self.entries.get(&name).copied().ok_or_else(|| format!("has no entry `{name}`"))
    }
}
