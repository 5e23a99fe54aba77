//! Decode attention over int8 rows without unpacking them: int16 queries times int8 keys, int16 weights times int8 values,
//! summed in int32, which is exact. Queries are rounded to 16 bits once, the weights of a tile (with the values' scales
//! in them) to 16 bits of its largest: about 1e-5 of a score and of an output. For a handful of queries; with more of
//! them unpacking a tile costs next to nothing and float32 is as fast.

use crate::lanes::{F4, I4, S8};
use crate::memory::{Array, Result};
use crate::rows::PAGE;
use crate::tile::Tile;

/// Σ |query · key| of a row must fit int32 with keys up to 127.
const LARGEST_SUM: usize = i32::MAX as usize / 127;
const LARGEST: f32 = 32767.0;

/// The int16 side of a block of queries.
pub struct Narrow {
    /// Numbers from one query to the next: as many as a key has.
    key_stride: usize,
    /// The same of outputs.
    stride: usize,
    /// `(rows, key_stride)`.
    queries: Array<i16>,
    /// One per query.
    query_scales: Array<f32>,
    /// `(rows, PAGE)`.
    weights: Array<i16>,
    /// What a weight of 1 stands for, one per query.
    steps: Array<f32>,
}

impl Narrow {
    pub fn new(rows: usize, key_stride: usize, stride: usize) -> Result<Self> {
        Ok(Narrow {
            key_stride,
            stride,
            queries: Array::zeros(rows * key_stride)?,
            query_scales: Array::zeros(rows)?,
            weights: Array::zeros(rows * PAGE)?,
            steps: Array::zeros(rows)?,
        })
    }

    /// Rounds query `row`, `(key_stride)`, to int16.
    pub fn set_query(&mut self, row: usize, query: &[f32]) {
        let largest = LARGEST.min((LARGEST_SUM / self.key_stride) as f32);
        let to = &mut self.queries.as_mut()[row * self.key_stride..][..self.key_stride];
        // SAFETY: both hold `key_stride` numbers, a multiple of 16.
        self.query_scales.as_mut()[row] = unsafe { narrow(query.as_ptr(), self.key_stride, largest, to.as_mut_ptr()) };
    }

    /// `scores[q][k] = query (first + q) · keys[k]` for `count` keys rounded up to a multiple of eight.
    ///
    /// # Safety
    /// `keys`, `scales`: as many rows; `scores`: `(rows, PAGE)`; the queries `first … first + rows − 1` were set.
    #[inline(never)]
    pub unsafe fn dots(&self, first: usize, rows: usize, keys: Tile, key_scales: *const f32, scores: *mut f32) {
        let queries = self.queries.as_slice()[first * self.key_stride..(first + rows) * self.key_stride].as_ptr();
        let query_scales = self.query_scales.as_slice()[first..first + rows].as_ptr();

        for q in (0..rows).step_by(2) {
            let (queries, scales, scores) =
                (queries.add(q * self.key_stride), query_scales.add(q), scores.add(q * PAGE));
            if q + 1 < rows {
                dots_of::<2, 4>(queries, scales, &keys, key_scales, scores);
            } else {
                dots_of::<1, 8>(queries, scales, &keys, key_scales, scores);
            }
        }
    }

    /// `outputs[q] += Σₖ weights[q][k] · values[k]` over `count` rows. The weights are ≥ 0.
    ///
    /// # Safety
    /// `weights`: `(rows, PAGE)`, zero from `count` to a multiple of four; `values`, `scales`: as many rows as that;
    /// `outputs`: `(rows, stride)`.
    #[inline(never)]
    pub unsafe fn mix(
        &mut self,
        weights: *const f32,
        rows: usize,
        values: Tile,
        scales: *const f32,
        outputs: *mut f32,
    ) {
        let narrowed = self.weights.as_mut()[..rows * PAGE].as_mut_ptr();
        let steps = self.steps.as_mut()[..rows].as_mut_ptr();
        for q in 0..rows {
            *steps.add(q) = narrow_weights(weights.add(q * PAGE), scales, values.count, narrowed.add(q * PAGE));
        }

        for q in (0..rows).step_by(2) {
            let (weights, steps, outputs) = (narrowed.add(q * PAGE), steps.add(q), outputs.add(q * self.stride));
            if q + 1 < rows {
                mix_of::<2, 2>(weights, steps, &values, outputs);
            } else {
                mix_of::<1, 4>(weights, steps, &values, outputs);
            }
        }
    }
}

/// Rounds `count` floats, a multiple of 8, to whole multiples of the scale returned, at most `largest` of it. NaN where
/// one of them is NaN or infinite.
#[inline(never)]
unsafe fn narrow(from: *const f32, count: usize, largest: f32, to: *mut i16) -> f32 {
    let (mut most, mut poison) = (F4::zero(), F4::zero());
    for i in (0..count).step_by(4) {
        let x = F4::load(from.add(i));
        most = most.max(x.abs());
        poison = poison.madd(x, F4::zero());
    }
    let most = most.peak();
    let inverse = F4::splat(if most > 0.0 { largest / most } else { 0.0 });
    for i in (0..count).step_by(8) {
        let whole = |i: usize| F4::load(from.add(i)).mul(inverse).round();
        S8::narrow(whole(i), whole(i + 4)).store(to.add(i));
    }
    most / largest + poison.sum()
}

/// Weights times scales, rounded to int16 by the largest; returns what 1 stands for.
#[inline(never)]
unsafe fn narrow_weights(weights: *const f32, scales: *const f32, count: usize, to: *mut i16) -> f32 {
    let product = |i: usize| F4::load(weights.add(i)).mul(F4::load(scales.add(i)));
    let most = (0..count).step_by(4).fold(F4::zero(), |most, i| most.max(product(i))).peak();
    let inverse = F4::splat(if most > 0.0 { LARGEST / most } else { 0.0 });
    for i in (0..count).step_by(8) {
        let next = if i + 4 < count { product(i + 4).mul(inverse) } else { F4::zero() };
        S8::narrow(product(i).mul(inverse).round(), next.round()).store(to.add(i));
    }
    most / LARGEST
}

#[inline(never)]
unsafe fn dots_of<const Q: usize, const K: usize>(
    queries: *const i16,
    query_scales: *const f32,
    keys: &Tile,
    scales: *const f32,
    scores: *mut f32,
) {
    for k in (0..keys.count).step_by(K) {
        let products = dots_block::<Q, K>(queries, keys.rows.add(k * keys.stride), keys.stride);
        for (i, sums) in products.iter().enumerate() {
            for (j, four) in sums.chunks_exact(4).enumerate() {
                let whole = I4::sums(four[0], four[1], four[2], four[3]).to_floats();
                let scale = F4::load(scales.add(k + 4 * j)).mul(F4::load_splat(query_scales.add(i)));
                whole.mul(scale).store(scores.add(i * PAGE + k + 4 * j));
            }
        }
    }
}

/// Products of `Q` queries with `K` keys, in four partial sums each.
#[inline(always)]
unsafe fn dots_block<const Q: usize, const K: usize>(
    queries: *const i16,
    keys: *const u8,
    stride: usize,
) -> [[I4; K]; Q] {
    let mut sums = [[I4::new([0; 4]); K]; Q];
    for d in (0..stride).step_by(16) {
        for d in [d, d + 8] {
            let query: [S8; Q] = core::array::from_fn(|i| S8::load(queries.add(i * stride + d)));
            for k in 0..K {
                let key = S8::eight(keys.add(k * stride + d));
                for i in 0..Q {
                    sums[i][k] = sums[i][k].add(key.dot(query[i]));
                }
            }
        }
    }
    sums
}

#[inline(never)]
unsafe fn mix_of<const Q: usize, const E: usize>(
    weights: *const i16,
    steps: *const f32,
    values: &Tile,
    outputs: *mut f32,
) {
    let mut d = 0;
    while d < values.stride {
        let (values, outputs) = (Tile { rows: values.rows.add(d), ..*values }, outputs.add(d));
        if values.stride - d >= 8 * E {
            mix_block::<Q, E>(weights, steps, values, outputs);
            d += 8 * E;
        } else {
            mix_block::<Q, 2>(weights, steps, values, outputs);
            d += 16;
        }
    }
}

/// `E` times eight columns of `Q` outputs, two rows at a time: neighbours of the interleaved rows share a pair of weights.
#[inline(always)]
unsafe fn mix_block<const Q: usize, const E: usize>(
    weights: *const i16,
    steps: *const f32,
    values: Tile,
    outputs: *mut f32,
) {
    let mut sums = [[[I4::new([0; 4]); 2]; E]; Q];
    for k in (0..values.count).step_by(2) {
        let pair: [S8; Q] = core::array::from_fn(|i| S8::load_pair(weights.add(i * PAGE + k)));
        let (row, next) = (values.rows.add(k * values.stride), values.rows.add((k + 1) * values.stride));
        for eight in 0..E {
            let both = S8::interleave(S8::eight(row.add(8 * eight)), S8::eight(next.add(8 * eight)));
            for i in 0..Q {
                for (v, columns) in both.into_iter().enumerate() {
                    sums[i][eight][v] = sums[i][eight][v].add(columns.dot(pair[i]));
                }
            }
        }
    }
    for i in 0..Q {
        let step = F4::load_splat(steps.add(i));
        for (v, sum) in sums[i].as_flattened().iter().enumerate() {
            let at = outputs.add(i * values.stride + 4 * v);
            F4::load(at).madd(sum.to_floats(), step).store(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::PAGE;
    use crate::stored::Kind;
    use crate::testing::{close, random};
    use crate::tile::twin;

    /// `count` random rows: as int8, their scales, as float32.
    fn rows(count: usize, stride: usize, seed: u64) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let mut bytes = vec![0u8; count * stride];
        let numbers = random(count * stride, seed);
        let parts = numbers.chunks(stride).zip(bytes.chunks_mut(stride));
        let scales: Vec<f32> = parts.map(|(row, out)| Kind::Int8.store(row, out)).collect();
        let floats = bytes.iter().enumerate().map(|(i, x)| *x as i8 as f32 * scales[i / stride]).collect();
        (bytes, scales, floats)
    }

    #[test]
    fn dots_and_mix_agree_with_the_float_twins() {
        for stride in [16, 32, 64, 80, 128, 256, 1024] {
            for queries in [1, 2, 3, 5] {
                for count in [4, 12, 64] {
                    let mut narrow = Narrow::new(queries, stride, stride).unwrap();
                    let q = random(queries * stride, 1);
                    q.chunks(stride).enumerate().for_each(|(row, query)| narrow.set_query(row, query));
                    // A page of them: keys are read up to whole eights.
                    let (keys, scales, floats) = rows(PAGE, stride, 2);
                    let floats = &floats[..count * stride];
                    let mut padded = vec![0.0; queries * PAGE];
                    let tile = Tile { rows: keys.as_ptr(), count, stride, ahead: core::ptr::null() };
                    // SAFETY: sizes as documented.
                    unsafe { narrow.dots(0, queries, tile, scales.as_ptr(), padded.as_mut_ptr()) };
                    let scores: Vec<f32> = padded.chunks(PAGE).flat_map(|row| row[..count].to_vec()).collect();
                    close(&scores, &twin::dots(&q, floats, stride), 1e-4);

                    let weights: Vec<f32> = random(queries * count, 3).iter().map(|x| x * x).collect();
                    let mut outputs = random(queries * stride, 4);
                    let mut want = outputs.clone();
                    twin::mix(&weights, floats, stride, &mut want);
                    for (padded, row) in padded.chunks_mut(PAGE).zip(weights.chunks(count)) {
                        padded[..count].copy_from_slice(row);
                    }
                    let (from, to) = (padded.as_ptr(), outputs.as_mut_ptr());
                    // SAFETY: sizes as documented.
                    unsafe { narrow.mix(from, queries, tile, scales.as_ptr(), to) };
                    close(&outputs, &want, 1e-4);
                }
            }
        }
    }

    #[test]
    fn sums_of_the_largest_numbers_fit() {
        for stride in [128, 4096] {
            let mut narrow = Narrow::new(1, stride, stride).unwrap();
            narrow.set_query(0, &vec![3.0; stride]);
            let (keys, scales) = (vec![0x81u8; 8 * stride], [0.5; 8]);
            let mut scores = [0.0; PAGE];
            let tile = Tile { rows: keys.as_ptr(), count: 4, stride, ahead: core::ptr::null() };
            // SAFETY: sizes as documented.
            unsafe { narrow.dots(0, 1, tile, scales.as_ptr(), scores.as_mut_ptr()) };
            close(&scores[..4], &[-3.0 * 63.5 * stride as f32; 4], 1e-6);
        }
    }
}
