//! Tensor types in blocks of 256: eight slices of 32 whose groups have small integer scales under one float16.

use crate::blocks::{half, values, word};
use crate::lanes::{B16, F4, I4};
use crate::weights::{Format, Scales};

/// 16 bytes of 4-bit scales s (low) and minima m (high) of 16 weights each, 64 bytes of 2-bit q, d, dmin;
/// d · s · q − dmin · m.
pub struct Q2K;
/// 32 bytes of third bits, 64 bytes of their lower two, 12 bytes of 6-bit scales s of 16 weights each, d;
/// d · (s − 32) · (q − 4).
pub struct Q3K;
/// d, dmin, 12 bytes of 6-bit scales s and minima m of 32 weights each, 128 bytes of 4-bit q; d · s · q − dmin · m.
pub struct Q4K;
/// The same with 32 bytes of fifth bits before the 4-bit q.
pub struct Q5K;
/// 128 bytes of lower 4 bits, 64 of the upper 2, 16 int8 scales s of 16 weights each, d; d · s · (q − 32).
pub struct Q6K;
/// d, 16 bits with the upper 2 bits of the scales s, 4 bytes with their lower 4, 128 bytes of places in IQ4_NL's table;
/// d · (s − 32) · q.
pub struct Iq4Xs;

/// A float16 in all lanes.
#[inline(always)]
unsafe fn spread_half(p: *const u8) -> F4 {
    F4::from_any_halves(I4::new([half(p); 4]))
}

/// Two bits of each byte, `by` from the right.
#[inline(always)]
fn two_bits(bytes: B16, by: u32) -> B16 {
    bytes.right(by).and(B16::splat(3))
}

/// Bit `bit` of each byte where bit `to` is.
#[inline(always)]
fn one_bit(bytes: B16, bit: usize, to: usize) -> B16 {
    let moved = if bit > to { bytes.right((bit - to) as u32) } else { bytes.left((to - bit) as u32) };
    moved.and(B16::splat(1 << to))
}

/// Both halves of the 32 bytes at `p`.
#[inline(always)]
unsafe fn both(p: *const u8) -> [B16; 2] {
    [B16::load(p), B16::load(p.add(16))]
}

/// The 4-bit q of slice `s`: pairs of slices share 32 bytes.
#[inline(always)]
unsafe fn fours(p: *const u8, s: usize) -> [B16; 2] {
    both(p.add(s / 2 * 32)).map(|bytes| bytes.right(s as u32 % 2 * 4).and(B16::splat(15)))
}

/// The 2-bit q of slice `s`: four slices share 32 bytes.
#[inline(always)]
unsafe fn twos(p: *const u8, s: usize) -> [B16; 2] {
    both(p.add(s / 4 * 32)).map(|bytes| two_bits(bytes, s as u32 % 4 * 2))
}

/// Scales and minima of Q4_K and Q5_K: the first four have their 6 bits together; of the others the upper two sit in
/// the upper bits of the first.
#[inline(always)]
unsafe fn six_bits(p: *const u8) -> Scales {
    let (d, least) = (spread_half(p), spread_half(p.add(2)).mul(F4::splat(-1.0)));
    let (a, b, c) = (word(p.add(4)), word(p.add(8)), word(p.add(12)));
    let four = |low: u32, high: u32| I4::from_bytes(low & 0x0f0f_0f0f | high >> 2 & 0x3030_3030).to_floats();
    let six = |x: u32| I4::from_bytes(x & 0x3f3f_3f3f).to_floats();
    let (scales, minima) = ([six(a).mul(d), four(c, a).mul(d)], [six(b).mul(least), four(c >> 4, b).mul(least)]);
    Scales {
        scales: [scales[0], scales[1], scales[0], scales[1]],
        minima: [minima[0], minima[1], minima[0], minima[1]],
    }
}

impl Format for Q2K {
    const BLOCK: usize = 256;
    const BYTES: usize = 84;
    const GROUP: usize = 16;
    const MINIMA: bool = true;
    const MOST: i32 = 3;

    #[inline(always)]
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2] {
        twos(p.add(16), s)
    }
    #[inline(always)]
    unsafe fn scales([p, ..]: [*const u8; 4]) -> Scales {
        let (d, least) = (spread_half(p.add(80)), spread_half(p.add(82)).mul(F4::splat(-1.0)));
        let bytes = B16::load(p);
        let floats = |x: B16, by: F4| x.and(B16::splat(15)).to_ints().map(|four| four.to_floats().mul(by));
        Scales { scales: floats(bytes, d), minima: floats(bytes.right(4), least) }
    }
}

impl Format for Q3K {
    const BLOCK: usize = 256;
    const BYTES: usize = 110;
    const GROUP: usize = 16;
    const ZERO: u8 = 4;
    const MOST: i32 = 7;

    #[inline(always)]
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2] {
        let (low, high) = (twos(p.add(32), s), both(p));
        [0, 1].map(|i| low[i].or(one_bit(high[i], s, 2)))
    }
    #[inline(always)]
    unsafe fn scales([p, ..]: [*const u8; 4]) -> Scales {
        let d = spread_half(p.add(108));
        let (a, b, c) = (word(p.add(96)), word(p.add(100)), word(p.add(104)));
        let four = |low: u32, high: u32| {
            let six = I4::from_bytes(low & 0x0f0f_0f0f | high << 4 & 0x3030_3030).to_floats();
            six.add(F4::splat(-32.0)).mul(d)
        };
        Scales::only([four(a, c), four(b, c >> 2), four(a >> 4, c >> 4), four(b >> 4, c >> 6)])
    }
}

impl Format for Q4K {
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const MINIMA: bool = true;
    const MOST: i32 = 15;

    #[inline(always)]
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2] {
        fours(p.add(16), s)
    }
    #[inline(always)]
    unsafe fn scales([p, ..]: [*const u8; 4]) -> Scales {
        six_bits(p)
    }
}

impl Format for Q5K {
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const MINIMA: bool = true;
    const MOST: i32 = 31;

    #[inline(always)]
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2] {
        let (low, high) = (fours(p.add(48), s), both(p.add(16)));
        [0, 1].map(|i| low[i].or(one_bit(high[i], s, 4)))
    }
    #[inline(always)]
    unsafe fn scales([p, ..]: [*const u8; 4]) -> Scales {
        six_bits(p)
    }
}

impl Format for Q6K {
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const ZERO: u8 = 32;
    const MOST: i32 = 63;

    /// Each half of the block has 64 bytes of lower bits (low: its first two slices), and 32 of upper ones.
    #[inline(always)]
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2] {
        let (half, within) = (s / 4, s % 4);
        let (low, high) = (both(p.add(64 * half + 32 * (within % 2))), both(p.add(128 + 32 * half)));
        [0, 1].map(|i| {
            let four = low[i].right(within as u32 / 2 * 4).and(B16::splat(15));
            let upper =
                if within < 2 { high[i].left(4 - 2 * within as u32) } else { high[i].right(2 * within as u32 - 4) };
            four.or(upper.and(B16::splat(48)))
        })
    }
    #[inline(always)]
    unsafe fn scales([p, ..]: [*const u8; 4]) -> Scales {
        let d = spread_half(p.add(208));
        Scales::only(B16::load(p.add(192)).to_ints().map(|four| four.to_floats().mul(d)))
    }
}

impl Format for Iq4Xs {
    const BLOCK: usize = 256;
    const BYTES: usize = 136;
    const GROUP: usize = 32;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2] {
        values(p.add(8 + 16 * s))
    }
    #[inline(always)]
    unsafe fn scales([p, ..]: [*const u8; 4]) -> Scales {
        let (d, high, low) = (spread_half(p), half(p.add(2)), word(p.add(4)) as i32);
        let one = |s: i32| (low >> (4 * s) & 15 | (high >> (2 * s) & 3) << 4) - 32;
        let four = |s: i32| I4::new([one(s), one(s + 1), one(s + 2), one(s + 3)]).to_floats().mul(d);
        let (first, last) = (four(0), four(4));
        Scales::only([first, last, first, last])
    }
}
