//! Inputs that are made up: weights, tokens, query factors and candidates. Time and memory do not depend on values.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Result;
use half::f16;
use rayon::prelude::*;
use serde_json::{Map, json};
use wherefrom_artifact::{
    Artifact, Basis, Candidate, Candidates, Draft, Eigenbasis, Example, Factors, Preconditioned, Row, Side, Tokens,
};
use wherefrom_linalg::random::{normal, uniform};
use wherefrom_model::{Config, Model, Modules, Outline, Selection, resolve_device};

use crate::shape::Shape;

/// Of low-rank queries.
pub(crate) const RANK: usize = 32;
/// Rows of a part of tokens.
const PART: usize = 8192;
/// Candidates of each query.
pub(crate) const CANDIDATES: usize = 2;

/// A checkpoint of the shape in `folder`, its weights drawn at random.
pub(crate) fn weights(folder: &Path, draft: &Draft) -> Result<()> {
    let model = Model::random(Config::load(folder)?, 0, &resolve_device("cpu")?);
    fs::write(draft.folder().join("model.safetensors"), model.to_safetensors()?)?;
    fs::copy(folder.join("config.json"), draft.folder().join("config.json"))?;
    Ok(())
}

/// A checkpoint of a shape in float16, its gains 1 and its matrices pieces of one pool: as large as a disk is, and quickly there.
pub(crate) fn half_weights(shape: &Shape, draft: &Draft) -> Result<()> {
    const POOL: usize = 1 << 20;
    let pool: Vec<u8> = (0..POOL as u64)
        .into_par_iter()
        .flat_map_iter(|i| f16::from_f64(0.02 * normal(0, 1, i)).to_le_bytes())
        .collect();
    let json = shape.config();
    let outline = Outline::new(&Config::from_json(&json)?);
    let mut header = Map::new();
    let mut end = 0;
    for tensor in outline.tensors() {
        let begin = end;
        end += 2 * tensor.numbers();
        let entry = json!({ "dtype": "F16", "shape": tensor.sizes, "data_offsets": [begin, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::new(fs::File::create(draft.folder().join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in outline.tensors() {
        let mut left = 2 * tensor.numbers() as usize;
        while left > 0 {
            let piece = left.min(pool.len());
            match tensor.sizes[..] {
                [_] => file.write_all(&f16::ONE.to_le_bytes().repeat(piece / 2))?,
                _ => file.write_all(&pool[..piece])?,
            }
            left -= piece;
        }
    }
    file.into_inner()?.sync_all()?;
    fs::write(draft.folder().join("config.json"), json.to_string())?;
    Ok(())
}

/// The axes as the eigenvectors of both covariances of every module.
pub(crate) fn axes(config: &Config, modules: &Modules, draft: &mut Draft) -> Result<()> {
    let selection = Selection::new(modules, Outline::new(config).modules())?;
    let modules = selection.modules();
    let unit = |module: &str, side, shared_with, n: usize| {
        let mut vectors = vec![0.0; n * n];
        vectors.iter_mut().step_by(n + 1).for_each(|value| *value = 1.0);
        Basis { module: module.into(), side, shared_with, values: vec![1.0; n], vectors }
    };
    let mut part = 0;
    for module in modules {
        let also = modules.iter().filter(|other| other.input == module.name && other.name != module.name);
        let also = also.map(|other| other.name.clone()).collect();
        let mut write = |basis| {
            part += 1;
            draft.write(part - 1, &[<Basis as Row<Eigenbasis>>::to_batch(&[basis])?])
        };
        if module.first_of_input() {
            write(unit(&module.name, Side::Activation, also, module.in_features))?;
        }
        write(unit(&module.name, Side::Gradient, Vec::new(), module.out_features))?;
    }
    Ok(())
}

/// Sequences of `length` uniform tokens, every token but the first a target.
pub(crate) fn tokens(config: &Config, seed: u64, count: usize, length: usize, draft: &mut Draft) -> Result<()> {
    let vocabulary = config.vocab_size as f64;
    let example = |example: u64| Example {
        example,
        docs: vec![format!("random/{example}")],
        doc_starts: vec![0],
        input_ids: (0..length as u64).map(|t| (uniform(seed, example, t) * vocabulary) as u32).collect(),
        target_mask: (0..length).map(|t| t > 0).collect(),
        ..Example::default()
    };
    write(&(0..count as u64).map(example).collect::<Vec<_>>(), draft)
}

/// `count` rows of a corpus: each third, round and round, until all have come and come again.
pub(crate) fn repeated(corpus: &Artifact<Tokens>, count: usize, draft: &mut Draft) -> Result<()> {
    let rows: Vec<Example> = corpus.rows()?.collect::<Result<_>>()?;
    let row = |n: usize| Example { example: n as u64, ..rows[n * 3 % rows.len()].clone() };
    write(&(0..count).map(row).collect::<Vec<_>>(), draft)
}

fn write(rows: &[Example], draft: &mut Draft) -> Result<()> {
    draft.summary("examples", rows.len())?;
    draft.summary("tokens", rows.iter().map(|row| row.input_ids.len()).sum::<usize>())?;
    for (part, rows) in rows.chunks(PART).enumerate() {
        draft.write(part, &[<Example as Row<Tokens>>::to_batch(rows)?])?;
    }
    Ok(())
}

/// Random factors for every MLP module: pieces of one pool, so that gigabytes of them are quickly there.
pub(crate) fn preconditioned(config: &Config, queries: usize, draft: &mut Draft) -> Result<()> {
    const POOL: usize = 1 << 20;
    let pool: Vec<f32> = (0..POOL as u64).into_par_iter().map(|i| normal(0, 0, i) as f32).collect();
    let mut next = 0;
    let mut take = |count: usize| -> Vec<f32> {
        // A prime step, so that no two factors begin alike.
        next = (next + 611_953) % POOL;
        pool[next..].iter().chain(pool.iter().cycle()).take(count).copied().collect()
    };
    draft.metadata("method", "ekfac");
    draft.metadata("rank", RANK.to_string());
    let selection = Selection::new(&Modules::default(), Outline::new(config).modules())?;
    for (part, module) in selection.modules().iter().enumerate() {
        let (out_features, in_features) = (module.out_features, module.in_features);
        let rows = (0..queries as u64).map(|row| Factors {
            row,
            module: module.name.clone(),
            rank: RANK,
            left_shape: [out_features, RANK],
            left: take(out_features * RANK),
            right_shape: [in_features, RANK],
            right: take(in_features * RANK),
        });
        draft.write_each(part, rows.map(|row| <Factors as Row<Preconditioned>>::to_batch(&[row])))?;
    }
    Ok(())
}

/// Each query with its own first sequences.
pub(crate) fn candidates(queries: usize, draft: &Draft) -> Result<()> {
    let row =
        |n: usize| Candidate { query: (n / CANDIDATES) as u32, example: n as u64, score: 0.0, source: "bench".into() };
    let rows: Vec<_> = (0..queries * CANDIDATES).map(row).collect();
    draft.write(0, &[<Candidate as Row<Candidates>>::to_batch(&rows)?])
}
