//! Methods beside EK-FAC through the command line, against float64 (tests/fixtures/truth/README.md).

use std::path::{Path, PathBuf};

use wherefrom_artifact::{
    Activations, Artifact, ArtifactKind, Covariance, Covariances, Factors, Lambda, LambdaSum, Preconditioned,
    Projected, ProjectedGradients, Row, Score, Scores, Side, Streams,
};
use wherefrom_linalg::random::uniform;

use crate::bench::Bench;
use crate::golden::{Reference, error};

const QUERIES: usize = 4;
const EXAMPLES: usize = 64;
const SIDE: usize = 4;

fn truth(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/truth/gauss-newton")
        .join(name)
        .canonicalize()
        .unwrap()
}

/// A pipeline over the reference's rows, with these steps.
fn write(bench: &Bench, steps: &str) {
    let text = format!(
        r#"
[model]
path = {:?}
modules = "all"
[steps.train]
stage = "tokenize"
corpus = {:?}
max-tokens = 32
[steps.queries]
stage = "tokenize"
corpus = {:?}
max-tokens = 32
{steps}"#,
        truth("model"),
        truth("train.jsonl"),
        truth("queries.jsonl"),
    );
    bench.file("ladder.toml", text);
}

fn rows<K: ArtifactKind, R: Row<K>>(bench: &Bench, step: &str) -> Vec<R> {
    let artifact = Artifact::<K>::open(&bench.made("ladder.toml", step)).unwrap();
    artifact.rows::<R>().unwrap().map(Result::unwrap).collect()
}

/// Scores of every pair: [queries, examples].
fn scores(bench: &Bench, step: &str, queries: usize, examples: usize) -> Vec<f64> {
    let mut matrix = vec![f64::NAN; queries * examples];
    for Score { query, example, influence } in rows::<Scores, _>(bench, step) {
        matrix[query as usize * examples + example as usize] = f64::from(influence);
    }
    matrix
}

/// x^T y of x [n, a] and y [n, b], row-major.
fn product(x: &[f64], y: &[f64], n: usize) -> Vec<f64> {
    let (a, b) = (x.len() / n, y.len() / n);
    let element = |i: usize, j: usize| (0..n).map(|k| x[k * a + i] * y[k * b + j]).sum();
    (0..a).flat_map(|i| (0..b).map(move |j| element(i, j))).collect()
}

fn transposed(x: &[f64], rows: usize) -> Vec<f64> {
    let columns = x.len() / rows;
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}

fn added(sum: &mut [f64], x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
}

#[test]
fn gradient_products_and_cosines_are_those_of_float64() {
    let bench = Bench::new();
    write(
        &bench,
        r#"
[steps.products]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "train" }
[steps.cosines]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "train" }
cosine = true
"#,
    );
    let reference = Reference::open(&truth("reference.safetensors"));
    let (_, products) = reference.tensor("gradient_product");
    let worst = error(&scores(&bench, "products", QUERIES, EXAMPLES), &products);
    assert!(worst < 1e-5, "products: {worst:.2e}");
    let [queries, examples] = ["query_gradient_norm", "gradient_norm"].map(|name| reference.tensor(name).1);
    let lengths = queries.iter().flat_map(|q| examples.iter().map(move |z| q * z));
    let cosines: Vec<f64> = products.iter().zip(lengths).map(|(x, length)| x * EXAMPLES as f64 / length).collect();
    let worst = error(&scores(&bench, "cosines", QUERIES, EXAMPLES), &cosines);
    assert!(worst < 1e-5, "cosines: {worst:.2e}");
}

#[test]
fn shampoo_is_of_products_of_gradients() {
    let bench = Bench::new();
    write(
        &bench,
        r#"
[steps.covariances]
stage = "covariance"
inputs = { tokens = "queries" }
labels = "empirical"
factors = "shampoo"
[steps.basis]
stage = "eigenbasis"
inputs = { covariances = "covariances" }
[steps.gradients]
stage = "gradients"
inputs = { tokens = "queries" }
[steps.ihvp]
stage = "precondition"
inputs = { gradients = "gradients", eigenbasis = "basis" }
method = "kfac"
damping = 0.1
rank = "full"
"#,
    );
    let reference = Reference::open(&truth("query-gradients.safetensors"));
    let found = rows::<Covariances, Covariance>(&bench, "covariances");
    assert_eq!(found.len(), 2 * 14, "every module has an A of its own");
    for row in &found {
        let (shape, gradients) = reference.tensor(&row.module);
        let mut sum = vec![0.0; row.size * row.size];
        for gradient in gradients.chunks_exact(shape[1] * shape[2]) {
            added(
                &mut sum,
                &match row.side {
                    Side::Activation => product(gradient, gradient, shape[1]),
                    Side::Gradient => {
                        let columns = transposed(gradient, shape[1]);
                        product(&columns, &columns, shape[2])
                    }
                },
            );
        }
        let matrix: Vec<f64> = row.matrix.iter().map(|&value| value.into()).collect();
        let worst = error(&matrix, &sum);
        assert!(worst < 1e-5 && row.count == QUERIES as u64, "{} {:?}: {worst:.2e}", row.module, row.side);
    }
    // Without the correction: S P A / tr(S) + 0.1 mean(Lambda) P is the gradient again.
    let ihvp = rows::<Preconditioned, Factors>(&bench, "ihvp");
    for row in &ihvp {
        let (shape, gradients) = reference.tensor(&row.module);
        let [out, inside] = [shape[1], shape[2]];
        let side = |side: Side| -> Vec<f64> {
            let matrix = found.iter().find(|found| found.module == row.module && found.side == side).unwrap();
            matrix.matrix.iter().map(|&value| f64::from(value) / QUERIES as f64).collect()
        };
        let (a, s) = (side(Side::Activation), side(Side::Gradient));
        let trace: f64 = (0..out).map(|i| s[i * out + i]).sum();
        let p: Vec<f64> = row.left.iter().map(|&value| value.into()).collect();
        // Symmetric matrices: S P = S^T P, and P A = (P^T)^T A.
        let spa = product(&transposed(&product(&s, &p, out), out), &a, inside);
        let damping = 0.1 * trace / (out * inside) as f64;
        let again: Vec<f64> = spa.iter().zip(&p).map(|(x, p)| x / trace + damping * p).collect();
        let own = &gradients[row.row as usize * out * inside..][..out * inside];
        let worst = error(&again, own);
        assert!(worst < 1e-4, "{} query {}: {worst:.2e}", row.module, row.row);
    }
}

#[test]
fn projections_and_their_kernel_are_those_of_float64() {
    let bench = Bench::new();
    write(
        &bench,
        r#"
[steps.projections]
stage = "project-gradients"
inputs = { tokens = "queries" }
side = 4
seed = 3
[steps.other]
stage = "project-gradients"
inputs = { tokens = "queries" }
side = 4
[steps.kernel]
stage = "score-projected-gradients"
inputs = { queries = "projections", projections = "projections" }
damping = { absolute = 0.5 }
[steps.cosines]
stage = "score-projected-gradients"
inputs = { queries = "projections", projections = "projections" }
damping = { absolute = 0.5 }
cosine = true
[steps.two]
stage = "score-projected-gradients"
inputs = { queries = "other", projections = "projections" }
"#,
    );
    // Modules of the model in order: the numbers of their random streams.
    let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    let parts = parts.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]).collect::<Vec<_>>();
    let names = (0..2).flat_map(|layer| parts.iter().map(move |part| format!("model.layers.{layer}.{part}")));
    let gradients = Reference::open(&truth("query-gradients.safetensors"));
    let mut expected = vec![vec![0.0; SIDE * SIDE]; QUERIES];
    for (number, name) in (0..).zip(names) {
        let (shape, values) = gradients.tensor(&name);
        let signs = |stream: u64, rows: usize| -> Vec<f64> {
            let sign = |place: usize| if uniform(3, stream, place as u64) < 0.5 { -0.5 } else { 0.5 };
            (0..rows * SIDE).map(sign).collect()
        };
        let (left, right) = (signs(2 * number, shape[1]), signs(2 * number + 1, shape[2]));
        for (sum, gradient) in expected.iter_mut().zip(values.chunks_exact(shape[1] * shape[2])) {
            // (G^T L)^T R
            added(sum, &product(&product(gradient, &left, shape[1]), &right, shape[2]));
        }
    }
    let found = rows::<ProjectedGradients, Projected>(&bench, "projections");
    let values: Vec<f64> = found.iter().flat_map(|row| &row.values).map(|&value| value.into()).collect();
    let worst = error(&values, &expected.concat());
    assert!(worst < 1e-5, "projections: {worst:.2e}");

    // Phi (Phi^T Phi / N + d)^-1 Phi^T / N = G (G / N + d)^-1 / N with the Gram matrix G = Phi Phi^T.
    let rows = transposed(&expected.concat(), QUERIES);
    let gram = product(&rows, &rows, SIDE * SIDE);
    let n = QUERIES as f64;
    let damped: Vec<f64> = (0..QUERIES * QUERIES)
        .map(|place| gram[place] / n + if place % (QUERIES + 1) == 0 { 0.5 } else { 0.0 })
        .collect();
    let kernel: Vec<f64> = solved(&damped, &gram, QUERIES).into_iter().map(|value| value / n).collect();
    let worst = error(&scores(&bench, "kernel", QUERIES, QUERIES), &kernel);
    assert!(worst < 1e-4, "kernel: {worst:.2e}");
    let length = |i: usize| kernel[i * (QUERIES + 1)].sqrt();
    let cosines: Vec<f64> =
        (0..QUERIES * QUERIES).map(|place| kernel[place] / length(place / QUERIES) / length(place % QUERIES)).collect();
    let worst = error(&scores(&bench, "cosines", QUERIES, QUERIES), &cosines);
    assert!(worst < 1e-4, "cosines: {worst:.2e}");

    let error = bench.refused(&["run", "ladder.toml", "--to", "two"]);
    assert!(error.contains("with seed = 0") && error.contains("with seed = 3"), "{error}");
}

/// a^-1 b of a symmetric positive definite [n, n], by elimination.
fn solved(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    for pivot in 0..n {
        for row in (0..n).filter(|&row| row != pivot) {
            let factor = a[row * n + pivot] / a[pivot * n + pivot];
            for column in 0..n {
                a[row * n + column] -= factor * a[pivot * n + column];
                b[row * n + column] -= factor * b[pivot * n + column];
            }
        }
    }
    (0..n * n).map(|place| b[place] / a[place / n * (n + 1)]).collect()
}

#[test]
fn checkpoints_add_up_by_their_learning_rates_and_lend_their_moments() {
    let bench = Bench::new();
    let tuned = r#"
[steps.tuned]
stage = "fine-tune"
inputs = { tokens = "train" }
batch-rows = 16
learning-rate = 0.01
checkpoints = 2
[steps.tracin]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "train" }
model = "tuned"
checkpoints = true
[steps.moments]
stage = "moments"
model = "tuned"
[steps.gradients]
stage = "gradients"
inputs = { tokens = "queries" }
model = "tuned"
[steps.ihvp]
stage = "precondition"
inputs = { gradients = "gradients", lambda = "moments" }
method = "adam"
damping = 0.1
rank = "full"
[steps.plain]
stage = "precondition"
inputs = { gradients = "gradients" }
method = "identity"
rank = "full"
[steps.adam]
stage = "score"
inputs = { queries = "ihvp", tokens = "train" }
model = "tuned"
[steps.untrained]
stage = "moments"
"#;
    write(&bench, tuned);
    let folder = bench.made("ladder.toml", "tuned");
    let kept = ["000002", "000004"].map(|step| folder.join("checkpoints").join(step));
    let alone = |number: usize| {
        format!(
            "[steps.alone-{number}]\nstage = \"gradient-products\"\ninputs = {{ queries = \"queries\", tokens = \"train\" }}\n\
             model = {:?}\n",
            kept[number]
        )
    };
    write(&bench, &[tuned, &alone(0), &alone(1)].concat());
    let summary = Artifact::<Scores>::open(&bench.made("ladder.toml", "tracin")).unwrap();
    assert_eq!(summary.metadata("method").unwrap().unwrap(), "tracin");
    let alone = [0, 1].map(|number| scores(&bench, &format!("alone-{number}"), QUERIES, EXAMPLES));
    // One step of warm-up, then half a cosine: 0.01 at the first of its three steps, a tenth of that at the last.
    let rates = [0.01, 0.001];
    let expected: Vec<f64> = alone[0].iter().zip(&alone[1]).map(|(x, y)| rates[0] * x + rates[1] * y).collect();
    let worst = error(&scores(&bench, "tracin", QUERIES, EXAMPLES), &expected);
    assert!(worst < 1e-6, "TracIn: {worst:.2e}");

    let state = Reference::open(&kept[1].join("optimizer.safetensors"));
    let moments = rows::<Lambda, LambdaSum>(&bench, "moments");
    assert_eq!(moments.len(), 14);
    let (plain, ihvp) =
        (rows::<Preconditioned, Factors>(&bench, "plain"), rows::<Preconditioned, Factors>(&bench, "ihvp"));
    for row in &moments {
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        let (shape, second) = state.tensor(&format!("second/{}.weight", row.module));
        assert_eq!((&shape[..], &second), (&row.shape[..], &wide(&row.lambda)), "{}", row.module);
        let roots: Vec<f64> = second.iter().map(|value| value.sqrt()).collect();
        let damping = 0.1 * roots.iter().sum::<f64>() / roots.len() as f64;
        for (gradient, found) in plain.iter().zip(&ihvp).filter(|(plain, _)| plain.module == row.module) {
            let expected: Vec<f64> =
                wide(&gradient.left).iter().zip(&roots).map(|(value, root)| value / (root + damping)).collect();
            let worst = error(&wide(&found.left), &expected);
            assert!(worst < 1e-5, "{} query {}: {worst:.2e}", row.module, gradient.row);
        }
    }
    let unit = Artifact::<Scores>::open(&bench.made("ladder.toml", "adam")).unwrap().metadata("unit").unwrap();
    assert_eq!(unit.as_deref(), Some("gradient product over Adam's roots / N"));
    let error = bench.refused(&["run", "ladder.toml", "--to", "untrained"]);
    assert!(error.contains("keeps no checkpoints"), "{error}");
}

#[test]
fn similarities_are_those_of_hand() {
    let bench = Bench::new();
    let lines = |rows: &[&str]| rows.iter().map(|ids| format!("{{\"input_ids\": [{ids}]}}\n")).collect::<String>();
    bench.file("three.jsonl", lines(&["0, 5, 6, 1", "0, 5, 7, 1", "0, 8, 1"]));
    bench.file("one.jsonl", lines(&["0, 5, 9, 1"]));
    write(
        &bench,
        r#"
[steps.three]
stage = "tokenize"
corpus = "three.jsonl"
max-tokens = 32
[steps.one]
stage = "tokenize"
corpus = "one.jsonl"
max-tokens = 32
[steps.bm25]
stage = "similarity"
inputs = { queries = "one", tokens = "three" }
[steps.random]
stage = "similarity"
inputs = { queries = "one", tokens = "three" }
method = "random"
seed = 5
[steps.activations]
stage = "activations"
inputs = { tokens = "three" }
[steps.query-activations]
stage = "activations"
inputs = { tokens = "one" }
sites = [1]
[steps.alike]
stage = "similarity"
inputs = { query-activations = "query-activations", activations = "activations" }
method = "activations"
site = 1
position = "target-mean"
[steps.nowhere]
stage = "similarity"
inputs = { query-activations = "query-activations", activations = "activations" }
method = "activations"
"#,
    );
    // Of three rows all hold 0 and 1: log(0.5 / 3.5 + 1) = log(8/7) each. Two hold 5: log(1.5 / 2.5 + 1) = log(8/5).
    let (often, twice) = ((8.0_f64 / 7.0).ln(), 1.6_f64.ln());
    let worst = error(&scores(&bench, "bm25", 1, 3), &[2.0 * often + twice, 2.0 * often + twice, 2.0 * often]);
    assert!(worst < 1e-6, "BM25: {worst:.2e}");
    let random: Vec<f64> = (0..3).map(|example| 2.0 * uniform(5, 0, example) - 1.0).collect();
    assert!(error(&scores(&bench, "random", 1, 3), &random) < 1e-6);

    let [asked, given] = ["query-activations", "activations"].map(|step| rows::<Activations, Streams>(&bench, step));
    let at = |row: &Streams, site: usize| -> Vec<f64> {
        row.target_mean[site * 16..][..16].iter().map(|&value| value.into()).collect()
    };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let query = at(&asked[0], 0);
    let cosine = |x: &[f64]| dot(&query, x) / (dot(&query, &query) * dot(x, x)).sqrt();
    let expected: Vec<f64> = given.iter().map(|row| cosine(&at(row, 1))).collect();
    let worst = error(&scores(&bench, "alike", 1, 3), &expected);
    assert!(worst < 1e-6, "cosines of activations: {worst:.2e}");
    let error = bench.refused(&["run", "ladder.toml", "--to", "nowhere"]);
    assert!(error.contains("site post-norm is not kept"), "{error}");
}
