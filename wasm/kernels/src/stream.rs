//! Products of quantised weights with the inputs of one token: row after row, straight from the packed blocks as they
//! stream by, one unit at a time. The arithmetic of a group is in whole numbers; each group's scales meet in one float32
//! multiply-add.
//!
//! (Four rows at a time need fewer instructions, but past the caches the hardware does not fetch four streams ahead:
//! half as fast, measured.)

use crate::dense::Target;
use crate::inputs::Single;
use crate::lanes::{F4, I4, S8};
use crate::weights::{slices, unit_blocks, unit_slice, Format, SLICE};

/// Where the inputs of a unit are.
#[derive(Clone, Copy)]
struct Inputs {
    values: *const i16,
    scales: *const f32,
    sums: *const f32,
}

impl Inputs {
    #[inline(always)]
    unsafe fn after(self, slices: usize, group: usize) -> Self {
        let groups = slices * SLICE / group;
        Inputs { values: self.values.add(slices * SLICE), scales: self.scales.add(groups), sums: self.sums.add(groups) }
    }
}

/// Column `n` of row `token` of the target: product of row `n`, of `blocks` blocks, with the inputs.
pub fn stream<F: Format>(rows: &[u8], blocks: usize, x: &Single, token: usize, target: &mut Target) {
    let slices = const { slices::<F>() };
    let (whole, units) = (blocks * F::BLOCK / (slices * SLICE), (blocks * F::BLOCK).div_ceil(slices * SLICE));
    for (n, row) in rows.chunks_exact(blocks * F::BYTES).enumerate() {
        let mut sums = [F4::zero(); 2];
        // SAFETY: the row has `blocks` blocks; inputs, scales and sums of inputs are padded to whole units by zeros.
        unsafe {
            let mut inputs = Inputs {
                values: x.values.as_slice().as_ptr(),
                scales: x.scales.as_slice().as_ptr(),
                sums: x.sums.as_slice().as_ptr(),
            };
            let mut at = row.as_ptr();
            let bytes = F::BYTES * slices * SLICE / F::BLOCK;
            let end = at.add(whole * bytes);
            while at < end {
                let next = |b: usize| at.add(b * F::BYTES);
                let here = if F::BLOCK == SLICE { [next(0), next(1), next(2), next(3)] } else { [at; 4] };
                unit::<F>(here, inputs, &mut sums);
                at = at.add(bytes);
                inputs = inputs.after(slices, F::GROUP);
            }
            if units > whole {
                unit::<F>(unit_blocks::<F>(row.as_ptr(), whole, blocks), inputs, &mut sums);
            }
        }
        target.put(token, n, &[sums[0].add(sums[1]).sum()]);
    }
}

/// Adds a unit's products with its inputs: scaled integers to `sums[0]`, what is added to weights times sums of inputs
/// to `sums[1]`.
#[inline(always)]
unsafe fn unit<F: Format>(blocks: [*const u8; 4], x: Inputs, sums: &mut [F4; 2]) {
    let own = F::scales(blocks);
    let added = |v: usize| own.minima[v].madd(own.scales[v], F4::splat(-(F::ZERO as f32)));
    // Written out: as a loop over the slices LLVM keeps it, through memory.
    macro_rules! four_groups {
        ($v:literal) => {{
            let step = own.scales[$v].mul(F4::load(x.scales.add(4 * $v)));
            let [a, b, c, d] = if F::GROUP == SLICE {
                let dot = |s: usize| {
                    let [a, b] = slice_dots::<F>(blocks, s, x.values.add(s * SLICE));
                    a.add(b)
                };
                [dot(4 * $v), dot(4 * $v + 1), dot(4 * $v + 2), dot(4 * $v + 3)]
            } else {
                let dots = |s: usize| slice_dots::<F>(blocks, s, x.values.add(s * SLICE));
                let ([a, b], [c, d]) = (dots(2 * $v), dots(2 * $v + 1));
                [a, b, c, d]
            };
            sums[0] = sums[0]
                .madd(a.to_floats(), step.spread::<0>())
                .madd(b.to_floats(), step.spread::<1>())
                .madd(c.to_floats(), step.spread::<2>())
                .madd(d.to_floats(), step.spread::<3>());
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

/// Products of both halves of a slice with 32 inputs, in four partial sums each.
#[inline(always)]
unsafe fn slice_dots<F: Format>(blocks: [*const u8; 4], s: usize, inputs: *const i16) -> [I4; 2] {
    let [a, b] = unit_slice::<F>(blocks, s);
    let input = |v: usize| S8::load(inputs.add(8 * v));
    let ([a, b], [c, d]) = (a.twined(F::SIGNED), b.twined(F::SIGNED));
    [a.dot(input(0)).add(b.dot(input(1))), c.dot(input(2)).add(d.dot(input(3)))]
}
