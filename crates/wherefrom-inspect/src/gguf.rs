//! Vectors as the GGUF of control vectors (repeng, llama.cpp): `direction.N` is added to the output of block N, counted from 0, so
//! that the vector of site l is `direction.(l - 1)`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use wherefrom_artifact::{Artifact, Over, TraitVector, Vectors, bad_input, replace};

const VERSION: u32 = 3;
/// Where data begin, and each tensor.
const ALIGNMENT: usize = 32;
/// Types of values.
const U32: u32 = 4;
const STRING: u32 = 8;
/// The type of tensors in float32.
const F32: u32 = 0;

/// Writes the vectors of the one trait over the answer, or over what there is, and says what has no place in such a file.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where they are of several traits, and where none is left.
pub(crate) fn write(folder: &Path, output: &Path) -> Result<String> {
    let artifact = Artifact::<Vectors>::open(folder)?;
    let all: Vec<TraitVector> = artifact.rows()?.collect::<Result<_>>()?;
    let names: BTreeSet<_> = all.iter().map(|row| &row.trait_name).collect();
    let overs: BTreeSet<_> = all.iter().map(|row| row.over).collect();
    let (Some(name), 1) = (names.first(), names.len()) else {
        return Err(bad_input(
            "the vectors are of several traits, and a GGUF file has one; export them as .safetensors",
        ));
    };
    let over = *overs.first().unwrap_or(&Over::ResponseAvg);
    let blocks = all.iter().find(|row| row.site == "post-norm").map(|row| row.layer);
    let (kept, rest): (Vec<&TraitVector>, Vec<_>) = all
        .iter()
        .filter(|row| row.over == over)
        .partition(|row| row.site != "post-norm" && row.layer > 1 && Some(row.layer) != blocks);
    if kept.is_empty() {
        return Err(bad_input(
            "the vectors have no site between the first block's end and the last one's, which alone a GGUF file has",
        ));
    }

    let mut file = Vec::new();
    file.extend(b"GGUF");
    file.extend(VERSION.to_le_bytes());
    file.extend((kept.len() as u64).to_le_bytes());
    let model = artifact.manifest().recipe.model.as_deref().unwrap_or("unknown");
    let texts = [
        ("general.architecture", "controlvector"),
        ("controlvector.model_hint", model),
        ("wherefrom.trait", name),
        ("wherefrom.over", over.name()),
        ("wherefrom.key", &artifact.manifest().key),
    ];
    let numbers = [("controlvector.layer_count", kept.len() as u32), ("wherefrom.pairs", kept[0].pairs)];
    file.extend(((texts.len() + numbers.len()) as u64).to_le_bytes());
    for (key, value) in texts {
        text(&mut file, key);
        file.extend(STRING.to_le_bytes());
        text(&mut file, value);
    }
    for (key, value) in numbers {
        text(&mut file, key);
        file.extend(U32.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    let mut offset = 0_usize;
    for row in &kept {
        text(&mut file, &format!("direction.{}", row.layer - 1));
        file.extend(1_u32.to_le_bytes());
        file.extend((row.vector.len() as u64).to_le_bytes());
        file.extend(F32.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += (4 * row.vector.len()).next_multiple_of(ALIGNMENT);
    }
    for row in &kept {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(row.vector.iter().flat_map(|value| value.to_le_bytes()));
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    replace(output, |into| Ok(into.write_all(&file)?))?;

    let mut left: Vec<String> = rest.iter().map(|row| format!("site {}", row.site)).collect();
    left.extend(overs.iter().filter(|other| **other != over).map(|other| format!("what is over {other}")));
    let left = if left.is_empty() { "nothing".into() } else { left.join(", ") };
    Ok(format!(
        "direction.{} to direction.{} are the vectors over {over} at sites {} to {}, not normalised: repeng's are of length 1, so \
         that equal coefficients mean other strengths; left out: {left}",
        kept[0].layer - 1,
        kept[kept.len() - 1].layer - 1,
        kept[0].site,
        kept[kept.len() - 1].site,
    ))
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.bytes());
}
