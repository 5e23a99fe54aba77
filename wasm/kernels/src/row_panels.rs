//! Products of quantised weights with the inputs of many tokens: eight rows are unpacked to int16 once and meet four
//! tokens at a time.
//!
//! Loads cost as much as products: an engine without guard pages checks each against the memory's end. So eight unpacked
//! rows meet four tokens in registers.

use crate::dense::{Matrix, Target};
use crate::inputs::Fours;
use crate::lanes::{F4, I4, S8};
use crate::memory::{Array, Result};
use crate::weights::{Codec, Unpacked, WIDEST_UNIT};

/// Rows unpacked at a time; with the inputs of four tokens they fit a first-level cache up to 1000 inputs.
pub const PANEL_ROWS: usize = 8;

/// Unpacked rows, one after the other.
pub struct Rows {
    /// Weights of a row, rounded up.
    pub width: usize,
    pub group: usize,
    pub quants: Array<u8>,
    pub scales: Array<f32>,
    pub minima: Array<f32>,
    raw: bool,
}

impl Rows {
    /// `raw`: see [`Unpacked`].
    pub fn new(count: usize, inputs: usize, codec: &Codec, raw: bool) -> Result<Self> {
        let width = inputs.next_multiple_of(WIDEST_UNIT);
        Ok(Rows {
            width,
            group: codec.group,
            quants: Array::zeros(count * width)?,
            scales: Array::zeros(count * width / codec.group)?,
            minima: Array::zeros(count * width / codec.group)?,
            raw,
        })
    }

    /// Unpacks row `n` of the matrix as row `to`.
    #[inline(never)]
    pub fn fill(&mut self, codec: &Codec, matrix: &Matrix, n: usize, to: usize) -> Unpacked {
        let row_bytes = matrix.bytes.len() / matrix.outputs;
        let row = &matrix.bytes[n * row_bytes..][..row_bytes];
        let groups = self.width / self.group;
        let out = Unpacked {
            quants: self.quants.as_mut()[to * self.width..][..self.width].as_mut_ptr(),
            scales: self.scales.as_mut()[to * groups..][..groups].as_mut_ptr(),
            minima: self.minima.as_mut()[to * groups..][..groups].as_mut_ptr(),
            raw: self.raw,
        };
        // SAFETY: a row of the matrix is whole blocks; `width` is whole units.
        unsafe { (codec.unpack)(row.as_ptr(), row_bytes / codec.bytes, out) };
        out
    }
}

/// Scales and minima of eight rows.
pub struct PanelScales {
    /// `(groups, 8)`
    scales: Array<f32>,
    minima: Array<f32>,
}

impl PanelScales {
    pub fn new(groups: usize) -> Result<Self> {
        Ok(PanelScales { scales: Array::zeros(PANEL_ROWS * groups)?, minima: Array::zeros(PANEL_ROWS * groups)? })
    }

    /// From eight unpacked rows.
    #[inline(never)]
    pub fn fill(&mut self, rows: &Rows) {
        for half in 0..2 {
            columns(rows.scales.as_slice(), rows.width / rows.group, half, self.scales.as_mut());
            columns(rows.minima.as_slice(), rows.width / rows.group, half, self.minima.as_mut());
        }
    }

    /// Products `(4, 8)` of four tokens with the rows, from whole-number products `sums`, `(groups, 4, 8)`. Scales and
    /// sums of inputs: `(groups, 4)` and more.
    #[inline(never)]
    pub fn scaled(
        &self,
        input_scales: &[f32],
        input_sums: &[f32],
        sums: &[i32],
        minima: bool,
    ) -> [f32; 4 * PANEL_ROWS] {
        let inputs = input_scales.chunks_exact(4).zip(input_sums.chunks_exact(4));
        let rows = self.scales.as_slice().chunks_exact(PANEL_ROWS).zip(self.minima.as_slice().chunks_exact(PANEL_ROWS));
        let mut totals = [[F4::zero(); 2]; 4];
        for ((sums, (scales, own)), (input_scales, input_sums)) in
            sums.chunks_exact(4 * PANEL_ROWS).zip(rows).zip(inputs)
        {
            for half in 0..2 {
                // SAFETY: four floats or numbers each.
                unsafe {
                    let (scale, minimum) = (F4::load(scales[4 * half..].as_ptr()), F4::load(own[4 * half..].as_ptr()));
                    for t in 0..4 {
                        let step = scale.mul(F4::splat(input_scales[t]));
                        let whole = I4::load(sums[t * PANEL_ROWS + 4 * half..].as_ptr()).to_floats();
                        totals[t][half] = totals[t][half].madd(whole, step);
                        if minima {
                            totals[t][half] = totals[t][half].madd(minimum, F4::splat(input_sums[t]));
                        }
                    }
                }
            }
        }
        let mut products = [0.0; 4 * PANEL_ROWS];
        for (i, total) in totals.as_flattened().iter().enumerate() {
            // SAFETY: eight times four floats.
            unsafe { total.store(products.as_mut_ptr().add(4 * i)) };
        }
        products
    }
}

/// Eight rows laid out for [`group_sums`], in two halves of four: `(inputs / 2, 2, 4, 2)`, of each pair of inputs the
/// weights of four rows beside each other, then of the others.
#[inline(never)]
fn fill(rows: &Rows, values: &mut [i16]) {
    let width = rows.width;
    for half in 0..2 {
        let row = |r: usize| (4 * half + r) * width;
        for at in (0..width).step_by(8) {
            let to = &mut values[at * PANEL_ROWS..(at + 8) * PANEL_ROWS];
            let eights = [0, 1, 2, 3].map(|r| {
                let from = &rows.quants.as_slice()[row(r) + at..][..8];
                // SAFETY: eight bytes.
                unsafe { S8::eight(from.as_ptr()) }
            });
            for (p, pair) in S8::transpose_pairs(eights).into_iter().enumerate() {
                // SAFETY: eight numbers.
                unsafe { pair.store(to[(2 * p + half) * 8..][..8].as_mut_ptr()) };
            }
        }
    }
}

/// Four rows of `groups` numbers, of the half, as columns of `(groups, 8)`.
pub fn columns(rows: &[f32], groups: usize, half: usize, out: &mut [f32]) {
    for g in (0..groups).step_by(4) {
        let four = [0, 1, 2, 3].map(|r| {
            let from = &rows[(4 * half + r) * groups + g..][..4];
            // SAFETY: four floats.
            unsafe { F4::load(from.as_ptr()) }
        });
        for (i, column) in F4::transpose(four).into_iter().enumerate() {
            // SAFETY: four floats.
            unsafe { column.store(out[(g + i) * PANEL_ROWS + 4 * half..][..4].as_mut_ptr()) };
        }
    }
}

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn panels(codec: &Codec, matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let x = Fours::new(inputs, matrix.inputs, codec.group)?;
    let mut rows = Rows::new(PANEL_ROWS, matrix.inputs, codec, false)?;
    let groups = rows.width / codec.group;
    let mut values = Array::zeros(PANEL_ROWS * rows.width)?;
    let mut scales = PanelScales::new(groups)?;
    let mut sums = Array::zeros(4 * PANEL_ROWS * matrix.inputs / codec.group)?;
    for first in (0..matrix.outputs).step_by(PANEL_ROWS) {
        for r in 0..PANEL_ROWS {
            // Beyond the last row, the last one again.
            rows.fill(codec, matrix, (first + r).min(matrix.outputs - 1), r);
        }
        fill(&rows, values.as_mut());
        scales.fill(&rows);
        let columns = PANEL_ROWS.min(matrix.outputs - first);
        for token in (0..count).step_by(4) {
            group_sums(values.as_slice(), &x, matrix.inputs, codec.group, token / 4, sums.as_mut());
            let at = token * matrix.inputs / codec.group;
            let (input_scales, input_sums) = (&x.scales.as_slice()[at..], &x.sums.as_slice()[at..]);
            let products = scales.scaled(input_scales, input_sums, sums.as_slice(), codec.minima);
            for (t, row) in products.chunks_exact(PANEL_ROWS).enumerate().take(count - token) {
                target.put(token + t, first, &row[..columns]);
            }
        }
    }
    Ok(())
}

/// Whole-number products of the panel's rows with four tokens, group by group: `sums`, `(groups, 4, 8)`. The lanes of a
/// vector are rows, so that no sum crosses lanes. Apart from `scaled`, so that eight sums are all that asks for registers.
#[inline(never)]
fn group_sums(panel: &[i16], x: &Fours, width: usize, group: usize, four: usize, sums: &mut [i32]) {
    let mut rows = panel[..width * PANEL_ROWS].as_ptr();
    let mut inputs = x.values.as_slice()[four * width * 4..(four + 1) * width * 4].as_ptr();
    for out in sums[..width / group * 4 * PANEL_ROWS].chunks_exact_mut(4 * PANEL_ROWS) {
        let mut sums = [[I4::new([0; 4]); 2]; 4];
        // SAFETY: for each group the panel has as many vectors as weights, the four tokens half as many.
        unsafe {
            let end = inputs.add(4 * group);
            while inputs < end {
                let row = [S8::load(rows), S8::load(rows.add(8))];
                for t in 0..4 {
                    let pair = S8::load_pair_splat(inputs.add(2 * t));
                    for half in 0..2 {
                        sums[t][half] = sums[t][half].add(row[half].dot(pair));
                    }
                }
                (rows, inputs) = (rows.add(16), inputs.add(8));
            }
            for (i, sum) in sums.as_flattened().iter().enumerate() {
                sum.store(out.as_mut_ptr().add(4 * i));
            }
        }
    }
}
