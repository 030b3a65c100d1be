//! Solutions of the damped Gauss-Newton system against dense float64 (tests/fixtures/truth/README.md).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tempfile::TempDir;
use wherefrom_artifact::{
    Artifact, Candidate, Candidates, Draft, Eigenbasis, Example, Gradients, Lambda, Preconditioned, Row, Score, Scores,
    Tokens,
};
use wherefrom_curvature::precondition::{Damping, Rank};
use wherefrom_curvature::solve::{self, Solver};
use wherefrom_curvature::{covariance, eigenbasis, lambda, precondition, proximal};
use wherefrom_model::{LabelsKind, Modules};
use wherefrom_stage::{Exec, ModelFiles};

use crate::study::Study;
use crate::{error, pearson};

const QUERIES: usize = 4;
const EXAMPLES: usize = 64;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/truth/gauss-newton")
}

/// EK-FAC of the rows with their own labels, and the queries' gradients.
struct Truth {
    folder: TempDir,
    exec: Exec,
    tokens: Artifact<Tokens>,
    queries: Artifact<Tokens>,
    gradients: Artifact<Gradients>,
    eigenbasis: Artifact<Eigenbasis>,
    lambda: Artifact<Lambda>,
    expected: HashMap<String, Vec<f64>>,
}

impl Truth {
    fn new() -> Self {
        let (place, exec, model) = (TempDir::new().unwrap(), Exec::default(), ModelFiles::from(folder().join("model")));
        let modules = Modules::Named("all".into());
        let tokens = |name: &str| {
            let text = std::fs::read_to_string(folder().join(format!("{name}.jsonl"))).unwrap();
            let row = |(number, line): (usize, &str)| {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                let input_ids: Vec<u32> = serde_json::from_value(row["input_ids"].clone()).unwrap();
                let mask = serde_json::from_value(row["target_mask"].clone());
                let target_mask = mask.unwrap_or_else(|_| (0..input_ids.len()).map(|place| place > 0).collect());
                Example { example: number as u64, input_ids, target_mask, ..Example::default() }
            };
            let rows: Vec<_> = text.lines().enumerate().map(row).collect();
            let fill = |draft: &mut Draft| draft.write(0, &[<Example as Row<Tokens>>::to_batch(&rows)?]);
            Study::produce::<Tokens>(place.path(), name, fill)
        };
        let (train, asked) = (tokens("train"), tokens("queries"));
        let config = wherefrom_gradients::Config { modules: modules.clone(), ..Default::default() };
        let inputs = wherefrom_gradients::Inputs { tokens: asked.clone(), vectors: None, model: model.clone() };
        let gradients =
            Study::produce(place.path(), "gradients", |draft| wherefrom_gradients::run(&config, &inputs, &exec, draft));
        let labels = LabelsKind::Empirical;
        let config = covariance::Config { labels, modules: modules.clone(), ..Default::default() };
        let inputs = covariance::Inputs { tokens: train.clone(), model: model.clone() };
        let covariances =
            Study::produce(place.path(), "covariance", |draft| covariance::run(&config, &inputs, &exec, draft));
        let inputs = eigenbasis::Inputs { covariances };
        let config = eigenbasis::Config {};
        let basis: Artifact<Eigenbasis> =
            Study::produce(place.path(), "eigenbasis", |draft| eigenbasis::run(&config, &inputs, &exec, draft));
        let config = lambda::Config { labels, modules, ..Default::default() };
        let inputs = lambda::Inputs { tokens: train.clone(), eigenbasis: Some(basis.clone()), model };
        let lambda = Study::produce(place.path(), "lambda", |draft| lambda::run(&config, &inputs, &exec, draft));
        let bytes = std::fs::read(folder().join("reference.safetensors")).unwrap();
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().unwrap());
        let expected = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter();
        let expected = expected.map(|(name, view)| (name, view.data().chunks_exact(8).map(number).collect())).collect();
        Self { folder: place, exec, tokens: train, queries: asked, gradients, eigenbasis: basis, lambda, expected }
    }

    /// Influences of EK-FAC.
    fn ekfac(&self, damping: Damping) -> Vec<f64> {
        let config = precondition::Config { damping, rank: Rank::Full, ..Default::default() };
        let inputs = precondition::Inputs {
            gradients: self.gradients.clone(),
            eigenbasis: Some(self.eigenbasis.clone()),
            lambda: Some(self.lambda.clone()),
        };
        let name = format!("ekfac {damping:?}");
        self.influences(Study::produce(self.folder.path(), &name, |draft| {
            precondition::run(&config, &inputs, &self.exec, draft)
        }))
    }

    /// Influences of a solution, and the residuals by query.
    fn solve(&self, config: &solve::Config) -> (Vec<f64>, Vec<Vec<f64>>) {
        let config = solve::Config { rank: Rank::Full, ..config.clone() };
        let inputs = solve::Inputs {
            gradients: self.gradients.clone(),
            tokens: self.tokens.clone(),
            model: folder().join("model").into(),
            eigenbasis: self.eigenbasis.clone(),
            lambda: self.lambda.clone(),
        };
        let name = format!("{config:?}");
        let solved: Artifact<Preconditioned> =
            Study::produce(self.folder.path(), &name, |draft| solve::run(&config, &inputs, &self.exec, draft));
        let residuals = serde_json::from_value(solved.manifest().summary["residual"].clone()).unwrap();
        (self.influences(solved), residuals)
    }

    /// Proximal Bregman responses of some rows, [queries, examples]; NaN elsewhere, and where a row did not converge.
    fn respond(&self, rows: &[usize], copies: f64, tolerance: f64) -> Vec<f64> {
        let candidate = |&row: &usize| Candidate { query: 0, example: row as u64, score: 0.0, source: "test".into() };
        let candidates: Vec<Candidate> = rows.iter().map(candidate).collect();
        let candidates: Artifact<Candidates> = Study::produce(self.folder.path(), &format!("rows {copies}"), |draft| {
            draft.write_rows::<Candidates, _>(0, &candidates)
        });
        let config = proximal::Config {
            damping: Damping::Absolute(0.05),
            modules: Modules::Named("all".into()),
            copies,
            tolerance,
            ..Default::default()
        };
        let inputs = proximal::Inputs {
            tokens: self.tokens.clone(),
            queries: self.queries.clone(),
            model: folder().join("model").into(),
            eigenbasis: self.eigenbasis.clone(),
            lambda: self.lambda.clone(),
            candidates: Some(proximal::Chosen::Candidates(candidates)),
        };
        let name = format!("{config:?}");
        matrix(Study::produce(self.folder.path(), &name, |draft| proximal::run(&config, &inputs, &self.exec, draft)))
    }

    /// [queries, examples]
    fn influences(&self, queries: Artifact<Preconditioned>) -> Vec<f64> {
        let name = format!("scores of {}", queries.key());
        let inputs = wherefrom_score::Inputs {
            queries,
            tokens: self.tokens.clone(),
            model: folder().join("model").into(),
            candidates: None,
        };
        let config = wherefrom_score::Config::default();
        matrix(Study::produce(self.folder.path(), &name, |draft| {
            wherefrom_score::run(&config, &inputs, &self.exec, draft)
        }))
    }
}

/// [queries, examples]; NaN where a pair is not there.
fn matrix(scores: Artifact<Scores>) -> Vec<f64> {
    let mut matrix = vec![f64::NAN; QUERIES * EXAMPLES];
    for row in scores.rows::<Score>().unwrap() {
        let row = row.unwrap();
        matrix[row.query as usize * EXAMPLES + row.example as usize] = row.influence.into();
    }
    matrix
}

/// The golden damping of that name.
fn dampings() -> [(&'static str, Damping); 2] {
    [("absolute", Damping::Absolute(0.05)), ("own", Damping::Relative(0.1))]
}

/// Each query's worst difference over its largest influence.
fn worst(found: &[f64], expected: &[f64]) -> f64 {
    let queries = found.chunks(EXAMPLES).zip(expected.chunks(EXAMPLES));
    queries.map(|(found, expected)| error(found, expected)).fold(0.0, f64::max)
}

#[test]
fn conjugate_gradients_are_those_of_float64() {
    let truth = Truth::new();
    for (name, damping) in dampings() {
        let ekfac = truth.ekfac(damping);
        let off = worst(&ekfac, &truth.expected[&format!("ekfac_influence_{name}")]);
        assert!(off < 1e-4, "EK-FAC, {name}: {off:e}");
        let steps = |steps| solve::Config { damping, steps, tolerance: 0.0, ..Default::default() };
        // EK-FAC's answer at its best length.
        for (found, plain) in truth.solve(&steps(1)).0.chunks(EXAMPLES).zip(ekfac.chunks(EXAMPLES)) {
            let largest = (0..EXAMPLES).max_by(|&i, &j| plain[i].abs().total_cmp(&plain[j].abs())).unwrap();
            let length = found[largest] / plain[largest];
            let scaled: Vec<_> = plain.iter().map(|plain| length * plain).collect();
            assert!(length > 0.0 && length < 1.5 && error(found, &scaled) < 1e-5, "{name}: {length}");
        }
        let expected = &truth.expected[&format!("cg_preconditioned_from_zero_{name}_influence")];
        let residuals = &truth.expected[&format!("cg_preconditioned_from_zero_{name}_residual")];
        for (place, count, tolerance) in [(1, 5, 1e-4), (2, 10, 0.1), (3, 20, 0.2)] {
            let (found, own) = truth.solve(&steps(count));
            // After 0, 5, 10 and 20 steps.
            let expected = &expected[place * QUERIES * EXAMPLES..][..QUERIES * EXAMPLES];
            let exact = &truth.expected[&format!("influence_{name}")];
            let off = worst(&found, expected);
            println!("{name}, {count} steps: off by {off:.1e} of the largest influence in float64");
            assert!(off < tolerance, "{name}, {count} steps: {off:e}");
            for (query, own) in own.iter().enumerate() {
                assert_eq!(own.len(), count);
                let off = (own[4] / residuals[21 * query + 5] - 1.0).abs();
                assert!(off < 0.01, "{name}: the residual of query {query}");
                let rows = query * EXAMPLES..(query + 1) * EXAMPLES;
                let near = pearson(&found[rows.clone()], &exact[rows.clone()]);
                let plain = pearson(&ekfac[rows.clone()], &exact[rows]);
                assert!(near > plain - 0.05, "{name}: query {query} is nearer than EK-FAC's, {near}, {plain}");
            }
        }
    }
    let (name, damping) = dampings()[0];
    let (found, residuals) = truth.solve(&solve::Config { damping, steps: 3000, ..Default::default() });
    let off = worst(&found, &truth.expected[&format!("influence_{name}")]);
    let steps: Vec<_> = residuals.iter().map(Vec::len).collect();
    println!("{name}, converged after {steps:?} steps: off by {off:.1e} of the largest influence");
    assert!(off < 1e-3, "{name}, converged: {off:e}");
}

/// With all rows in every step it is the plain series, which is slow: nearer to the exact solution from step to step.
#[test]
fn a_neumann_series_comes_nearer_to_the_exact_solution() {
    let truth = Truth::new();
    let exact = &truth.expected["influence_absolute"];
    let damping = Damping::Absolute(0.05);
    let config =
        |steps, sample| solve::Config { solver: Solver::Neumann, damping, steps, sample, ..Default::default() };
    let mut last = f64::INFINITY;
    for steps in [1, 10, 100] {
        let off = worst(&truth.solve(&config(steps, EXAMPLES)).0, exact);
        println!("{steps} steps of the Neumann series: off by {off:.1e} of the largest influence");
        assert!(off < last, "{steps} steps: {off:e}");
        last = off;
    }
    assert!(last < 0.6, "{last:e}");
    let near = |found: &[f64], query: usize| {
        let rows = query * EXAMPLES..(query + 1) * EXAMPLES;
        pearson(&found[rows.clone()], &exact[rows])
    };
    let (drawn, ekfac) = (truth.solve(&config(100, 32)).0, truth.ekfac(damping));
    for query in 0..QUERIES {
        let [drawn, ekfac] = [near(&drawn, query), near(&ekfac, query)];
        println!("query {query}: Pearson {drawn:.2} with half of the rows in each step, EK-FAC {ekfac:.2}");
        assert!(drawn > ekfac, "query {query}: {drawn}, {ekfac}");
    }
}

#[test]
fn proximal_responses_are_those_of_float64() {
    let truth = Truth::new();
    let bytes = std::fs::read(folder().join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let rows = reference.tensor("response_rows").unwrap();
    let rows: Vec<_> =
        rows.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as usize).collect();
    // Some of the rows that float64 has: one takes some seconds.
    let some: Vec<_> = rows.iter().copied().step_by(4).collect();
    let found = truth.respond(&some, 1.0, 1e-4);
    for (query, expected) in truth.expected["response"].chunks(rows.len()).enumerate() {
        let found: Vec<_> = some.iter().map(|row| found[query * EXAMPLES + row]).collect();
        let expected: Vec<_> = expected.iter().copied().step_by(4).collect();
        let off = error(&found, &expected);
        println!("query {query}: off by {off:.1e} of the largest response");
        assert!(off < 1e-3, "query {query}: {off:e}: {found:?}, {expected:?}");
    }
    // Of a small part of a copy, what is left is the influence.
    let (found, exact) = (truth.respond(&some[..1], 0.02, 1e-2), &truth.expected["influence_absolute"]);
    let of_row = |values: &[f64]| (0..QUERIES).map(|query| values[query * EXAMPLES + some[0]]).collect::<Vec<_>>();
    let off = error(&of_row(&found), &of_row(exact));
    println!("a fiftieth of a copy: off by {off:.1e} of the largest influence");
    assert!(off < 0.05, "{off:e}: {:?}, {:?}", of_row(&found), of_row(exact));
}
