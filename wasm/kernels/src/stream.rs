//! Products of quantised weights with the inputs of one token: row after row, straight from the packed blocks as they
//! stream by, one unit at a time. The arithmetic of a group is in whole numbers; each group's scales meet in one float32
//! multiply-add.
//!
//! (Four rows at a time need fewer instructions, but past the caches the hardware does not fetch four streams ahead:
//! half as fast, measured.)

use crate::dense::Target;
use crate::inputs::{ByteInputs, Single};
use crate::lanes::{B16, F4, I4, S8};
use crate::weights::{byte_inputs, slices, unit_blocks, unit_slice, with_zero, Format, SLICE};

/// How inputs are stored: int16 in the order of `S8::twine`, or int8.
trait Stored: Copy {
    /// Products of both halves of a slice with 32 inputs, in four partial sums each. Where the halves are one group the
    /// second sums are zero and the first all.
    ///
    /// # Safety
    /// `inputs` is readable for 32 numbers.
    unsafe fn dots<F: Format>(quants: [B16; 2], inputs: *const Self) -> [I4; 2];
}

impl Stored for i16 {
    #[inline(always)]
    unsafe fn dots<F: Format>([a, b]: [B16; 2], inputs: *const i16) -> [I4; 2] {
        let input = |v: usize| S8::load(inputs.add(8 * v));
        let ([a, b], [c, d]) = (a.twined(F::SIGNED), b.twined(F::SIGNED));
        let (first, second) = (a.dot(input(0)).add(b.dot(input(1))), c.dot(input(2)).add(d.dot(input(3))));
        if F::GROUP == SLICE {
            [first.add(second), I4::new([0; 4])]
        } else {
            [first, second]
        }
    }
}

impl Stored for u8 {
    #[inline(always)]
    unsafe fn dots<F: Format>([a, b]: [B16; 2], inputs: *const u8) -> [I4; 2] {
        let (first, second) = (a.dot(B16::load(inputs)), b.dot(B16::load(inputs.add(16))));
        if F::GROUP == SLICE {
            // At most 4 · 63 · 127: that fits int16.
            [first.add(second).pair_sums(), I4::new([0; 4])]
        } else {
            [first.pair_sums(), second.pair_sums()]
        }
    }
}

/// Where the inputs of a unit are.
#[derive(Clone, Copy)]
struct Inputs<T> {
    values: *const T,
    scales: *const f32,
    sums: *const f32,
}

impl<T: Stored> Inputs<T> {
    #[inline(always)]
    unsafe fn after(self, slices: usize, group: usize) -> Self {
        let groups = slices * SLICE / group;
        Inputs { values: self.values.add(slices * SLICE), scales: self.scales.add(groups), sums: self.sums.add(groups) }
    }
}

/// Column `n` of row `token` of the target: product of row `n`, of `blocks` blocks, with the inputs.
pub fn stream<F: Format>(rows: &[u8], blocks: usize, x: &Single, token: usize, target: &mut Target) {
    if const { byte_inputs::<F>() } {
        return;
    }
    let inputs = Inputs {
        values: x.values.as_slice().as_ptr(),
        scales: x.scales.as_slice().as_ptr(),
        sums: x.sums.as_slice().as_ptr(),
    };
    stream_rows::<F, i16>(rows, blocks, inputs, token, target);
}

/// The same for formats with int8 inputs.
pub fn stream_bytes<F: Format>(rows: &[u8], blocks: usize, x: &ByteInputs, token: usize, target: &mut Target) {
    if const { !byte_inputs::<F>() } {
        return;
    }
    let inputs = Inputs {
        values: x.values.as_slice().as_ptr(),
        scales: x.scales.as_slice().as_ptr(),
        sums: x.sums.as_slice().as_ptr(),
    };
    stream_rows::<F, u8>(rows, blocks, inputs, token, target);
}

/// `inputs`: padded to whole units by zeros, as are scales and sums of inputs.
#[inline(always)]
fn stream_rows<F: Format, T: Stored>(rows: &[u8], blocks: usize, first: Inputs<T>, token: usize, target: &mut Target) {
    let slices = const { slices::<F>() };
    let (whole, units) = (blocks * F::BLOCK / (slices * SLICE), (blocks * F::BLOCK).div_ceil(slices * SLICE));
    for (n, row) in rows.chunks_exact(blocks * F::BYTES).enumerate() {
        let mut sums = [F4::zero(); 3];
        // SAFETY: the row has `blocks` blocks; inputs, scales and sums of inputs are padded to whole units by zeros.
        unsafe {
            let mut inputs = first;
            let mut at = row.as_ptr();
            let bytes = F::BYTES * slices * SLICE / F::BLOCK;
            let end = at.add(whole * bytes);
            while at < end {
                let next = |b: usize| at.add(b * F::BYTES);
                let here = if F::BLOCK == SLICE { [next(0), next(1), next(2), next(3)] } else { [at; 4] };
                unit::<F, T>(here, inputs, &mut sums);
                at = at.add(bytes);
                inputs = inputs.after(slices, F::GROUP);
            }
            if units > whole {
                unit::<F, T>(unit_blocks::<F>(row.as_ptr(), whole, blocks), inputs, &mut sums);
            }
        }
        let scaled = if F::GROUP < SLICE { sums[0].add(sums[2]) } else { sums[0] };
        target.put(token, n, &[scaled.add(sums[1]).sum()]);
    }
}

/// Adds a unit's products with its inputs: scaled integers to `sums[0]` and `sums[2]`, what is added to weights times
/// sums of inputs to `sums[1]`.
#[inline(always)]
unsafe fn unit<F: Format, T: Stored>(blocks: [*const u8; 4], x: Inputs<T>, sums: &mut [F4; 3]) {
    let own = F::scales(blocks);
    let added = |v: usize| with_zero::<F>(own.scales[v], own.minima[v]);
    let dots = |s: usize| T::dots::<F>(unit_slice::<F>(blocks, s), x.values.add(s * SLICE));
    // Written out: as a loop over the slices LLVM keeps it, through memory.
    macro_rules! four_groups {
        ($v:literal) => {{
            let step = own.scales[$v].mul(F4::load(x.scales.add(4 * $v)));
            let [a, b, c, d] = if F::GROUP == SLICE {
                let dot = |s: usize| dots(s)[0];
                [dot(4 * $v), dot(4 * $v + 1), dot(4 * $v + 2), dot(4 * $v + 3)]
            } else {
                let ([a, b], [c, d]) = (dots(2 * $v), dots(2 * $v + 1));
                [a, b, c, d]
            };
            // Two sums where there are many groups, so that they don't wait for each other.
            let other = if F::GROUP < SLICE { 2 } else { 0 };
            sums[0] = sums[0].madd(a.to_floats(), step.spread::<0>());
            sums[other] = sums[other].madd(b.to_floats(), step.spread::<1>());
            sums[0] = sums[0].madd(c.to_floats(), step.spread::<2>());
            sums[other] = sums[other].madd(d.to_floats(), step.spread::<3>());
            if F::MINIMA || F::ZERO > 0 {
                sums[1] = sums[1].madd(added($v), F4::load(x.sums.add(4 * $v)));
            }
        }};
    }
    four_groups!(0);
    if const { slices::<F>() * SLICE / F::GROUP } >= 8 {
        four_groups!(1);
    }
    if const { slices::<F>() * SLICE / F::GROUP } == 16 {
        four_groups!(2);
        four_groups!(3);
    }
}
