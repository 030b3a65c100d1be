//! Work on modules side by side, a thread each, with results in order.

use std::collections::VecDeque;

use anyhow::Result;
use rayon::prelude::*;
use wherefrom_linalg::Threads;
use wherefrom_stage::Device;

/// Bytes that are taken at once; what needs more is alone, and has all threads.
const TOGETHER: u64 = 1 << 30;

/// Items of a group for each that is mapped at once: threads wait for the last of a group, the less the more there are in it.
const GROUP: usize = 4;

/// Bytes that are taken where the largest item takes so many, and so many while it waits to be mapped or to be written: on
/// the CPU, for as many as there are threads and room.
pub(crate) fn held(largest: u64, waiting: u64, device: &Device) -> u64 {
    match device.side_by_side() as u64 {
        1 => largest,
        most => (most * largest + (GROUP as u64 - 1) * most * waiting).min(TOGETHER).max(largest),
    }
}

/// Maps items, at most `most` at once; `bytes` is what one of them takes. `prepare` comes before, one by one.
pub(crate) fn side_by_side<T, P: Send, R: Send>(
    items: impl Iterator<Item = Result<T>>,
    most: usize,
    bytes: impl Fn(&T) -> u64,
    mut prepare: impl FnMut(T) -> Result<P>,
    map: impl Fn(P, Threads) -> Result<R> + Sync,
) -> impl Iterator<Item = Result<R>> {
    let (mut items, mut done) = (items.peekable(), VecDeque::new());
    let together = if most > 1 { GROUP * most } else { 1 };
    std::iter::from_fn(move || {
        if done.is_empty() {
            let (mut group, mut held) = (Vec::new(), 0);
            while group.len() < together
                && let Some(item) = items
                    .next_if(|item| group.is_empty() || item.as_ref().is_ok_and(|item| held + bytes(item) <= TOGETHER))
            {
                held += item.as_ref().map_or(0, &bytes);
                group.push(item.and_then(&mut prepare));
            }
            let threads = if group.len() > 1 { Threads::One } else { Threads::All };
            done.par_extend(group.into_par_iter().map(|item| map(item?, threads)));
        }
        done.pop_front()
    })
}
