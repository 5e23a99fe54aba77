//! The two inner products of attention over one tile of rows, and their scalar twins.
//!
//! `dots`: scores (queries, tile) = queries · keysᵀ. `mix`: outputs (queries, width) += weights · values.
//! Blocked two queries by four keys (or by four vectors of the output): eight sums stay in registers, and each loaded
//! vector is used twice or four times. Widths are multiples of four (see `rows.rs`).

use crate::lanes::F4;
use crate::rows::PAGE;

/// `scores[q][k] = queries[q] · keys[k]`, `count` keys rounded up to a multiple of four.
///
/// # Safety
/// `queries`: `(rows, stride)`; `keys`: `(count rounded up to 4, stride)`; `scores`: `(rows, pitch)`, pitch ≥ count rounded up to 4.
#[inline(never)]
pub unsafe fn dots(
    queries: *const f32,
    rows: usize,
    keys: *const f32,
    count: usize,
    stride: usize,
    scores: *mut f32,
    pitch: usize,
) {
    let mut q = 0;
    while q + 2 <= rows {
        let first = queries.add(q * stride);
        for k in (0..count).step_by(4) {
            let [a, b] = dots_block::<2>(first, keys.add(k * stride), stride);
            a.store(scores.add(q * pitch + k));
            b.store(scores.add((q + 1) * pitch + k));
        }
        q += 2;
    }
    if q < rows {
        let first = queries.add(q * stride);
        for k in (0..count).step_by(4) {
            let [a] = dots_block::<1>(first, keys.add(k * stride), stride);
            a.store(scores.add(q * pitch + k));
        }
    }
}

/// Scores of `Q` queries with four keys.
#[inline(always)]
unsafe fn dots_block<const Q: usize>(queries: *const f32, keys: *const f32, stride: usize) -> [F4; Q] {
    let mut sums = [[F4::zero(); 4]; Q];
    let mut d = 0;
    while d < stride {
        let mut query = [F4::zero(); Q];
        for (i, q) in query.iter_mut().enumerate() {
            *q = F4::load(queries.add(i * stride + d));
        }
        for k in 0..4 {
            let key = F4::load(keys.add(k * stride + d));
            for i in 0..Q {
                sums[i][k] = sums[i][k].madd(query[i], key);
            }
        }
        d += 4;
    }
    sums.map(|[a, b, c, d]| F4::sums(a, b, c, d))
}

/// `outputs[q] += Σₖ weights[q][k] · values[k]` over `count` rows.
///
/// # Safety
/// `weights`: `(rows, pitch)`, pitch ≥ count; `values`: `(count, stride)`; `outputs`: `(rows, stride)`.
#[inline(never)]
pub unsafe fn mix(
    weights: *const f32,
    pitch: usize,
    rows: usize,
    values: *const f32,
    count: usize,
    stride: usize,
    outputs: *mut f32,
) {
    let mut q = 0;
    while q + 2 <= rows {
        mix_rows::<2>(weights.add(q * pitch), pitch, values, count, stride, outputs.add(q * stride));
        q += 2;
    }
    if q < rows {
        mix_rows::<1>(weights.add(q * pitch), pitch, values, count, stride, outputs.add(q * stride));
    }
}

#[inline(always)]
unsafe fn mix_rows<const Q: usize>(
    weights: *const f32,
    pitch: usize,
    values: *const f32,
    count: usize,
    stride: usize,
    outputs: *mut f32,
) {
    let mut d = 0;
    while d + 16 <= stride {
        mix_block::<Q, 4>(weights, pitch, values.add(d), count, stride, outputs.add(d));
        d += 16;
    }
    while d < stride {
        mix_block::<Q, 1>(weights, pitch, values.add(d), count, stride, outputs.add(d));
        d += 4;
    }
}

/// `Q` outputs, `V` vectors of each.
#[inline(always)]
unsafe fn mix_block<const Q: usize, const V: usize>(
    weights: *const f32,
    pitch: usize,
    values: *const f32,
    count: usize,
    stride: usize,
    outputs: *mut f32,
) {
    let mut sums = [[F4::zero(); V]; Q];
    for i in 0..Q {
        for v in 0..V {
            sums[i][v] = F4::load(outputs.add(i * stride + 4 * v));
        }
    }
    for k in 0..count {
        let mut row = [F4::zero(); V];
        for (v, x) in row.iter_mut().enumerate() {
            *x = F4::load(values.add(k * stride + 4 * v));
        }
        for i in 0..Q {
            let weight = F4::load_splat(weights.add(i * pitch + k));
            for v in 0..V {
                sums[i][v] = sums[i][v].madd(weight, row[v]);
            }
        }
    }
    for i in 0..Q {
        for v in 0..V {
            sums[i][v].store(outputs.add(i * stride + 4 * v));
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
    use crate::testing::{close, random};

    #[test]
    fn dots_and_mix_agree_with_their_twins() {
        for stride in [4, 8, 20, 64, 80, 96, 100, 128, 256] {
            for rows in [1, 2, 3, 6] {
                for count in [4, 8, 64] {
                    let queries = random(rows * stride, 1);
                    let keys = random(count * stride, 2);
                    let mut scores = vec![0.0; rows * count];
                    // SAFETY: sizes as documented.
                    unsafe { dots(queries.as_ptr(), rows, keys.as_ptr(), count, stride, scores.as_mut_ptr(), count) };
                    close(&scores, &twin::dots(&queries, &keys, stride), 1e-5);
                    let mut outputs = random(rows * stride, 3);
                    let mut expected = outputs.clone();
                    // SAFETY: sizes as documented.
                    unsafe { mix(scores.as_ptr(), count, rows, keys.as_ptr(), count, stride, outputs.as_mut_ptr()) };
                    twin::mix(&scores, &keys, stride, &mut expected);
                    close(&outputs, &expected, 1e-5);
                }
            }
        }
    }
}
