//! Tensor types in blocks of 32: a scale, for some a minimum, 32 small integers. Two 4-bit q share a byte, the low one
//! of the block's first half.

use crate::lanes::{FixedBytes, B16, F4, I4};
use crate::weights::{Format, Scales};
use crate::woven::{side_by_side, ROWS};

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

/// Eight float16s of woven blocks, if finite.
#[inline(always)]
unsafe fn halves(p: *const u8) -> [F4; 2] {
    [F4::from_halves(I4::load_halves(p)), F4::from_halves(I4::load_halves(p.add(8)))]
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

/// Float16s at the beginning of the blocks and, for pairs, right behind. Whether one is infinite or no number.
unsafe fn weave_halves(blocks: [*const u8; ROWS], to: *mut u8, count: usize) -> bool {
    let mut infinite = false;
    for i in 0..count {
        side_by_side(blocks.map(|p| p.add(2 * i)), 2, to.add(16 * i));
        infinite |= blocks.iter().any(|p| half(p.add(2 * i)) & 0x7c00 == 0x7c00);
    }
    infinite
}

/// What formats in blocks of 32 with float16 scales have in common.
macro_rules! halves {
    (scale) => {
        unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
            weave_halves(blocks, to, 1)
        }
        #[inline(always)]
        unsafe fn own(woven: *const u8) -> Scales {
            Scales::only(halves(woven))
        }
    };
    (scale and minimum) => {
        unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
            weave_halves(blocks, to, 2)
        }
        #[inline(always)]
        unsafe fn own(woven: *const u8) -> Scales {
            Scales { scales: halves(woven), minima: halves(woven.add(16)) }
        }
    };
}

impl Format for Q4_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const ZERO: u8 = 8;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(2))
    }
    halves!(scale);
}

impl Format for Q4_1 {
    const BLOCK: usize = 32;
    const BYTES: usize = 20;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const MINIMA: bool = true;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(4))
    }
    halves!(scale and minimum);
}

impl Format for Q5_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 22;
    const GROUP: usize = 32;
    const BITS: usize = 5;
    const ZERO: u8 = 16;
    const MOST: i32 = 31;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        fives(p.add(2))
    }
    halves!(scale);
}

impl Format for Q5_1 {
    const BLOCK: usize = 32;
    const BYTES: usize = 24;
    const GROUP: usize = 32;
    const BITS: usize = 5;
    const MINIMA: bool = true;
    const MOST: i32 = 31;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        fives(p.add(4))
    }
    halves!(scale and minimum);
}

impl Format for Q8_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const BITS: usize = 8;
    const SIGNED: bool = true;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        [B16::load(p.add(2)), B16::load(p.add(18))]
    }
    halves!(scale);
}

/// The table of IQ4_NL and IQ4_XS: int8.
static VALUES: FixedBytes = FixedBytes::new([129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113]);
/// Twice the 4-bit floats (a sign, two bits of exponent, one of mantissa), and 12.
static DOUBLES: FixedBytes = FixedBytes::new([12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0]);

/// The q of places in [`VALUES`].
#[inline(always)]
pub fn values(places: B16) -> B16 {
    B16::fixed(&VALUES).look_up(places)
}

impl Format for Iq4Nl {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const SIGNED: bool = true;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(2))
    }
    #[inline(always)]
    fn values(places: B16) -> B16 {
        values(places)
    }
    halves!(scale);
}

/// 2^(e − 128), the half of what the exponent says.
fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

impl Format for Mxfp4 {
    const BLOCK: usize = 32;
    const BYTES: usize = 17;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const ZERO: u8 = 12;
    const HALVES: bool = false;
    const MOST: i32 = 24;

    unsafe fn places(p: *const u8, _: usize) -> [B16; 2] {
        nibbles(p.add(1))
    }
    #[inline(always)]
    fn values(places: B16) -> B16 {
        B16::fixed(&DOUBLES).look_up(places)
    }
    unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
        side_by_side(blocks, 1, to);
        false
    }
    #[inline(always)]
    unsafe fn own(woven: *const u8) -> Scales {
        let each: [f32; ROWS] = core::array::from_fn(|r| half_power(*woven.add(r)));
        Scales::only([F4::load(each.as_ptr()), F4::load(each.as_ptr().add(4))])
    }
}
