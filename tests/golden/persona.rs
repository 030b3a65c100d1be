//! The projection of an answer on a vector as what is traced: its gradients and influences against float64.

use wherefrom_artifact::Factors;

use crate::error;
use crate::study::{Choice, Labels, Reference, Set, Study};

/// f(x) = mean over the targets of <h_3, v / |v|>; what is stored are gradients of -f. Entries of every map for all three
/// queries, each error over the largest entry of its map.
#[test]
fn gradients_of_a_projection_agree() {
    let set = Set::persona();
    let reference = Reference::read(&set, "influence");
    let names = reference.modules();
    let study = Study::without_curvature(&set, "all");
    let rows: Vec<Factors> = study.query_gradients().rows().unwrap().collect::<anyhow::Result<_>>().unwrap();
    assert_eq!(rows.len(), 3 * names.len(), "blocks behind the site have no rows");
    let check = reference.values("check");
    let [mut worst, mut worst_difference] = [0.0_f64; 2];
    for entry in check.chunks(7) {
        let [map, query, i, j] = [0, 1, 2, 3].map(|place| entry[place] as usize);
        let [gradient, difference, largest] = [entry[4], entry[5], entry[6]];
        let row = rows.iter().find(|row| row.row == query as u64 && row.module == names[map]).unwrap();
        let rank = row.rank;
        let found: f64 =
            (0..rank).map(|t| f64::from(row.left[i * rank + t]) * f64::from(row.right[j * rank + t])).sum();
        worst = worst.max((-found - gradient).abs() / largest);
        worst_difference = worst_difference.max((-found - difference).abs() / largest);
    }
    println!("gradients of a projection: {worst:.2e}, against central differences {worst_difference:.2e}");
    assert!(worst <= 1e-5 && worst_difference <= 1e-5, "{worst:.2e}, {worst_difference:.2e}");
}

#[test]
fn influence_on_a_projection_agrees() {
    let study = Study::new(&Set::persona(), &Choice::whole("all", Labels::Empirical));
    let reference = study.reference();
    let examples = study.train().examples() as f64;
    // The reference holds influences; scores here are the influence times the number of examples.
    let times = |values: Vec<f64>| values.iter().map(|value| value * examples).collect::<Vec<_>>();
    let details = study.details(&reference);
    let found = [
        ("influence", study.scores("full")),
        ("per_module", details.by_module(&reference)),
        ("per_token", details.by_token(&reference)),
    ];
    for (name, found) in found {
        let worst = error(&found, &times(reference.values(name)));
        println!("projection: {name} {worst:.2e}");
        assert!(worst <= 1e-5, "{name}: {worst:.2e}");
    }
    let modules = reference.modules().len();
    let worst = study.mean_lambda()[..modules]
        .iter()
        .zip(reference.values("mean_lambda"))
        .fold(0.0_f64, |max, (x, y)| max.max((x / y - 1.0).abs()));
    println!("projection: mean lambda {worst:.2e}");
    assert!(worst <= 1e-5, "mean lambda: {worst:.2e}");
}

/// Without curvature it is the product of two gradients, and no example is divided by.
#[test]
fn without_curvature_it_is_the_gradient_product() {
    let set = Set::persona();
    let study = Study::without_curvature(&set, "all");
    let worst = error(&study.scores("full"), &Reference::read(&set, "influence").values("identity"));
    assert!(worst <= 1e-5, "{worst:.2e}");
}
