//! The innermost loop: eight rows of three vectors, whose sums stay in registers.

use std::arch::x86_64::*;

use super::super::product::Accumulate;

/// Rows of a tile.
pub(super) const ROWS: usize = 8;
/// Columns of a vector.
pub(super) const LANES: usize = 16;
/// Columns of a tile, at most.
pub(super) const COLUMNS: usize = 3 * LANES;

/// c_ij (+)= sum_p a_ip b_pj, of pairs p, over one tile: `a` `[pairs, 8]` and `b` `[pairs, 16 N]` as [`super::pack`] has
/// them; of c, `rows` rows of `columns` values, `stride` apart.
///
/// # Safety
/// The processor has what [`super::instructions`] asks for, N vectors hold the columns, and the caller owns that part of c.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply<const N: usize>(
    a: &[u32],
    b: &[u32],
    (rows, columns): (usize, usize),
    c: *mut f32,
    stride: usize,
    mode: Accumulate,
) {
    let pairs = a.len() / ROWS;
    assert!(b.len() == pairs * N * LANES && rows <= ROWS && columns <= N * LANES, "operands of a tile");
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    // SAFETY: the loops stay inside `a` and `b`, whose lengths were asserted; a word is two bfloat16.
    unsafe {
        let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
        for _ in 0..pairs {
            let mut right = [_mm512_setzero_si512(); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = _mm512_loadu_si512(b.add(n * LANES).cast());
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_epi32((*a.add(i)).cast_signed());
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_dpbf16_ps(
                        *sum,
                        std::mem::transmute::<__m512i, __m512bh>(left),
                        std::mem::transmute::<__m512i, __m512bh>(right),
                    );
                }
            }
            a = a.add(ROWS);
            b = b.add(N * LANES);
        }
    }
    for (i, sums) in sums.iter().enumerate().take(rows) {
        for (n, &sum) in sums.iter().enumerate() {
            let here = columns.saturating_sub(n * LANES).min(LANES);
            let mask = ((1u32 << here) - 1) as u16;
            // SAFETY: the mask keeps what is read and written inside the caller's rows.
            unsafe {
                let to = c.wrapping_add(i * stride + n * LANES);
                let sum = match mode {
                    Accumulate::Replace => sum,
                    Accumulate::Add => _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to)),
                };
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}
