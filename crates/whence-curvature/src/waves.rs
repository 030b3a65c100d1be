//! Work on modules side by side, a thread each, with results in order.

use std::collections::VecDeque;

use anyhow::Result;
use rayon::prelude::*;
use whence_linalg::Threads;

/// Numbers of the matrices that are worked on at once; a larger one is alone, and has all threads.
const TOGETHER: usize = 1 << 25;

/// Maps items, at most `most` at once; `size` is how many numbers an item's matrix has.
pub(crate) fn side_by_side<T: Send, R: Send>(
    items: impl Iterator<Item = Result<T>>,
    most: usize,
    size: impl Fn(&T) -> usize,
    map: impl Fn(T, Threads) -> Result<R> + Sync,
) -> impl Iterator<Item = Result<R>> {
    let (mut items, mut done) = (items.peekable(), VecDeque::new());
    std::iter::from_fn(move || {
        if done.is_empty() {
            let (mut wave, mut held) = (Vec::new(), 0);
            while wave.len() < most
                && let Some(item) = items
                    .next_if(|item| wave.is_empty() || item.as_ref().is_ok_and(|item| held + size(item) <= TOGETHER))
            {
                held += item.as_ref().map_or(0, &size);
                wave.push(item);
            }
            let threads = if wave.len() > 1 { Threads::One } else { Threads::All };
            done.par_extend(wave.into_par_iter().map(|item| map(item?, threads)));
        }
        done.pop_front()
    })
}
