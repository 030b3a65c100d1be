//! The GGUF of control vectors (repeng, llama.cpp): tensors `direction.N` of one dimension in float32.
//!
//! ```text
//! "GGUF", version u32, tensors u64, entries u64,
//! each entry:  key, type u32, value          each tensor:  name, dimensions u32, sizes u64 .., type u32, offset u64
//! data, from the next multiple of `general.alignment` on
//! ```

use wherefrom_artifact::Over;
use wherefrom_model::Site;

use super::{Found, SITES, VALUES, over};

/// Types of values: of an entry's number `bytes` are read.
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Lists within lists at most.
const DEPTH: usize = 4;
/// The type of tensors in float32.
const F32: u32 = 0;

pub(super) fn read(bytes: &[u8], offset: usize) -> Result<Vec<Found>, String> {
    let mut reader = Reader { bytes, place: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("is no GGUF file".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF of version {version}; give it in version 2 or 3, little-endian"));
    }
    let (tensors, entries) = (reader.u64()?, reader.u64()?);
    let mut said = Entries::default();
    for _ in 0..entries {
        said.read(&mut reader)?;
    }
    match &said.architecture {
        Some(known) if known == "controlvector" => {}
        other => {
            let other = other.as_deref().unwrap_or("nothing");
            return Err(format!("says general.architecture = {other}; that of vectors is controlvector"));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(Info::read(&mut reader)?);
        if infos.len() > SITES {
            return Err(format!("has more than {SITES} tensors"));
        }
    }
    let alignment = said.alignment.unwrap_or(32).max(1) as usize;
    let start = reader.place.next_multiple_of(alignment);
    let mut found =
        infos.into_iter().map(|info| info.found(bytes, start, offset, &said)).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err("has no tensors".into());
    }
    found.sort_by_key(|found| found.site);
    Ok(found)
}

/// What is read of the entries.
#[derive(Default)]
struct Entries {
    architecture: Option<String>,
    alignment: Option<u32>,
    name: Option<String>,
    over: Option<Over>,
    pairs: Option<u32>,
}

impl Entries {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), String> {
        let (key, kind) = (reader.text()?, reader.u32()?);
        match (key, kind) {
            ("general.architecture", STRING) => self.architecture = Some(reader.text()?.into()),
            ("wherefrom.trait", STRING) => self.name = Some(reader.text()?.into()),
            ("wherefrom.over", STRING) => self.over = over(reader.text()?),
            ("wherefrom.pairs", 4) => self.pairs = Some(reader.u32()?),
            ("general.alignment", 4) => self.alignment = Some(reader.u32()?),
            _ => reader.skip(kind, DEPTH)?,
        }
        Ok(())
    }
}

struct Info<'a> {
    name: &'a str,
    sizes: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, String> {
        let name = reader.text()?;
        let dimensions = reader.u32()?;
        if dimensions > 4 {
            return Err(format!("`{name}` has {dimensions} dimensions; GGUF has at most 4"));
        }
        let sizes = (0..dimensions).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        Ok(Self { name, sizes, kind: reader.u32()?, offset: reader.u64()? })
    }

    fn found(self, bytes: &[u8], start: usize, offset: usize, said: &Entries) -> Result<Found, String> {
        let name = self.name;
        let number = name.strip_prefix("direction.").and_then(|number| number.parse::<usize>().ok());
        let number = number.filter(|&number| number < SITES).ok_or_else(|| {
            format!(
                "has a tensor `{name}`; those of control vectors are called direction.N, with the number of a block"
            )
        })?;
        let ([size], F32) = (&self.sizes[..], self.kind) else {
            return Err(format!("`{name}` is no list of float32, which control vectors are"));
        };
        let size = usize::try_from(*size).ok().filter(|size| (1..=VALUES).contains(size));
        let size = size.ok_or_else(|| format!("`{name}` has no size that a vector may have"))?;
        let cut = || format!("is cut off: `{name}` ends behind the end of the file");
        let from = usize::try_from(self.offset).ok().and_then(|place| start.checked_add(place)).ok_or_else(cut)?;
        let data = from.checked_add(4 * size).and_then(|end| bytes.get(from..end)).ok_or_else(cut)?;
        let layer = number + offset;
        Ok(Found {
            name: said.name.clone(),
            over: said.over,
            site: Site::Stream(layer),
            layer,
            pairs: said.pairs.unwrap_or(0),
            values: data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.place.checked_add(count).filter(|&end| end <= self.bytes.len()).ok_or("is cut off")?;
        let taken = &self.bytes[self.place..end];
        self.place = end;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(self.number(4)? as u32)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.number(8)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = usize::try_from(self.u64()?).map_err(|_| "is cut off")?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "has a text that is not UTF-8".into())
    }

    /// Passes over a value.
    fn skip(&mut self, kind: u32, depth: usize) -> Result<(), String> {
        match kind {
            STRING => self.text().map(drop),
            ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                match width(kind) {
                    Some(width) => {
                        let bytes = count.checked_mul(width).and_then(|bytes| usize::try_from(bytes).ok());
                        self.take(bytes.ok_or("is cut off")?).map(drop)
                    }
                    // Each takes some bytes, so that the file's end ends this.
                    None if depth > 0 => (0..count).try_for_each(|_| self.skip(kind, depth - 1)),
                    None => Err("has lists within lists".into()),
                }
            }
            _ => {
                let width = width(kind).ok_or_else(|| format!("has a value of the unknown type {kind}"))?;
                self.take(width as usize).map(drop)
            }
        }
    }
}

/// Bytes of a number of that type.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
