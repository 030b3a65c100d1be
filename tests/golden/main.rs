//! The whole path against an independent float64 implementation (tests/fixtures/golden/README.md).
//!
//! `WHEREFROM_GOLDEN` names another folder of the same layout, such as the whole set that `just golden` converts.

#![allow(clippy::print_stdout)] // `just golden` shows the figures.

mod index;
mod persona;
mod small;
mod solve;
mod study;

use study::{Choice, Labels, Set, Study};
use wherefrom_artifact::Stored;

/// max|found - reference| / max|reference|.
fn error(found: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(found.len(), reference.len());
    let scale = reference.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    assert!(scale > 0.0, "a reference of zeros proves nothing");
    found.iter().zip(reference).fold(0.0_f64, |max, (x, y)| max.max((x - y).abs())) / scale
}

/// Spearman's rank correlation; influences have no ties.
fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<_> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0.0; values.len()];
        for (rank, index) in order.into_iter().enumerate() {
            ranks[index] = rank as f64;
        }
        ranks
    };
    let n = x.len() as f64;
    let distance: f64 = ranks(x).iter().zip(ranks(y)).map(|(a, b)| (a - b).powi(2)).sum();
    1.0 - 6.0 * distance / (n * (n * n - 1.0))
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let product = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| f(x - mx, y - my)).sum::<f64>();
    product(&|x, y| x * y) / (product(&|x, _| x * x) * product(&|_, y| y * y)).sqrt()
}

/// Mean and least of a correlation over the queries.
fn over_queries(study: &Study, found: &[f64], expected: &[f64], of: fn(&[f64], &[f64]) -> f64) -> (f64, f64) {
    let examples = found.len() / study.queries;
    let each = found.chunks(examples).zip(expected.chunks(examples)).map(|(found, expected)| of(found, expected));
    let each: Vec<f64> = each.collect();
    (each.iter().sum::<f64>() / each.len() as f64, each.iter().copied().fold(f64::INFINITY, f64::min))
}

fn agrees(choice: &Choice) {
    let study = Study::new(&Set::for_device(), choice);
    let reference = study.reference();

    for (rank, name) in [("full", "pairwise"), ("32", "pairwise_rank32")] {
        let (found, expected) = (study.scores(rank), reference.values(name));
        let worst = error(&found, &expected);
        assert!(worst <= 1e-5, "{name}: {worst:.2e}");
        let examples = found.len() / study.queries;
        for (found, expected) in found.chunks(examples).zip(expected.chunks(examples)) {
            let correlation = spearman(found, expected);
            assert!(correlation >= 0.99999, "{name}: Spearman {correlation}");
        }
        println!("{} {}: {name} {worst:.2e}", choice.modules, choice.labels.name());
    }

    let details = study.details(&reference);
    let worst = error(&details.by_module(&reference), &reference.values("per_module"));
    assert!(worst <= 1e-5, "per module: {worst:.2e}");
    println!("{} {}: per module {worst:.2e}", choice.modules, choice.labels.name());
    let worst = error(&details.by_token(&reference), &reference.values("per_token"));
    assert!(worst <= 5e-5, "per token: {worst:.2e}");
    println!("{} {}: per token {worst:.2e}", choice.modules, choice.labels.name());

    let worst = error(&study.own(), &reference.values("self"));
    assert!(worst <= 1e-5, "self-influence: {worst:.2e}");
    println!("{} {}: self-influence {worst:.2e}", choice.modules, choice.labels.name());

    let worst = study
        .mean_lambda()
        .iter()
        .zip(reference.values("mean_lambda"))
        .fold(0.0_f64, |max, (x, y)| max.max((x / y - 1.0).abs()));
    assert!(worst <= 1e-5, "mean lambda: {worst:.2e}");
    println!("{} {}: mean lambda {worst:.2e}", choice.modules, choice.labels.name());
}

#[test]
fn mlp_with_empirical_labels_agrees() {
    agrees(&Choice::whole("mlp", Labels::Empirical));
}

#[test]
fn mlp_with_given_sampled_labels_agrees() {
    agrees(&Choice::whole("mlp", Labels::Sampled));
}

#[test]
fn all_with_empirical_labels_agrees() {
    agrees(&Choice::whole("all", Labels::Empirical));
}

#[test]
fn all_with_given_sampled_labels_agrees() {
    agrees(&Choice::whole("all", Labels::Sampled));
}

#[test]
fn identity_is_the_gradient_product() {
    let study = Study::without_curvature(&Set::for_device(), "mlp");
    let worst = error(&study.scores("full"), &study.identity());
    assert!(worst <= 1e-5, "identity: {worst:.2e}");
}

#[test]
fn a_memorised_passage_finds_itself() {
    // Queries 0 to 5 are of training rows.
    let study = Study::without_curvature(&Set::for_device(), "mlp");
    let found = study.scores("full");
    let examples = found.len() / study.queries;
    for (query, row) in study.memorised().into_iter().enumerate() {
        let scores = &found[query * examples..(query + 1) * examples];
        let best = (0..examples).max_by(|&i, &j| scores[i].total_cmp(&scores[j]));
        assert_eq!(best, Some(row));
    }
}

/// What block-diagonal factors lose (Grosse et al. 2023, Appendix A): full-rank scores against the reference's.
#[test]
fn block_diagonal_factors_lose_this_much() {
    for (blocks, least_pearson, least_spearman) in [(2, 0.96, 0.95), (4, 0.92, 0.9)] {
        let study = Study::new(&Set::whole(), &Choice { blocks, ..Choice::whole("mlp", Labels::Empirical) });
        let (found, expected) = (study.scores("full"), study.reference().values("pairwise"));
        let pearson = over_queries(&study, &found, &expected, pearson);
        let spearman = over_queries(&study, &found, &expected, spearman);
        println!(
            "blocks {blocks}: Pearson mean {:.4}, least {:.4}; Spearman mean {:.4}, least {:.4}",
            pearson.0, pearson.1, spearman.0, spearman.1
        );
        assert!(
            pearson.1 >= least_pearson && spearman.1 >= least_spearman,
            "blocks {blocks}: {pearson:?} {spearman:?}"
        );
        assert!(spearman.1 < 0.99999, "blocks {blocks} changed nothing");
    }
}

/// What float16 changes in the scores: lambda and queries in half the bytes.
#[test]
fn lambda_and_queries_in_float16_rank_alike() {
    let study = Study::new(&Set::whole(), &Choice { store: Stored::F16, ..Choice::whole("mlp", Labels::Empirical) });
    for (rank, name) in [("full", "pairwise"), ("32", "pairwise_rank32")] {
        let (found, expected) = (study.scores(rank), study.reference().values(name));
        let (worst, spearman) = (error(&found, &expected), over_queries(&study, &found, &expected, spearman));
        println!(
            "float16, rank {rank}: {worst:.2e} of the largest, Spearman mean {}, least {}",
            spearman.0, spearman.1
        );
        assert!(worst <= 1e-4 && spearman.1 >= 0.99999, "rank {rank}: {worst:.2e}, {spearman:?}");
    }
    println!("float16: {}", study.stored());
}
