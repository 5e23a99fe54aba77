//! The dense parts of a decoder over quantised weights: products, RMS norm, SwiGLU.
//!
//! Two ways to multiply blocks. *Exact*: weights become float32 a few rows at a time, sums are float32. *Integer*: inputs
//! become int16 (`inputs.rs`) and most of the arithmetic is whole numbers, for one token `stream.rs`, for many
//! `row_panels.rs`. Float weights are always multiplied exactly.

use crate::byte_panels::byte_panels;
use crate::floats::{row_product, widen, Bfloat16, Float16, Float32, Floating};
use crate::inputs::{ByteInputs, Single};
use crate::lanes::{B16, BYTE_DOTS, D2, F4};
use crate::math::{exp2s, LOG2_E};
use crate::memory::{Array, Result};
use crate::row_panels::panels;
use crate::tile::{dots, Floats, Tile};
use crate::weights::{Codec, Kind};
use crate::woven::{Panel, ROWS};

/// `(outputs, inputs)`, checked against its bytes by the caller: `outputs` rows or more. Blocks are woven as far as there
/// are whole eights of rows.
pub struct Matrix<'a> {
    pub kind: Kind,
    pub bytes: &'a [u8],
    pub outputs: usize,
    pub inputs: usize,
}

impl Matrix<'_> {
    /// Calls `body(first, woven)` for each eight rows; in the last, rows that are missing are the last one again.
    pub fn each_eight(&self, codec: &Codec, mut body: impl FnMut(usize, *const u8)) -> Result<()> {
        let row_bytes = self.inputs / codec.block * codec.bytes;
        let woven = self.bytes.len() / row_bytes / ROWS * ROWS;
        for first in (0..self.outputs.min(woven)).step_by(ROWS) {
            body(first, self.bytes[first * row_bytes..][..ROWS * row_bytes].as_ptr());
        }
        if self.outputs > woven {
            let mut eight = Array::zeros(ROWS * row_bytes)?;
            let rows = core::array::from_fn(|r| {
                self.bytes[(woven + r).min(self.outputs - 1) * row_bytes..][..row_bytes].as_ptr()
            });
            // SAFETY: whole rows, and room for eight.
            unsafe { (codec.weave)(rows, self.inputs / codec.block, eight.as_mut().as_mut_ptr()) };
            body(woven, eight.as_slice().as_ptr());
        }
        Ok(())
    }
}

/// Weaves as many rows as there are whole eights. Whether some scale is infinite or no number and only `exact` products
/// would say so.
pub fn weave(codec: &Codec, inputs: usize, bytes: &mut [u8]) -> Result<bool> {
    let (blocks, row_bytes) = (inputs / codec.block, inputs / codec.block * codec.bytes);
    let mut copy = Array::zeros(ROWS * row_bytes)?;
    let mut infinite = false;
    let mut eights = bytes.chunks_exact_mut(ROWS * row_bytes);
    for eight in &mut eights {
        copy.as_mut().copy_from_slice(eight);
        let rows = core::array::from_fn(|r| copy.as_slice()[r * row_bytes..].as_ptr());
        // SAFETY: whole rows, and room for them.
        infinite |= unsafe { (codec.weave)(rows, blocks, eight.as_mut_ptr()) };
    }
    let rest = eights.into_remainder();
    if !rest.is_empty() {
        let rows = core::array::from_fn(|r| rest[(r * row_bytes).min(rest.len() - row_bytes)..].as_ptr());
        // SAFETY: as above.
        infinite |= unsafe { (codec.weave)(rows, blocks, copy.as_mut().as_mut_ptr()) };
    }
    Ok(infinite)
}

/// Row `n` of `outputs` as float32; `woven`: whether the matrix is.
pub fn row(matrix: &Matrix, n: usize, woven: bool, out: &mut [f32]) -> Result<()> {
    let width = matrix.inputs;
    // SAFETY: whole rows; `out` is as long as one.
    match matrix.kind {
        Kind::F32 => unsafe { widen::<Float32>(matrix.bytes[4 * n * width..].as_ptr(), width, out.as_mut_ptr()) },
        Kind::F16 => unsafe { widen::<Float16>(matrix.bytes[2 * n * width..].as_ptr(), width, out.as_mut_ptr()) },
        Kind::Bf16 => unsafe { widen::<Bfloat16>(matrix.bytes[2 * n * width..].as_ptr(), width, out.as_mut_ptr()) },
        Kind::Blocks(codec) => {
            let row_bytes = width / codec.block * codec.bytes;
            let first = if woven && n < matrix.bytes.len() / row_bytes / ROWS * ROWS { n / ROWS * ROWS } else { n };
            // Less than eight rows are not woven.
            let last = if first == n && !(woven && n % ROWS == 0) { n + 1 } else { first + ROWS };
            let bytes = &matrix.bytes[first * row_bytes..(last * row_bytes).min(matrix.bytes.len())];
            let part = Matrix { bytes, outputs: bytes.len() / row_bytes, ..*matrix };
            let mut panel = Panel::new(width, codec, false)?;
            part.each_eight(codec, |_, eight| {
                // SAFETY: whole blocks.
                unsafe { (codec.unpack)(eight, width / codec.block, &mut panel) };
            })?;
            let mut all = Array::zeros(ROWS * width)?;
            to_floats(codec, &panel, width, width, all.as_mut());
            out.copy_from_slice(&all.as_slice()[(n - first) * width..][..width]);
        }
    }
    Ok(())
}

/// Unpacked rows of `width` weights as float32, `stride` floats apart, with the bits that the format's definition gives.
#[inline(never)]
fn to_floats(codec: &Codec, panel: &Panel, width: usize, stride: usize, out: &mut [f32]) {
    let out = out[..(ROWS - 1) * stride + width].as_mut_ptr();
    for (c, chunk) in panel.values.as_slice()[..ROWS * width].chunks_exact(4 * ROWS).enumerate() {
        let at = 4 * c / codec.group * ROWS;
        let (scales, minima) = (&panel.scales.as_slice()[at..at + ROWS], &panel.minima.as_slice()[at..at + ROWS]);
        for half in 0..2 {
            // SAFETY: sixteen bytes.
            let rows = unsafe { B16::load(chunk[16 * half..][..16].as_ptr()) }.to_ints();
            for (r, four) in rows.into_iter().enumerate() {
                let row = 4 * half + r;
                let product = four.to_floats().mul(F4::splat(scales[row]));
                let weights = if codec.minima { product.add(F4::splat(minima[row])) } else { product };
                // SAFETY: four floats of a row.
                unsafe { weights.store(out.add(row * stride + 4 * c)) };
            }
        }
    }
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
        let places = &mut self.values[at..at + products.len()];
        let (fours, rest) = (products.len() / 4 * 4, products.len() / 4 * 4..products.len());
        for i in (0..fours).step_by(4) {
            // SAFETY: four floats each.
            unsafe {
                let (place, x) = (places.as_mut_ptr().add(i), F4::load(products.as_ptr().add(i)));
                if self.add { F4::load(place).add(x) } else { x }.store(place);
            }
        }
        for i in rest {
            places[i] = if self.add { places[i] + products[i] } else { products[i] };
        }
    }
}

/// Tokens from which on unpacking rows once beats reading them packed for each.
const MANY: usize = 4;

/// What products of weights in blocks are computed in.
#[derive(Clone, Copy, PartialEq)]
pub enum Arithmetic {
    /// Whole numbers, int8 products in sums of int16 at first.
    Ints,
    /// float32: where [`weave`] said so, or the caller wants it.
    Floats,
    /// As `Ints`, with the same results; int8 products in sums of int32 at once. Faster where the processor has one
    /// instruction for that and the engine takes it, slower elsewhere.
    WideInts,
}

impl Arithmetic {
    pub fn from_number(number: i32) -> Option<Self> {
        [Arithmetic::Ints, Arithmetic::Floats, Arithmetic::WideInts].get(usize::try_from(number).ok()?).copied()
    }
}

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn multiply(
    matrix: &Matrix,
    inputs: &[f32],
    count: usize,
    arithmetic: Arithmetic,
    target: &mut Target,
) -> Result<()> {
    let wide = arithmetic == Arithmetic::WideInts;
    let inputs = &inputs[..count * matrix.inputs];
    match matrix.kind {
        Kind::F32 => float_product::<Float32>(matrix, inputs, count, target),
        Kind::F16 => float_product::<Float16>(matrix, inputs, count, target),
        Kind::Bf16 => float_product::<Bfloat16>(matrix, inputs, count, target),
        Kind::Blocks(codec) if arithmetic == Arithmetic::Floats => exact_blocks(codec, matrix, inputs, count, target),
        Kind::Blocks(codec) if BYTE_DOTS && count >= MANY && codec.bytes_in => {
            byte_panels(codec, matrix, inputs, count, wide, target)
        }
        Kind::Blocks(codec) if count >= MANY => panels(codec, matrix, inputs, count, target),
        Kind::Blocks(codec) => {
            for (token, row) in inputs.chunks_exact(matrix.inputs).enumerate() {
                streamed(codec, matrix, row, token, wide, target)?;
            }
            Ok(())
        }
    }
}

/// Products with one token's inputs.
fn streamed(
    codec: &Codec,
    matrix: &Matrix,
    inputs: &[f32],
    token: usize,
    wide: bool,
    target: &mut Target,
) -> Result<()> {
    let (width, outputs) = (matrix.inputs, matrix.outputs);
    let blocks = width / codec.block;
    let mut put = |first: usize, products: [f32; ROWS]| {
        target.put(token, first, &products[..ROWS.min(outputs - first)]);
    };
    // SAFETY: whole blocks of eight rows, and as many inputs.
    if codec.bytes_in {
        let x = ByteInputs::new(inputs, width, codec.group, 1)?;
        let stream = codec.stream_bytes[wide as usize];
        matrix.each_eight(codec, |first, woven| put(first, unsafe { stream(woven, blocks, &x) }))
    } else {
        let x = Single::new(inputs, codec.group)?;
        matrix.each_eight(codec, |first, woven| put(first, unsafe { (codec.stream)(woven, blocks, &x) }))
    }
}

/// Float weights: row by row as they stand for few tokens, else widened once.
fn float_product<T: Floating>(matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let width = matrix.inputs;
    let row = |n: usize| matrix.bytes[n * width * T::BYTES..][..width * T::BYTES].as_ptr();
    if count >= MANY {
        // SAFETY: `width` weights and floats.
        return exact_product(matrix, inputs, count, target, |n, out| unsafe {
            widen::<T>(row(n), width, out[..width].as_mut_ptr())
        });
    }
    for n in 0..matrix.outputs {
        for (token, x) in inputs.chunks_exact(width).enumerate() {
            // SAFETY: `width` weights and floats.
            target.put(token, n, &[unsafe { row_product::<T>(row(n), x.as_ptr(), width) }]);
        }
    }
    Ok(())
}

/// Rows expanded to float32 at a time take about this many floats: most of a first-level cache.
const PANEL_FLOATS: usize = 6144;
/// Numbers of a vector: rows are padded to whole ones.
const LANES: usize = 4;

/// Products of blocks in float32 arithmetic.
fn exact_blocks(codec: &Codec, matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let mut panel = Panel::new(matrix.inputs, codec, false)?;
    let mut rows = Array::<f32>::zeros(ROWS * matrix.inputs)?;
    let mut products = Array::<f32>::zeros(count * ROWS)?;
    matrix.each_eight(codec, |first, woven| {
        // SAFETY: whole blocks of eight rows.
        unsafe { (codec.unpack)(woven, matrix.inputs / codec.block, &mut panel) };
        to_floats(codec, &panel, matrix.inputs, matrix.inputs, rows.as_mut());
        let here = ROWS.min(matrix.outputs - first);
        put_dots(inputs, rows.as_slice(), matrix.inputs, here, products.as_mut(), |t, row| target.put(t, first, row));
    })
}

/// Hands `put(token, products)` the products of `here` rows, `stride` floats apart, with inputs as far apart; `products`:
/// `(count, rows)`.
fn put_dots(
    inputs: &[f32],
    rows: &[f32],
    stride: usize,
    here: usize,
    products: &mut [f32],
    mut put: impl FnMut(usize, &[f32]),
) {
    let (count, panel) = (inputs.len() / stride, rows.len() / stride);
    let tile = Tile { rows: rows.as_ptr() as *const u8, count: here, stride, ahead: core::ptr::null() };
    // SAFETY: (count, stride) inputs, (panel, stride) rows, (count, panel) products.
    unsafe { dots::<Floats>(inputs.as_ptr(), count, tile, products[..count * panel].as_mut_ptr(), panel) };
    for (t, row) in products.chunks_exact(panel).enumerate() {
        put(t, &row[..here]);
    }
}

/// Products of floats in float32 arithmetic; `expand(n, out)` writes row `n`.
fn exact_product(
    matrix: &Matrix,
    inputs: &[f32],
    count: usize,
    target: &mut Target,
    mut expand: impl FnMut(usize, &mut [f32]),
) -> Result<()> {
    let width = matrix.inputs;
    let stride = width.next_multiple_of(LANES);
    let mut padded = Array::<f32>::zeros(count * stride)?;
    for (to, from) in padded.as_mut().chunks_exact_mut(stride).zip(inputs.chunks_exact(width)) {
        to[..width].copy_from_slice(from);
    }
    let panel = (PANEL_FLOATS / stride / 8 * 8).clamp(8, 64);
    let mut rows = Array::<f32>::zeros(panel * stride)?;
    let mut products = Array::<f32>::zeros(count * panel)?;
    for first in (0..matrix.outputs).step_by(panel) {
        let here = panel.min(matrix.outputs - first);
        for (r, out) in rows.as_mut().chunks_exact_mut(stride).enumerate().take(here) {
            expand(first + r, out);
        }
        put_dots(padded.as_slice(), rows.as_slice(), stride, here, products.as_mut(), |t, row| {
            target.put(t, first, row)
        });
    }
    Ok(())
}

/// `out = x / √(mean x² + epsilon) · gains` for each row of `gains.len()`. Squares of float32 are exact in float64, so
/// that fused sums have the same bits as others.
pub fn rms_norm(x: &[f32], gains: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = gains.len();
    for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum_of_squares(row) / width as f64;
        let scale = (1.0 / (mean + epsilon as f64).sqrt()) as f32;
        let (fours, rest) = (width / 4 * 4, width / 4 * 4..width);
        for at in (0..fours).step_by(4) {
            // SAFETY: four floats of each.
            unsafe {
                let four = F4::load(row[at..at + 4].as_ptr()).mul(F4::splat(scale));
                four.mul(F4::load(gains[at..at + 4].as_ptr())).store(out[at..at + 4].as_mut_ptr());
            }
        }
        for i in rest {
            out[i] = row[i] * scale * gains[i];
        }
    }
}

fn sum_of_squares(row: &[f32]) -> f64 {
    let mut sums = [D2::zero(); 4];
    let mut eights = row.chunks_exact(8);
    for eight in &mut eights {
        for (half, sums) in sums.chunks_exact_mut(2).enumerate() {
            // SAFETY: four floats.
            let doubles = unsafe { F4::load(eight[4 * half..].as_ptr()) }.to_doubles();
            for (sum, x) in sums.iter_mut().zip(doubles) {
                *sum = sum.madd(x, x);
            }
        }
    }
    let rest: f64 = eights.remainder().iter().map(|x| *x as f64 * *x as f64).sum();
    sums.iter().map(|two| two.sum()).sum::<f64>() + rest
}

/// [`rms_norm`] of the `heads` runs of `gains.len()` columns from `first` on of each row of `stride`; the rest as it is.
pub fn head_norm(x: &[f32], gains: &[f32], stride: usize, first: usize, heads: usize, epsilon: f32, out: &mut [f32]) {
    let normed = first..first + heads * gains.len();
    out.copy_from_slice(x);
    for (row, out) in x.chunks_exact(stride).zip(out.chunks_exact_mut(stride)) {
        rms_norm(&row[normed.clone()], gains, epsilon, &mut out[normed.clone()]);
    }
}

/// `out = a + b`.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    let fours = out.len() / 4 * 4;
    for at in (0..fours).step_by(4) {
        // SAFETY: four floats each.
        unsafe {
            let sum = F4::load(a[at..at + 4].as_ptr()).add(F4::load(b[at..at + 4].as_ptr()));
            sum.store(out[at..at + 4].as_mut_ptr());
        }
    }
    for i in fours..out.len() {
        out[i] = a[i] + b[i];
    }
}

/// `out = gate / (1 + e^−gate) · up` for rows of `width` gates and as many ups.
pub fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
    gated(gate_up, width, out, |gate| gate.mul(F4::splat(-LOG2_E)));
}

/// The same with the tanh form of GELU, gate · σ(√(8/π) · (gate + 0.044715 · gate³)).
pub fn geglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
    let linear = -LOG2_E * 1.595_769_1;
    gated(gate_up, width, out, |gate| {
        let slope = F4::splat(linear).madd(gate.mul(gate), F4::splat(0.044_715 * linear));
        gate.mul(slope)
    });
}

/// Where gpt-oss's gates end above, and its ups on both sides.
const LIMIT: f32 = 7.0;

/// gpt-oss's: gates of at most 7, ups between −7 and 7, `out = gate · σ(1.702 · gate) · (up + 1)`.
pub fn limited_swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
    let limit = F4::splat(LIMIT);
    gated_after(
        gate_up,
        width,
        out,
        |gate| gate.mul(F4::splat(-LOG2_E * 1.702)),
        |gate, up| (gate.min(limit), up.min(limit).max(F4::splat(-LIMIT)).add(F4::splat(1.0))),
    );
}

fn gated(gate_up: &[f32], width: usize, out: &mut [f32], power: impl Fn(F4) -> F4) {
    gated_after(gate_up, width, out, power, |gate, up| (gate, up));
}

/// `out = gate / (1 + 2^power(gate)) · up`, of what `before` makes of gates and ups.
#[inline(always)]
fn gated_after(
    gate_up: &[f32],
    width: usize,
    out: &mut [f32],
    power: impl Fn(F4) -> F4,
    before: impl Fn(F4, F4) -> (F4, F4),
) {
    // SAFETY: eight floats.
    let eight = |from: &[f32; 8]| unsafe { [F4::load(from[..4].as_ptr()), F4::load(from[4..].as_ptr())] };
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gates, ups) = row.split_at(width);
        for at in (0..width).step_by(8) {
            let end = width.min(at + 8);
            let (gates, ups) = (eight(&padded(&gates[at..end])), eight(&padded(&ups[at..end])));
            let both = [before(gates[0], ups[0]), before(gates[1], ups[1])];
            // From 126 on the factor is 0 to float32; the bound keeps 2^x finite.
            let powers = exp2s(both.map(|(gate, _)| power(gate).min(F4::splat(126.0))));
            let products = [0, 1].map(|i| both[i].0.div(F4::splat(1.0).add(powers[i])).mul(both[i].1).lanes());
            out[at..end].copy_from_slice(&products.as_flattened()[..end - at]);
        }
    }
}

/// Up to eight floats, and zeros.
#[inline(always)]
fn padded(floats: &[f32]) -> [f32; 8] {
    floats.try_into().unwrap_or_else(|_| {
        let mut eight = [0.0; 8];
        eight[..floats.len()].copy_from_slice(floats);
        eight
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use crate::twin;

    /// Rows of arbitrary bytes with ordinary scales.
    fn bytes(kind: i32, outputs: usize, inputs: usize) -> Vec<u8> {
        let (_, block, size, halves) = twin::TYPES.into_iter().find(|each| each.0 == kind).unwrap();
        if block == 1 {
            let floats = random(outputs * inputs, 5);
            return match kind {
                0 => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
                // A float32's upper half is a bfloat16; as a float16 it is below 2, or some infinity.
                _ => floats.iter().flat_map(|x| [x.to_le_bytes()[2], x.to_le_bytes()[3]]).collect(),
            };
        }
        let noise = random(outputs * inputs / block * size, 9);
        let mut bytes: Vec<u8> = noise.iter().map(|x| (x * 977.0) as i32 as u8).collect();
        for (i, block) in bytes.chunks_mut(size).enumerate() {
            for (at, bits) in halves.iter().zip([0x2180u16, 0xad50]) {
                // 0.0107…, and −0.083 …
                block[*at..at + 2].copy_from_slice(&(bits + i as u16 % 97).to_le_bytes());
            }
            if kind == 39 {
                block[0] = 120 + i as u8 % 5;
            }
        }
        bytes
    }

    fn matrix(kind: i32, bytes: &[u8], outputs: usize, inputs: usize) -> Matrix<'_> {
        Matrix { kind: Kind::from_number(kind).unwrap(), bytes, outputs, inputs }
    }

    /// Bytes as products want them, and whether those must be exact.
    fn woven(kind: i32, inputs: usize, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = bytes.to_vec();
        let infinite = match Kind::from_number(kind).unwrap() {
            Kind::Blocks(codec) => weave(codec, inputs, &mut bytes).unwrap(),
            _ => false,
        };
        (bytes, infinite)
    }

    fn product(matrix: &Matrix, x: &[f32], count: usize, exact: bool) -> Vec<f32> {
        let mut y = vec![0.0; count * matrix.outputs];
        let mut target = Target { values: &mut y, stride: matrix.outputs, offset: 0, add: false };
        let arithmetic = if exact { Arithmetic::Floats } else { Arithmetic::Ints };
        multiply(matrix, x, count, arithmetic, &mut target).unwrap();
        y
    }

    #[test]
    fn wide_sums_give_the_same_bits() {
        for (kind, block, ..) in twin::TYPES {
            for (inputs, outputs, count) in [(block, 1, 1), (block * 3, 8, 2), (block * 5, 19, 4), (block * 2, 9, 9)] {
                let (woven, _) = woven(kind, inputs, &bytes(kind, outputs, inputs));
                let matrix = matrix(kind, &woven, outputs, inputs);
                // The largest there are, too: sums in int16 must not be full.
                for x in [random(count * inputs, 3), vec![1.0; count * inputs], vec![-1.0; count * inputs]] {
                    let mut y = vec![0.0; count * outputs];
                    let mut target = Target { values: &mut y, stride: outputs, offset: 0, add: false };
                    multiply(&matrix, &x, count, Arithmetic::WideInts, &mut target).unwrap();
                    assert_eq!(y, product(&matrix, &x, count, false), "{kind}, {count} rows");
                }
            }
        }
    }

    #[test]
    fn products_agree_with_their_twin() {
        for (kind, block, ..) in twin::TYPES {
            for (inputs, outputs) in [(block, 1), (block * 2, 5), (block * 3, 8), (block * 5, 19)] {
                let bytes = bytes(kind, outputs, inputs);
                let (woven, _) = woven(kind, inputs, &bytes);
                let matrix = matrix(kind, &woven, outputs, inputs);
                for count in [1, 2, 3, 4, 9] {
                    let x = random(count * inputs, 3);
                    let want = twin::products(kind, &bytes, &x, inputs);
                    // Of a few groups' inputs the largest is about three times the mean.
                    let inexact = if bytes_in(&matrix) { 3.0 / 254.0 } else { 5e-5 };
                    for (exact, tolerance) in [(true, 3e-7), (false, inexact)] {
                        for (got, (want, size)) in product(&matrix, &x, count, exact).iter().zip(&want) {
                            assert!((got - want).abs() <= tolerance * size, "{kind}: {got}, not {want}; {size}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn exact_products_with_one_input_are_the_weight() {
        for (kind, block, size, _) in twin::TYPES {
            let bytes = bytes(kind, 9, block);
            let (woven, _) = woven(kind, block, &bytes);
            let matrix = matrix(kind, &woven, 9, block);
            for k in 0..block {
                let mut x = vec![0.0; 4 * block];
                x[3 * block + k] = 1.0;
                let want: Vec<f32> = bytes.chunks(size).map(|row| twin::weight(kind, row, k)).collect();
                assert_eq!(product(&matrix, &x[3 * block..], 1, true), want, "{kind}, weight {k}");
                assert_eq!(product(&matrix, &x, 4, true)[27..], want, "{kind}, weight {k}");
            }
        }
    }

    fn bytes_in(matrix: &Matrix) -> bool {
        matches!(matrix.kind, Kind::Blocks(codec) if codec.bytes_in)
    }

    /// Where sums in int16 don't fit, the array form panics.
    #[test]
    fn sums_of_the_largest_numbers_fit() {
        for (kind, block, size, halves) in twin::TYPES.into_iter().filter(|each| each.1 > 1) {
            for fill in [0u8, 0xff, 0x88, 0x77] {
                let mut bytes = vec![fill; 8 * size];
                for block in bytes.chunks_mut(size) {
                    halves.iter().for_each(|at| block[*at..at + 2].copy_from_slice(&0x2180u16.to_le_bytes()));
                    if kind == 39 {
                        block[0] = 120;
                    }
                }
                let (woven, _) = woven(kind, block, &bytes);
                let matrix = matrix(kind, &woven, 8, block);
                for sign in [1.0, -1.0] {
                    let x = vec![sign; 5 * block];
                    let want = twin::products(kind, &bytes, &x, block);
                    for count in [1, 5] {
                        for (got, (want, size)) in product(&matrix, &x[..count * block], count, false).iter().zip(&want)
                        {
                            assert!((got - want).abs() <= 1e-5 * size, "{kind}: {got}, not {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn infinite_scales_come_through() {
        for (kind, block, _, halves) in twin::TYPES {
            assert!(!woven(kind, 2 * block, &bytes(kind, 9, 2 * block)).1, "{kind}");
            // In a row that is woven, and in one that is left over.
            for (at, infinite) in halves.iter().flat_map(|at| [(at, 2), (at, 8)]) {
                for bits in [0x7c00u16, 0xfc00, 0x7e00] {
                    let mut bytes = bytes(kind, 9, 2 * block);
                    let place = bytes.len() / 9 * infinite + at;
                    bytes[place..place + 2].copy_from_slice(&bits.to_le_bytes());
                    let (woven, exact) = woven(kind, 2 * block, &bytes);
                    let matrix = matrix(kind, &woven, 9, 2 * block);
                    for count in [1, 5] {
                        let y = product(&matrix, &random(count * 2 * block, 3), count, exact);
                        for (i, y) in y.iter().enumerate() {
                            assert_eq!(y.is_finite(), i % 9 != infinite, "{kind}: {y}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_take_zero_inputs_and_any_float_width() {
        for kind in [0, 1, 30] {
            let bytes = bytes(kind, 3, 7);
            for count in [2, 6] {
                let x = random(7 * count, 4);
                let mut y = vec![1.0; count * 5];
                let mut target = Target { values: &mut y, stride: 5, offset: 2, add: true };
                multiply(&matrix(kind, &bytes, 3, 7), &x, count, Arithmetic::Ints, &mut target).unwrap();
                let want = twin::products(kind, &bytes, &x, 7);
                close(&[y[2] - 1.0, y[8] - 1.0], &[want[0].0, want[4].0], 1e-5);
                assert_eq!((y[0], y[5]), (1.0, 1.0));
            }
        }
        let (bytes, _) = woven(2, 32, &bytes(2, 4, 32));
        assert_eq!(product(&matrix(2, &bytes, 4, 32), &[0.0; 32], 1, false), [0.0; 4]);
    }

    #[test]
    fn rows_are_their_weights_woven_or_not() {
        for (kind, block, size, _) in twin::TYPES {
            let width = block.max(4) * 2;
            let bytes = bytes(kind, 19, width);
            let (woven, _) = woven(kind, width, &bytes);
            for n in 0..19 {
                let raw = &bytes[n * bytes.len() / 19..];
                let want: Vec<f32> =
                    (0..width).map(|k| twin::weight(kind, &raw[k / block * size..][..size], k % block)).collect();
                for (bytes, is_woven) in [(&bytes, false), (&woven, true)] {
                    let mut out = vec![0.0; width];
                    row(&matrix(kind, bytes, 19, width), n, is_woven, &mut out).unwrap();
                    assert_eq!(out, want, "{kind}, row {n}");
                }
            }
        }
    }

    #[test]
    fn some_rows_of_a_longer_matrix() {
        for kind in [3, 12] {
            let (bytes, x) = (bytes(kind, 19, 256), random(5 * 256, 6));
            let (woven, _) = woven(kind, 256, &bytes);
            let all = product(&matrix(kind, &woven, 19, 256), &x, 5, false);
            for outputs in [3, 8, 11, 17] {
                let some = product(&matrix(kind, &woven, outputs, 256), &x, 5, false);
                for (some, all) in some.chunks(outputs).zip(all.chunks(19)) {
                    assert_eq!(some, &all[..outputs], "{kind}, {outputs} rows");
                }
            }
        }
    }

    #[test]
    fn geglu_agrees_with_its_formula() {
        // Two rows of gates, ups after them; large ones, too, whose cubes are beyond float32.
        let gates = [-1e20f32, -500.0, -9.0, -3.0, -0.7, -1e-9, 0.0, 0.2, 1.0, 2.5, 6.0, 700.0, 1e20, -1.5];
        let ups = random(14, 4);
        for width in [1, 2, 7] {
            let rows = gates.chunks(width).zip(ups.chunks(width));
            let gate_up: Vec<f32> = rows.flat_map(|(gates, ups)| [gates, ups].concat()).collect();
            let mut out = vec![0.0; 14];
            geglu(&gate_up, width, &mut out);
            let want: Vec<f32> = gates
                .iter()
                .zip(&ups)
                .map(|(gate, up)| {
                    let gate = *gate as f64;
                    let inner = (2.0 / core::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                    (0.5 * gate * (1.0 + inner.tanh()) * *up as f64) as f32
                })
                .collect();
            for (got, want) in out.iter().zip(&want) {
                assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{got}, not {want}");
            }
        }
    }

    #[test]
    fn head_norms_are_norms_of_runs_of_columns() {
        let (x, gains) = (random(3 * 11, 1), random(3, 2));
        let mut out = vec![0.0; 33];
        head_norm(&x, &gains, 11, 2, 2, 1e-5, &mut out);
        for (row, out) in x.chunks(11).zip(out.chunks(11)) {
            let mut want = row.to_vec();
            for head in [2, 5] {
                rms_norm(&row[head..head + 3], &gains, 1e-5, &mut want[head..head + 3]);
            }
            assert_eq!(out, want);
        }
    }

    #[test]
    fn gates_and_ups_of_gpt_oss_end_at_seven() {
        let gates = [-1e20f32, -500.0, -9.0, -0.7, 0.0, 0.2, 2.5, 6.9, 7.1, 700.0];
        let ups = [3.0f32, -1.0, 8.0, -8.0, 5.0, -1e20, 1e20, -6.9, 0.0, 2.0];
        let gate_up: Vec<f32> = gates.chunks(5).zip(ups.chunks(5)).flat_map(|(a, b)| [a, b].concat()).collect();
        let mut out = vec![0.0; 10];
        limited_swiglu(&gate_up, 5, &mut out);
        let want: Vec<f32> = (gates.iter().zip(&ups))
            .map(|(gate, up)| {
                let (gate, up) = (gate.min(7.0) as f64, up.clamp(-7.0, 7.0) as f64);
                (gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)) as f32
            })
            .collect();
        for (got, want) in out.iter().zip(&want) {
            assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{got}, not {want}");
        }
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
