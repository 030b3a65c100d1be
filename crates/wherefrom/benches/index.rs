//! A query against an index of 10^4 and of 10^6 sequences: the pass alone, beside a copy, and the whole of a run.
//!
//! The index is of random rows, 4 KiB or 8 KiB each, and lies below `target/tmp` while it is measured. Numbers on the command line
//! are other sizes.

#![allow(clippy::print_stdout)] // It is what a benchmark is for.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rayon::prelude::*;
use wherefrom_artifact::{Draft, Index, Kind, Manifest, Recipe, Row, Signs, Silent, Store};
use wherefrom_linalg::signs::{SignSums, row_bytes};

/// Of a row: 8 KiB.
const COORDINATES: usize = 65_536;
/// Rows of a part: about those of a span.
const ROWS: u64 = 1000;
/// Bytes that the pass alone goes over, and that are copied: beyond every cache.
const BYTES: usize = 1 << 30;

/// A curvature of a few rows. Each run asks another question.
const PIPELINE: &str = r#"
[model]
path = "REPOSITORY/data/models/quickstart"
[steps.rows]
stage = "tokenize"
corpus = "REPOSITORY/data/corpora/quickstart.jsonl"
max-tokens = 96
every = 20
[steps.covariances]
stage = "covariance"
inputs = { tokens = "rows" }
[steps.basis]
stage = "eigenbasis"
inputs = { covariances = "covariances" }
[steps.lambda]
stage = "lambda"
inputs = { tokens = "rows", eigenbasis = "basis" }
[steps.coordinates]
stage = "coordinates"
inputs = { lambda = "lambda" }
dimensions = DIMENSIONS
[steps.queries]
stage = "tokenize"
corpus = "QUERIES"
max-tokens = 96
[steps.gradients]
stage = "gradients"
inputs = { tokens = "queries" }
[steps.scores]
stage = "score-index"
inputs = { queries = "gradients", index = "INDEX", coordinates = "coordinates", eigenbasis = "basis", lambda = "lambda" }
"#;

fn main() {
    let sizes: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![10_000, 1_000_000] } else { sizes };
    let folder = Folder(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("index-bench"));
    let _left = fs::remove_dir_all(&folder.0);
    fs::create_dir_all(&folder.0).expect("a folder to work in");
    pass();
    for rows in sizes {
        query(&folder.0, rows, COORDINATES / 2);
        query(&folder.0, rows, COORDINATES);
    }
}

/// Goes with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _kept = fs::remove_dir_all(&self.0);
    }
}

fn best(times: usize, mut body: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    (0..times).map(time).fold(f64::INFINITY, f64::min)
}

/// Bytes that look random.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// The pass over rows in memory.
fn pass() {
    let mut rows = vec![0; BYTES];
    rows.par_chunks_mut(1 << 20).enumerate().for_each(|(seed, some)| fill(some, seed as u64));
    let mut into = vec![0_u8; BYTES];
    let chunk = BYTES.div_ceil(rayon::current_num_threads());
    let copy = best(5, || {
        into.par_chunks_mut(chunk).zip(rows.par_chunks(chunk)).for_each(|(into, from)| into.copy_from_slice(from));
        black_box(&mut into);
    });
    drop(into);
    let read = best(5, || {
        let sum = |some: &[u8]| some.as_chunks::<8>().0.iter().fold(0, |sum, &word| sum ^ u64::from_le_bytes(word));
        black_box(rows.par_chunks(chunk).map(sum).reduce(|| 0, |x, y| x ^ y));
    });
    let digest = best(3, || {
        black_box(blake3::Hasher::new().update_rayon(&rows).finalize());
    });
    let gigabytes = BYTES as f64 / 1e9;
    println!("copy {:.1} GB/s read and {:.1} GB/s written at once", gigabytes / copy, gigabytes / copy);
    println!("read {:.1} GB/s, BLAKE3 {:.1} GB/s", gigabytes / read, gigabytes / digest);
    for queries in [1, 4, 16] {
        let weights: Vec<f32> = (0..queries * COORDINATES).map(|i| ((i * 7919) % 1013) as f32 - 506.0).collect();
        let sums = SignSums::new(&weights, COORDINATES);
        let seconds = best(3, || {
            black_box(sums.of(&rows));
        });
        println!("pass, {queries} queries: {:.1} GB/s of the index", gigabytes / seconds);
    }
}

/// Writes an index of so many rows; its folder.
fn index(folder: &Path, rows: u64, coordinates: usize) -> PathBuf {
    let recipe =
        Recipe { stage: "bench".into(), version: 1, config: rows.into(), inputs: Default::default(), model: None };
    let part = |draft: &Draft, part: u64| {
        let row = |example: u64| {
            let mut signs = vec![0; row_bytes(coordinates)];
            fill(&mut signs, example + 1);
            Signs { example, scale: 1.0, signs }
        };
        let rows: Vec<_> = (part * ROWS..rows.min((part + 1) * ROWS)).map(row).collect();
        draft.write(part as usize, &[<Signs as Row<Index>>::to_batch(&rows)?])
    };
    let fill = |draft: &mut Draft| (0..rows.div_ceil(ROWS)).try_for_each(|number| part(draft, number));
    let (made, _) = Store::new(folder.join("rows")).produce(Kind::Index, recipe, &Silent, fill).expect("an index");
    made
}

/// CPU seconds of the processes that were waited for, where Linux says so.
fn children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 16 and 17, counted behind the name; a tick is a hundredth of a second.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(13).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn query(folder: &Path, rows: u64, coordinates: usize) {
    let index = index(folder, rows, coordinates);
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let pipeline = folder.join("query.toml");
    let run = |number: usize, to: &str| {
        let text = format!("{{\"prompt\": \"The capital of {number} is\", \"completion\": \" Nairobi.\"}}\n");
        let queries = folder.join(format!("{number}.jsonl"));
        fs::write(&queries, text).expect("a query");
        let text = PIPELINE.replace("REPOSITORY", repository).replace("QUERIES", &queries.display().to_string());
        let text = text.replace("DIMENSIONS", &coordinates.to_string());
        fs::write(&pipeline, text.replace("INDEX", &index.display().to_string())).expect("a pipeline");
        let start = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wherefrom"));
        command.arg("--store").arg(folder.join("store"));
        let output = command.args(["run"]).arg(&pipeline).args(["--to", to]).output().expect("wherefrom runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (start.elapsed().as_secs_f64(), text)
    };
    run(0, "coordinates");
    // The first reads the index into memory; each after it is a new query.
    let first = run(1, "scores").0;
    let before = children();
    let mut seconds: Vec<_> = (2..=10).map(|number| run(number, "scores")).collect();
    let cpu = (children() - before) / 9.0;
    seconds.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (median, said) = &seconds[seconds.len() / 2];
    let bytes = Manifest::read(&index).expect("its manifest").bytes();
    println!(
        "query of {rows} sequences of {coordinates} bits, {:.2} GB: {median:.2} s (median of 9; best {:.2} s, the first {first:.2} s), {cpu:.2} s of CPU",
        bytes as f64 / 1e9,
        seconds[0].0
    );
    said.lines()
        .filter(|line| line.contains(" made "))
        .for_each(|line| println!("  {}", line.split("  /").next().unwrap_or(line)));
    fs::remove_dir_all(folder.join("rows")).expect("the index goes");
}
