//! For the tests of kinds: rows are written and read back.

use std::collections::BTreeMap;
use std::fmt::Debug;

use arrow::datatypes::Schema;
pub(super) use proptest::collection::vec;
use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
use proptest::prelude::*;
use serde_json::Value;

use crate::kinds::{ArtifactKind, Row};
use crate::{Artifact, Recipe, Silent, Store, verify};

/// Each case writes and syncs files.
pub(super) fn few() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) }
}

/// Rows have the columns of the kind, and a sealed artifact of them reads as it was written.
pub(super) fn round_trip<K: ArtifactKind, R: Row<K> + PartialEq + Debug>(rows: &[R]) {
    let batch = R::to_batch(rows).unwrap();
    let columns = |schema: &Schema| -> Vec<_> {
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    assert_eq!(columns(&batch.schema()), columns(&K::KIND.schema()));
    assert_eq!(R::from_batch(&batch).unwrap(), rows);

    let folder = tempfile::tempdir().unwrap();
    let inputs = BTreeMap::new();
    let recipe = Recipe { stage: "test".into(), version: 1, config: Value::Null, inputs, model: None };
    let store = Store::new(folder.path());
    let (sealed, _) =
        store.produce(K::KIND, recipe, &Silent, |draft| draft.write(0, std::slice::from_ref(&batch))).unwrap();
    verify(&sealed).unwrap();
    assert_eq!(Artifact::<K>::open(&sealed).unwrap().read::<R>(0).unwrap(), rows);
}

pub(super) fn number() -> impl Strategy<Value = f32> {
    NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE
}

pub(super) fn many_numbers(length: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    vec(number(), length)
}

/// Any characters, also none.
pub(super) fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..8).prop_map(|characters| characters.into_iter().collect())
}

pub(super) fn many_texts(length: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<String>> {
    vec(text(), length)
}
