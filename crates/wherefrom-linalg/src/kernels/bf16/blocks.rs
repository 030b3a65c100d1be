//! A product in blocks: a packed block of the left operand and a panel of the right lie in the second cache, a block of the
//! right in the third. What a thread packs of the left is its own, and the right is packed by all.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::product::Accumulate;
use super::tile::{COLUMNS, LANES, ROWS};
use super::{Operand, pack, tile};

/// Depth of a block, at most: 54 KiB of a right panel.
const DEPTH: usize = 576;
/// Rows of a block, at most: 288 KiB of the left operand.
const HEIGHT: usize = 256;
/// Columns of a block, at most: 2.3 MiB of the right operand.
const WIDTH: usize = 2048;

thread_local! {
    /// Room for a left block and for a right one. A product that a thread takes up while another waits finds none, and makes its own.
    static ROOM: [Cell<Vec<u32>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// Calls `body` with room for so many words, which hold anything.
fn with_room<R>(which: usize, words: usize, body: impl FnOnce(&mut [u32]) -> R) -> R {
    let mut room = ROOM.with(|rooms| rooms[which].take());
    if room.len() < words {
        room = vec![0; words];
    }
    let result = body(&mut room[..words]);
    ROOM.with(|rooms| rooms[which].set(room));
    result
}

/// The destination, of which each task has rows and columns of its own.
#[derive(Clone, Copy)]
struct Destination {
    first: *mut f32,
    stride: usize,
}

// SAFETY: tasks write to parts that do not overlap.
#[allow(unsafe_code)]
unsafe impl Send for Destination {}
#[allow(unsafe_code)]
unsafe impl Sync for Destination {}

/// destination (+)= a b, as [`super::multiply_bf16`].
///
/// # Safety
/// As there, and the processor has what [`super::instructions`] asks for.
#[allow(unsafe_code)]
pub(super) unsafe fn multiply(
    destination: *mut f32,
    stride: usize,
    a: &Operand<'_>,
    b: &Operand<'_>,
    mode: Accumulate,
    parallel: bool,
) {
    let (Some([m, k]), Some([_, n])) = (a.sizes(), b.sizes()) else { panic!("operands of a product") };
    let destination = Destination { first: destination, stride };
    if k == 0 && mode == Accumulate::Replace {
        for row in 0..m {
            // SAFETY: the caller owns the rows.
            unsafe { std::slice::from_raw_parts_mut(destination.first.add(row * stride), n) }.fill(0.0);
        }
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let depth = share(k, DEPTH, 2);
    let width = share(n, WIDTH, COLUMNS);
    // Tasks for all threads: rows first, which share a packed right operand, then columns.
    let height = share(m, HEIGHT.min(m.div_ceil(4 * threads).max(8 * ROWS)), ROWS);
    let columns = share(width, width.div_ceil((4 * threads).div_ceil(m.div_ceil(height))), COLUMNS);
    for start in (0..n).step_by(width) {
        let across = start..n.min(start + width);
        let right_lanes = across.len().next_multiple_of(COLUMNS);
        for from in (0..k).step_by(depth) {
            let deep = from..k.min(from + depth);
            let pairs = deep.len().div_ceil(2);
            let mode = if from == 0 { mode } else { Accumulate::Add };
            with_room(1, right_lanes * pairs, |right| {
                pack_right(b, &across, &deep, right, parallel);
                let task = |rows: Range<usize>, columns: Range<usize>| {
                    let panels = &right[columns.start / COLUMNS * COLUMNS * pairs..];
                    let columns = across.start + columns.start..across.start + columns.end;
                    // SAFETY: the rows and columns are this task's alone.
                    unsafe { block(destination, a, panels, rows, columns, deep.clone(), mode) }
                };
                let parts =
                    |length: usize, step: usize| (0..length).step_by(step).map(move |s| s..length.min(s + step));
                let tasks = parts(m, height)
                    .flat_map(|rows| parts(across.len(), columns).map(move |columns| (rows.clone(), columns)));
                if parallel {
                    let tasks: Vec<_> = tasks.collect();
                    tasks.into_par_iter().with_max_len(1).for_each(|(rows, columns)| task(rows, columns));
                } else {
                    tasks.for_each(|(rows, columns)| task(rows, columns));
                }
            });
        }
    }
}

/// Equal parts of a length, none longer than `most`, in whole steps.
fn share(length: usize, most: usize, step: usize) -> usize {
    length.div_ceil(length.div_ceil(most.max(1))).next_multiple_of(step)
}

/// Packs columns of the right operand.
fn pack_right(b: &Operand<'_>, across: &Range<usize>, deep: &Range<usize>, right: &mut [u32], parallel: bool) {
    let panel = COLUMNS * deep.len().div_ceil(2);
    let pack = |(index, panel): (usize, &mut [u32])| {
        let first = across.start + index * COLUMNS;
        let lanes = first..across.end.min(first + COLUMNS);
        let width = lanes.len().next_multiple_of(LANES);
        pack_lanes(&b.transposed(), lanes, deep.clone(), width, panel);
    };
    match parallel {
        true => right.par_chunks_exact_mut(panel).enumerate().with_min_len(4).for_each(pack),
        false => right.chunks_exact_mut(panel).enumerate().for_each(pack),
    }
}

#[allow(unsafe_code)]
fn pack_lanes(source: &Operand<'_>, lanes: Range<usize>, depth: Range<usize>, width: usize, panels: &mut [u32]) {
    // SAFETY: `multiply` is called where the processor has the instructions.
    unsafe {
        match source {
            Operand::F32(source) => pack::pack(source, lanes, depth, width, panels),
            Operand::Bf16(source) => pack::pack(source, lanes, depth, width, panels),
        }
    }
}

/// Some rows and columns of the product, over some depth; `right` begins with the panel of the first column.
///
/// # Safety
/// The caller owns that part of the destination.
#[allow(unsafe_code)]
unsafe fn block(
    destination: Destination,
    a: &Operand<'_>,
    right: &[u32],
    rows: Range<usize>,
    columns: Range<usize>,
    deep: Range<usize>,
    mode: Accumulate,
) {
    let pairs = deep.len().div_ceil(2);
    with_room(0, rows.len().next_multiple_of(ROWS) * pairs, |left| {
        pack_lanes(a, rows.clone(), deep, ROWS, left);
        for (start, right) in columns.clone().step_by(COLUMNS).zip(right.chunks_exact(COLUMNS * pairs)) {
            let wide = columns.end.min(start + COLUMNS) - start;
            let vectors = wide.div_ceil(LANES);
            let right = &right[..vectors * LANES * pairs];
            for (row, left) in rows.clone().step_by(ROWS).zip(left.chunks_exact(ROWS * pairs)) {
                let high = rows.end.min(row + ROWS) - row;
                // SAFETY: the tile lies in the caller's part.
                unsafe {
                    let to = destination.first.add(row * destination.stride + start);
                    match vectors {
                        1 => tile::multiply::<1>(left, right, (high, wide), to, destination.stride, mode),
                        2 => tile::multiply::<2>(left, right, (high, wide), to, destination.stride, mode),
                        _ => tile::multiply::<3>(left, right, (high, wide), to, destination.stride, mode),
                    }
                }
            }
        }
    });
}
