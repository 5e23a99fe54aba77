//! Products of quantised weights with the inputs of many tokens in int8, where one instruction multiplies sixteen bytes
//! and adds neighbours: eight rows are unpacked once and meet four tokens at a time, in sums of int16 that are taken up
//! before they are full, or in sums of int32.
//!
//! A lane of 32 bits is four inputs of a row. Inputs are spread from registers, because a load costs three instructions
//! where the engine checks its bounds.

use crate::dense::{Matrix, Target};
use crate::inputs::ByteInputs;
use crate::lanes::{B16, I4, S8};
use crate::memory::{Array, Result};
use crate::weights::Codec;
use crate::woven::{Panel, ROWS};

/// Tokens that meet a panel together.
const TOKENS: usize = 4;

/// `target[t] = matrix · inputs[t]` for `count` rows `(count, inputs)`.
pub fn byte_panels(
    codec: &Codec,
    matrix: &Matrix,
    inputs: &[f32],
    count: usize,
    wide: bool,
    target: &mut Target,
) -> Result<()> {
    let x = ByteInputs::new(inputs, matrix.inputs, codec.group, TOKENS)?;
    let mut panel = Panel::new(matrix.inputs, codec, true)?;
    let mut sums = Array::zeros(TOKENS * ROWS * matrix.inputs / codec.group)?;
    matrix.each_eight(codec, |first, woven| {
        // SAFETY: whole blocks of eight rows.
        unsafe { (codec.unpack)(woven, matrix.inputs / codec.block, &mut panel) };
        let columns = ROWS.min(matrix.outputs - first);
        for token in (0..count).step_by(TOKENS) {
            let x_values = &x.values.as_slice()[token * x.width..(token + TOKENS) * x.width];
            group_sums(codec, panel.values.as_slice(), x_values, x.width, wide, sums.as_mut());
            let at = token * x.width / codec.group;
            let (input_scales, input_sums) = (&x.scales.as_slice()[at..], &x.sums.as_slice()[at..]);
            let products = panel.scaled(input_scales, input_sums, sums.as_slice(), true);
            for (t, row) in products.chunks_exact(ROWS).enumerate().take(count - token) {
                target.put(token + t, first, &row[..columns]);
            }
        }
    })
}

/// Whole-number products of the panel's rows with four tokens, group by group: `sums`, `(groups, 4, 8)`.
fn group_sums(codec: &Codec, panel: &[u8], inputs: &[u8], width: usize, wide: bool, sums: &mut [i32]) {
    assert!(panel.len() == ROWS * width && inputs.len() == TOKENS * width);
    assert!(sums.len() * codec.group <= panel.len() * TOKENS && sums.len() % (TOKENS * ROWS) == 0);
    // SAFETY: the lengths above.
    unsafe {
        let (panel, inputs) = (panel.as_ptr(), inputs.as_ptr());
        match (codec.full, codec.group) {
            (_, 16) if wide => wide_sums_of::<16>(panel, inputs, width, sums),
            _ if wide => wide_sums_of::<32>(panel, inputs, width, sums),
            (8, _) => sums_of::<8, 16>(panel, inputs, width, sums),
            (_, 16) => sums_of::<16, 16>(panel, inputs, width, sums),
            (16, _) => sums_of::<16, 32>(panel, inputs, width, sums),
            _ => sums_of::<32, 32>(panel, inputs, width, sums),
        }
    }
}

/// `[token][half of the rows]`, in int16 or in int32.
type Sums<S> = [[S; 2]; TOKENS];

/// What products of bytes are added to.
trait Sum: Copy {
    fn add_dot(self, row: B16, four: B16) -> Self;
}

impl Sum for S8 {
    #[inline(always)]
    fn add_dot(self, row: B16, four: B16) -> Self {
        self.add(row.dot(four))
    }
}

impl Sum for I4 {
    #[inline(always)]
    fn add_dot(self, row: B16, four: B16) -> Self {
        row.dot_add(four, self)
    }
}

/// `FULL`: inputs after which sums in int16 are full.
///
/// # Safety
/// `panel`: `(width / 4, 2, 4, 4)`; `inputs`: `(4, width)`; groups of `sums`: `width` / `GROUP` at most.
#[inline(never)]
unsafe fn sums_of<const FULL: usize, const GROUP: usize>(
    mut panel: *const u8,
    mut inputs: *const u8,
    width: usize,
    sums: &mut [i32],
) {
    for out in sums.chunks_exact_mut(TOKENS * ROWS) {
        let mut totals: Sums<I4> = [[I4::new([0; 4]); 2]; TOKENS];
        let mut part: Sums<S8> = [[S8::zero(); 2]; TOKENS];
        for sixteen in 0..GROUP / 16 {
            let x = [0, 1, 2, 3].map(|t| B16::load(inputs.add(t * width)));
            step::<_, 0>(&mut part, panel, &x);
            step::<_, 1>(&mut part, panel.add(32), &x);
            if FULL == 8 {
                take_up(&mut totals, &mut part);
            }
            step::<_, 2>(&mut part, panel.add(64), &x);
            step::<_, 3>(&mut part, panel.add(96), &x);
            if FULL <= 16 || 16 * (sixteen + 1) == GROUP {
                take_up(&mut totals, &mut part);
            }
            (panel, inputs) = (panel.add(16 * ROWS), inputs.add(16));
        }
        for (i, total) in totals.as_flattened().iter().enumerate() {
            total.store(out.as_mut_ptr().add(4 * i));
        }
    }
}

/// The same in sums of int32 throughout.
///
/// # Safety
/// As [`sums_of`].
#[inline(never)]
unsafe fn wide_sums_of<const GROUP: usize>(
    mut panel: *const u8,
    mut inputs: *const u8,
    width: usize,
    sums: &mut [i32],
) {
    for out in sums.chunks_exact_mut(TOKENS * ROWS) {
        let mut totals: Sums<I4> = [[I4::new([0; 4]); 2]; TOKENS];
        for _ in 0..GROUP / 16 {
            let x = [0, 1, 2, 3].map(|t| B16::load(inputs.add(t * width)));
            step::<_, 0>(&mut totals, panel, &x);
            step::<_, 1>(&mut totals, panel.add(32), &x);
            step::<_, 2>(&mut totals, panel.add(64), &x);
            step::<_, 3>(&mut totals, panel.add(96), &x);
            (panel, inputs) = (panel.add(16 * ROWS), inputs.add(16));
        }
        for (i, total) in totals.as_flattened().iter().enumerate() {
            total.store(out.as_mut_ptr().add(4 * i));
        }
    }
}

/// Adds the products of four inputs.
#[inline(always)]
unsafe fn step<S: Sum, const I: usize>(sums: &mut Sums<S>, panel: *const u8, x: &[B16; TOKENS]) {
    let rows = [B16::load(panel), B16::load(panel.add(16))];
    for (sums, x) in sums.iter_mut().zip(x) {
        let four = x.spread::<I>();
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum = sum.add_dot(row, four);
        }
    }
}

#[inline(always)]
fn take_up(totals: &mut Sums<I4>, part: &mut Sums<S8>) {
    for (totals, part) in totals.iter_mut().zip(part) {
        for (total, part) in totals.iter_mut().zip(part) {
            *total = total.add(part.pair_sums());
            *part = S8::zero();
        }
    }
}
