//! Products of many columns at once. A *panel* holds eight columns (queries, or values) side by side, `(depth, 8)`: a
//! lane is a column, so nothing is ever summed across lanes, and a softmax down the columns is plain vector arithmetic.
//!
//! Blocked four rows by two vectors of columns: eight sums, four rows, two vectors and one spread number are the fifteen
//! registers there are. Numbers are spread from registers, because a load costs three instructions where the engine
//! checks its bounds.

use crate::joined;
use crate::lanes::F4;

/// Columns of a panel.
pub const COLUMNS: usize = 8;

/// Four rows of `depth` numbers times a panel: `[row][half]`.
///
/// # Safety
/// `rows`: four rows, `stride` apart, of `depth` floats, a multiple of four; `panel`: `(depth, 8)`.
#[inline(always)]
pub unsafe fn products(rows: *const f32, stride: usize, panel: *const f32, depth: usize) -> [[F4; 2]; 4] {
    let mut sums = [[F4::zero(); 2]; 4];
    let mut d = 0;
    while d < depth {
        let four = [0, 1, 2, 3].map(|r| F4::load(rows.add(r * stride + d)));
        let columns = panel.add(d * COLUMNS);
        // A way out between the steps, though it is never taken: within one run of instructions the compiler would
        // bring the four products of a sum together, and no register would be left.
        product_step::<0>(&mut sums, &four, columns);
        if d + 1 >= depth {
            break;
        }
        product_step::<1>(&mut sums, &four, columns.add(COLUMNS));
        if d + 2 >= depth {
            break;
        }
        product_step::<2>(&mut sums, &four, columns.add(2 * COLUMNS));
        if d + 3 >= depth {
            break;
        }
        product_step::<3>(&mut sums, &four, columns.add(3 * COLUMNS));
        d += 4;
    }
    sums
}

/// Eight rows, where vectors are joined: eight sums, and each number is spread as it is loaded.
///
/// # Safety
/// As [`products`], with eight rows.
#[inline(always)]
pub unsafe fn joined_products(rows: *const f32, stride: usize, panel: *const f32, depth: usize) -> [[F4; 2]; 8] {
    let mut sums = [[F4::zero(); 2]; 8];
    for d in 0..depth {
        let columns = panel.add(d * COLUMNS);
        let (low, high) = (F4::load(columns), F4::load(columns.add(4)));
        for (r, sum) in sums.iter_mut().enumerate() {
            add_product(sum, F4::load_splat(rows.add(r * stride + d)), [low, high]);
        }
    }
    sums
}

/// `scores[row][column] = rows[row] · panel[column]`.
///
/// # Safety
/// `rows`: `(count, stride)`, `count` a multiple of four; `panel`: `(stride, 8)`; `scores`: `(count, 8)`.
#[inline(never)]
pub unsafe fn score_panel(rows: *const f32, count: usize, stride: usize, panel: *const f32, scores: *mut f32) {
    let eights = if joined::vectors() { count / 8 * 8 } else { 0 };
    if eights > 0 {
        joined_score(rows, eights, stride, panel, scores);
    }
    for row in (eights..count).step_by(4) {
        let block = products(rows.add(row * stride), stride, panel, stride);
        store(&block, scores.add(row * COLUMNS));
    }
}

#[inline(never)]
unsafe fn joined_score(rows: *const f32, count: usize, stride: usize, panel: *const f32, scores: *mut f32) {
    for row in (0..count).step_by(8) {
        let block = joined_products(rows.add(row * stride), stride, panel, stride);
        store(&block, scores.add(row * COLUMNS));
    }
}

#[inline(always)]
unsafe fn store(block: &[[F4; 2]], scores: *mut f32) {
    for (i, [low, high]) in block.iter().enumerate() {
        low.store(scores.add(i * COLUMNS));
        high.store(scores.add(i * COLUMNS + 4));
    }
}

#[inline(always)]
unsafe fn product_step<const I: usize>(sums: &mut [[F4; 2]; 4], four: &[F4; 4], columns: *const f32) {
    let (low, high) = (F4::load(columns), F4::load(columns.add(4)));
    for (sum, row) in sums.iter_mut().zip(four) {
        add_product(sum, row.spread::<I>(), [low, high]);
    }
}

#[inline(always)]
fn add_product(sum: &mut [F4; 2], x: F4, columns: [F4; 2]) {
    sum[0] = sum[0].madd(x, columns[0]);
    sum[1] = sum[1].madd(x, columns[1]);
}

/// `outputs[c] += Σₖ weights[k][c] · values[k]` for four columns.
///
/// # Safety
/// `weights`: `count` rows, `pitch` apart, of four floats; `values`: `(count, stride)`; `outputs`: `(4, width)`;
/// `width` ≤ `stride`, a multiple of four.
#[inline(never)]
pub unsafe fn blend(
    weights: *const f32,
    pitch: usize,
    values: *const f32,
    count: usize,
    stride: usize,
    outputs: *mut f32,
    width: usize,
) {
    let mut d = 0;
    if joined::vectors() {
        d = width / 16 * 16;
        joined_blend(weights, pitch, values, count, stride, outputs, width);
    }
    while d + 8 <= width {
        blend_block::<2>(weights, pitch, values.add(d), count, stride, outputs.add(d), width);
        d += 8;
    }
    if d < width {
        blend_block::<1>(weights, pitch, values.add(d), count, stride, outputs.add(d), width);
    }
}

#[inline(always)]
unsafe fn blend_block<const V: usize>(
    mut weights: *const f32,
    pitch: usize,
    mut values: *const f32,
    count: usize,
    stride: usize,
    outputs: *mut f32,
    width: usize,
) {
    let mut sums = load_outputs::<V>(outputs, width);
    let mut left = count;
    while left > 0 {
        blend_row(&mut sums, weights, values);
        if left < 2 {
            break;
        }
        blend_row(&mut sums, weights.add(pitch), values.add(stride));
        if left < 3 {
            break;
        }
        blend_row(&mut sums, weights.add(2 * pitch), values.add(2 * stride));
        if left < 4 {
            break;
        }
        blend_row(&mut sums, weights.add(3 * pitch), values.add(3 * stride));
        weights = weights.add(4 * pitch);
        values = values.add(4 * stride);
        left -= 4;
    }
    store_outputs(&sums, outputs, width);
}

/// `V` vectors of each of four outputs.
#[inline(always)]
unsafe fn load_outputs<const V: usize>(outputs: *const f32, width: usize) -> [[F4; V]; 4] {
    let mut sums = [[F4::zero(); V]; 4];
    for (c, sum) in sums.iter_mut().enumerate() {
        for (v, x) in sum.iter_mut().enumerate() {
            *x = F4::load(outputs.add(c * width + 4 * v));
        }
    }
    sums
}

#[inline(always)]
unsafe fn store_outputs<const V: usize>(sums: &[[F4; V]; 4], outputs: *mut f32, width: usize) {
    for (c, sum) in sums.iter().enumerate() {
        for (v, x) in sum.iter().enumerate() {
            x.store(outputs.add(c * width + 4 * v));
        }
    }
}

/// The same where vectors are joined, as far as sixteen numbers of each output go: eight sums, and each weight is spread as
/// it is loaded.
#[inline(never)]
unsafe fn joined_blend(
    weights: *const f32,
    pitch: usize,
    values: *const f32,
    count: usize,
    stride: usize,
    outputs: *mut f32,
    width: usize,
) {
    for d in (0..width / 16 * 16).step_by(16) {
        let (mut weights, mut values, outputs) = (weights, values.add(d), outputs.add(d));
        let mut sums = load_outputs::<4>(outputs, width);
        for _ in 0..count {
            let row = [0, 1, 2, 3].map(|v| F4::load(values.add(4 * v)));
            for (c, sum) in sums.iter_mut().enumerate() {
                let weight = F4::load_splat(weights.add(c));
                for (sum, x) in sum.iter_mut().zip(row) {
                    *sum = sum.madd(weight, x);
                }
            }
            (weights, values) = (weights.add(pitch), values.add(stride));
        }
        store_outputs(&sums, outputs, width);
    }
}

#[inline(always)]
unsafe fn blend_row<const V: usize>(sums: &mut [[F4; V]; 4], weights: *const f32, values: *const f32) {
    let weights = F4::load(weights);
    let mut row = [F4::zero(); V];
    for (v, x) in row.iter_mut().enumerate() {
        *x = F4::load(values.add(4 * v));
    }
    let spread = [weights.spread::<0>(), weights.spread::<1>(), weights.spread::<2>(), weights.spread::<3>()];
    for (sum, weight) in sums.iter_mut().zip(spread) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum = sum.madd(weight, x);
        }
    }
}

/// Lays up to eight rows of `depth` numbers, `stride` apart, side by side; the panel's other columns become zero.
///
/// # Safety
/// `rows` is readable for `count` ≤ 8 rows; `depth` is a multiple of four.
pub unsafe fn pack(rows: *const f32, stride: usize, count: usize, depth: usize, panel: &mut [f32]) {
    for (half, part) in [0, 4].into_iter().enumerate() {
        for d in (0..depth).step_by(4) {
            let four = [0, 1, 2, 3].map(|r| match part + r < count {
                true => F4::load(rows.add((part + r) * stride + d)),
                false => F4::zero(),
            });
            for (i, x) in F4::transpose(four).into_iter().enumerate() {
                x.store(panel[(d + i) * COLUMNS + 4 * half..][..4].as_mut_ptr());
            }
        }
    }
}

/// The slow, obvious versions.
#[cfg(test)]
pub mod twin {
    use super::COLUMNS;

    /// `(rows, 8)`
    pub fn products(rows: &[f32], panel: &[f32], depth: usize) -> Vec<f32> {
        let dot = |row: &[f32], c: usize| (0..depth).map(|d| row[d] * panel[d * COLUMNS + c]).sum();
        rows.chunks(depth).flat_map(|row| (0..COLUMNS).map(move |c| dot(row, c))).collect()
    }

    /// `(4, width)`
    pub fn blend(weights: &[f32], pitch: usize, values: &[f32], width: usize, outputs: &mut [f32]) {
        for (weights, values) in weights.chunks(pitch).zip(values.chunks(width)) {
            for (output, weight) in outputs.chunks_mut(width).zip(weights) {
                output.iter_mut().zip(values).for_each(|(o, v)| *o += weight * v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn products_and_blend_agree_with_their_twins() {
        for depth in [4, 8, 20, 64, 100] {
            let (rows, columns) = (random(4 * depth, 1), random(COLUMNS * depth, 2));
            let mut panel = vec![0.0; depth * COLUMNS];
            // SAFETY: sizes as documented.
            let block = unsafe {
                pack(columns.as_ptr(), depth, COLUMNS, depth, &mut panel);
                products(rows.as_ptr(), depth, panel.as_ptr(), depth)
            };
            let lanes =
                |block: &[[F4; 2]]| -> Vec<f32> { block.iter().flatten().flat_map(|four| four.lanes()).collect() };
            let got = lanes(&block);
            close(&got, &twin::products(&rows, &panel, depth), 1e-5);
            let eight = [rows.clone(), rows].concat();
            // SAFETY: sizes as documented.
            let joined = unsafe { joined_products(eight.as_ptr(), depth, panel.as_ptr(), depth) };
            assert_eq!(lanes(&joined), [got.clone(), got].concat());
            for count in [1, 2, 3, 4, 7, 64] {
                let (weights, values) = (random(count * COLUMNS, 3), random(count * depth, 4));
                let mut outputs = random(4 * depth, 5);
                let (mut want, mut joined) = (outputs.clone(), outputs.clone());
                // SAFETY: sizes as documented.
                unsafe { blend(weights.as_ptr(), COLUMNS, values.as_ptr(), count, depth, outputs.as_mut_ptr(), depth) };
                twin::blend(&weights, COLUMNS, &values, depth, &mut want);
                close(&outputs, &want, 1e-5);
                let (weights, values, to) = (weights.as_ptr(), values.as_ptr(), joined.as_mut_ptr());
                // SAFETY: sizes as documented.
                unsafe { joined_blend(weights, COLUMNS, values, count, depth, to, depth) };
                let wide = depth / 16 * 16;
                for (joined, output) in joined.chunks(depth).zip(outputs.chunks(depth)) {
                    assert_eq!(joined[..wide], output[..wide]);
                }
            }
        }
    }

    #[test]
    fn pack_turns_rows_into_columns_and_fills_up_with_zeros() {
        let rows: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut panel = vec![1.0; 8 * COLUMNS];
        // SAFETY: three rows of eight.
        unsafe { pack(rows.as_ptr(), 8, 3, 8, &mut panel) };
        for (i, x) in panel.iter().enumerate() {
            let (d, c) = (i / COLUMNS, i % COLUMNS);
            assert_eq!(*x, if c < 3 { (c * 8 + d) as f32 } else { 0.0 });
        }
    }
}
