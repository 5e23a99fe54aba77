//! Exponential and logarithm on four lanes.

use crate::lanes::{Fixed, F4, WHOLE};

/// log₂ e.
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// Adding it leaves the nearest whole number in the low mantissa bits.
static ROUND: Fixed = Fixed::new(WHOLE);
/// Least-squares fit of 2^f on [−½, ½], relative error 2e−9 before rounding; highest power first.
static EXP2: [Fixed; 7] = [
    Fixed::new(0.000_153_375_76),
    Fixed::new(0.001_339_986),
    Fixed::new(0.009_618_52),
    Fixed::new(0.055_503_29),
    Fixed::new(0.240_226_47),
    Fixed::new(core::f32::consts::LN_2),
    Fixed::new(1.0),
];
static LOWEST: Fixed = Fixed::new(-126.0);
/// ln(1 + x) = x − x²/2 + x³ · Σ cᵢ xⁱ on [√½ − 1, √2 − 1] (the coefficients of Cephes `logf`).
const LN: [f32; 9] = [
    3.333_333_1e-1,
    -2.499_999_4e-1,
    2.000_071_4e-1,
    -1.666_805_7e-1,
    1.424_932_3e-1,
    -1.242_014_1e-1,
    1.167_699_9e-1,
    -1.151_461e-1,
    7.037_683_6e-2,
];

/// 2^x for x ≤ 127; exactly 0 below −126 (and for −∞), within 2 ulp otherwise. Two vectors at a time share the numbers
/// read and hide each other's waiting.
#[inline(always)]
pub fn exp2s<const N: usize>(x: [F4; N]) -> [F4; N] {
    let round = F4::fixed(&ROUND);
    let n = x.map(|x| x.add(round));
    let f: [F4; N] = core::array::from_fn(|i| x[i].sub(n[i].sub(round)));
    let mut p = [F4::fixed(&EXP2[0]); N];
    for c in &EXP2[1..] {
        let c = F4::fixed(c);
        p = core::array::from_fn(|i| c.madd(p[i], f[i]));
    }
    let low = F4::fixed(&LOWEST);
    core::array::from_fn(|i| p[i].scale_exponent(n[i], x[i], low))
}

/// [`exp2s`] of one vector.
#[inline(always)]
pub fn exp2(x: F4) -> F4 {
    exp2s([x])[0]
}

/// One lane of [`exp2`], so that scalars and vectors round alike.
#[inline(always)]
pub fn exp2_one(x: f32) -> f32 {
    exp2(F4::splat(x)).lanes()[0]
}

/// ln x for positive normal x, within 2 ulp.
#[inline(always)]
pub fn ln(x: F4) -> F4 {
    let (mantissa, exponent) = x.split_exponent();
    let x = mantissa.sub(F4::splat(1.0));
    let mut p = F4::splat(LN[8]);
    for i in (0..8).rev() {
        p = F4::splat(LN[i]).madd(p, x);
    }
    let square = x.mul(x);
    let tail = p.mul(x).mul(square).madd(square, F4::splat(-0.5)).madd(exponent, F4::splat(-2.121_944_4e-4));
    x.add(tail).madd(exponent, F4::splat(0.693_359_4))
}
