//! Pairs of a preference from rows to influences.

use wherefrom_artifact::{Artifact, Example, Score, Scores, Tokens};

use crate::bench::Bench;
use crate::study;

const STEPS: &str = r#"
[steps.itself]
stage = "losses"
inputs = { tokens = "pairs" }
model = "model"
[steps.begun]
stage = "preferences"
inputs = { tokens = "pairs", reference = "itself" }
beta = 0.5
[steps.of-pairs]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "pairs" }
model = "model"
[steps.of-begun]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "begun" }
model = "model"
[steps.of-tuned]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "preferences" }
model = "model"
[steps.of-texts]
stage = "preferences"
inputs = { tokens = "train", reference = "losses" }
[steps.learnt]
stage = "fine-tune"
inputs = { tokens = "preferences" }
model = "model"
"#;

fn scores(bench: &Bench, step: &str) -> Vec<f64> {
    let artifact = Artifact::<Scores>::open(&bench.made("study.toml", step)).unwrap();
    artifact.rows::<Score>().unwrap().map(|row| f64::from(row.unwrap().influence)).collect()
}

fn tokens(bench: &Bench, step: &str) -> Vec<Example> {
    let artifact = Artifact::<Tokens>::open(&bench.made("study.toml", step)).unwrap();
    artifact.rows::<Example>().unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_pair_counts_as_its_loss_has_it() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let pipeline = format!("{}{STEPS}", bench.text("study.toml"));
    bench.file("study.toml", pipeline);

    // Where the reference is the model itself, every pair counts as its contrast times beta / 2.
    let contrasts = scores(&bench, "of-pairs");
    let begun = scores(&bench, "of-begun");
    let largest = contrasts.iter().fold(0.0_f64, |largest, score| largest.max(score.abs()));
    assert!(contrasts.len() == 800 && largest > 0.0);
    for (own, contrast) in begun.iter().zip(&contrasts) {
        assert!((own - 0.25 * contrast).abs() < 1e-5 * largest, "{own} of {contrast}");
    }
    // Where it is another, by beta sigmoid(-beta D).
    let [own, other] = ["begun", "preferences"].map(|step| tokens(&bench, step));
    let factors: Vec<f64> = own
        .iter()
        .zip(&other)
        .map(|(own, other)| {
            let difference = f64::from(own.preference[1]) - f64::from(other.preference[1]);
            0.5 / (1.0 + (0.5 * difference).exp())
        })
        .collect();
    assert!(factors.iter().any(|factor| (factor - 0.25).abs() > 1e-4), "{factors:?}");
    for (place, (own, contrast)) in scores(&bench, "of-tuned").iter().zip(&contrasts).enumerate() {
        let expected = factors[place % factors.len()] * contrast;
        assert!((own - expected).abs() < 1e-4 * largest, "{own} and not {expected}");
    }

    let other = "[steps.other]\nstage = \"preferences\"\ninputs = { tokens = \"pairs\", reference = \"losses\" }\n";
    bench.file("other.toml", format!("{}{other}", bench.text("study.toml")));
    let error = bench.refused(&["plan", "other.toml"]);
    assert!(error.contains("step `other`: what does not belong together") && error.contains("`reference`"), "{error}");
    for (step, fragments) in
        [("of-texts", &["example 0", "no pair of a preference"][..]), ("learnt", &["row 0", "DPO"])]
    {
        let error = bench.refused(&["run", "study.toml", "--to", step]);
        fragments.iter().for_each(|fragment| assert!(error.contains(fragment), "{step}: {error}"));
    }
}
