//! Tokens a second of the floor of every scan: forward and activation-only backward, MLP modules tapped.
//!
//! cargo bench -p whence-model [-- FOLDER BATCH_TOKENS LENGTH SEQUENCES]; without arguments, the golden model on its
//! training rows. A folder with
//! a config.json alone gets random weights. RAYON_NUM_THREADS sets the threads.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use whence_model::{Batch, Config, Labels, Model, Modules, Selection, Sequence, batches, resolve_device};

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |word| word.parse());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden");
    let folder = arguments.first().map_or(golden.join("model"), PathBuf::from);
    let batch_tokens = number(1, 4096)?;
    let device = resolve_device("cpu")?;
    let model = if folder.join("model.safetensors").exists() {
        Model::load(&folder, &device)?
    } else {
        Model::random(Config::load(&folder)?, 0, &device)
    };
    let rows: Vec<Vec<u32>> = match arguments.get(2) {
        None => std::fs::read_to_string(golden.join("train.jsonl"))?
            .lines()
            .map(|line| Ok(serde_json::from_str::<Row>(line)?.input_ids))
            .collect::<serde_json::Result<_>>()?,
        Some(_) => {
            let vocabulary = model.config.vocab_size as u32;
            (0..number(3, 8)?)
                .map(|i| {
                    (0..number(2, 256).unwrap_or(256)).map(|t| (i * 7919 + t * 104_729) as u32 % vocabulary).collect()
                })
                .collect()
        }
    };
    let masks: Vec<Vec<bool>> = rows.iter().map(|row| (0..row.len()).map(|t| t > 0).collect()).collect();
    let lengths: Vec<_> = rows.iter().map(Vec::len).collect();
    let real: usize = lengths.iter().sum();
    let selection = Selection::new(&Modules::Named("mlp".into()), model.modules())?;
    let plan = batches(&lengths, batch_tokens);
    let padded: usize = plan.iter().map(|batch| batch.len() * lengths[batch[0]]).sum();
    println!("{real} tokens, {padded} with padding, {} batches", plan.len());
    for (name, labels) in [("empirical", Labels::Empirical), ("sampled", Labels::Sampled { seed: 0 })] {
        for _ in 0..3 {
            let start = Instant::now();
            let mut loss = 0.0;
            for chosen in &plan {
                let sequence = |&index: &usize| Sequence::new(index as u64, &rows[index], &masks[index]);
                let batch = Batch::new(&chosen.iter().map(sequence).collect::<Vec<_>>(), &device);
                let losses = model.taps(&batch, &labels, &selection, &mut |_| Ok(()))?;
                loss += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            }
            let seconds = start.elapsed().as_secs_f64();
            println!("{name}: {:.0} tokens/s, {seconds:.2} s, summed loss {loss:.1}", real as f64 / seconds);
        }
    }
    Ok(())
}
