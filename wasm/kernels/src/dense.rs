//! The dense parts of a decoder over quantised weights: products, RMS norm, SwiGLU.
//!
//! Two ways to multiply. *Exact*: weights become float32 a few rows at a time, sums are float32. *Integer*: inputs become
//! int16 and most of the arithmetic is whole numbers, see `integer.rs`.

use crate::integer::integer_product;
use crate::lanes::F4;
use crate::math::{exp2, LOG2_E};
use crate::memory::{Array, Result};
use crate::tile::{dots, Floats, Tile};
use crate::weights::{expand, Kind, BLOCK, Q4_0, Q4_1, Q8_0};

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
    /// Stores columns `column …` of row `token`.
    #[inline(always)]
    pub fn put(&mut self, token: usize, column: usize, products: &[f32]) {
        let at = self.offset + token * self.stride + column;
        for (place, x) in self.values[at..at + products.len()].iter_mut().zip(products) {
            *place = if self.add { *place + x } else { *x };
        }
    }
}

/// Rows expanded to float32 at a time take about this many floats: most of a first-level cache.
const PANEL_FLOATS: usize = 6144;

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
    let panel = (PANEL_FLOATS / stride / 8 * 8).clamp(8, 64);
    let mut rows = Array::<f32>::zeros(panel * stride)?;
    let mut products = Array::<f32>::zeros(count * panel)?;
    for first in (0..matrix.outputs).step_by(panel) {
        let here = panel.min(matrix.outputs - first);
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
        let (x, y) = (padded.as_slice().as_ptr(), products.as_mut().as_mut_ptr());
        let tile = Tile { rows: rows.as_slice().as_ptr() as *const u8, count: here, stride, ahead: core::ptr::null() };
        // SAFETY: (count, stride) inputs, (panel, stride) rows, (count, panel) products.
        unsafe { dots::<Floats>(x, count, tile, y, panel) };
        for (t, row) in products.as_slice().chunks_exact(panel).enumerate() {
            target.put(t, first, &row[..here]);
        }
    }
    Ok(())
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
        let size =
            if exponent == 0 { mantissa * 2f32.powi(-24) } else { (1024.0 + mantissa) * 2f32.powi(exponent - 25) };
        if bits >> 15 == 1 {
            -size
        } else {
            size
        }
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
        multiply(&matrix, &[0.0; 32], 1, false, &mut Target { values: &mut y, stride: 4, offset: 0, add: false })
            .unwrap();
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
