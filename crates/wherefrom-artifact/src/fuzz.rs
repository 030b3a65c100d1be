//! Foreign bytes: a part, a manifest or a draft's files are read or refused, and nothing stops or panics. A panic of a library
//! that is caught counts as one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::Result;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;
use tempfile::TempDir;
use wherefrom_tests::{damage, damaged, memory, runs};

use crate::foreign::PANICKED;
use crate::ipc::Access;
use crate::kinds::*;
use crate::manifest::{MANIFEST, Manifest};
use crate::part;
use crate::recipe::Recipe;
use crate::sound::Sound;
use crate::store::draft::Draft;
use crate::{Error, Silent, Span, Store, open_any};

fn recipe() -> Recipe {
    Recipe { stage: "test".into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), model: None }
}

/// A sealed part and how its rows are read.
struct Sample {
    kind: Kind,
    bytes: Vec<u8>,
    rows: fn(&Path, Access) -> Result<()>,
}

fn sample<K: ArtifactKind, R: Row<K>>(rows: &[R]) -> Sample {
    let folder = memory();
    let fill = |draft: &mut Draft| {
        draft.metadata("modules", r#"["m"]"#);
        draft.write(0, &[R::to_batch(rows)?, R::to_batch(&rows[..0])?])
    };
    let (sealed, _) = Store::new(folder.path()).produce(K::KIND, recipe(), &Silent, fill).unwrap();
    let name = Manifest::read(&sealed).unwrap().parts[0].name.clone();
    let rows = |path: &Path, access: Access| -> Result<()> {
        for batch in part::read(K::KIND, path, access, &[], None)? {
            R::from_batch(&batch?)?;
        }
        Ok(())
    };
    Sample { kind: K::KIND, bytes: fs::read(sealed.join(name)).unwrap(), rows }
}

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let factors = |row, module: &str| Factors {
        row,
        module: module.into(),
        rank: 1,
        left_shape: [3, 1],
        left: vec![1.0, 2.0, 3.0],
        right_shape: [2, 1],
        right: vec![0.5, -1.0],
    };
    let score = |query, example| Score { query, example, influence: 0.25 };
    let name = String::from("m");
    let example = |example| Example {
        example,
        docs: vec!["d".into()],
        doc_starts: vec![0],
        input_ids: vec![5, 6, 7],
        target_mask: vec![false, true, true],
        text: "three".into(),
        ..Example::default()
    };
    let covariance = |side| Covariance {
        module: "m".into(),
        side,
        shared_with: vec!["n".into()],
        count: 7,
        size: 2,
        matrix: vec![2.0, 1.0, 1.0, 3.0],
    };
    let basis = Basis {
        module: name.clone(),
        side: Side::Activation,
        shared_with: vec![],
        values: vec![1.0, 2.0],
        vectors: vec![1.0, 0.0, 0.0, 1.0],
    };
    let ranked = |rank| Ranked {
        query: 0,
        positive: true,
        rank,
        example: rank.into(),
        doc: "d".into(),
        influence: 1.0,
        text: "t".into(),
        ..Ranked::default()
    };
    vec![
        sample::<Tokens, _>(&[example(0), example(1)]),
        sample::<Losses, _>(&[Loss { example: 0, loss: 1.0, by_token: vec![0.0, 0.5, 0.5] }]),
        sample::<Covariances, _>(&[covariance(Side::Activation), covariance(Side::Gradient)]),
        sample::<Eigenbasis, _>(&[basis]),
        sample::<Lambda, _>(&[LambdaSum { module: name.clone(), count: 3, shape: [2, 2], lambda: vec![1.0; 4] }]),
        sample::<Gradients, _>(&[factors(0, "m"), factors(0, "n")]),
        sample::<Preconditioned, _>(&[factors(0, "m"), factors(1, "m")]),
        sample::<Coordinates, _>(&[Coordinate { module: name.clone(), row: 0, column: 1, deviation: 0.5 }]),
        sample::<crate::kinds::Index, _>(&[Signs { example: 0, scale: 1.0, signs: vec![0; 64] }]),
        sample::<Candidates, _>(&[Candidate { query: 0, example: 1, score: 2.0, source: "bm25".into() }]),
        sample::<Scores, _>(&[score(0, 0), score(0, 1)]),
        sample::<Details, _>(&[Detail { score: score(0, 0), by_module: vec![0.25], by_token: vec![0.25, 0.0] }]),
        sample::<SelfInfluence, _>(&[OwnInfluence { example: 0, influence: 1.0, by_module: vec![1.0] }]),
        sample::<Ranking, _>(&[ranked(1), ranked(2)]),
    ]
});

thread_local! {
    /// An artifact of one part, for the one test of this thread.
    static SEALED: (TempDir, PathBuf, Vec<u8>) = {
        let folder = memory();
        let write = |draft: &mut Draft| draft.write_rows::<Scores, _>(0, &[Score { query: 0, example: 0, influence: 1.0 }]);
        let (sealed, _) = Store::new(folder.path()).produce(Kind::Scores, recipe(), &Silent, write).unwrap();
        let text = fs::read(sealed.join(MANIFEST)).unwrap();
        (folder, sealed, text)
    };
}

/// Where it lies, and what its manifest says.
fn sealed() -> (PathBuf, Vec<u8>) {
    SEALED.with(|(_, sealed, text)| (sealed.clone(), text.clone()))
}

/// A refusal, which no panic of a library stands behind.
fn refused(result: Result<()>) -> Result<(), TestCaseError> {
    if let Err(error) = result {
        let text = format!("{error:#}");
        prop_assert!(!text.contains(PANICKED), "a panic: {text}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(runs(400))]

    #[test]
    fn fuzz_parts_of_every_kind_are_read_or_refused(number in any::<Index>(), damage in damage()) {
        let sample = number.get(&SAMPLES);
        let folder = memory();
        let path = folder.path().join("part-00000");
        let bytes = damaged(sample.bytes.clone(), &damage);
        fs::write(&path, &bytes).unwrap();
        for access in [Access::Open, Access::Sealed(bytes.len() as u64)] {
            refused(part::check_rows(&path, access, &mut Sound::new(sample.kind, 0)).map(drop))?;
            refused((sample.rows)(&path, access))?;
            refused(part::metadata(sample.kind, &path, access).map(drop))?;
        }
        refused(part::losses(&path).map(drop))?;
    }

    #[test]
    fn fuzz_manifests_are_read_or_refused(damage in damage()) {
        let (sealed, text) = sealed();
        fs::write(sealed.join(MANIFEST), &text).unwrap();
        let before = Manifest::read(&sealed).unwrap();
        fs::write(sealed.join(MANIFEST), damaged(text, &damage)).unwrap();
        // The seal is over what it says: white space aside it says the same, or is refused.
        match open_any(&sealed) {
            Ok(after) => prop_assert_eq!(after, before),
            Err(error) => prop_assert!(error.downcast_ref::<Error>().is_some(), "{error:?}"),
        }
    }

    #[test]
    fn fuzz_manifests_sealed_anew_name_their_own_parts(
        names in vec(prop_oneof![
            Just("part-00000.parquet".to_string()),
            Just("part-00001.parquet".to_string()),
            Just("../part-00000.parquet".to_string()),
            Just("/etc/hostname".to_string()),
            Just(MANIFEST.to_string()),
            Just(String::new()),
            ".{0,12}",
        ], 0..4),
        rows in any::<u64>(),
    ) {
        let (sealed, text) = sealed();
        fs::write(sealed.join(MANIFEST), text).unwrap();
        let mut manifest = Manifest::read(&sealed).unwrap();
        let part = manifest.parts[0].clone();
        manifest.parts = names.iter().map(|name| crate::Part { name: name.clone(), rows, ..part.clone() }).collect();
        manifest.write(&sealed).unwrap();
        match open_any(&sealed) {
            Ok(_) => prop_assert_eq!(&names[..], &["part-00000.parquet"]),
            Err(error) => prop_assert!(error.downcast_ref::<Error>().is_some(), "{error:?}"),
        }
        if names == ["part-00000.parquet"] {
            prop_assert_eq!(crate::verify(&sealed).is_ok(), rows == 1);
        }
    }

    #[test]
    fn fuzz_drafts_are_taken_up_as_they_were_left_or_refused(plan in damage(), sums in damage(), name in "[a-z]{1,8}") {
        let folder = memory();
        let draft = Draft::open(Kind::Scores, "key", folder.path().join("key.draft"), crate::Share::WHOLE).unwrap();
        let spans = vec![Span { part: 0, start: 0, end: 5, first_example: 0 }, Span { part: 0, start: 5, end: 7, first_example: 5 }];
        draft.plan(|| Ok(spans.clone())).unwrap();
        let state: Vec<u8> = (0..100).collect();
        draft.checkpoint(&name, &state).unwrap();
        for (file, damage) in [("plan.json".to_string(), &plan), (format!("scratch-{name}"), &sums)] {
            let path = draft.folder().join(file);
            let bytes = damaged(fs::read(&path).unwrap(), damage);
            fs::write(path, bytes).unwrap();
        }
        Draft::progress(draft.folder());
        let again = Draft::open(Kind::Scores, "key", folder.path().join("key.draft"), crate::Share::WHOLE).unwrap();
        match again.plan(|| -> Result<Vec<Span>> { unreachable!("the plan is there") }) {
            Ok(found) => prop_assert_eq!(found, spans),
            Err(error) => prop_assert!(error.downcast_ref::<Error>().is_some(), "{error:?}"),
        }
        match again.restore(&name) {
            Ok(found) => prop_assert_eq!(found, Some(state)),
            Err(error) => prop_assert!(error.downcast_ref::<Error>().is_some(), "{error:?}"),
        }
    }
}
