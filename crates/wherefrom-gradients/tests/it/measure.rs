//! Gradients of a projection on a vector, against float64 (tests/fixtures/persona/README.md).

use std::collections::BTreeMap;

use anyhow::Result;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Example, Factors, Gradients, Kind, Over, Row, TraitVector, Vectors};
use wherefrom_gradients::{Config, Inputs, STAGE, run};
use wherefrom_stage::Exec;

use crate::{WIDTH, close, fixtures, produce, rows_of};

/// The arrays of `projection.safetensors` by name.
fn projection() -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixtures().join("projection.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values =
        |data: &[u8]| data.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
    tensors.tensors().into_iter().map(|(name, tensor)| (name, values(tensor.data()))).collect()
}

/// A vector that is so many times a direction.
fn vector(of: &str, site: &str, direction: &[f32], times: f32) -> TraitVector {
    let vector: Vec<f32> = direction.iter().map(|value| times * value).collect();
    let norm = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32;
    TraitVector {
        trait_name: of.into(),
        over: Over::ResponseAvg,
        site: site.into(),
        layer: site.parse().unwrap_or(4),
        vector,
        positive: vec![],
        negative: vec![],
        deviation: f32::NAN,
        norm,
        median_norm: f32::NAN,
        pairs: 0,
    }
}

/// The gradients of these rows of a measurement on one of these vectors, and the summary.
fn gradients(measure: Value, examples: &[Example], vectors: &[TraitVector]) -> Result<(Vec<Factors>, Value)> {
    let folder = tempfile::tempdir()?;
    let tokens = produce(&folder, Kind::Tokens, |draft| {
        draft.summary("tokens", examples.iter().map(|row| row.input_ids.len()).sum::<usize>())?;
        draft.write(0, &[Example::to_batch(examples)?])
    })?;
    let vectors = produce(&folder, Kind::Vectors, |draft| draft.write(0, &[TraitVector::to_batch(vectors)?]))?;
    let config: Config = (STAGE.parse)(json!({ "modules": "all", "measure": measure }))?;
    let inputs = Inputs {
        tokens: Artifact::open(&tokens)?,
        vectors: Some(Artifact::<Vectors>::open(&vectors)?),
        model: fixtures().join("model").into(),
    };
    let sealed = produce(&folder, Kind::Gradients, |draft| run(&config, &inputs, &Exec::default(), draft))?;
    let artifact = Artifact::<Gradients>::open(&sealed)?;
    let summary = artifact.manifest().summary["measured"].clone();
    Ok((artifact.rows::<Factors>()?.collect::<Result<_>>()?, summary))
}

/// left · rightᵀ times `factor`: [out, in].
fn whole(row: &Factors, factor: f32) -> Vec<f32> {
    let ([out, rank], [inside, _]) = (row.left_shape, row.right_shape);
    let cell = |i: usize, j: usize| (0..rank).map(|t| row.left[i * rank + t] * row.right[j * rank + t]).sum::<f32>();
    (0..out).flat_map(|i| (0..inside).map(move |j| (i, j))).map(|(i, j)| factor * cell(i, j)).collect()
}

fn layer(row: &Factors) -> usize {
    row.module.split('.').nth(2).unwrap().parse().unwrap()
}

#[test]
fn gradients_of_a_projection_are_those_of_float64() {
    let (expected, queries) = (projection(), rows_of("queries.jsonl"));
    for (site, blocks) in [("3", 3), ("4", 4), ("post-norm", 4)] {
        let direction = &expected[&format!("{site}/direction")];
        let on = |times| {
            let vectors = [vector("marker", "2", &[1.0; WIDTH], 1.0), vector("marker", site, direction, times)];
            gradients(json!({ "projection": site }), &queries[..1], &vectors).unwrap()
        };
        let (rows, measured) = on(1.0);
        assert_eq!(rows.len(), 7 * blocks, "blocks behind the site have no rows");
        assert!(rows.iter().all(|row| layer(row) < blocks));
        let raises = "the projection on the direction";
        let vector = format!("marker.response-avg.{site}");
        assert_eq!(measured, json!({ "unit": "projection", "raises": raises, "vector": vector }));
        let mut compared = 0;
        for row in &rows {
            if let Some(expected) = expected.get(&format!("{site}/{}", row.module)) {
                close(&whole(row, -1.0), expected, &format!("site {site}, {}", row.module));
                compared += 1;
            }
        }
        assert_eq!(compared, 3);
        for (one, other) in rows.iter().zip(&on(2.0).0) {
            assert_eq!(one, other, "v and 2 v are one measurement");
        }
    }
}

#[test]
fn a_contrast_is_the_difference_of_two_means() {
    let (direction, queries) = (&projection()["3/direction"], rows_of("queries.jsonl"));
    let [first, second] = [&queries[0], &queries[1]];
    let contrast = Example {
        input_ids: [&first.input_ids[..], &second.input_ids].concat(),
        target_mask: [&first.target_mask[..], &second.target_mask].concat(),
        segments: vec![0, first.input_ids.len() as u32],
        weights: vec![1.0, -1.0],
        segment_texts: vec![String::new(), String::new()],
        ..first.clone()
    };
    let on = |rows: &[Example]| {
        let rows: Vec<_> = (0..).zip(rows).map(|(example, row)| Example { example, ..row.clone() }).collect();
        gradients(json!({ "projection": 3 }), &rows, &[vector("marker", "3", direction, 1.0)]).unwrap().0
    };
    let (alone, both) = (on(&queries[..2]), on(&[contrast]));
    for (place, row) in both.iter().enumerate() {
        let [one, other] = [&alone[place], &alone[place + both.len()]].map(|row| whole(row, 1.0));
        let difference: Vec<f32> = one.iter().zip(other).map(|(one, other)| one - other).collect();
        close(&whole(row, 1.0), &difference, &row.module);
    }
}

#[test]
fn of_vectors_of_several_traits_each_row_has_its_own() {
    let (direction, queries) = (&projection()["3/direction"], rows_of("queries.jsonl"));
    let other: Vec<f32> = direction.iter().rev().copied().collect();
    let vectors = [vector("evil", "3", direction, 1.0), vector("kind", "3", &other, 1.0)];
    let named = |names: &[&str]| -> Vec<Example> {
        let each = (0..).zip(names).zip(&queries);
        each.map(|((example, name), row)| Example { example, docs: vec![format!("{name}/q0")], ..row.clone() })
            .collect()
    };
    let names = ["kind", "evil", "kind"];
    let (found, measured) = gradients(json!({ "projection": 3 }), &named(&names), &vectors).unwrap();
    assert_eq!(measured["vector"], "(of each row).response-avg.3");
    for trait_name in ["evil", "kind"] {
        let measure = json!({ "projection": 3, "trait": trait_name });
        let alone = gradients(measure, &named(&names), &vectors).unwrap().0;
        let of = |row: &&Factors| names[row.row as usize] == trait_name;
        for (row, expected) in found.iter().filter(of).zip(alone.iter().filter(of)) {
            assert_eq!((row.row, &row.module), (expected.row, &expected.module));
            close(&whole(row, 1.0), &whole(expected, 1.0), &row.module);
        }
    }
    assert_eq!(found.iter().map(|row| row.row).collect::<Vec<_>>(), [[0; 21], [1; 21], [2; 21]].concat());
    let stranger = gradients(json!({ "projection": 3 }), &named(&["kind", "cruel"]), &vectors).unwrap_err();
    let stranger = format!("{stranger:#}");
    assert!(stranger.contains("row 1 of the tokens is called \"cruel/q0\""), "{stranger}");
}

#[test]
fn what_is_no_measurement_is_refused() {
    let (direction, queries) = (vec![1.0; WIDTH], rows_of("queries.jsonl"));
    let error = |measure: Value, vectors: &[TraitVector]| {
        format!("{:#}", gradients(measure, &queries[..1], vectors).map(drop).unwrap_err())
    };
    let known = [vector("evil", "2", &direction, 1.0), vector("kind", "2", &direction, 1.0)];
    let several = error(json!({ "projection": 2 }), &known);
    assert!(several.contains("the vectors are of several traits (evil, kind)"), "{several}");
    assert!(several.contains("in `measure`, as trait = \"evil\""), "{several}");
    let missing = error(json!({ "projection": 3, "trait": "evil" }), &known);
    assert!(missing.contains("measure: there is no vector of evil over response-avg"), "{missing}");
    assert!(missing.contains("kind.response-avg.2"), "{missing}");
    let narrow = error(json!({ "projection": 1 }), &[vector("evil", "1", &direction[1..], 1.0)]);
    assert!(narrow.contains("47 values and the model's residual stream 48"), "{narrow}");
    let zero = error(json!({ "projection": 1 }), &[vector("evil", "1", &direction, 0.0)]);
    assert!(zero.contains("it has no direction"), "{zero}");
    let embeddings = error(json!({ "projection": 0 }), &[vector("evil", "0", &direction, 1.0)]);
    assert!(embeddings.contains("no chosen module stands before site 0"), "{embeddings}");
    let beyond = error(json!({ "projection": 9 }), &[vector("evil", "9", &direction, 1.0)]);
    assert!(beyond.contains("site 9 is beyond the model's last"), "{beyond}");
}
