//! The two inner products of attention over one tile of rows, and their scalar twins.
//!
//! `dots`: scores (queries, tile) = queries · keysᵀ. `mix`: outputs (queries, width) += weights · values.
//! Blocked two queries by four keys (or by four vectors of the output), one query by eight: eight sums stay in registers,
//! enough to hide that a product takes four cycles, and each loaded vector is used as often as registers allow.
//! Widths are multiples of four (see `rows.rs`).
//!
//! Rows are read as they are stored ([`Numbers`]): float16 becomes float32 in registers.

use crate::lanes::{Fixed, HalfMask, F4};
use crate::rows::PAGE;

/// How rows become vectors.
pub trait Numbers: Copy {
    /// Bytes of a number.
    const SIZE: usize;
    /// Vectors that one load gives.
    const VECTORS: usize;
    fn new() -> Self;
    /// The second vector only where there are two.
    ///
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn load(self, p: *const u8) -> [F4; 2];
    /// Scores from sums of products.
    fn scores(self, sums: F4) -> F4;
    /// What weights are multiplied by before they meet the values.
    fn weights(self, weights: F4) -> F4;
}

#[derive(Clone, Copy)]
pub struct Floats;

impl Numbers for Floats {
    const SIZE: usize = 4;
    const VECTORS: usize = 1;
    #[inline(always)]
    fn new() -> Self {
        Floats
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> [F4; 2] {
        [F4::load(p as *const f32), F4::zero()]
    }
    #[inline(always)]
    fn scores(self, sums: F4) -> F4 {
        sums
    }
    #[inline(always)]
    fn weights(self, weights: F4) -> F4 {
        weights
    }
}

/// float16. Queries and outputs are in the order of [`half_place`]; queries are 2⁶⁴ times larger ([`QUERY_SCALE`]).
#[derive(Clone, Copy)]
pub struct Halves(HalfMask);

/// Products of halves, which come 2¹¹² times too small, stay within float32's normal range with queries up to 2⁶⁴.
pub const QUERY_SCALE: f32 = (1u128 << 64) as f32;
static SCORE_SCALE: Fixed = Fixed::new((1u64 << 48) as f32);
static WEIGHT_SCALE: Fixed = Fixed::new((1u128 << 112) as f32);

/// Where number `d` of a row stands among the vectors of [`Halves`].
pub fn half_place(d: usize) -> usize {
    d & !7 | (d & 1) << 2 | (d & 7) >> 1
}

impl Numbers for Halves {
    const SIZE: usize = 2;
    const VECTORS: usize = 2;
    #[inline(always)]
    fn new() -> Self {
        Halves(HalfMask::new())
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> [F4; 2] {
        self.0.load(p)
    }
    #[inline(always)]
    fn scores(self, sums: F4) -> F4 {
        sums.mul(F4::fixed(&SCORE_SCALE))
    }
    #[inline(always)]
    fn weights(self, weights: F4) -> F4 {
        weights.mul(F4::fixed(&WEIGHT_SCALE))
    }
}

/// Rows to work on.
#[derive(Clone, Copy)]
pub struct Tile {
    /// `(count, stride)`; keys are readable up to the next multiple of eight.
    pub rows: *const u8,
    pub count: usize,
    pub stride: usize,
    /// Null, or `PAGE` rows that are wanted next: all fetched at once, at the beginning, which memory likes best.
    pub ahead: *const u8,
}

impl Tile {
    /// Touches the rows ahead, `PAGE` of them.
    #[inline(always)]
    unsafe fn touch(&self, row_bytes: usize) {
        if !self.ahead.is_null() {
            touch(self.ahead, PAGE * row_bytes);
        }
    }
}

/// Reads a word of each cache line, in order, as the hardware fetches ahead best.
#[inline(never)]
unsafe fn touch(from: *const u8, bytes: usize) {
    let mut sum = 0;
    for at in (0..bytes).step_by(256) {
        for line in [0, 64, 128, 192] {
            // Volatile: not to be combined, which would change the order.
            sum ^= core::ptr::read_volatile(from.add(at + line) as *const u32);
        }
    }
    core::hint::black_box(sum);
}

/// Up to so many queries go through the keys together, a few keys at a time, which are then read from beyond the
/// first-level cache only once; more of them take turns with a tile that fits it.
pub const FEW: usize = 16;
/// Rows of such a turn.
const STEP: usize = 16;

/// `scores[q][k] = queries[q] · keys[k]`, `count` keys rounded up to a multiple of eight.
///
/// # Safety
/// `queries`: `(rows, stride)`; `scores`: `(rows, pitch)`, pitch ≥ count rounded up to 8.
#[inline(never)]
pub unsafe fn dots<N: Numbers>(queries: *const f32, rows: usize, keys: Tile, scores: *mut f32, pitch: usize) {
    let stride = keys.stride;
    let count = keys.count.next_multiple_of(8);
    let step = if rows <= FEW { STEP } else { count };
    keys.touch(stride * N::SIZE);
    for first in (0..count).step_by(step) {
        let (keys, scores) = (keys.rows.add(first * stride * N::SIZE), scores.add(first));
        let here = step.min(count - first);
        let mut q = 0;
        while q < rows {
            let (queries, scores) = (queries.add(q * stride), scores.add(q * pitch));
            q += match rows - q {
                1 => dots_of::<N, 1, 8>(queries, keys, here, stride, scores, pitch),
                _ => dots_of::<N, 2, 4>(queries, keys, here, stride, scores, pitch),
            };
        }
    }
}

/// `Q` queries with `count` keys, a multiple of eight, `K` at a time. Returns `Q`. A function of its own, so that
/// addresses and limits have the registers.
#[inline(never)]
unsafe fn dots_of<N: Numbers, const Q: usize, const K: usize>(
    queries: *const f32,
    keys: *const u8,
    count: usize,
    stride: usize,
    scores: *mut f32,
    pitch: usize,
) -> usize {
    let numbers = N::new();
    for k in (0..count).step_by(K) {
        let sums = dots_block::<N, Q, K>(numbers, queries, keys.add(k * stride * N::SIZE), stride);
        for (i, sums) in sums.iter().enumerate() {
            for (j, four) in sums.chunks_exact(4).enumerate() {
                let four = numbers.scores(F4::sums(four[0], four[1], four[2], four[3]));
                four.store(scores.add(i * pitch + k + 4 * j));
            }
        }
    }
    Q
}

/// Products of `Q` queries with `K` keys, in four partial sums each.
#[inline(always)]
unsafe fn dots_block<N: Numbers, const Q: usize, const K: usize>(
    numbers: N,
    queries: *const f32,
    keys: *const u8,
    stride: usize,
) -> [[F4; K]; Q] {
    let mut sums = [[F4::zero(); K]; Q];
    let mut d = 0;
    while d < stride {
        let mut query = [[F4::zero(); 2]; Q];
        for (i, q) in query.iter_mut().enumerate() {
            for v in 0..N::VECTORS {
                q[v] = F4::load(queries.add(i * stride + d + 4 * v));
            }
        }
        for k in 0..K {
            let key = numbers.load(keys.add((k * stride + d) * N::SIZE));
            for i in 0..Q {
                for v in 0..N::VECTORS {
                    sums[i][k] = sums[i][k].madd(query[i][v], key[v]);
                }
            }
        }
        d += 4 * N::VECTORS;
    }
    sums
}

/// `outputs[q] += Σₖ weights[q][k] · values[k]` over `count` rows.
///
/// # Safety
/// `weights`: `(rows, pitch)`, pitch ≥ count rounded up to 4; `outputs`: `(rows, stride)`.
#[inline(never)]
pub unsafe fn mix<N: Numbers>(weights: *const f32, pitch: usize, rows: usize, values: Tile, outputs: *mut f32) {
    values.touch(values.stride * N::SIZE);
    for first in (0..values.count).step_by(STEP) {
        let here = Tile {
            rows: values.rows.add(first * values.stride * N::SIZE),
            count: STEP.min(values.count - first),
            ..values
        };
        let mut q = 0;
        while q < rows {
            let (weights, outputs) = (weights.add(q * pitch + first), outputs.add(q * values.stride));
            q += match rows - q {
                1 => mix_of::<N, 1, 8>(weights, pitch, here, outputs),
                _ => mix_of::<N, 2, 4>(weights, pitch, here, outputs),
            };
        }
    }
}

/// `Q` queries, `V` vectors of each output at a time. Returns `Q`.
#[inline(never)]
unsafe fn mix_of<N: Numbers, const Q: usize, const V: usize>(
    weights: *const f32,
    pitch: usize,
    values: Tile,
    outputs: *mut f32,
) -> usize {
    let (count, stride) = (values.count, values.stride);
    let mut d = 0;
    while d < stride {
        let left = stride - d;
        let width = if left >= 4 * V {
            4 * V
        } else if Q == 1 && left >= 16 {
            16
        } else {
            4 * N::VECTORS
        };
        let (rows, outputs) = (values.rows.add(d * N::SIZE), outputs.add(d));
        if width == 4 * V {
            mix_block::<N, Q, V>(weights, pitch, rows, count, stride, outputs);
        } else if Q == 1 && width == 16 {
            mix_block::<N, Q, 4>(weights, pitch, rows, count, stride, outputs);
        } else {
            // The tails of uncommon widths: one query after the other.
            for i in 0..Q {
                let (weights, outputs) = (weights.add(i * pitch), outputs.add(i * stride));
                if N::VECTORS == 2 {
                    mix_block::<N, 1, 2>(weights, pitch, rows, count, stride, outputs);
                } else {
                    mix_block::<N, 1, 1>(weights, pitch, rows, count, stride, outputs);
                }
            }
        }
        d += width;
    }
    Q
}

/// `Q` outputs, `V` vectors of each, four rows a turn. A function of its own, as `dots_of`.
#[inline(never)]
unsafe fn mix_block<N: Numbers, const Q: usize, const V: usize>(
    mut weights: *const f32,
    pitch: usize,
    mut values: *const u8,
    count: usize,
    stride: usize,
    outputs: *mut f32,
) {
    let (numbers, row) = (N::new(), stride * N::SIZE);
    let mut sums = [[F4::zero(); V]; Q];
    for i in 0..Q {
        for v in 0..V {
            sums[i][v] = F4::load(outputs.add(i * stride + 4 * v));
        }
    }
    let mut left = count;
    while left > 0 {
        let four: [F4; Q] = core::array::from_fn(|i| numbers.weights(F4::load(weights.add(i * pitch))));
        // The ways out also keep the compiler from mixing the rows, which would take more registers than there are.
        mix_row::<N, Q, V, 0>(numbers, &mut sums, &four, values);
        if left < 2 {
            break;
        }
        mix_row::<N, Q, V, 1>(numbers, &mut sums, &four, values.add(row));
        if left < 3 {
            break;
        }
        mix_row::<N, Q, V, 2>(numbers, &mut sums, &four, values.add(2 * row));
        if left < 4 {
            break;
        }
        mix_row::<N, Q, V, 3>(numbers, &mut sums, &four, values.add(3 * row));
        weights = weights.add(4);
        values = values.add(4 * row);
        left -= 4;
    }
    for i in 0..Q {
        for v in 0..V {
            sums[i][v].store(outputs.add(i * stride + 4 * v));
        }
    }
}

/// Adds one row, weighed by lane `R` of each query's weights.
#[inline(always)]
unsafe fn mix_row<N: Numbers, const Q: usize, const V: usize, const R: usize>(
    numbers: N,
    sums: &mut [[F4; V]; Q],
    weights: &[F4; Q],
    values: *const u8,
) {
    let weight = weights.map(|four| four.spread::<R>());
    for v in (0..V).step_by(N::VECTORS) {
        let x = numbers.load(values.add(4 * v * N::SIZE));
        for i in 0..Q {
            for j in 0..N::VECTORS {
                sums[i][v + j] = sums[i][v + j].madd(weight[i], x[j]);
            }
        }
    }
}

/// Rows of a page worked on at once, so that keys (or values) stay in a 32 KB first-level cache beside the queries.
pub fn tile_rows(stride: usize) -> usize {
    match stride {
        0..=64 => PAGE,
        65..=128 => PAGE / 2,
        _ => PAGE / 4,
    }
}

/// The slow, obvious versions.
#[cfg(test)]
pub mod twin {
    pub fn dots(queries: &[f32], keys: &[f32], stride: usize) -> Vec<f32> {
        let dot = |q: &[f32], k: &[f32]| q.iter().zip(k).map(|(a, b)| a * b).sum();
        queries.chunks(stride).flat_map(|q| keys.chunks(stride).map(move |k| dot(q, k))).collect()
    }

    pub fn mix(weights: &[f32], values: &[f32], stride: usize, outputs: &mut [f32]) {
        let count = values.len() / stride;
        for (weights, output) in weights.chunks(count).zip(outputs.chunks_mut(stride)) {
            for (weight, value) in weights.iter().zip(values.chunks(stride)) {
                for (o, v) in output.iter_mut().zip(value) {
                    *o += weight * v;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::{twin as stored_twin, Kind};
    use crate::testing::{close, random};

    /// `count` random rows as float16: their bytes, and in float32.
    fn halves(count: usize, stride: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
        let numbers = random(count * stride, seed);
        let mut bytes = vec![0u8; numbers.len() * 2];
        Kind::F16.store(&numbers, &mut bytes);
        let half = |two: &[u8]| stored_twin::float(u16::from_le_bytes([two[0], two[1]])) as f32;
        let floats = bytes.chunks(2).map(half).collect();
        (bytes, floats)
    }

    fn in_place(rows: &[f32], stride: usize, scale: f32) -> Vec<f32> {
        let mut placed = vec![0.0; rows.len()];
        for (i, x) in rows.iter().enumerate() {
            placed[i / stride * stride + half_place(i % stride)] = x * scale;
        }
        placed
    }

    #[test]
    fn dots_and_mix_agree_with_their_twins() {
        for stride in [4, 20, 24, 64, 80, 104] {
            for rows in [1, 2, 3, 17] {
                for count in [4, 12, 64] {
                    let queries = random(rows * stride, 1);
                    let keys = random(PAGE * stride, 2);
                    let ahead = if rows > FEW { core::ptr::null() } else { keys.as_ptr() as *const u8 };
                    let (mut scores, tile) = (vec![0.0; rows * PAGE], |rows| Tile { rows, count, stride, ahead });
                    let all = tile(keys.as_ptr() as *const u8);
                    // SAFETY: sizes as documented.
                    unsafe { dots::<Floats>(queries.as_ptr(), rows, all, scores.as_mut_ptr(), PAGE) };
                    let want = twin::dots(&queries, &keys[..count * stride], stride);
                    close(&cut(&scores, count), &want, 1e-5);
                    let before = random(rows * stride, 3);
                    for count in [count, count - 1, count - 3] {
                        let (mut outputs, mut expected) = (before.clone(), before.clone());
                        // SAFETY: sizes as documented.
                        unsafe {
                            mix::<Floats>(scores.as_ptr(), PAGE, rows, Tile { count, ..all }, outputs.as_mut_ptr())
                        };
                        twin::mix(&cut(&scores, count), &keys[..count * stride], stride, &mut expected);
                        close(&outputs, &expected, 1e-5);
                    }
                    if stride % 8 != 0 {
                        continue;
                    }
                    let (bytes, floats) = halves(PAGE, stride, 5);
                    let placed = in_place(&queries, stride, QUERY_SCALE);
                    let all = tile(bytes.as_ptr());
                    // SAFETY: sizes as documented.
                    unsafe { dots::<Halves>(placed.as_ptr(), rows, all, scores.as_mut_ptr(), PAGE) };
                    close(&cut(&scores, count), &twin::dots(&queries, &floats[..count * stride], stride), 1e-5);
                    let mut outputs = in_place(&before, stride, 1.0);
                    let mut expected = before.clone();
                    // SAFETY: sizes as documented.
                    unsafe { mix::<Halves>(scores.as_ptr(), PAGE, rows, all, outputs.as_mut_ptr()) };
                    twin::mix(&cut(&scores, count), &floats[..count * stride], stride, &mut expected);
                    close(&outputs, &in_place(&expected, stride, 1.0), 1e-5);
                }
            }
        }
    }

    /// The first `count` of each row of `PAGE`.
    fn cut(rows: &[f32], count: usize) -> Vec<f32> {
        rows.chunks(PAGE).flat_map(|row| row[..count].to_vec()).collect()
    }
}
