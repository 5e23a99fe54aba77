//! The dense parts of a decoder over quantised weights: products, RMS norm, SwiGLU.
//!
//! Two ways to multiply. *Exact*: weights become float32 a few rows at a time, sums are float32. *Integer*: each block of
//! 32 inputs becomes int16 with one scale (off by at most 2⁻¹⁶ of the block's largest), products and sums of a block are
//! whole numbers, and each block's scales meet in one float32 multiply-add for four rows. One token reads the packed
//! weights as they stream by; more tokens share rows unpacked to int16.

use crate::lanes::{F4, I4, S8};
use crate::math::{exp2, LOG2_E};
use crate::memory::{Array, Result};
use crate::tile::dots;
use crate::weights::{expand, Format, Kind, BLOCK, Q4_0, Q4_1, Q8_0};

/// `(outputs, inputs)`, checked against its bytes by the caller.
pub struct Matrix<'a> {
    pub kind: Kind,
    pub bytes: &'a [u8],
    pub outputs: usize,
    pub inputs: usize,
}

/// Where products go: row `t` at `offset + t · stride`.
pub struct Target<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
    pub offset: usize,
    /// Add to what is there instead of replacing it.
    pub add: bool,
}

impl Target<'_> {
    /// Stores the first `count` lanes as columns `column …` of row `token`.
    #[inline(always)]
    fn put(&mut self, token: usize, column: usize, four: F4, count: usize) {
        let at = self.offset + token * self.stride + column;
        for (place, x) in self.values[at..at + count].iter_mut().zip(four.lanes()) {
            *place = if self.add { *place + x } else { x };
        }
    }
}

/// Rows expanded to float32 at a time.
const EXACT_ROWS: usize = 16;
/// Rows unpacked to int16 at a time; with the inputs of two tokens they fit a first-level cache up to 1536 inputs.
const PANEL_ROWS: usize = 8;

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn multiply(matrix: &Matrix, inputs: &[f32], count: usize, exact: bool, target: &mut Target) -> Result<()> {
    match matrix.kind {
        Kind::F32 => exact_product(matrix, inputs, count, target, copy_row),
        Kind::Q4_0 if exact => exact_product(matrix, inputs, count, target, expand::<Q4_0>),
        Kind::Q4_1 if exact => exact_product(matrix, inputs, count, target, expand::<Q4_1>),
        Kind::Q8_0 if exact => exact_product(matrix, inputs, count, target, expand::<Q8_0>),
        Kind::Q4_0 => integer_product::<Q4_0>(matrix, inputs, count, target),
        Kind::Q4_1 => integer_product::<Q4_1>(matrix, inputs, count, target),
        Kind::Q8_0 => integer_product::<Q8_0>(matrix, inputs, count, target),
    }
}

/// A row of float32 weights, `blocks` · 32 of them.
unsafe fn copy_row(row: *const u8, blocks: usize, out: *mut f32) {
    core::ptr::copy_nonoverlapping(row, out as *mut u8, blocks * BLOCK * 4);
}

fn exact_product(
    matrix: &Matrix,
    inputs: &[f32],
    count: usize,
    target: &mut Target,
    expand: unsafe fn(*const u8, usize, *mut f32),
) -> Result<()> {
    let width = matrix.inputs;
    let stride = width.next_multiple_of(BLOCK);
    let row_bytes = matrix.bytes.len() / matrix.outputs.max(1);
    let mut padded = Array::<f32>::zeros(count * stride)?;
    for (to, from) in padded.as_mut().chunks_exact_mut(stride).zip(inputs.chunks_exact(width)) {
        to[..width].copy_from_slice(from);
    }
    let mut rows = Array::<f32>::zeros(EXACT_ROWS * stride)?;
    let mut products = Array::<f32>::zeros(count * EXACT_ROWS)?;
    for first in (0..matrix.outputs).step_by(EXACT_ROWS) {
        let here = EXACT_ROWS.min(matrix.outputs - first);
        for r in 0..here {
            let row = &matrix.bytes[(first + r) * row_bytes..][..row_bytes];
            let out = &mut rows.as_mut()[r * stride..][..stride];
            // SAFETY: quantised rows are whole blocks; float rows are copied as far as they go.
            unsafe {
                if width == stride {
                    expand(row.as_ptr(), stride / BLOCK, out.as_mut_ptr());
                } else {
                    core::ptr::copy_nonoverlapping(row.as_ptr(), out.as_mut_ptr() as *mut u8, width * 4);
                }
            }
        }
        let (x, w, y) = (padded.as_slice().as_ptr(), rows.as_slice().as_ptr(), products.as_mut().as_mut_ptr());
        // SAFETY: (count, stride) inputs, (16, stride) rows, (count, 16) products.
        unsafe { dots(x, count, w, here, stride, y, EXACT_ROWS) };
        for (t, row) in products.as_slice().chunks_exact(EXACT_ROWS).enumerate() {
            let at = target.offset + t * target.stride + first;
            for (place, x) in target.values[at..at + here].iter_mut().zip(row) {
                *place = if target.add { *place + x } else { *x };
            }
        }
    }
    Ok(())
}

/// Inputs in blocks of int16.
struct Quantised {
    /// `(count, inputs)`
    values: Array<i16>,
    /// `(count, inputs / 32)`
    scales: Array<f32>,
    /// Sums of the quantised inputs of each block, `(count, inputs / 32)`.
    sums: Array<f32>,
}

fn quantise(inputs: &[f32]) -> Result<Quantised> {
    let blocks = inputs.len() / BLOCK;
    let mut quantised =
        Quantised { values: Array::zeros(inputs.len())?, scales: Array::zeros(blocks)?, sums: Array::zeros(blocks)? };
    let ones = S8::narrow(I4::new([1; 4]), I4::new([1; 4]));
    for (b, block) in inputs.chunks_exact(BLOCK).enumerate() {
        let out = &mut quantised.values.as_mut()[b * BLOCK..][..BLOCK];
        // SAFETY: blocks of 32.
        unsafe {
            let x: [F4; 8] = core::array::from_fn(|i| F4::load(block.as_ptr().add(4 * i)));
            let most = x.iter().fold(F4::zero(), |most, x| most.max(x.abs())).peak();
            // 0, or NaN where an input is NaN or infinite: then so is what comes of it.
            let poison = x.iter().fold(F4::zero(), |sum, x| sum.madd(*x, F4::zero())).sum();
            let scale = most / 32767.0 + poison;
            let inverse = F4::splat(if most > 0.0 { 32767.0 / most } else { 0.0 });
            let mut total = I4::new([0; 4]);
            for v in 0..4 {
                let eight = S8::narrow(x[2 * v].mul(inverse).round(), x[2 * v + 1].mul(inverse).round());
                total = total.add(eight.dot(ones));
                eight.store(out.as_mut_ptr().add(8 * v));
            }
            quantised.scales.as_mut()[b] = scale;
            quantised.sums.as_mut()[b] = scale * total.sum() as f32;
        }
    }
    Ok(quantised)
}

fn integer_product<F: Format>(matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let x = quantise(&inputs[..count * matrix.inputs])?;
    if count == 1 {
        stream::<F>(matrix, &x, target);
        return Ok(());
    }
    panels::<F>(matrix, &x, count, target)
}

/// Pointers to four rows from `first` on; beyond the last row, the last one again.
#[inline(always)]
fn four_rows(matrix: &Matrix, first: usize) -> [*const u8; 4] {
    let row_bytes = matrix.bytes.len() / matrix.outputs;
    [0, 1, 2, 3].map(|r| matrix.bytes[(first + r).min(matrix.outputs - 1) * row_bytes..].as_ptr())
}

/// One token: four rows at a time, straight from the packed blocks.
fn stream<F: Format>(matrix: &Matrix, x: &Quantised, target: &mut Target) {
    let blocks = matrix.inputs / BLOCK;
    let (values, scales, sums) = (x.values.as_slice().as_ptr(), x.scales.as_slice(), x.sums.as_slice());
    for first in (0..matrix.outputs).step_by(4) {
        let rows = four_rows(matrix, first);
        let mut total = F4::zero();
        for b in 0..blocks {
            // SAFETY: each row has `blocks` blocks, the inputs 32 values for each.
            unsafe {
                let here = rows.map(|row| row.add(b * F::BYTES));
                let input: [S8; 4] = core::array::from_fn(|v| S8::load(values.add(b * BLOCK + 8 * v)));
                let products = here.map(|row| {
                    let q = F::quants(row);
                    q[0].dot(input[0]).add(q[1].dot(input[1])).add(q[2].dot(input[2]).add(q[3].dot(input[3])))
                });
                let [a, b0, c, d] = products;
                let whole = I4::sums(a, b0, c, d).to_floats();
                let (scale, offset) = F::scales(here);
                let step = scale.mul(F4::splat(scales[b]));
                total = total.madd(whole, step).madd(offset, F4::splat(sums[b]));
            }
        }
        target.put(0, first, total, 4.min(matrix.outputs - first));
    }
}

/// Eight rows unpacked, interleaved by four for their scales.
struct Panel {
    /// `(8, inputs)`
    values: Array<i16>,
    /// `(2, inputs / 32, 4)`
    scales: Array<f32>,
    offsets: Array<f32>,
}

impl Panel {
    fn fill<F: Format>(&mut self, matrix: &Matrix, first: usize) {
        let (width, blocks) = (matrix.inputs, matrix.inputs / BLOCK);
        for half in 0..2 {
            let rows = four_rows(matrix, first + 4 * half);
            for b in 0..blocks {
                // SAFETY: each row has `blocks` blocks.
                unsafe {
                    let here = rows.map(|row| row.add(b * F::BYTES));
                    for (r, row) in here.into_iter().enumerate() {
                        let to = &mut self.values.as_mut()[(4 * half + r) * width + b * BLOCK..][..BLOCK];
                        for (v, eight) in F::quants(row).into_iter().enumerate() {
                            eight.store(to.as_mut_ptr().add(8 * v));
                        }
                    }
                    let at = (half * blocks + b) * 4;
                    let (scale, offset) = F::scales(here);
                    scale.store(self.scales.as_mut()[at..at + 4].as_mut_ptr());
                    offset.store(self.offsets.as_mut()[at..at + 4].as_mut_ptr());
                }
            }
        }
    }
}

/// Many tokens: rows unpacked once, two tokens by four rows at a time.
fn panels<F: Format>(matrix: &Matrix, x: &Quantised, count: usize, target: &mut Target) -> Result<()> {
    let (width, blocks) = (matrix.inputs, matrix.inputs / BLOCK);
    let mut panel = Panel {
        values: Array::zeros(PANEL_ROWS * width)?,
        scales: Array::zeros(PANEL_ROWS * blocks)?,
        offsets: Array::zeros(PANEL_ROWS * blocks)?,
    };
    for first in (0..matrix.outputs).step_by(PANEL_ROWS) {
        panel.fill::<F>(matrix, first);
        for t in (0..count).step_by(2) {
            for half in 0..2 {
                let column = first + 4 * half;
                if column >= matrix.outputs {
                    break;
                }
                let lanes = 4.min(matrix.outputs - column);
                if t + 1 < count {
                    let [a, b] = four_by::<2>(&panel, half, x, t, width);
                    target.put(t, column, a, lanes);
                    target.put(t + 1, column, b, lanes);
                } else {
                    let [a] = four_by::<1>(&panel, half, x, t, width);
                    target.put(t, column, a, lanes);
                }
            }
        }
    }
    Ok(())
}

/// Four rows of the panel times `T` tokens.
#[inline(always)]
fn four_by<const T: usize>(panel: &Panel, half: usize, x: &Quantised, token: usize, width: usize) -> [F4; T] {
    let blocks = width / BLOCK;
    let rows = panel.values.as_slice()[4 * half * width..(4 * half + 4) * width].as_ptr();
    let scales = panel.scales.as_slice()[half * blocks * 4..(half + 1) * blocks * 4].as_ptr();
    let offsets = panel.offsets.as_slice()[half * blocks * 4..(half + 1) * blocks * 4].as_ptr();
    let inputs = x.values.as_slice()[token * width..(token + T) * width].as_ptr();
    let input_scales = &x.scales.as_slice()[token * blocks..(token + T) * blocks];
    let input_sums = &x.sums.as_slice()[token * blocks..(token + T) * blocks];
    let mut totals = [F4::zero(); T];
    for b in 0..blocks {
        let mut sums = [[I4::new([0; 4]); 4]; T];
        for v in 0..4 {
            let at = b * BLOCK + 8 * v;
            // SAFETY: within a row of `width` int16 each.
            unsafe {
                let input: [S8; T] = core::array::from_fn(|t| S8::load(inputs.add(t * width + at)));
                for r in 0..4 {
                    let row = S8::load(rows.add(r * width + at));
                    for t in 0..T {
                        sums[t][r] = sums[t][r].add(row.dot(input[t]));
                    }
                }
            }
        }
        // SAFETY: four scales and offsets for each block.
        let (scale, offset) = unsafe { (F4::load(scales.add(4 * b)), F4::load(offsets.add(4 * b))) };
        for t in 0..T {
            let [a, b0, c, d] = sums[t];
            let whole = I4::sums(a, b0, c, d).to_floats();
            let step = scale.mul(F4::splat(input_scales[t * blocks + b]));
            totals[t] = totals[t].madd(whole, step).madd(offset, F4::splat(input_sums[t * blocks + b]));
        }
    }
    totals
}

/// `out = x / √(mean x² + epsilon) · gains` for each row of `gains.len()`.
pub fn rms_norm(x: &[f32], gains: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = gains.len();
    for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let squares: f64 = row.iter().map(|x| *x as f64 * *x as f64).sum();
        let scale = (1.0 / (squares / width as f64 + epsilon as f64).sqrt()) as f32;
        for ((out, x), gain) in out.iter_mut().zip(row).zip(gains) {
            *out = x * scale * gain;
        }
    }
}

/// `out = gate / (1 + e^−gate) · up` for rows of `width` gates and as many ups.
pub fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gates, ups) = row.split_at(width);
        for at in (0..width).step_by(4) {
            let four = |from: &[f32]| -> F4 {
                let mut lanes = [0.0; 4];
                let part = &from[at..(at + 4).min(width)];
                lanes[..part.len()].copy_from_slice(part);
                // SAFETY: four floats.
                unsafe { F4::load(lanes.as_ptr()) }
            };
            let (gate, up) = (four(gates), four(ups));
            // Below −87 the gate is 0 to float32; the bound keeps 2^x finite.
            let power = exp2(gate.mul(F4::splat(-LOG2_E)).min(F4::splat(126.0)));
            let swish = gate.div(F4::splat(1.0).add(power)).mul(up);
            for (to, x) in out[at..].iter_mut().zip(swish.lanes()) {
                *to = x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    /// Blocks of arbitrary bytes with ordinary scales.
    fn bytes(kind: Kind, outputs: usize, inputs: usize) -> Vec<u8> {
        let row = kind.row_bytes(inputs).unwrap();
        let noise = random(outputs * row, 9);
        if kind == Kind::F32 {
            return random(outputs * inputs, 5).iter().flat_map(|x| x.to_le_bytes()).collect();
        }
        let mut bytes: Vec<u8> = noise.iter().map(|x| (x * 977.0) as i32 as u8).collect();
        let size = row / (inputs / BLOCK);
        for (i, block) in bytes.chunks_mut(size).enumerate() {
            // 0.0107…, and for Q4_1 an offset of −0.083.
            block[..2].copy_from_slice(&(0x2180u16 + i as u16 % 97).to_le_bytes());
            if kind == Kind::Q4_1 {
                block[2..4].copy_from_slice(&0xad50u16.to_le_bytes());
            }
        }
        bytes
    }

    fn half(bits: u16) -> f32 {
        let (exponent, mantissa) = ((bits >> 10 & 31) as i32, (bits & 1023) as f32);
        let size = if exponent == 0 { mantissa * 2f32.powi(-24) } else { (1024.0 + mantissa) * 2f32.powi(exponent - 25) };
        if bits >> 15 == 1 { -size } else { size }
    }

    /// Weight by weight, from the formats' definitions.
    fn twin(kind: Kind, bytes: &[u8], x: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
        let row = kind.row_bytes(inputs).unwrap();
        let weight = |n: usize, k: usize| -> f32 {
            let row = &bytes[n * row..];
            let at16 = |i: usize| half(u16::from_le_bytes([row[i], row[i + 1]]));
            let j = k % 32;
            let nibble = |at: usize| (row[at + j % 16] >> (j / 16 * 4) & 15) as f32;
            match kind {
                Kind::F32 => f32::from_le_bytes(row[4 * k..4 * k + 4].try_into().unwrap()),
                Kind::Q4_0 => at16(k / 32 * 18) * (nibble(k / 32 * 18 + 2) - 8.0),
                Kind::Q4_1 => at16(k / 32 * 20) * nibble(k / 32 * 20 + 4) + at16(k / 32 * 20 + 2),
                Kind::Q8_0 => at16(k / 32 * 34) * (row[k / 32 * 34 + 2 + j] as i8) as f32,
            }
        };
        let mut out = Vec::new();
        for x in x.chunks(inputs) {
            for n in 0..outputs {
                out.push((0..inputs).map(|k| weight(n, k) as f64 * x[k] as f64).sum::<f64>() as f32);
            }
        }
        out
    }

    #[test]
    fn products_agree_with_their_twin() {
        for kind in [Kind::F32, Kind::Q4_0, Kind::Q4_1, Kind::Q8_0] {
            for (inputs, outputs) in [(32, 1), (64, 5), (96, 8), (576, 19)] {
                let bytes = bytes(kind, outputs, inputs);
                let matrix = Matrix { kind, bytes: &bytes, outputs, inputs };
                for count in [1, 2, 3, 8] {
                    let x = random(count * inputs, 3);
                    let want = twin(kind, &bytes, &x, inputs, outputs);
                    for (exact, tolerance) in [(true, 2e-6), (false, 1e-4)] {
                        let mut y = vec![0.0; count * outputs];
                        let mut target = Target { values: &mut y, stride: outputs, offset: 0, add: false };
                        multiply(&matrix, &x, count, exact, &mut target).unwrap();
                        close(&y, &want, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn products_take_zero_inputs_and_any_float_width() {
        let bytes = bytes(Kind::F32, 3, 7);
        let x = random(14, 4);
        let mut y = vec![1.0; 2 * 5];
        let matrix = Matrix { kind: Kind::F32, bytes: &bytes, outputs: 3, inputs: 7 };
        multiply(&matrix, &x, 2, false, &mut Target { values: &mut y, stride: 5, offset: 2, add: true }).unwrap();
        let want = twin(Kind::F32, &bytes, &x, 7, 3);
        close(&[y[2] - 1.0, y[8] - 1.0], &[want[0], want[4]], 1e-5);
        assert_eq!((y[0], y[5]), (1.0, 1.0));
        let bytes = self::bytes(Kind::Q4_0, 4, 32);
        let matrix = Matrix { kind: Kind::Q4_0, bytes: &bytes, outputs: 4, inputs: 32 };
        let mut y = vec![9.0; 4];
        multiply(&matrix, &[0.0; 32], 1, false, &mut Target { values: &mut y, stride: 4, offset: 0, add: false }).unwrap();
        assert_eq!(y, [0.0; 4]);
    }

    #[test]
    fn norm_and_swiglu_agree_with_their_formulas() {
        let (x, gains) = (random(14, 1), random(7, 2));
        let mut out = vec![0.0; 14];
        rms_norm(&x, &gains, 1e-5, &mut out);
        let want: Vec<f32> = (0..14)
            .map(|i| {
                let row = &x[i / 7 * 7..][..7];
                let mean = row.iter().map(|x| x * x).sum::<f32>() / 7.0;
                x[i] / (mean + 1e-5).sqrt() * gains[i % 7]
            })
            .collect();
        close(&out, &want, 1e-6);
        let mut gate_up = random(20, 3);
        gate_up[0] = -500.0;
        gate_up[1] = 500.0;
        let mut out = vec![0.0; 10];
        swiglu(&gate_up, 5, &mut out);
        let want: Vec<f32> = (0..10)
            .map(|i| {
                let (gate, up) = (gate_up[i / 5 * 10 + i % 5], gate_up[i / 5 * 10 + 5 + i % 5]);
                gate / (1.0 + (-gate).exp()) * up
            })
            .collect();
        close(&out, &want, 1e-6);
    }
}
