//! Tests across crates: golden numbers. And what tests of the crates share: how bytes are damaged and how many cases are tried
//! by those named `fuzz_…`, and a hub on loopback.

pub mod hub;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

/// As many cases as `WHEREFROM_FUZZ_RUNS` says, or `few`.
pub fn runs(few: u32) -> ProptestConfig {
    let given = std::env::var("WHEREFROM_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok());
    ProptestConfig { cases: given.unwrap_or(few), failure_persistence: None, ..ProptestConfig::default() }
}

/// Holds `property` to as many cases as [`runs`] says.
///
/// # Panics
/// With the case that breaks it.
pub fn hold<S: Strategy>(few: u32, strategy: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    TestRunner::new(runs(few)).run(&strategy, property).unwrap_or_else(|error| panic!("{error}"));
}

/// A folder in memory, where the system has a file system there.
///
/// # Panics
/// Where no folder can be made.
pub fn memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// How some bytes are damaged.
#[derive(Debug, Clone)]
pub enum Damage {
    /// The byte there is this one.
    Set(Index, u8),
    /// That bit of the byte there is another.
    Flip(Index, u8),
    /// Four bytes at once: a number of a header, which is aligned.
    Number(Index, u32),
    /// The bytes end there.
    Cut(Index),
    /// What lies between two places stands there twice.
    Repeat(Index, Index),
    /// More bytes stand there.
    Insert(Index, Vec<u8>),
}

/// One to five damages.
pub fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let byte = select(b"\x00\x01\x02\x7f\x80\xfe\xff\x15\x19\x2c09aAZ-\"{}[]:,.".to_vec());
    let number = select(vec![0, 1, 8, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_ffff]);
    let one = prop_oneof![
        4 => (any::<Index>(), byte).prop_map(|(place, byte)| Damage::Set(place, byte)),
        4 => (any::<Index>(), 0_u8..8).prop_map(|(place, bit)| Damage::Flip(place, bit)),
        2 => (any::<Index>(), number).prop_map(|(place, number)| Damage::Number(place, number)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => any::<(Index, Index)>().prop_map(|(from, to)| Damage::Repeat(from, to)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..12)).prop_map(|(place, bytes)| Damage::Insert(place, bytes)),
    ];
    vec(one, 1..6)
}

/// The bytes with the damage done, up to some MiB.
pub fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for one in damage {
        if bytes.is_empty() || bytes.len() > 1 << 20 {
            break;
        }
        let length = bytes.len();
        match one {
            Damage::Set(place, byte) => bytes[place.index(length)] = *byte,
            Damage::Flip(place, bit) => bytes[place.index(length)] ^= 1 << bit,
            Damage::Number(place, number) => {
                let start = place.index(length) & !3;
                bytes[start..].iter_mut().zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
            }
            Damage::Cut(place) => bytes.truncate(place.index(length)),
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from..from, part);
            }
            Damage::Insert(place, more) => {
                let place = place.index(length);
                bytes.splice(place..place, more.iter().copied());
            }
        }
    }
    bytes
}
