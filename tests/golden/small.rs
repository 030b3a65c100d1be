//! Where the answer is known: a quadratic, linear regression, a logistic model without an example, and small networks whose proximal
//! Bregman responses are found in float64. Optimiser, eigenbasis, damping and preconditioner are those of the language models;
//! the networks' passes are here.

use std::time::Instant;

use anyhow::Result;
use tempfile::TempDir;
use wherefrom_artifact::{
    Artifact, Basis, Covariance, Covariances, Draft, Eigenbasis, Lambda, LambdaSum, Side, bad_input,
};
use wherefrom_curvature::eigenbasis;
use wherefrom_curvature::precondition::Damping;
use wherefrom_curvature::proximal::minimum::{Objective, minimum, solved};
use wherefrom_curvature::test_support::Ekfac;
use wherefrom_linalg::random::{normal, uniform};
use wherefrom_model::{Module, Part};
use wherefrom_stage::Exec;

use crate::study::Study;
use crate::{error, pearson};

/// What an output is held against.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    /// Half the squared distance.
    Squares,
    /// Minus the log-probability of a class, the outputs being logits.
    CrossEntropy,
}

impl Loss {
    fn of(self, output: &[f64], wanted: &[f64]) -> f64 {
        match self {
            Self::Squares => output.iter().zip(wanted).map(|(f, y)| 0.5 * (f - y).powi(2)).sum(),
            Self::CrossEntropy => -softmax(output).iter().zip(wanted).map(|(p, y)| y * p.ln()).sum::<f64>(),
        }
    }

    /// What the output predicts: its derivative of the loss is this, less what is wanted.
    fn prediction(self, output: &[f64]) -> Vec<f64> {
        if self == Self::Squares { output.to_vec() } else { softmax(output) }
    }

    /// H t, with H the loss's second derivative by the output.
    fn curved(self, output: &[f64], t: &[f64]) -> Vec<f64> {
        match self {
            Self::Squares => t.to_vec(),
            Self::CrossEntropy => {
                let p = softmax(output);
                let mean = dot(&p, t);
                p.iter().zip(t).map(|(p, t)| p * (t - mean)).collect()
            }
        }
    }

    /// A draw from what the output predicts.
    fn drawn(self, output: &[f64], seed: u64, row: u64) -> Vec<f64> {
        match self {
            Self::Squares => (0..).zip(output).map(|(i, f)| f + normal(seed, row, i)).collect(),
            Self::CrossEntropy => {
                let (mut rest, p) = (uniform(seed, row, 0), softmax(output));
                let class = p.iter().position(|p| {
                    rest -= p;
                    rest < 0.0
                });
                one_hot(class.unwrap_or(p.len() - 1), p.len())
            }
        }
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |most, x| most.max(*x));
    let shares: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.into_iter().map(|x| x / sum).collect()
}

fn one_hot(class: usize, classes: usize) -> Vec<f64> {
    (0..classes).map(|i| f64::from(u8::from(i == class))).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn add(x: &mut [f64], a: f64, y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += a * y);
}

/// Labels that are drawn of each row: so few rows of one label each have a curvature of chance.
const DRAWS: u64 = 16;

struct Row {
    x: Vec<f64>,
    y: Vec<f64>,
}

/// Maps [out, in + 1], a bias the last column, with tanh between them.
struct Network {
    widths: Vec<usize>,
    loss: Loss,
}

/// A row's way through: the input of each map, a 1 at its end, and the output.
struct Trace {
    inputs: Vec<Vec<f64>>,
    output: Vec<f64>,
}

impl Network {
    /// [out, in + 1] of each map.
    fn shapes(&self) -> impl DoubleEndedIterator<Item = [usize; 2]> + ExactSizeIterator + '_ {
        self.widths.windows(2).map(|pair| [pair[1], pair[0] + 1])
    }

    fn size(&self) -> usize {
        self.shapes().map(|[out, inside]| out * inside).sum()
    }

    /// The maps of a vector.
    fn maps<'a>(&self, w: &'a [f64]) -> Vec<&'a [f64]> {
        let mut rest = w;
        let take = |[out, inside]: [usize; 2]| {
            let (map, after) = rest.split_at(out * inside);
            rest = after;
            map
        };
        self.shapes().map(take).collect()
    }

    fn trace(&self, w: &[f64], x: &[f64]) -> Trace {
        let (mut inputs, mut output) = (Vec::new(), x.to_vec());
        for (number, map) in self.maps(w).into_iter().enumerate() {
            if number > 0 {
                output.iter_mut().for_each(|x| *x = x.tanh());
            }
            output.push(1.0);
            let next = map.chunks(output.len()).map(|row| dot(row, &output)).collect();
            inputs.push(std::mem::replace(&mut output, next));
        }
        Trace { inputs, output }
    }

    /// The gradient at each map's output, from that at the last.
    fn output_gradients(&self, w: &[f64], trace: &Trace, last: Vec<f64>) -> Vec<Vec<f64>> {
        let mut all = vec![last];
        for (map, input) in self.maps(w).into_iter().zip(&trace.inputs).skip(1).rev() {
            let d = &all[all.len() - 1];
            let mut below = vec![0.0; input.len()];
            map.chunks(input.len()).zip(d).for_each(|(row, d)| add(&mut below, *d, row));
            below.pop();
            all.push(below.iter().zip(input).map(|(d, a)| d * (1.0 - a * a)).collect());
        }
        all.reverse();
        all
    }

    /// into += scale * the gradient by the weights, from that at the output.
    fn add_gradient(&self, into: &mut [f64], scale: f64, w: &[f64], trace: &Trace, last: Vec<f64>) {
        let mut place = 0;
        for (d, a) in self.output_gradients(w, trace, last).iter().zip(&trace.inputs) {
            for d in d {
                add(&mut into[place..place + a.len()], scale * d, a);
                place += a.len();
            }
        }
    }

    fn row_gradient(&self, w: &[f64], row: &Row) -> Vec<f64> {
        let trace = self.trace(w, &row.x);
        let last = self.loss.prediction(&trace.output).iter().zip(&row.y).map(|(p, y)| p - y).collect();
        let mut gradient = vec![0.0; w.len()];
        self.add_gradient(&mut gradient, 1.0, w, &trace, last);
        gradient
    }

    fn row_loss(&self, w: &[f64], row: &Row) -> f64 {
        self.loss.of(&self.trace(w, &row.x).output, &row.y)
    }

    /// How the output moves along v.
    fn tangent(&self, w: &[f64], v: &[f64], trace: &Trace) -> Vec<f64> {
        let mut moved: Vec<f64> = vec![0.0; self.widths[0]];
        for (number, (map, v)) in self.maps(w).into_iter().zip(self.maps(v)).enumerate() {
            let input = &trace.inputs[number];
            if number > 0 {
                moved.iter_mut().zip(input).for_each(|(t, a)| *t *= 1.0 - a * a);
            }
            let rows = map.chunks(input.len()).zip(v.chunks(input.len()));
            moved = rows.map(|(row, v)| dot(&row[..moved.len()], &moved) + dot(v, input)).collect();
        }
        moved
    }

    /// into += scale * J^T H J v of a row.
    fn add_curved(&self, into: &mut [f64], scale: f64, w: &[f64], row: &Row, v: &[f64]) {
        let trace = self.trace(w, &row.x);
        let last = self.loss.curved(&trace.output, &self.tangent(w, v, &trace));
        self.add_gradient(into, scale, w, &trace, last);
    }

    fn random(&self, seed: u64) -> Vec<f64> {
        let map = |(number, [out, inside]): (u64, [usize; 2])| {
            (0..out * inside).map(move |i| normal(seed, number, i as u64) / (inside as f64).sqrt())
        };
        (0..).zip(self.shapes()).flat_map(map).collect()
    }

    /// Adam over all rows at once, at 0.01.
    fn trained(&self, rows: &[Row], steps: i32) -> Vec<f64> {
        let mut w = self.random(1);
        let (mut first, mut second) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        for step in 1..=steps {
            let mut gradient = vec![0.0; w.len()];
            rows.iter().for_each(|row| add(&mut gradient, 1.0 / rows.len() as f64, &self.row_gradient(&w, row)));
            for (place, g) in gradient.into_iter().enumerate() {
                first[place] = 0.9 * first[place] + 0.1 * g;
                second[place] = 0.999 * second[place] + 0.001 * g * g;
                let (mean, square) =
                    (first[place] / (1.0 - 0.9_f64.powi(step)), second[place] / (1.0 - 0.999_f64.powi(step)));
                w[place] -= 0.01 * mean / (square.sqrt() + 1e-8);
            }
        }
        w
    }

    fn modules(&self) -> Vec<Module> {
        let module = |(layer, [out_features, in_features]): (usize, [usize; 2])| {
            let name = format!("map.{layer}");
            Module {
                input: name.clone(),
                name,
                in_features,
                out_features,
                bias: true,
                layer,
                part: Part::Mlp,
                routed: None,
            }
        };
        self.shapes().enumerate().map(module).collect()
    }

    /// EK-FAC at some weights, of drawn labels; a draw for the basis and another for Lambda, as the stages have it.
    fn ekfac(&self, w: &[f64], rows: &[Row], damping: Damping) -> Ekfac {
        let (folder, count) = (TempDir::new().unwrap(), DRAWS * rows.len() as u64);
        // Of every row the input of each map and the gradient at its output.
        let drawn = |seed: u64| -> Vec<Vec<(Vec<f64>, Vec<f64>)>> {
            let row = |(number, row): (u64, &Row)| {
                let trace = self.trace(w, &row.x);
                let label = self.loss.drawn(&trace.output, seed, number);
                let last = self.loss.prediction(&trace.output).iter().zip(label).map(|(p, y)| p - y).collect();
                let gradients = self.output_gradients(w, &trace, last);
                trace.inputs.into_iter().zip(gradients).collect()
            };
            (0..).zip((0..DRAWS).flat_map(|_| rows)).map(row).collect()
        };
        let (taps, modules) = (drawn(2), self.modules());
        let covariance = |(number, module): (usize, &Module), side: Side| {
            let of = |row: &Vec<(Vec<f64>, Vec<f64>)>| {
                if side == Side::Activation { row[number].0.clone() } else { row[number].1.clone() }
            };
            let size = of(&taps[0]).len();
            let mut sum = vec![0.0; size * size];
            for vector in taps.iter().map(of) {
                vector.iter().enumerate().for_each(|(i, x)| add(&mut sum[i * size..][..size], *x, &vector));
            }
            let matrix = sum.into_iter().map(|x| x as f32).collect();
            Covariance { module: module.name.clone(), side, shared_with: Vec::new(), count, size, matrix }
        };
        let sides = [Side::Activation, Side::Gradient];
        let all = modules.iter().enumerate().flat_map(|one| sides.map(|side| covariance(one, side)));
        let all: Vec<Covariance> = all.collect();
        let covariances: Artifact<Covariances> = Study::produce(folder.path(), "covariances", |draft: &mut Draft| {
            draft.write_rows::<Covariances, _>(0, &all)
        });
        let inputs = eigenbasis::Inputs { covariances };
        let basis: Artifact<Eigenbasis> = Study::produce(folder.path(), "basis", |draft| {
            eigenbasis::run(&eigenbasis::Config {}, &inputs, &Exec::default(), draft)
        });
        let bases: Vec<Basis> = basis.rows().unwrap().map(Result::unwrap).collect();
        let taps = drawn(3);
        let lambda = |(number, module): (usize, &Module)| {
            let rotated = |side: Side, x: &[f64]| -> Vec<f64> {
                let found = bases.iter().find(|row| row.module == module.name && row.side == side).unwrap();
                let n = x.len();
                (0..n).map(|j| (0..n).map(|i| f64::from(found.vectors[i * n + j]) * x[i]).sum()).collect()
            };
            let mut sum = vec![0.0; module.out_features * module.in_features];
            for row in &taps {
                let (a, d) = (rotated(Side::Activation, &row[number].0), rotated(Side::Gradient, &row[number].1));
                let squares = d.iter().flat_map(|d| a.iter().map(move |a| (d * a).powi(2)));
                sum.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
            }
            let lambda = sum.into_iter().map(|x| x as f32).collect();
            LambdaSum { module: module.name.clone(), count, shape: [module.out_features, module.in_features], lambda }
        };
        let all: Vec<LambdaSum> = modules.iter().enumerate().map(lambda).collect();
        let lambda: Artifact<Lambda> =
            Study::produce(folder.path(), "lambda", |draft: &mut Draft| draft.write_rows::<Lambda, _>(0, &all));
        Ekfac::new(damping, &basis, &lambda, &modules).unwrap()
    }
}

/// The proximal Bregman objective of a row with c added copies, as the stage `proximal` has it of a language model.
struct Response<'a> {
    network: &'a Network,
    ekfac: &'a Ekfac,
    before: &'a [f64],
    rows: &'a [Row],
    example: &'a Row,
    copies: f64,
}

impl Response<'_> {
    fn weight(&self) -> f64 {
        self.copies / self.rows.len() as f64
    }

    fn at(&self, moved: &[f64]) -> Vec<f64> {
        let mut w = self.before.to_vec();
        add(&mut w, 1.0, moved);
        w
    }

    /// What the query's log p gains by a copy.
    fn response(&self, query: &Row, moved: &[f64]) -> f64 {
        (self.network.row_loss(self.before, query) - self.network.row_loss(&self.at(moved), query)) / self.copies
    }
}

impl Objective for Response<'_> {
    type Place = Vec<f64>;

    fn size(&self) -> usize {
        self.before.len()
    }

    fn gradient(&self, moved: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
        let (network, w) = (self.network, self.at(moved));
        let mut gradient = vec![0.0; w.len()];
        for row in self.rows {
            let (trace, before) = (network.trace(&w, &row.x), network.trace(self.before, &row.x));
            let [now, before] = [&trace, &before].map(|trace| network.loss.prediction(&trace.output));
            let last = now.iter().zip(before).map(|(now, before)| now - before).collect();
            network.add_gradient(&mut gradient, 1.0 / self.rows.len() as f64, &w, &trace, last);
        }
        add(&mut gradient, self.weight(), &network.row_gradient(&w, self.example));
        self.ekfac.add_damping(&mut gradient, moved);
        Ok((w, gradient))
    }

    fn curved(&self, w: &Vec<f64>, v: &[f64]) -> Result<Vec<f64>> {
        let mut curved = vec![0.0; v.len()];
        for row in self.rows {
            self.network.add_curved(&mut curved, 1.0 / self.rows.len() as f64, w, row, v);
        }
        if self.copies > 0.0 {
            self.network.add_curved(&mut curved, self.weight(), w, self.example, v);
        }
        self.ekfac.add_damping(&mut curved, v);
        Ok(curved)
    }

    fn precondition(&self, v: &[f64]) -> Result<Vec<f64>> {
        self.ekfac.precondition(v)
    }
}

/// a^-1 b of a positive definite [n, n], by elimination.
fn eliminated(a: &[f64], b: &[f64]) -> Vec<f64> {
    let (mut a, mut b, n) = (a.to_vec(), b.to_vec(), b.len());
    for pivot in 0..n {
        for row in (0..n).filter(|&row| row != pivot) {
            let factor = a[row * n + pivot] / a[pivot * n + pivot];
            (0..n).for_each(|column| a[row * n + column] -= factor * a[pivot * n + column]);
            b[row] -= factor * b[pivot];
        }
    }
    (0..n).map(|place| b[place] / a[place * (n + 1)]).collect()
}

/// The least of 1/N sum w_n L_n + 1/2 damping |theta|^2 by Newton's steps with the dense matrix: exact where the outputs are linear.
fn trained_exactly(network: &Network, rows: &[Row], weight: impl Fn(usize) -> f64, damping: f64) -> Vec<f64> {
    let (n, size) = (rows.len() as f64, network.size());
    let mut w = vec![0.0; size];
    for _ in 0..30 {
        let mut gradient: Vec<f64> = w.iter().map(|w| damping * w).collect();
        let mut matrix = vec![0.0; size * size];
        for (number, row) in rows.iter().enumerate() {
            add(&mut gradient, weight(number) / n, &network.row_gradient(&w, row));
            for (column, part) in matrix.chunks_mut(size).enumerate() {
                network.add_curved(part, weight(number) / n, &w, row, &one_hot(column, size));
            }
        }
        (0..size).for_each(|place| matrix[place * (size + 1)] += damping);
        let step = eliminated(&matrix, &gradient);
        add(&mut w, -1.0, &step);
    }
    w
}

/// Rows of random inputs, and what `label` makes of each.
fn rows(count: u64, width: u64, label: impl Fn(u64, &[f64]) -> Vec<f64>) -> Vec<Row> {
    let row = |number: u64| {
        let x: Vec<f64> = (0..width).map(|i| normal(9, number, i)).collect();
        Row { y: label(number, &x), x }
    };
    (0..count).map(row).collect()
}

/// Influences of rows on queries, [queries, rows], with what `inverse` makes of a query's gradient.
fn influences(
    network: &Network,
    w: &[f64],
    data: [&[Row]; 2],
    count: usize,
    inverse: impl Fn(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let [queries, rows] = data;
    let gradients: Vec<Vec<f64>> = rows.iter().map(|row| network.row_gradient(w, row)).collect();
    let of = |query: &Row| {
        let x = inverse(&network.row_gradient(w, query));
        gradients.iter().map(move |gradient| dot(&x, gradient) / count as f64).collect::<Vec<_>>()
    };
    queries.iter().flat_map(of).collect()
}

/// Pearson's correlation of each query.
fn by_query(found: &[f64], expected: &[f64], queries: usize) -> Vec<f64> {
    let rows = found.len() / queries;
    found.chunks(rows).zip(expected.chunks(rows)).map(|(found, expected)| pearson(found, expected)).collect()
}

fn said(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.3}")).collect::<Vec<_>>().join(", ")
}

/// A quadratic with the matrix `known` + u u^T, of which the objective's own is `known` alone.
struct Quadratic {
    known: Vec<f64>,
    u: Vec<f64>,
    b: Vec<f64>,
}

impl Objective for Quadratic {
    type Place = ();

    fn size(&self) -> usize {
        self.b.len()
    }

    fn gradient(&self, at: &[f64]) -> Result<((), Vec<f64>)> {
        let mut gradient = self.curved(&(), at)?;
        add(&mut gradient, dot(&self.u, at), &self.u);
        add(&mut gradient, -1.0, &self.b);
        Ok(((), gradient))
    }

    fn curved(&self, (): &(), v: &[f64]) -> Result<Vec<f64>> {
        Ok(self.known.chunks(v.len()).map(|row| dot(row, v)).collect())
    }

    fn precondition(&self, v: &[f64]) -> Result<Vec<f64>> {
        Ok(v.iter().enumerate().map(|(place, v)| v / self.known[place * (self.size() + 1)]).collect())
    }
}

#[test]
fn a_quadratic_is_least_where_its_closed_form_says() {
    let n = 12;
    let factor: Vec<f64> = (0..n * n).map(|i| normal(4, 0, i as u64)).collect();
    let mut known = vec![0.0; n * n];
    for row in factor.chunks(n) {
        row.iter().enumerate().for_each(|(i, x)| add(&mut known[i * n..][..n], *x, row));
    }
    (0..n).for_each(|i| known[i * (n + 1)] += 0.1);
    let [u, b] = [1, 2].map(|stream| (0..n).map(|i| 2.0 * normal(4, stream, i as u64)).collect::<Vec<f64>>());
    let mut whole = known.clone();
    u.iter().enumerate().for_each(|(i, x)| add(&mut whole[i * n..][..n], *x, &u));
    let expected = eliminated(&whole, &b);
    let ended = minimum(&Quadratic { known, u, b }, 1e-10, 100).unwrap();
    assert!(ended.gradient <= 1e-10 && error(&ended.at, &expected) < 1e-6, "{:?}, not {expected:?}", ended.at);
}

#[test]
fn gradients_and_products_are_the_differences_of_losses() {
    for loss in [Loss::Squares, Loss::CrossEntropy] {
        let network = Network { widths: vec![3, 4, 5, 2], loss };
        let (w, h) = (network.random(5), 1e-5);
        let rows = rows(3, 3, |number, _| one_hot(number as usize % 2, 2));
        let v: Vec<f64> = (0..w.len()).map(|i| normal(5, 9, i as u64)).collect();
        let moved = |by: f64| w.iter().zip(&v).map(|(w, v)| w + by * v).collect::<Vec<_>>();
        for row in &rows {
            let slope = (network.row_loss(&moved(h), row) - network.row_loss(&moved(-h), row)) / (2.0 * h);
            assert!((dot(&network.row_gradient(&w, row), &v) - slope).abs() < 1e-7 * slope.abs().max(1.0));
            let outputs = [h, -h].map(|by| network.trace(&moved(by), &row.x).output);
            let t: Vec<f64> = outputs[0].iter().zip(&outputs[1]).map(|(x, y)| (x - y) / (2.0 * h)).collect();
            let along = dot(&t, &loss.curved(&network.trace(&w, &row.x).output, &t));
            let mut curved = vec![0.0; w.len()];
            network.add_curved(&mut curved, 1.0, &w, row, &v);
            assert!((dot(&curved, &v) - along).abs() < 1e-6 * along.max(1.0), "{} {along}", dot(&curved, &v));
        }
    }
}

/// With outputs that are linear in the weights, and weights that a ridge has at its least, the response is the retraining itself.
#[test]
fn responses_of_linear_regression_and_of_a_logistic_model_are_retrainings() {
    let linear = |_: u64, x: &[f64]| vec![x[0] - 2.0 * x[1] + 0.5 * x[2] * x[3]];
    let class = |number: u64, x: &[f64]| {
        let noisy: Vec<f64> = (0..3).map(|i| x[i] + normal(11, number, i as u64)).collect();
        one_hot((0..3).max_by(|&i, &j| noisy[i].total_cmp(&noisy[j])).unwrap(), 3)
    };
    let regression = Network { widths: vec![5, 1], loss: Loss::Squares };
    let logistic = Network { widths: vec![5, 3], loss: Loss::CrossEntropy };
    let cases = [("linear regression", regression, rows(65, 5, linear)), ("logistic", logistic, rows(65, 5, class))];
    for (name, network, all) in cases {
        let start = Instant::now();
        let (queries, rows) = all.split_at(5);
        let damping = 0.05;
        let before = trained_exactly(&network, rows, |_| 1.0, damping);
        let ekfac = network.ekfac(&before, rows, Damping::Absolute(damping));
        let none = Response { network: &network, ekfac: &ekfac, before: &before, rows, example: &rows[0], copies: 0.0 };
        assert!(minimum(&none, 1e-3, 1).unwrap().at.iter().all(|&moved| moved == 0.0), "no copies move nothing");
        let exact =
            influences(&network, &before, [queries, rows], rows.len(), |b| solved(&none, &before, b, 1e-10).unwrap());
        for copies in [1.0, -1.0] {
            let (mut found, mut expected) = (vec![0.0; exact.len()], vec![0.0; exact.len()]);
            for (place, example) in rows.iter().enumerate() {
                let response = Response { example, copies, ..none };
                let ended = minimum(&response, 1e-9, 100).unwrap();
                assert!(ended.gradient <= 1e-9, "{name}, row {place}: {:.1e}", ended.gradient);
                let weight = |number: usize| if number == place { 1.0 + copies } else { 1.0 };
                let retrained = trained_exactly(&network, rows, weight, damping);
                for (number, query) in queries.iter().enumerate() {
                    found[number * rows.len() + place] = response.response(query, &ended.at);
                    let change = network.row_loss(&before, query) - network.row_loss(&retrained, query);
                    expected[number * rows.len() + place] = change / copies;
                }
            }
            let worst = error(&found, &expected);
            assert!(worst < 1e-6, "{name}, {copies} copies: {worst:.1e}");
            let foretold = by_query(&exact, &expected, queries.len());
            // A query whose own error is about zero has no slope to be foretold by: hence not all.
            let well = foretold.iter().filter(|&&value| value > 0.95).count();
            assert!(well >= 3, "{name}, {copies} copies: {foretold:?}");
            println!(
                "| {name}, {} | {worst:.0e} | {} | {:.1} |",
                if copies > 0.0 { "one more copy" } else { "leave one out" },
                said(&foretold),
                start.elapsed().as_secs_f64()
            );
        }
        // The first order: g_q^T K^-1 g_n / N by the dense matrix.
        let matrix: Vec<f64> =
            (0..before.len()).flat_map(|place| none.curved(&before, &one_hot(place, before.len())).unwrap()).collect();
        let dense = influences(&network, &before, [queries, rows], rows.len(), |b| eliminated(&matrix, b));
        assert!(error(&exact, &dense) < 1e-6, "{name}: {:.1e}", error(&exact, &dense));
        // Of one map with one output, EK-FAC is exact but for the labels that were drawn.
        let data = [queries, rows];
        let ekfac = influences(&network, &before, data, rows.len(), |b| ekfac.precondition(b).unwrap());
        let near = by_query(&ekfac, &exact, queries.len());
        println!("{name}: Pearson of EK-FAC with the exact influences {}", said(&near));
        let least = if network.loss == Loss::Squares { 0.99 } else { 0.9 };
        assert!(near.iter().all(|&value| value > least), "{name}: {near:?}");
    }
}

/// Grosse et al. 2023, Figure 6: networks stopped before their loss is least, each row's response against its influences.
#[test]
fn influences_foretell_responses_of_small_networks() {
    let smooth = |number: u64, x: &[f64]| vec![(2.0 * x[0]).sin() + x[1] * x[2] + 0.3 * normal(11, number, 0)];
    let class = |number: u64, x: &[f64]| {
        let scores = [x[0] * x[1], x[2], (2.0 * x[3]).sin()];
        let noisy: Vec<f64> = (0..).zip(scores).map(|(i, x)| x + 0.3 * normal(11, number, i)).collect();
        one_hot((0..3).max_by(|&i, &j| noisy[i].total_cmp(&noisy[j])).unwrap(), 3)
    };
    let regression = Network { widths: vec![4, 8, 8, 1], loss: Loss::Squares };
    let classifier = Network { widths: vec![4, 8, 8, 3], loss: Loss::CrossEntropy };
    let cases = [("regression", regression, rows(105, 4, smooth)), ("classification", classifier, rows(105, 4, class))];
    for (name, network, all) in cases {
        let (queries, rows) = all.split_at(5);
        let before = network.trained(rows, 300);
        let ekfac = network.ekfac(&before, rows, Damping::Relative(0.1));
        let mut start = Instant::now();
        let mut lap = || std::mem::replace(&mut start, Instant::now()).elapsed().as_secs_f64();
        let none = Response { network: &network, ekfac: &ekfac, before: &before, rows, example: &rows[0], copies: 0.0 };
        let data = [queries, rows];
        let approximate = influences(&network, &before, data, rows.len(), |b| ekfac.precondition(b).unwrap());
        let ekfac_seconds = lap();
        let exact = influences(&network, &before, data, rows.len(), |b| solved(&none, &before, b, 1e-6).unwrap());
        let exact_seconds = lap();
        let mut found = vec![0.0; exact.len()];
        for (place, example) in rows.iter().enumerate() {
            let response = Response { example, copies: 1.0, ..none };
            let ended = minimum(&response, 1e-3, 100).unwrap();
            assert!(ended.gradient <= 1e-3, "{name}, row {place}: {:.1e}", ended.gradient);
            for (number, query) in queries.iter().enumerate() {
                found[number * rows.len() + place] = response.response(query, &ended.at);
            }
        }
        let seconds = lap();
        let [exact, approximate] = [exact, approximate].map(|values| by_query(&values, &found, queries.len()));
        println!(
            "| {name} | {} | {} ({ekfac_seconds:.2} s) | {} ({exact_seconds:.2} s) | {seconds:.1} |",
            rows.len(),
            said(&approximate),
            said(&exact)
        );
        assert!(exact.iter().all(|&value| value > 0.8), "{name}: {exact:?}");
        let mean = approximate.iter().sum::<f64>() / approximate.len() as f64;
        assert!(mean > 0.4, "{name}: {approximate:?}");
    }
}

/// (x - 1)² / 2, which says that its curvature is a tenth: the first step goes to 10. Beyond 2 the gradient is no number, beyond 5 nor is the loss.
struct Cliff;

impl Objective for Cliff {
    type Place = ();

    fn size(&self) -> usize {
        1
    }

    fn gradient(&self, at: &[f64]) -> Result<((), Vec<f64>)> {
        if at[0] > 5.0 {
            return Err(bad_input("overflow"));
        }
        Ok(((), vec![if at[0] > 2.0 { f64::NAN } else { at[0] - 1.0 }]))
    }

    fn curved(&self, (): &(), v: &[f64]) -> Result<Vec<f64>> {
        Ok(vec![0.1 * v[0]])
    }

    fn precondition(&self, v: &[f64]) -> Result<Vec<f64>> {
        Ok(v.to_vec())
    }
}

#[test]
fn a_step_so_far_that_the_objective_overflows_is_shortened() {
    let ended = minimum(&Cliff, 1e-9, 20).unwrap();
    assert!((ended.at[0] - 1.0).abs() < 1e-8 && ended.gradient <= 1e-9, "{ended:?}");
}
