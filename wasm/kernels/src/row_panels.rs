//! Products of quantised weights with the inputs of many tokens: eight rows are unpacked to int16 once and meet four
//! tokens at a time.
//!
//! Loads cost as much as products: an engine without guard pages checks each against the memory's end. So eight unpacked
//! rows meet four tokens in registers.

use crate::dense::{Matrix, Target};
use crate::inputs::Fours;
use crate::lanes::{B16, F4, I4, S8};
use crate::memory::{Array, Result};
use crate::weights::Codec;
use crate::woven::{Panel, ROWS};

impl Panel {
    /// Products `(4, 8)` of four tokens with the rows, from whole-number products `sums`, `(groups, 4, 8)`. Scales and
    /// sums of inputs: `(groups, 4)` and more.
    #[inline(never)]
    pub fn scaled(&self, input_scales: &[f32], input_sums: &[f32], sums: &[i32], minima: bool) -> [f32; 4 * ROWS] {
        let groups = sums.len() / (4 * ROWS);
        let mut sums = sums.as_ptr();
        let mut scales = self.scales.as_slice()[..groups * ROWS].as_ptr();
        let mut own = self.minima.as_slice()[..groups * ROWS].as_ptr();
        let mut input_scales = input_scales[..4 * groups].as_ptr();
        let mut input_sums = input_sums[..4 * groups].as_ptr();
        let mut totals = [[F4::zero(); 2]; 4];
        // SAFETY: as many numbers as the slices were cut to.
        unsafe {
            let end = scales.add(groups * ROWS);
            while scales < end {
                // Numbers of four tokens in one register each: spread when they are needed, they leave the others to sums.
                let (x, rows) = (F4::load(input_scales), [F4::load(scales), F4::load(scales.add(4))]);
                scale::<0>(&mut totals[0], sums, rows, x);
                scale::<1>(&mut totals[1], sums, rows, x);
                scale::<2>(&mut totals[2], sums, rows, x);
                scale::<3>(&mut totals[3], sums, rows, x);
                if minima {
                    let (x, rows) = (F4::load(input_sums), [F4::load(own), F4::load(own.add(4))]);
                    shift::<0>(&mut totals[0], rows, x);
                    shift::<1>(&mut totals[1], rows, x);
                    shift::<2>(&mut totals[2], rows, x);
                    shift::<3>(&mut totals[3], rows, x);
                }
                (scales, own) = (scales.add(ROWS), own.add(ROWS));
                (input_scales, input_sums) = (input_scales.add(4), input_sums.add(4));
                sums = sums.add(4 * ROWS);
            }
        }
        let mut products = [0.0; 4 * ROWS];
        for (i, total) in totals.as_flattened().iter().enumerate() {
            // SAFETY: eight times four floats.
            unsafe { total.store(products.as_mut_ptr().add(4 * i)) };
        }
        products
    }
}

/// Adds a group's whole-number products with token `T`, times the rows' scales and the token's.
#[inline(always)]
unsafe fn scale<const T: usize>(totals: &mut [F4; 2], sums: *const i32, rows: [F4; 2], x: F4) {
    let x = x.spread::<T>();
    for (half, total) in totals.iter_mut().enumerate() {
        let whole = I4::load(sums.add(T * ROWS + 4 * half)).to_floats();
        *total = total.madd(whole, rows[half].mul(x));
    }
}

/// Adds the rows' minima times the sum of token `T`'s inputs.
#[inline(always)]
unsafe fn shift<const T: usize>(totals: &mut [F4; 2], rows: [F4; 2], x: F4) {
    let x = x.spread::<T>();
    for (total, row) in totals.iter_mut().zip(rows) {
        *total = total.madd(row, x);
    }
}

/// An unpacked panel laid out for [`group_sums`], in two halves of four rows: `(inputs / 2, 2, 4, 2)`, of each pair of
/// inputs the weights of four rows beside each other, then of the others. Pairs are as in [`Fours`].
#[inline(never)]
fn fill(panel: &[u8], values: &mut [i16]) {
    for (chunk, to) in panel.chunks_exact(4 * ROWS).zip(values.chunks_exact_mut(4 * ROWS)) {
        for half in 0..2 {
            // SAFETY: sixteen bytes, and twice eight numbers.
            unsafe {
                let [even, odd] = B16::load(chunk[16 * half..].as_ptr()).twined(true);
                even.store(to[8 * half..].as_mut_ptr());
                odd.store(to[16 + 8 * half..].as_mut_ptr());
            }
        }
    }
}

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn panels(codec: &Codec, matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let x = Fours::new(inputs, matrix.inputs, codec.group)?;
    let mut panel = Panel::new(matrix.inputs, codec, false)?;
    let mut values = Array::zeros(ROWS * matrix.inputs)?;
    let mut sums = Array::zeros(4 * ROWS * matrix.inputs / codec.group)?;
    matrix.each_eight(codec, |first, woven| {
        // SAFETY: whole blocks of eight rows.
        unsafe { (codec.unpack)(woven, matrix.inputs / codec.block, &mut panel) };
        fill(panel.values.as_slice(), values.as_mut());
        let columns = ROWS.min(matrix.outputs - first);
        for token in (0..count).step_by(4) {
            group_sums(values.as_slice(), &x, matrix.inputs, codec.group, token / 4, sums.as_mut());
            let at = token * matrix.inputs / codec.group;
            let (input_scales, input_sums) = (&x.scales.as_slice()[at..], &x.sums.as_slice()[at..]);
            let products = panel.scaled(input_scales, input_sums, sums.as_slice(), codec.minima);
            for (t, row) in products.chunks_exact(ROWS).enumerate().take(count - token) {
                target.put(token + t, first, &row[..columns]);
            }
        }
    })
}

/// Whole-number products of the panel's rows with four tokens, group by group: `sums`, `(groups, 4, 8)`. The lanes of a
/// vector are rows, so that no sum crosses lanes. Apart from `scaled`, so that eight sums are all that asks for registers.
#[inline(never)]
fn group_sums(panel: &[i16], x: &Fours, width: usize, group: usize, four: usize, sums: &mut [i32]) {
    let mut rows = panel[..width * ROWS].as_ptr();
    let mut inputs = x.values.as_slice()[four * width * 4..(four + 1) * width * 4].as_ptr();
    for out in sums[..width / group * 4 * ROWS].chunks_exact_mut(4 * ROWS) {
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
