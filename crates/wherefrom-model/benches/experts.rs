//! How work grows with the experts of a model: forward and backward, and the sums of covariances, with 8 and with 64 experts of which
//! two see a token, beside a model whose MLP is as wide as those two. In seconds on a processor.
//!
//! just bench-experts; RAYON_NUM_THREADS sets the threads.

#![allow(clippy::print_stdout)] // It is what a benchmark is for.

use std::fs;

use serde_json::json;
use wherefrom_linalg::kernels::{Form, Sum};
use wherefrom_linalg::memory::keep_freed_memory;
use wherefrom_model::{Batch, Config, Labels, Model, Modules, Selection, Sequence, Tap, resolve_device};

const WIDTH: usize = 512;
const INNER: usize = 512;
const LAYERS: usize = 4;
const SEQUENCES: usize = 8;
const TOKENS: usize = 256;
const RUNS: usize = 7;

fn model(experts: Option<usize>) -> Model {
    let sparse = experts.is_some();
    let config = json!({
        "model_type": if sparse { "qwen3_moe" } else { "qwen3" }, "vocab_size": 4096, "hidden_size": WIDTH,
        "intermediate_size": 2 * INNER, "moe_intermediate_size": INNER, "num_experts": experts.unwrap_or(0).max(1),
        "num_experts_per_tok": if sparse { 2 } else { 1 }, "norm_topk_prob": true, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": TOKENS,
    });
    Model::random(Config::from_json(&config).expect("a config"), 1, &resolve_device("cpu").expect("the CPU"))
}

/// Seconds on a processor of all threads so far, which other work on the machine does not lengthen much; Linux says them.
fn processor_seconds() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok()
    };
    tasks.filter_map(of).sum::<f64>() / 1e9
}

/// The median of some runs, in seconds on a processor; the first is left out.
fn median(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = processor_seconds();
            run();
            processor_seconds() - start
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

fn main() {
    keep_freed_memory();
    let ids: Vec<Vec<u32>> = (0..SEQUENCES)
        .map(|s| (0..TOKENS).map(|t| ((s * 7919 + t * t * 31 + t * 17) % 4096) as u32).collect())
        .collect();
    let mask: Vec<bool> = (0..TOKENS).map(|t| t > 0).collect();
    assert!(processor_seconds() > 0.0, "this system does not say how long a process was on a processor");
    println!("{} tokens, {LAYERS} layers of width {WIDTH}, experts of {INNER}, two active", SEQUENCES * TOKENS);
    println!(
        "{:<12} {:>12} {:>10} {:>18} {:>20}",
        "experts", "parameters", "in use", "forward + backward", "covariance's sums"
    );
    for experts in [None, Some(8), Some(64)] {
        let model = model(experts);
        let sequences: Vec<_> = (0..).zip(&ids).map(|(example, ids)| Sequence::new(example, ids, &mask)).collect();
        let batch = Batch::new(&sequences, &model.device);
        let selection = Selection::new(&Modules::default(), model.modules()).expect("MLPs");
        let run = |visit: &mut dyn FnMut(Tap<'_>) -> anyhow::Result<()>| {
            model.taps(&batch, &Labels::Sampled { seed: 0 }, &selection, visit).expect("a pass");
        };
        let mut used = 0;
        run(&mut |tap| {
            used += usize::from(tap.module.first_of_input());
            Ok(())
        });
        let passes = median(|| run(&mut |_| Ok(())));
        let modules = selection.modules();
        let zeros = |size: usize| Sum::zeros(Form::Symmetric(size));
        let mut sums: Vec<[Sum; 2]> =
            modules.iter().map(|module| [zeros(module.in_features), zeros(module.out_features)]).collect();
        let both = median(|| {
            run(&mut |tap| {
                let [a, s] = &mut sums[tap.index];
                if tap.module.first_of_input() {
                    a.add_gram(tap.activations);
                }
                s.add_gram(tap.output_gradients);
                Ok(())
            });
        });
        let name = experts.map_or_else(|| "none".into(), |experts| experts.to_string());
        println!(
            "{name:<12} {:>12} {:>10} {:>15.0} ms {:>17.0} ms",
            model.outline.parameters(),
            used / 2,
            1e3 * passes,
            1e3 * (both - passes)
        );
    }
}
