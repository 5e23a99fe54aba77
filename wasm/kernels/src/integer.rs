//! Products of quantised weights with inputs in int16: each block of 32 inputs gets one scale (off by at most 2⁻¹⁶ of the
//! block's largest), products and sums of a block are whole numbers, and each block's scales meet in one float32
//! multiply-add. One token reads the packed weights as they stream by; more tokens share rows unpacked to int16.
//!
//! Loads cost as much as products: an engine without guard pages checks each against the memory's end. So eight unpacked
//! rows meet four tokens in registers.

use crate::dense::{Matrix, Target};
use crate::lanes::{F4, I4, S8};
use crate::memory::{Array, Result};
use crate::weights::{Format, BLOCK};

/// Rows unpacked at a time; with the inputs of four tokens they fit a first-level cache up to 1000 inputs.
const PANEL_ROWS: usize = 8;
/// Tokens from which on unpacking rows once beats reading them packed for each.
const MANY: usize = 4;

/// Inputs of one token in blocks of int16, padded to whole fours of blocks by zeros.
struct Single {
    /// `(blocks, 32)`
    values: Array<i16>,
    /// `(blocks)`
    scales: Array<f32>,
    /// Sums of the quantised inputs of each block.
    sums: Array<f32>,
}

/// Inputs of many tokens, four side by side, padded to whole fours of tokens by zeros.
struct Fours {
    /// `(tokens / 4, inputs / 2, 4, 2)`: pairs of inputs.
    values: Array<i16>,
    /// `(tokens / 4, blocks, 4)`
    scales: Array<f32>,
    sums: Array<f32>,
}

/// A block of 32 inputs: its numbers, its scale, their scaled sum. `twined`: in the order of `S8::twine`.
#[inline(always)]
fn quantise(block: &[f32; BLOCK], twined: bool) -> ([S8; 4], f32, f32) {
    // SAFETY: 32 floats.
    let x: [F4; 8] = core::array::from_fn(|i| unsafe { F4::load(block[4 * i..4 * i + 4].as_ptr()) });
    let most = x.iter().fold(F4::zero(), |most, x| most.max(x.abs())).peak();
    // 0, or NaN where an input is NaN or infinite: then so is what comes of it.
    let poison = x.iter().fold(F4::zero(), |sum, x| sum.madd(*x, F4::zero())).sum();
    let scale = most / 32767.0 + poison;
    let inverse = F4::splat(if most > 0.0 { 32767.0 / most } else { 0.0 });
    let eights = [0, 1, 2, 3].map(|v| S8::narrow(x[2 * v].mul(inverse).round(), x[2 * v + 1].mul(inverse).round()));
    let ones = S8::narrow(I4::new([1; 4]), I4::new([1; 4]));
    let total = eights.iter().fold(I4::new([0; 4]), |sum, eight| sum.add(eight.dot(ones))).sum();
    (if twined { S8::twine(eights) } else { eights }, scale, scale * total as f32)
}

impl Single {
    #[inline(never)]
    fn new(inputs: &[f32], twined: bool) -> Result<Self> {
        let blocks = (inputs.len() / BLOCK).next_multiple_of(4);
        let mut single = Single {
            values: Array::zeros(blocks * BLOCK)?,
            scales: Array::zeros(blocks)?,
            sums: Array::zeros(blocks)?,
        };
        for (b, block) in inputs.chunks_exact(BLOCK).enumerate() {
            let (eights, scale, sum) = quantise(block.try_into().unwrap(), twined);
            (single.scales.as_mut()[b], single.sums.as_mut()[b]) = (scale, sum);
            for (eight, to) in eights.into_iter().zip(single.values.as_mut()[b * BLOCK..].chunks_exact_mut(8)) {
                // SAFETY: eight numbers.
                unsafe { eight.store(to.as_mut_ptr()) };
            }
        }
        Ok(single)
    }
}

impl Fours {
    #[inline(never)]
    fn new(inputs: &[f32], width: usize, twined: bool) -> Result<Self> {
        let (blocks, fours) = (width / BLOCK, (inputs.len() / width).div_ceil(4));
        let mut all = Fours {
            values: Array::zeros(4 * fours * width)?,
            scales: Array::zeros(4 * fours * blocks)?,
            sums: Array::zeros(4 * fours * blocks)?,
        };
        let missing = [0.0; BLOCK];
        for four in 0..fours {
            for b in 0..blocks {
                let each: [_; 4] = core::array::from_fn(|t| {
                    let at = (4 * four + t) * width + b * BLOCK;
                    quantise(inputs.get(at..at + BLOCK).unwrap_or(&missing).try_into().unwrap(), twined)
                });
                let at = four * blocks + b;
                for t in 0..4 {
                    (all.scales.as_mut()[4 * at + t], all.sums.as_mut()[4 * at + t]) = (each[t].1, each[t].2);
                }
                let to = &mut all.values.as_mut()[at * 4 * BLOCK..(at + 1) * 4 * BLOCK];
                for v in 0..4 {
                    let pairs = S8::transpose_pairs([each[0].0[v], each[1].0[v], each[2].0[v], each[3].0[v]]);
                    for (pair, to) in pairs.into_iter().zip(to[32 * v..].chunks_exact_mut(8)) {
                        // SAFETY: eight numbers.
                        unsafe { pair.store(to.as_mut_ptr()) };
                    }
                }
            }
        }
        Ok(all)
    }
}

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn integer_product<F: Format>(matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let inputs = &inputs[..count * matrix.inputs];
    if count >= MANY {
        return panels::<F>(matrix, &Fours::new(inputs, matrix.inputs, F::TWINED)?, count, target);
    }
    for (token, row) in inputs.chunks_exact(matrix.inputs).enumerate() {
        stream::<F>(matrix, &Single::new(row, F::TWINED)?, token, target);
    }
    Ok(())
}

/// One token: row after row, straight from the packed blocks, four blocks at a time. (Four rows at a time need fewer
/// instructions, but past the caches the hardware does not fetch four streams ahead: half as fast, measured.)
fn stream<F: Format>(matrix: &Matrix, x: &Single, token: usize, target: &mut Target) {
    let blocks = matrix.inputs / BLOCK;
    for (n, row) in matrix.bytes.chunks_exact(blocks * F::BYTES).enumerate() {
        let mut sums = [F4::zero(); 2];
        // SAFETY: the row has `blocks` blocks; inputs, scales and sums of inputs are padded to whole fours by zeros.
        unsafe {
            let mut input = x.values.as_slice().as_ptr();
            let (mut scales, mut offsets) = (x.scales.as_slice().as_ptr(), x.sums.as_slice().as_ptr());
            let mut block = row.as_ptr();
            let whole = block.add(blocks / 4 * 4 * F::BYTES);
            while block < whole {
                let next = |b: usize| block.add(b * F::BYTES);
                four_blocks::<F>([next(0), next(1), next(2), next(3)], input, scales, offsets, &mut sums);
                block = next(4);
                (input, scales, offsets) = (input.add(4 * BLOCK), scales.add(4), offsets.add(4));
            }
            if blocks % 4 > 0 {
                let last = |b: usize| block.add(b.min(blocks % 4 - 1) * F::BYTES);
                four_blocks::<F>([last(0), last(1), last(2), last(3)], input, scales, offsets, &mut sums);
            }
        }
        target.put(token, n, &[sums[0].add(sums[1]).sum()]);
    }
}

/// Adds the products of four blocks with 128 inputs: scaled integers to `sums[0]`, offsets times sums of inputs to
/// `sums[1]`.
#[inline(always)]
unsafe fn four_blocks<F: Format>(
    blocks: [*const u8; 4],
    input: *const i16,
    input_scales: *const f32,
    input_sums: *const f32,
    sums: &mut [F4; 2],
) {
    let (scales, offsets) = F::scales(blocks);
    let step = scales.mul(F4::load(input_scales));
    let [a, b, c, d] = blocks;
    // Written out: as a loop over the blocks LLVM keeps it, through memory.
    sums[0] = sums[0]
        .madd(block_dot::<F>(a, input).to_floats(), step.spread::<0>())
        .madd(block_dot::<F>(b, input.add(BLOCK)).to_floats(), step.spread::<1>())
        .madd(block_dot::<F>(c, input.add(2 * BLOCK)).to_floats(), step.spread::<2>())
        .madd(block_dot::<F>(d, input.add(3 * BLOCK)).to_floats(), step.spread::<3>());
    sums[1] = sums[1].madd(offsets, F4::load(input_sums));
}

/// Products of one block with 32 inputs, in four partial sums.
#[inline(always)]
unsafe fn block_dot<F: Format>(block: *const u8, inputs: *const i16) -> I4 {
    let [a, b, c, d] = F::dot_quants(block);
    let input = |v: usize| S8::load(inputs.add(8 * v));
    a.dot(input(0)).add(b.dot(input(1))).add(c.dot(input(2)).add(d.dot(input(3))))
}

/// Pointers to four rows from `first` on; beyond the last row, the last one again.
#[inline(always)]
fn four_rows(matrix: &Matrix, first: usize) -> [*const u8; 4] {
    let row_bytes = matrix.bytes.len() / matrix.outputs;
    [0, 1, 2, 3].map(|r| matrix.bytes[(first + r).min(matrix.outputs - 1) * row_bytes..].as_ptr())
}

/// Eight rows unpacked for [`tile`], in two halves of four.
struct Panel {
    /// `(inputs / 2, 2, 4, 2)`: of each pair of inputs the weights of four rows beside each other, then of the others.
    values: Array<i16>,
    /// `(inputs / 32, 8)`
    scales: Array<f32>,
    offsets: Array<f32>,
}

impl Panel {
    fn fill<F: Format>(&mut self, matrix: &Matrix, first: usize) {
        let blocks = matrix.inputs / BLOCK;
        for half in 0..2 {
            let rows = four_rows(matrix, first + 4 * half);
            for b in 0..blocks {
                let to = &mut self.values.as_mut()[b * BLOCK * PANEL_ROWS..(b + 1) * BLOCK * PANEL_ROWS];
                // SAFETY: each row has `blocks` blocks; 32 vectors of each block of the panel.
                unsafe {
                    let here = rows.map(|row| row.add(b * F::BYTES));
                    let quants = here.map(|block| F::dot_quants(block));
                    for v in 0..4 {
                        let pairs = S8::transpose_pairs([quants[0][v], quants[1][v], quants[2][v], quants[3][v]]);
                        for (p, pair) in pairs.into_iter().enumerate() {
                            pair.store(to.as_mut_ptr().add(((4 * v + p) * 2 + half) * 8));
                        }
                    }
                    let at = b * PANEL_ROWS + 4 * half;
                    let (scale, offset) = F::scales(here);
                    scale.store(self.scales.as_mut()[at..at + 4].as_mut_ptr());
                    offset.store(self.offsets.as_mut()[at..at + 4].as_mut_ptr());
                }
            }
        }
    }
}

/// Many tokens: rows unpacked once, eight of them by four tokens at a time.
fn panels<F: Format>(matrix: &Matrix, x: &Fours, count: usize, target: &mut Target) -> Result<()> {
    let (width, blocks) = (matrix.inputs, matrix.inputs / BLOCK);
    let mut panel = Panel {
        values: Array::zeros(PANEL_ROWS * width)?,
        scales: Array::zeros(PANEL_ROWS * blocks)?,
        offsets: Array::zeros(PANEL_ROWS * blocks)?,
    };
    let mut sums = Array::zeros(4 * PANEL_ROWS * blocks)?;
    for first in (0..matrix.outputs).step_by(PANEL_ROWS) {
        panel.fill::<F>(matrix, first);
        let columns = PANEL_ROWS.min(matrix.outputs - first);
        for token in (0..count).step_by(4) {
            block_sums(&panel, x, blocks, token / 4, sums.as_mut());
            let products = scaled(&panel, x, blocks, token / 4, sums.as_slice());
            for (t, row) in products.chunks_exact(PANEL_ROWS).enumerate().take(count - token) {
                target.put(token + t, first, &row[..columns]);
            }
        }
    }
    Ok(())
}

/// Whole-number products of the panel's rows with four tokens, block by block: `sums`, `(blocks, 4, 8)`. The lanes of a
/// vector are rows, so that no sum crosses lanes. Apart from `scaled`, so that eight sums are all that asks for registers.
#[inline(never)]
fn block_sums(panel: &Panel, x: &Fours, blocks: usize, four: usize, sums: &mut [i32]) {
    let mut rows = panel.values.as_slice()[..blocks * BLOCK * PANEL_ROWS].as_ptr();
    let mut inputs = x.values.as_slice()[four * blocks * BLOCK * 4..(four + 1) * blocks * BLOCK * 4].as_ptr();
    for out in sums[..blocks * 4 * PANEL_ROWS].chunks_exact_mut(4 * PANEL_ROWS) {
        let mut sums = [[I4::new([0; 4]); 2]; 4];
        // SAFETY: for each block the panel has 32 vectors, the four tokens 16.
        unsafe {
            let end = inputs.add(4 * BLOCK);
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

/// Products `(4, 8)` of four tokens with the panel's rows, from what [`block_sums`] gives.
#[inline(never)]
fn scaled(panel: &Panel, x: &Fours, blocks: usize, four: usize, sums: &[i32]) -> [f32; 4 * PANEL_ROWS] {
    let (first, end) = (4 * four * blocks, 4 * (four + 1) * blocks);
    let input_scales = x.scales.as_slice()[first..end].chunks_exact(4);
    let inputs = input_scales.zip(x.sums.as_slice()[first..end].chunks_exact(4));
    let rows = panel.scales.as_slice().chunks_exact(PANEL_ROWS).zip(panel.offsets.as_slice().chunks_exact(PANEL_ROWS));
    let mut totals = [[F4::zero(); 2]; 4];
    for ((sums, (scales, offsets)), (input_scales, input_sums)) in
        sums.chunks_exact(4 * PANEL_ROWS).zip(rows).zip(inputs)
    {
        for half in 0..2 {
            // SAFETY: four floats or numbers each.
            unsafe {
                let (scale, offset) = (F4::load(scales[4 * half..].as_ptr()), F4::load(offsets[4 * half..].as_ptr()));
                for t in 0..4 {
                    let step = scale.mul(F4::splat(input_scales[t]));
                    let whole = I4::load(sums[t * PANEL_ROWS + 4 * half..].as_ptr()).to_floats();
                    totals[t][half] = totals[t][half].madd(whole, step).madd(offset, F4::splat(input_sums[t]));
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
