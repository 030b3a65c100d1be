//! Units of work: shares of sums and of parts, by any number of processes and in any order (tests/fixtures/persona).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;
use wherefrom_artifact::{Artifact, Draft, Example, Kind, Loss, Losses, Recipe, Row, Share, Silent, Store, Tokens};
use wherefrom_linalg::kernels::{Form, Sum};
use wherefrom_model::{Labels, Model, Modules, Precision, Selection, Tap};
use wherefrom_pass::{Corpus, Pass, Reduction, Sums, open};
use wherefrom_stage::Exec;

const ROWS: usize = 24;
/// Rows of a part of the tokens, and so of a span.
const SPAN: usize = 2;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/persona")
}

/// A store with the rows of the fixture, and the model.
struct Study {
    store: Store,
    tokens: Artifact<Tokens>,
    model: Model,
    exec: Exec,
    _folder: tempfile::TempDir,
}

fn recipe(stage: &str) -> Recipe {
    Recipe { stage: stage.into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), model: None }
}

fn study() -> Study {
    let text = std::fs::read_to_string(fixtures().join("rows.jsonl")).unwrap();
    let row = |(example, line): (u64, &str)| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let input_ids: Vec<u32> = serde_json::from_value(row["input_ids"].take()).unwrap();
        let target_mask: Vec<bool> = serde_json::from_value(row["target_mask"].take()).unwrap();
        Example { example, docs: vec!["row".into()], doc_starts: vec![0], input_ids, target_mask, ..Example::default() }
    };
    let rows: Vec<Example> = (0..).zip(text.lines()).map(row).collect();
    assert_eq!(rows.len(), ROWS);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let fill = |draft: &mut Draft| {
        draft.summary("tokens", rows.iter().map(|row| row.input_ids.len()).sum::<usize>())?;
        let parts = rows.chunks(SPAN).enumerate();
        parts.into_iter().try_for_each(|(part, rows)| draft.write(part, &[<Example as Row<Tokens>>::to_batch(rows)?]))
    };
    let (sealed, _) = store.produce(Kind::Tokens, recipe("tokens"), &Silent, fill).unwrap();
    let exec = Exec::default();
    let model = open(&fixtures().join("model").into(), Precision::F32, &exec).unwrap().held().unwrap();
    Study { store, tokens: Artifact::open(&sealed).unwrap(), model, exec, _folder: folder }
}

impl Study {
    fn corpus(&self) -> Corpus<'_> {
        Corpus::new("test", &self.model, &self.tokens, &self.exec)
    }

    /// A draft that is never sealed, for `body`, by a share of it.
    fn draft<R>(&self, name: &str, kind: Kind, share: Share, body: impl FnOnce(&mut Draft) -> Result<R>) -> R {
        let mut found = None;
        let fill = |draft: &mut Draft| -> Result<()> {
            found = Some(body(draft)?);
            anyhow::bail!("the draft was all that was wanted")
        };
        let failed = match share {
            Share::WHOLE => self.store.produce(kind, recipe(name), &Silent, fill).err(),
            share => self.store.share(kind, &recipe(name), share, fill).err(),
        };
        found.unwrap_or_else(|| panic!("{failed:?}"))
    }

    /// The sums of the inputs of two modules, or none where this process has nothing to add up: as often as there are passes.
    fn sums(&self, name: &str, share: Share, visit: Visit<'_>) -> Vec<Result<Option<Sums>>> {
        let choice = Modules::Globs(vec!["model.layers.1.mlp.*_proj".into()]);
        let selection = Selection::new(&choice, self.model.modules()).unwrap();
        let reduction = Reduction {
            corpus: self.corpus(),
            labels: &Labels::Empirical,
            selection: &selection,
            room: None,
            numbers: &|_| 1,
        };
        self.draft(name, Kind::Covariances, share, |draft| {
            let passes = reduction.passes(draft, |_| 0)?;
            Ok(passes.iter().map(|pass| pass.sum(draft, &forms(pass), |tap, sums| visit(tap, sums))).collect())
        })
    }

    fn share(&self, name: &str, share: Share) -> Option<Sums> {
        let mut sums = self.sums(name, share, &|tap, sums| {
            sums[tap.index].add_gram(tap.activations);
            Ok(())
        });
        assert!(sums.len() <= 1, "the sums fit one pass");
        sums.pop().and_then(|sums| sums.unwrap())
    }

    /// Without a run of the model.
    fn joined(&self, name: &str) -> Option<Sums> {
        self.sums(name, Share::WHOLE, &no_model).pop().unwrap().ok().flatten()
    }
}

type Visit<'a> = &'a dyn Fn(Tap<'_>, &mut [Sum]) -> Result<()>;

fn no_model(_tap: Tap<'_>, _sums: &mut [Sum]) -> Result<()> {
    anyhow::bail!("the model ran")
}

fn forms(pass: &Pass<'_>) -> Vec<(usize, Form)> {
    pass.selection.modules().iter().map(|module| Form::Symmetric(module.in_features)).enumerate().collect()
}

/// Every number of every slot.
fn bits(sums: &Sums) -> Vec<u64> {
    sums.slots.iter().flat_map(|slot| slot.values()).map(|value| value.to_bits()).collect()
}

#[test]
fn shares_of_a_sum_join_to_the_same_bytes_in_any_order_and_when_done_twice() {
    let study = study();
    let whole = study.share("whole", Share::WHOLE).unwrap();
    assert_eq!(whole.counts.examples, ROWS as u64);
    for of in [3, 7, 30] {
        let forwards = format!("forwards-{of}");
        (0..of).for_each(|index| drop(study.share(&forwards, Share { index, of })));
        let backwards = format!("backwards-{of}");
        for index in (0..of).rev() {
            assert!(study.share(&backwards, Share { index, of }).is_none());
            assert_eq!(study.joined(&backwards).is_some(), index == 0, "share {index} of {of} was the last");
            // What is done is not summed again.
            assert!(study.sums(&backwards, Share { index, of }, &no_model).is_empty());
        }
        let (one, other) = (study.joined(&forwards).unwrap(), study.joined(&backwards).unwrap());
        let differ = bits(&one).iter().zip(bits(&other)).filter(|(one, other)| *one != other).count();
        assert_eq!(differ, 0, "{of} shares, of {}", bits(&one).len());
        assert_eq!((one.counts.tokens, one.counts.examples), (whole.counts.tokens, whole.counts.examples));
        assert_eq!(one.seen, whole.seen);
        for (joined, whole) in one.slots.iter().zip(&whole.slots) {
            let largest = whole.values().iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
            let off = joined.values().iter().zip(whole.values()).map(|(one, other)| (one - other).abs());
            // Three shares have the spans of the whole, four each. Of more they are smaller, and with them the batches, whose
            // products are rounded to float32.
            let tolerance = if of == 3 { 1e-12 } else { 1e-6 };
            assert!(largest > 1.0 && off.fold(0.0, f64::max) <= tolerance * largest, "{of} shares");
        }
    }
}

#[test]
fn shares_of_another_number_and_sums_of_another_shape_are_refused() {
    let study = study();
    study.share("again", Share { index: 1, of: 3 });
    let other =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| study.share("again", Share { index: 1, of: 4 })));
    let refused = *other.err().unwrap().downcast::<String>().unwrap();
    assert!(refused.contains("begun with 3 shares and not 4"), "{refused}");

    for index in [0, 2] {
        study.share("again", Share { index, of: 3 });
    }
    let choice = Modules::Globs(vec!["model.layers.1.mlp.*_proj".into()]);
    let selection = Selection::new(&choice, study.model.modules()).unwrap();
    let reduction = Reduction {
        corpus: study.corpus(),
        labels: &Labels::Empirical,
        selection: &selection,
        room: None,
        numbers: &|_| 1,
    };
    let refused = study.draft("again", Kind::Covariances, Share::WHOLE, |draft| {
        let passes = reduction.passes(draft, |_| 0)?;
        let halves: Vec<_> = forms(&passes[0]).iter().map(|&(module, _)| (module, Form::Symmetric(8))).collect();
        Ok(passes[0].sum(draft, &halves, no_model).err().unwrap().to_string())
    });
    assert!(refused.contains("no sum of this module"), "{refused}");
}

#[test]
fn parts_have_the_same_bytes_whoever_makes_them_when() {
    let study = study();
    let losses = |name: &str, shares: &[Share]| {
        let mut made = Vec::new();
        for &share in shares {
            made.extend(study.draft(name, Kind::Losses, share, |draft| {
                let mut made = Vec::new();
                let corpus = study.corpus();
                corpus.parts(corpus.spans(draft)?, |part, examples| {
                    made.push(part);
                    let mut rows = Vec::new();
                    corpus.batches(examples, |group, batch| {
                        let losses = study.model.token_losses(batch)?;
                        rows.extend(group.iter().zip(losses).map(|(&index, by_token)| {
                            let loss = by_token.iter().sum();
                            Loss { example: examples[index].example, loss, by_token }
                        }));
                        Ok(())
                    })?;
                    draft.write_rows::<Losses, _>(part, &rows)
                })?;
                Ok(made)
            }));
        }
        let bytes = study.draft(name, Kind::Losses, Share::WHOLE, |draft| {
            Ok((0..ROWS / SPAN).map(|part| std::fs::read(draft.part_path(part)).unwrap()).collect::<Vec<_>>())
        });
        (made, bytes)
    };
    let (all, whole) = losses("losses", &[Share::WHOLE]);
    assert_eq!(all, (0..ROWS / SPAN).collect::<Vec<_>>());
    let share = |index| Share { index, of: 3 };
    let (made, shared) = losses("losses", &[share(2), share(0), share(2), share(1), Share::WHOLE]);
    assert!(made.is_empty(), "every part is there: {made:?}");
    assert_eq!(shared, whole);
    study.draft("losses", Kind::Losses, Share::WHOLE, |draft| draft.clear());
    let (made, shared) = losses("losses", &[share(2), share(0), share(2), share(1), Share::WHOLE]);
    assert_eq!(made, [2, 5, 8, 11, 0, 3, 6, 9, 1, 4, 7, 10]);
    assert_eq!(shared, whole);
}
