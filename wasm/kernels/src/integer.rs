//! Products of quantised weights with inputs in int16: each block of 32 inputs gets one scale (off by at most 2⁻¹⁶ of the
//! block's largest), products and sums of a block are whole numbers, and each block's scales meet in one float32
//! multiply-add. One token reads the packed weights as they stream by; more tokens share rows unpacked to int16.

use crate::dense::{Matrix, Target};
use crate::lanes::{F4, I4, S8};
use crate::memory::{Array, Result};
use crate::weights::{Format, BLOCK};

/// Rows unpacked at a time; with the inputs of two tokens they fit a first-level cache up to 1536 inputs.
const PANEL_ROWS: usize = 8;
/// Tokens from which on unpacking rows once beats reading them packed for each.
const MANY: usize = 6;

/// Inputs in blocks of int16; each token's blocks are padded to whole fours by zeros.
struct Quantised {
    /// Blocks of a token, padding included.
    blocks: usize,
    /// `(count, 32 · blocks)`
    values: Array<i16>,
    /// `(count, blocks)`
    scales: Array<f32>,
    /// Sums of the quantised inputs of each block, `(count, blocks)`.
    sums: Array<f32>,
}

/// `inputs`: `(count, width)`. `twined`: each block in the order of `S8::twine`.
fn quantise(inputs: &[f32], width: usize, twined: bool) -> Result<Quantised> {
    let (own, blocks) = (width / BLOCK, (width / BLOCK).next_multiple_of(4));
    let count = inputs.len() / width;
    let mut quantised = Quantised {
        blocks,
        values: Array::zeros(count * blocks * BLOCK)?,
        scales: Array::zeros(count * blocks)?,
        sums: Array::zeros(count * blocks)?,
    };
    let ones = S8::narrow(I4::new([1; 4]), I4::new([1; 4]));
    for (index, block) in inputs.chunks_exact(BLOCK).enumerate() {
        let b = index / own * blocks + index % own;
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
            let eights =
                [0, 1, 2, 3].map(|v| S8::narrow(x[2 * v].mul(inverse).round(), x[2 * v + 1].mul(inverse).round()));
            for (v, eight) in (if twined { S8::twine(eights) } else { eights }).into_iter().enumerate() {
                total = total.add(eight.dot(ones));
                eight.store(out.as_mut_ptr().add(8 * v));
            }
            quantised.scales.as_mut()[b] = scale;
            quantised.sums.as_mut()[b] = scale * total.sum() as f32;
        }
    }
    Ok(quantised)
}

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn integer_product<F: Format>(matrix: &Matrix, inputs: &[f32], count: usize, target: &mut Target) -> Result<()> {
    let x = quantise(&inputs[..count * matrix.inputs], matrix.inputs, F::TWINED)?;
    if count >= MANY {
        return panels::<F>(matrix, &x, count, target);
    }
    for token in 0..count {
        stream::<F>(matrix, &x, token, target);
    }
    Ok(())
}

/// One token: row after row, straight from the packed blocks, four blocks at a time. (Four rows at a time need fewer
/// instructions, but past the caches the hardware does not fetch four streams ahead: half as fast, measured.)
fn stream<F: Format>(matrix: &Matrix, x: &Quantised, token: usize, target: &mut Target) {
    let blocks = matrix.inputs / BLOCK;
    for (n, row) in matrix.bytes.chunks_exact(blocks * F::BYTES).enumerate() {
        let mut sums = [F4::zero(); 2];
        // SAFETY: the row has `blocks` blocks; inputs, scales and sums of inputs are padded to whole fours by zeros.
        unsafe {
            let first = token * x.blocks;
            let mut input = x.values.as_slice()[first * BLOCK..].as_ptr();
            let (mut scales, mut offsets) =
                (x.scales.as_slice()[first..].as_ptr(), x.sums.as_slice()[first..].as_ptr());
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
                        for (v, eight) in F::dot_quants(row).into_iter().enumerate() {
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
                    target.put(t, column, &a.lanes()[..lanes]);
                    target.put(t + 1, column, &b.lanes()[..lanes]);
                } else {
                    let [a] = four_by::<1>(&panel, half, x, t, width);
                    target.put(t, column, &a.lanes()[..lanes]);
                }
            }
        }
    }
    Ok(())
}

/// Four rows of the panel times `T` tokens. One copy for all formats.
#[inline(never)]
fn four_by<const T: usize>(panel: &Panel, half: usize, x: &Quantised, token: usize, width: usize) -> [F4; T] {
    let blocks = width / BLOCK;
    let rows = panel.values.as_slice()[4 * half * width..(4 * half + 4) * width].as_ptr();
    let scales = panel.scales.as_slice()[half * blocks * 4..(half + 1) * blocks * 4].as_ptr();
    let offsets = panel.offsets.as_slice()[half * blocks * 4..(half + 1) * blocks * 4].as_ptr();
    let (first, end) = (token * x.blocks, (token + T) * x.blocks);
    let inputs = x.values.as_slice()[first * BLOCK..end * BLOCK].as_ptr();
    let input_scales = x.scales.as_slice()[first..end].as_ptr();
    let input_sums = x.sums.as_slice()[first..end].as_ptr();
    let mut totals = [F4::zero(); T];
    for b in 0..blocks {
        let mut sums = [[I4::new([0; 4]); 4]; T];
        for v in 0..4 {
            let at = b * BLOCK + 8 * v;
            // SAFETY: within a row of `width` int16 each.
            unsafe {
                let input: [S8; T] = core::array::from_fn(|t| S8::load(inputs.add(t * x.blocks * BLOCK + at)));
                for r in 0..4 {
                    let row = S8::load(rows.add(r * width + at));
                    for t in 0..T {
                        sums[t][r] = sums[t][r].add(row.dot(input[t]));
                    }
                }
            }
        }
        // SAFETY: four scales and offsets for each block of the panel, one of each for each of a token.
        unsafe {
            let (scale, offset) = (F4::load(scales.add(4 * b)), F4::load(offsets.add(4 * b)));
            for t in 0..T {
                let [a, b0, c, d] = sums[t];
                let whole = I4::sums(a, b0, c, d).to_floats();
                let step = scale.mul(F4::load_splat(input_scales.add(t * x.blocks + b)));
                let sum = F4::load_splat(input_sums.add(t * x.blocks + b));
                totals[t] = totals[t].madd(whole, step).madd(offset, sum);
            }
        }
    }
    totals
}
