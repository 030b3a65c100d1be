//! The index: what its bits are, what their sums are, and how the ranking compares with the exact one.

use std::collections::HashMap;

use wherefrom_artifact::{Artifact, Basis, Coordinate, Factors, Gradients, LambdaSum, Side, Signs};

use crate::study::{Choice, Labels, Set, Study};
use crate::{error, spearman};

/// Examples whose gradients are formed.
const EXAMPLES: usize = 12;

/// x of one row of gradients at the coordinates, in float64, by the definition.
fn coordinates(
    table: &[Coordinate],
    gradient: &HashMap<String, Factors>,
    basis: &HashMap<(String, Side), &Basis>,
) -> Vec<f64> {
    // (Q^T x)[i, t], one module and side at a time.
    let rotate = |module: &str, side: Side, x: &[f32], r: usize| -> Vec<f64> {
        let q = &basis[&(module.to_string(), side)].vectors;
        let n = q.len().isqrt();
        let mut rotated = vec![0.0; n * r];
        for k in 0..n {
            for i in 0..n {
                for t in 0..r {
                    rotated[i * r + t] += f64::from(q[k * n + i]) * f64::from(x[k * r + t]);
                }
            }
        }
        rotated
    };
    let mut rotated: Option<(&str, usize, Vec<f64>, Vec<f64>)> = None;
    let mut values = Vec::with_capacity(table.len());
    for coordinate in table {
        if rotated.as_ref().is_none_or(|(module, ..)| *module != coordinate.module) {
            let factors = &gradient[&coordinate.module];
            let d = rotate(&coordinate.module, Side::Gradient, &factors.left, factors.rank);
            let a = rotate(&coordinate.module, Side::Activation, &factors.right, factors.rank);
            rotated = Some((&coordinate.module, factors.rank, d, a));
        }
        let (_, r, d, a) = rotated.as_ref().unwrap();
        let (d, a) = (&d[coordinate.row as usize * r..][..*r], &a[coordinate.column as usize * r..][..*r]);
        values.push(d.iter().zip(a).map(|(d, a)| d * a).sum());
    }
    values
}

#[test]
fn an_index_of_every_coordinate_holds_the_exact_scan() {
    let study = Study::new(&Set::for_device(), &Choice::whole("mlp", Labels::Empirical));
    let (basis, lambda): (Vec<Basis>, Vec<LambdaSum>) = study.fit();
    let named = |row| Basis::modules(row).map(move |module| ((module.clone(), row.side), row));
    let basis: HashMap<_, _> = basis.iter().flat_map(named).collect();
    let slice = study.slice(EXAMPLES);
    let indexed = study.indexed(usize::MAX, &slice, EXAMPLES);
    let all: usize = lambda.iter().map(|row| row.lambda.len()).sum();
    assert_eq!(indexed.table.len(), all);
    let module: HashMap<_, _> = lambda.iter().map(|row| (row.module.clone(), row)).collect();

    // w = x_q / (Lambda + damping): what the query's side is, and sigma.
    let own: Vec<Vec<f64>> =
        by_row(&study.gradients(&slice)).iter().map(|row| coordinates(&indexed.table, row, &basis)).collect();
    let means: HashMap<_, f64> = module
        .iter()
        .map(|(name, row)| {
            let sum: f64 = row.lambda.iter().map(|&value| f64::from(value)).sum();
            (name.clone(), sum / row.lambda.len() as f64 / row.count as f64)
        })
        .collect();
    let damped: Vec<f64> = indexed
        .table
        .iter()
        .map(|at| {
            let row = module[&at.module];
            let value = f64::from(row.lambda[at.row as usize * row.shape[1] + at.column as usize]) / row.count as f64;
            assert!((value.sqrt() / f64::from(at.deviation) - 1.0).abs() < 1e-6);
            value + 0.1 * means[&at.module]
        })
        .collect();

    let mut wrong = 0;
    for (x, row) in own.iter().zip(&indexed.rows) {
        let size = x.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        let shares = x.iter().zip(&indexed.table).map(|(x, at)| x.abs() / f64::from(at.deviation));
        let scale = shares.sum::<f64>() / x.len() as f64;
        assert!((f64::from(row.scale) / scale - 1.0).abs() < 1e-4, "scale {} is not {scale}", row.scale);
        for (i, x) in x.iter().enumerate().filter(|(_, x)| x.abs() > 1e-5 * size) {
            wrong += usize::from(negative(row, i) != (*x < 0.0));
        }
    }
    assert_eq!(wrong, 0, "bits are signs");

    let exact = study.scores("full");
    let examples = exact.len() / study.queries;
    let (mut from_values, mut from_signs, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for (query, gradient) in by_row(study.query_gradients()).iter().enumerate().take(4) {
        let x = coordinates(&indexed.table, gradient, &basis);
        for (z, (values, row)) in own.iter().zip(&indexed.rows).enumerate() {
            from_values.push(x.iter().zip(values).zip(&damped).map(|((x, z), damped)| x * z / damped).sum());
            expected.push(exact[query * examples + z]);
            let sign = |i| if negative(row, i) { -1.0 } else { 1.0 };
            let sum: f64 = (x.iter().zip(&damped).zip(&indexed.table).enumerate())
                .map(|(i, ((x, damped), at))| x * f64::from(at.deviation) / damped * sign(i))
                .sum();
            from_signs.push(f64::from(row.scale) * sum);
        }
    }
    let worst = error(&from_values, &expected);
    println!("every coordinate, unrounded: {worst:.2e} of the largest");
    assert!(worst <= 1e-5, "the coordinates do not sum to the scan: {worst:.2e}");
    let found: Vec<f64> = indexed.scores.chunks(EXAMPLES).take(4).flatten().copied().collect();
    let worst = error(&found, &from_signs);
    println!("weights of seven bits: {worst:.2e} of the largest");
    assert!(worst <= 2e-3, "sums by signs: {worst:.2e}");
}

/// The factors of each row, by module.
fn by_row(gradients: &Artifact<Gradients>) -> Vec<HashMap<String, Factors>> {
    let mut rows: Vec<HashMap<String, Factors>> = Vec::new();
    for row in gradients.rows::<Factors>().unwrap() {
        let row = row.unwrap();
        rows.resize_with(rows.len().max(row.row as usize + 1), HashMap::new);
        rows[row.row as usize].insert(row.module.clone(), row);
    }
    rows
}

fn negative(row: &Signs, i: usize) -> bool {
    row.signs[i / 8] >> (i % 8) & 1 == 1
}

/// What a bit for each of 65,536 coordinates keeps of the ranking: 8 KiB a row.
#[test]
fn an_index_ranks_like_the_exact_scan() {
    let study = Study::new(&Set::whole(), &Choice::whole("mlp", Labels::Empirical));
    let exact = study.scores("full");
    let examples = exact.len() / study.queries;
    let scores = study.indexed(65_536, study.train(), examples).scores;
    let first = |scores: &[f64], count: usize| -> Vec<usize> {
        let mut order: Vec<_> = (0..scores.len()).collect();
        order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
        order.truncate(count);
        order
    };
    let (mut correlation, mut least, mut found) = (0.0, 1.0_f64, 0);
    for (exact, scores) in exact.chunks(examples).zip(scores.chunks(examples)) {
        let rank = spearman(exact, scores);
        (correlation, least) = (correlation + rank / study.queries as f64, least.min(rank));
        let hundred = first(scores, 100);
        found += first(exact, 10).iter().filter(|best| hundred.contains(best)).count();
    }
    let recall = found as f64 / (10 * study.queries) as f64;
    println!(
        "index of 65536: Spearman mean {correlation:.3}, least {least:.3}; ten best among its hundred {recall:.3}"
    );
    assert!(correlation >= 0.7 && recall >= 0.85, "Spearman {correlation}, recall {recall}");
}
