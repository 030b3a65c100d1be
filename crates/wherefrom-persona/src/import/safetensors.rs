//! Safetensors: `TRAIT.OVER` [sites, width], whose metadata say in `last_row` what the last row is (`post-norm`, or the number of
//! blocks), and `TRAIT.OVER.SITE` [width].

use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use wherefrom_artifact::Over;
use wherefrom_model::Site;

use super::{Found, Last, VALUES, matrix, over, rows_of};

pub(super) fn read(bytes: &[u8]) -> Result<Vec<Found>, String> {
    let wrong = |error| format!("is no safetensors file ({error})");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
    let file = SafeTensors::deserialize(bytes).map_err(wrong)?;
    let empty = HashMap::new();
    let metadata = header.metadata().as_ref().unwrap_or(&empty);
    let number = |name: &str| metadata.get(name).and_then(|text| text.parse::<u32>().ok());
    let pairs = number("pairs").unwrap_or(0);
    let last = metadata.get("last_row").map(|text| &text[..]);
    let mut tensors = file.tensors();
    if tensors.is_empty() {
        return Err("has no tensors".into());
    }
    tensors.sort_by(|one, other| one.0.cmp(&other.0));
    // Of a lone tensor the caller may say what its name does not.
    let alone = tensors.len() == 1;
    let mut found = Vec::new();
    for (name, tensor) in &tensors {
        let (own, tokens, site) = match parts(name) {
            Some(parts) => parts,
            None if alone => ("", None, None),
            None => {
                return Err(format!(
                    "has a tensor `{name}`; those of vectors are called TRAIT.OVER, with OVER one of {}",
                    known()
                ));
            }
        };
        let values = values(name, tensor)?;
        match site {
            None => {
                let [sites, width] = matrix(tensor.shape()).map_err(|what| format!("`{name}` {what}"))?;
                let last = match last {
                    None | Some("post-norm") => Last::PostNorm,
                    Some(row) if row.parse() == Ok(sites - 1) => Last::Stream,
                    Some(row) => {
                        return Err(format!(
                            "says last_row = {row}, and `{name}` has {sites} rows; it is {} before the final norm or post-norm after it",
                            sites - 1
                        ));
                    }
                };
                found.extend(rows_of(width, &values, last, pairs, own, tokens));
            }
            Some(site) => {
                if tensor.shape().len() != 1 || values.is_empty() {
                    return Err(format!("`{name}` has the shape {:?}; a vector of one site has one", tensor.shape()));
                }
                let layer = match site {
                    Site::Stream(number) => number,
                    Site::PostNorm => number("blocks")
                        .ok_or_else(|| format!("has `{name}` and does not say `blocks` in its metadata"))?
                        as usize,
                };
                found.push(Found { name: Some(own.into()), over: tokens, site, layer, pairs, values });
            }
        }
    }
    found.sort_by(|one, other| (&one.name, one.over, one.site).cmp(&(&other.name, other.over, other.site)));
    Ok(found)
}

fn known() -> String {
    Over::ALL.map(|over| over.name().replace('-', "_")).join(", ")
}

/// Trait, tokens and site of a name; no site of a matrix of all.
fn parts(name: &str) -> Option<(&str, Option<Over>, Option<Site>)> {
    let (before, last) = name.rsplit_once('.')?;
    if let Some(tokens) = over(last) {
        return Some((before, Some(tokens), None));
    }
    let (own, tokens) = before.rsplit_once('.')?;
    Some((own, Some(over(tokens)?), Some(last.parse().ok()?)))
}

fn values(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let data = tensor.data();
    if data.len() > 4 * VALUES {
        return Err(format!("`{name}` has {} bytes; vectors of a model have at most {VALUES} numbers", data.len()));
    }
    Ok(match tensor.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        other => return Err(format!("`{name}` is {other:?}; give it as F32, F16 or BF16")),
    })
}
