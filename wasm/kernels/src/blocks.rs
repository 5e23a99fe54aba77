//! Tensor types in blocks of 32: a scale, for some a minimum, 32 small integers. Two 4-bit q share a byte, the low one
//! of the block's first half.

use crate::lanes::{FixedBytes, B16, F4, I4};
use crate::weights::{Format, Scales};

/// d, 16 bytes; d · (q − 8).
pub struct Q4_0;
/// d, m, 16 bytes; d · q + m.
pub struct Q4_1;
/// d, 32 fifth bits, 16 bytes; d · (q − 16).
pub struct Q5_0;
/// d, m, 32 fifth bits, 16 bytes; d · q + m.
pub struct Q5_1;
/// d, 32 int8; d · q.
pub struct Q8_0;
/// d, 16 bytes of places in a table of int8; d · q.
pub struct Iq4Nl;
/// One byte of exponent, 16 bytes of places in a table of doubled 4-bit floats and 12; 2^(e − 128) · (q − 12).
pub struct Mxfp4;

/// A float16's bits.
///
/// # Safety
/// `p` is readable for two bytes.
#[inline(always)]
pub unsafe fn half(p: *const u8) -> i32 {
    (p as *const u16).read_unaligned() as i32
}

/// # Safety
/// `p` is readable for four bytes.
#[inline(always)]
pub unsafe fn word(p: *const u8) -> u32 {
    (p as *const u32).read_unaligned()
}

/// The float16s at the beginning of four blocks, if finite.
#[inline(always)]
unsafe fn halves([a, b, c, d]: [*const u8; 4]) -> F4 {
    F4::from_halves(I4::new([half(a), half(b), half(c), half(d)]))
}

/// The pairs of float16s there: scales and minima, if finite.
#[inline(always)]
unsafe fn pairs([a, b, c, d]: [*const u8; 4]) -> Scales {
    let both = I4::new([word(a) as i32, word(b) as i32, word(c) as i32, word(d) as i32]);
    let [scale, minimum] = [F4::from_halves(both), F4::from_upper_halves(both)];
    Scales { scales: [scale; 4], minima: [minimum; 4] }
}

/// Low and high halves of 16 bytes.
#[inline(always)]
pub unsafe fn nibbles(p: *const u8) -> [B16; 2] {
    let bytes = B16::load(p);
    [bytes.and(B16::splat(15)), bytes.right(4).and(B16::splat(15))]
}

/// The same with fifth bits from `p`, then the bytes.
#[inline(always)]
unsafe fn fives(p: *const u8) -> [B16; 2] {
    let (fours, bits, sixteen) = (nibbles(p.add(4)), B16::load_bits(p), B16::splat(16));
    [0, 1].map(|half| fours[half].or(bits[half].and(sixteen)))
}

impl Format for Q4_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const ZERO: u8 = 8;
    const FINITE: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(2))
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        Scales::only([halves(blocks); 4])
    }
}

impl Format for Q4_1 {
    const BLOCK: usize = 32;
    const BYTES: usize = 20;
    const GROUP: usize = 32;
    const MINIMA: bool = true;
    const FINITE: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(4))
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        pairs(blocks)
    }
}

impl Format for Q5_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 22;
    const GROUP: usize = 32;
    const ZERO: u8 = 16;
    const MOST: i32 = 31;
    const FINITE: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        fives(p.add(2))
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        Scales::only([halves(blocks); 4])
    }
}

impl Format for Q5_1 {
    const BLOCK: usize = 32;
    const BYTES: usize = 24;
    const GROUP: usize = 32;
    const MINIMA: bool = true;
    const MOST: i32 = 31;
    const FINITE: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        fives(p.add(4))
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        pairs(blocks)
    }
}

impl Format for Q8_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const SIGNED: bool = true;
    const FINITE: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        [B16::load(p.add(2)), B16::load(p.add(18))]
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        Scales::only([halves(blocks); 4])
    }
}

/// The table of IQ4_NL and IQ4_XS: int8.
static VALUES: FixedBytes = FixedBytes::new([129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113]);
/// Twice the 4-bit floats (a sign, two bits of exponent, one of mantissa), and 12.
static DOUBLES: FixedBytes = FixedBytes::new([12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0]);

/// The q of 16 bytes of places in [`VALUES`].
#[inline(always)]
pub unsafe fn values(p: *const u8) -> [B16; 2] {
    nibbles(p).map(|places| B16::fixed(&VALUES).look_up(places))
}

impl Format for Iq4Nl {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const SIGNED: bool = true;
    const FINITE: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        values(p.add(2))
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        Scales::only([halves(blocks); 4])
    }
}

/// 2^(e − 128), the half of what the exponent says.
fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

impl Format for Mxfp4 {
    const BLOCK: usize = 32;
    const BYTES: usize = 17;
    const GROUP: usize = 32;
    const ZERO: u8 = 12;
    const MOST: i32 = 24;

    #[inline(always)]
    unsafe fn slice(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(1)).map(|places| B16::fixed(&DOUBLES).look_up(places))
    }
    #[inline(always)]
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales {
        let each = blocks.map(|p| half_power(*p));
        Scales::only([F4::load(each.as_ptr()); 4])
    }
}
