//! Operands as the tiles read them: rounded to bfloat16, two neighbours of the summed dimension in one word.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::product::MatrixRef;
use super::Number;

/// Lanes that are packed together: a vector of words.
const GROUP: usize = 16;
/// Numbers of the summed dimension in a vector.
const DEEP: usize = 32;

/// Packs some rows of `source` (its lanes) over some of its columns (its depth): `[lanes / width, pairs, width]` words, zero
/// where lanes or depth end before a panel does. `width` is a multiple of 16, or 8. Columns of a right operand are the rows of
/// its transpose.
///
/// # Safety
/// The processor has what [`super::instructions`] asks for.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack<T: Number>(
    source: &MatrixRef<'_, T>,
    lanes: Range<usize>,
    depth: Range<usize>,
    width: usize,
    panels: &mut [u32],
) {
    let (pairs, count) = (depth.len().div_ceil(2), lanes.len().next_multiple_of(width));
    assert!(lanes.end <= source.rows && depth.end <= source.cols && source.fits(), "a part of the operand");
    assert!(panels.len() >= count * pairs, "room for all panels");
    let (across, down) = (source.row_stride, source.col_stride);
    for group in (0..lanes.len()).step_by(GROUP) {
        let here = (lanes.len() - group).min(GROUP);
        // SAFETY: the pointer is to the first of `here` lanes of `depth` numbers, all inside the source; the panels of those
        // lanes, and of a vector's second half the panel after, lie inside `panels`.
        unsafe {
            let from = source.values.as_ptr().add((lanes.start + group) * across + depth.start * down);
            let (panel, lane) = (group / width, group % width);
            let to = panels.as_mut_ptr().add(panel * pairs * width + lane);
            let two = width < GROUP && group + width < count;
            let put = |pair: usize, words: __m512i| {
                let to = to.add(pair * width);
                if width >= GROUP {
                    _mm512_storeu_si512(to.cast(), words);
                    return;
                }
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(words));
                if two {
                    _mm256_storeu_si256(to.add(pairs * width).cast(), _mm512_extracti64x4_epi64::<1>(words));
                }
            };
            if down == 1 {
                for first in (0..depth.len()).step_by(DEEP) {
                    let mask = low_bits((depth.len() - first).min(DEEP));
                    let mut block = [_mm512_setzero_si512(); GROUP];
                    for (lane, row) in block.iter_mut().enumerate().take(here) {
                        *row = T::load(from.add(lane * across + first), mask);
                        // Weights come from memory, and these rows are too short for the processor to see them coming.
                        let ahead = from.wrapping_add((GROUP + lane) * across + first);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        if size_of::<T>() == 4 {
                            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(GROUP).cast());
                        }
                    }
                    let block = transposed(block);
                    for (pair, &words) in (first / 2..pairs).zip(&block) {
                        put(pair, words);
                    }
                }
            } else if across == 1 {
                let mask = low_bits(here) as u16;
                for pair in 0..pairs {
                    let first = from.add(2 * pair * down);
                    let second = if 2 * pair + 1 < depth.len() { mask } else { 0 };
                    put(pair, T::interleaved(first, mask, first.wrapping_add(down), second));
                }
            } else {
                for pair in 0..pairs {
                    let mut words = [0u32; GROUP];
                    for (lane, word) in words.iter_mut().enumerate().take(here) {
                        let at = |place: usize| match place < depth.len() {
                            true => u32::from((*from.add(lane * across + place * down)).word()),
                            false => 0,
                        };
                        *word = at(2 * pair) | at(2 * pair + 1) << 16;
                    }
                    put(pair, _mm512_loadu_si512(words.as_ptr().cast()));
                }
            }
        }
    }
}

fn low_bits(count: usize) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

/// Sixteen rows of sixteen words, the other way round.
#[allow(unsafe_code)]
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(x: [__m512i; GROUP]) -> [__m512i; GROUP] {
    let mut twos = x;
    for i in (0..16).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    // fours[4 g + j]: of rows 4 g to 4 g + 3, column j of each quarter.
    let mut fours = x;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
    }
    let mut columns = x;
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]);
        let low_odd = _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]);
        let high = _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]);
        let high_odd = _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]);
        columns[j] = _mm512_shuffle_i32x4::<0x88>(low, high);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd);
    }
    columns
}

#[allow(unsafe_code)]
impl super::Loads for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load(first: *const Self, mask: u32) -> __m512i {
        // SAFETY: the caller's, for the numbers that the mask has.
        let (low, high) = unsafe {
            (
                _mm512_maskz_loadu_ps(mask as u16, first),
                _mm512_maskz_loadu_ps((mask >> 16) as u16, first.wrapping_add(16)),
            )
        };
        // SAFETY: both are 64 bytes.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn interleaved(first: *const Self, mask: u16, second: *const Self, other: u16) -> __m512i {
        // SAFETY: as above.
        let rounded: __m512i = unsafe {
            let (first, second) = (_mm512_maskz_loadu_ps(mask, first), _mm512_maskz_loadu_ps(other, second));
            std::mem::transmute(_mm512_cvtne2ps_pbh(second, first))
        };
        let (first, second) = (_mm512_castsi512_si256(rounded), _mm512_extracti64x4_epi64::<1>(rounded));
        words(first, second)
    }
}

#[allow(unsafe_code)]
impl super::Loads for burn::tensor::bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn load(first: *const Self, mask: u32) -> __m512i {
        // SAFETY: the caller's, for the numbers that the mask has.
        unsafe { _mm512_maskz_loadu_epi16(mask, first.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn interleaved(first: *const Self, mask: u16, second: *const Self, other: u16) -> __m512i {
        // SAFETY: as above.
        unsafe { words(_mm256_maskz_loadu_epi16(mask, first.cast()), _mm256_maskz_loadu_epi16(other, second.cast())) }
    }
}

/// Sixteen words of their lower and their upper halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(lower: __m256i, upper: __m256i) -> __m512i {
    _mm512_or_si512(_mm512_cvtepu16_epi32(lower), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(upper)))
}
