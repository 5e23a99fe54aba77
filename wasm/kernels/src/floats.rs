//! Weights in float32, float16 and bfloat16: a row as float32, and its product with one token's inputs as it stands.

use crate::blocks::half;
use crate::lanes::{F4, I4};

/// How numbers are stored.
pub trait Floating {
    const BYTES: usize;
    /// # Safety
    /// `p` is readable for four numbers.
    unsafe fn four(p: *const u8) -> F4;
    /// # Safety
    /// `p` is readable for one number.
    unsafe fn one(p: *const u8) -> f32;
}

pub struct Float32;
pub struct Float16;
pub struct Bfloat16;

impl Floating for Float32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn four(p: *const u8) -> F4 {
        F4::load(p as *const f32)
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        (p as *const f32).read_unaligned()
    }
}

impl Floating for Float16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn four(p: *const u8) -> F4 {
        F4::from_halves(I4::load_halves(p)).with_infinities()
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        F4::from_halves(I4::new([half(p); 4])).with_infinities().lanes()[0]
    }
}

impl Floating for Bfloat16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn four(p: *const u8) -> F4 {
        F4::from_bfloats(I4::load_halves(p))
    }
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        f32::from_bits((half(p) as u32) << 16)
    }
}

/// A row of `width` weights as float32.
///
/// # Safety
/// `row` is readable and `out` writable for them.
#[inline(never)]
pub unsafe fn widen<T: Floating>(row: *const u8, width: usize, out: *mut f32) {
    let whole = width / 4 * 4;
    for at in (0..whole).step_by(4) {
        T::four(row.add(at * T::BYTES)).store(out.add(at));
    }
    for at in whole..width {
        *out.add(at) = T::one(row.add(at * T::BYTES));
    }
}

/// Product of a row of `width` weights with as many inputs.
///
/// # Safety
/// Both are readable for `width` numbers.
#[inline(never)]
pub unsafe fn row_product<T: Floating>(row: *const u8, inputs: *const f32, width: usize) -> f32 {
    let mut sums = [F4::zero(); 4];
    let (whole, fours) = (width / 16 * 16, width / 4 * 4);
    for at in (0..whole).step_by(16) {
        let product = |sum: F4, v: usize| sum.madd(T::four(row.add((at + v) * T::BYTES)), F4::load(inputs.add(at + v)));
        sums = [product(sums[0], 0), product(sums[1], 4), product(sums[2], 8), product(sums[3], 12)];
    }
    for at in (whole..fours).step_by(4) {
        sums[0] = sums[0].madd(T::four(row.add(at * T::BYTES)), F4::load(inputs.add(at)));
    }
    let mut total = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
    for at in fours..width {
        total += T::one(row.add(at * T::BYTES)) * *inputs.add(at);
    }
    total
}
