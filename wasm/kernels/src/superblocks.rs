//! Tensor types in blocks of 256: eight slices of 32 whose groups have small integer scales under one float16.

use crate::blocks::{half, nibbles, values};
use crate::lanes::{B16, F4, I4};
use crate::weights::{Format, Scales};
use crate::woven::{side_by_side, ROWS};

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

/// Eight float16s of woven blocks, of any kind.
#[inline(always)]
unsafe fn halves(p: *const u8) -> [F4; 2] {
    [F4::from_any_halves(I4::load_halves(p)), F4::from_any_halves(I4::load_halves(p.add(8)))]
}

/// The same, negative.
#[inline(always)]
unsafe fn less(p: *const u8) -> [F4; 2] {
    halves(p).map(|x| x.mul(F4::splat(-1.0)))
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

/// Puts numbers of 6 bits, `(groups, 8)`, where [`six_bits`] finds them: the lower 4 bits of four groups of eight rows in
/// 16 bytes, of the groups' first two in the lower halves; then the upper 2, of the first two groups in the lowest ones.
///
/// # Safety
/// `to` is writable for six bytes a group.
unsafe fn weave_six_bits(numbers: &[u8], to: *mut u8) {
    let (groups, fifteen) = (numbers.len() / ROWS, B16::splat(15));
    for (j, four) in numbers.chunks_exact(4 * ROWS).enumerate() {
        let [a, b] = both(four.as_ptr());
        a.and(fifteen).or(b.and(fifteen).left(4)).store(to.add(16 * j));
    }
    for (j, eight) in numbers.chunks_exact(8 * ROWS).enumerate() {
        let high = [0, 1, 2, 3].map(|pair| two_bits(B16::load(eight[16 * pair..].as_ptr()), 4).left(2 * pair as u32));
        high[0].or(high[1]).or(high[2]).or(high[3]).store(to.add(groups * 4 + 16 * j));
    }
}

/// Numbers `(groups, 8)` of eight rows.
fn numbers<const N: usize>(number: impl Fn(usize, usize) -> u8) -> [u8; N] {
    core::array::from_fn(|i| number(i % ROWS, i / ROWS))
}

/// Four of `groups` groups, `4 · j` and so on.
#[inline(always)]
unsafe fn six_bits(p: *const u8, groups: usize, j: usize) -> [B16; 2] {
    let low = nibbles(p.add(16 * j));
    let high = B16::load(p.add(groups * 4 + j / 2 * 16)).right((j % 2 * 4) as u32);
    let sixteens = B16::splat(48);
    [low[0].or(high.left(4).and(sixteens)), low[1].or(high.left(2).and(sixteens))]
}

/// The scales, then the minima of Q4_K and Q5_K: the first four have their 6 bits together; of the others the upper two
/// sit in the upper bits of the first.
unsafe fn six(p: *const u8) -> [u8; 16] {
    let [a, b, c] = [0, 4, 8].map(|at| (p.add(at) as *const u32).read_unaligned());
    let later = |low: u32, high: u32| low & 0x0f0f_0f0f | high >> 2 & 0x3030_3030;
    let words = [a & 0x3f3f_3f3f, later(c, a), b & 0x3f3f_3f3f, later(c >> 4, b)];
    core::mem::transmute(words.map(u32::to_le_bytes))
}

/// What Q4_K and Q5_K have in common.
macro_rules! six_bit_minima {
    () => {
        unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
            side_by_side(blocks, 2, to);
            side_by_side(blocks.map(|p| p.add(2)), 2, to.add(16));
            let rows = blocks.map(|p| six(p.add(4)));
            let numbers: [u8; 16 * ROWS] = numbers(|r, g| rows[r][g]);
            weave_six_bits(&numbers[..8 * ROWS], to.add(32));
            weave_six_bits(&numbers[8 * ROWS..], to.add(80));
            false
        }
        #[inline(always)]
        unsafe fn own(woven: *const u8) -> Scales {
            Scales { scales: halves(woven), minima: less(woven.add(16)) }
        }
        #[inline(always)]
        unsafe fn four(woven: *const u8, j: usize) -> [[B16; 2]; 2] {
            [six_bits(woven.add(32), 8, j), six_bits(woven.add(80), 8, j)]
        }
    };
}

impl Format for Q2K {
    const BLOCK: usize = 256;
    const BYTES: usize = 84;
    const GROUP: usize = 16;
    const BITS: usize = 2;
    const MINIMA: bool = true;
    const MOST: i32 = 3;

    unsafe fn places(p: *const u8, s: usize) -> [B16; 2] {
        twos(p.add(16), s)
    }
    unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
        side_by_side(blocks.map(|p| p.add(80)), 2, to);
        side_by_side(blocks.map(|p| p.add(82)), 2, to.add(16));
        for g in 0..16 {
            side_by_side(blocks.map(|p| p.add(g)), 1, to.add(32 + 8 * g));
        }
        false
    }
    #[inline(always)]
    unsafe fn own(woven: *const u8) -> Scales {
        Scales { scales: halves(woven), minima: less(woven.add(16)) }
    }
    #[inline(always)]
    unsafe fn four(woven: *const u8, j: usize) -> [[B16; 2]; 2] {
        let [a, b] = [nibbles(woven.add(32 + 32 * j)), nibbles(woven.add(48 + 32 * j))];
        [[a[0], b[0]], [a[1], b[1]]]
    }
}

impl Format for Q3K {
    const BLOCK: usize = 256;
    const BYTES: usize = 110;
    const GROUP: usize = 16;
    const BITS: usize = 3;
    const ZERO: u8 = 4;
    const MOST: i32 = 7;

    unsafe fn places(p: *const u8, s: usize) -> [B16; 2] {
        let (low, high) = (twos(p.add(32), s), both(p));
        [0, 1].map(|i| low[i].or(one_bit(high[i], s, 2)))
    }
    unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
        side_by_side(blocks.map(|p| p.add(108)), 2, to);
        let numbers: [u8; 16 * ROWS] = numbers(|r, g| {
            let at = |i: usize| *blocks[r].add(96 + i);
            at(g % 8) >> (g / 8 * 4) & 15 | (at(8 + g % 4) >> (g / 4 * 2) & 3) << 4
        });
        weave_six_bits(&numbers, to.add(16));
        false
    }
    #[inline(always)]
    unsafe fn own(woven: *const u8) -> Scales {
        Scales::only(halves(woven))
    }
    #[inline(always)]
    unsafe fn four(woven: *const u8, j: usize) -> [[B16; 2]; 2] {
        [six_bits(woven.add(16), 16, j).map(|s| s.sub(B16::splat(32))), [B16::splat(0); 2]]
    }
}

impl Format for Q4K {
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const MINIMA: bool = true;
    const MOST: i32 = 15;

    unsafe fn places(p: *const u8, s: usize) -> [B16; 2] {
        fours(p.add(16), s)
    }
    six_bit_minima!();
}

impl Format for Q5K {
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const BITS: usize = 5;
    const MINIMA: bool = true;
    const MOST: i32 = 31;

    unsafe fn places(p: *const u8, s: usize) -> [B16; 2] {
        let (low, high) = (fours(p.add(48), s), both(p.add(16)));
        [0, 1].map(|i| low[i].or(one_bit(high[i], s, 4)))
    }
    six_bit_minima!();
}

impl Format for Q6K {
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const BITS: usize = 6;
    const ZERO: u8 = 32;
    const MOST: i32 = 63;

    /// Each half of the block has 64 bytes of lower bits (low: its first two slices), and 32 of upper ones.
    unsafe fn places(p: *const u8, s: usize) -> [B16; 2] {
        let (half, within) = (s / 4, s % 4);
        let (low, high) = (both(p.add(64 * half + 32 * (within % 2))), both(p.add(128 + 32 * half)));
        [0, 1].map(|i| {
            let four = low[i].right(within as u32 / 2 * 4).and(B16::splat(15));
            let upper =
                if within < 2 { high[i].left(4 - 2 * within as u32) } else { high[i].right(2 * within as u32 - 4) };
            four.or(upper.and(B16::splat(48)))
        })
    }
    unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
        side_by_side(blocks.map(|p| p.add(208)), 2, to);
        for g in 0..16 {
            side_by_side(blocks.map(|p| p.add(192 + g)), 1, to.add(16 + 8 * g));
        }
        false
    }
    #[inline(always)]
    unsafe fn own(woven: *const u8) -> Scales {
        Scales::only(halves(woven))
    }
    #[inline(always)]
    unsafe fn four(woven: *const u8, j: usize) -> [[B16; 2]; 2] {
        [both(woven.add(16 + 32 * j)), [B16::splat(0); 2]]
    }
}

impl Format for Iq4Xs {
    const BLOCK: usize = 256;
    const BYTES: usize = 136;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const SIGNED: bool = true;

    unsafe fn places(p: *const u8, s: usize) -> [B16; 2] {
        nibbles(p.add(8 + 16 * s))
    }
    #[inline(always)]
    fn values(places: B16) -> B16 {
        values(places)
    }
    unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool {
        side_by_side(blocks, 2, to);
        let numbers: [u8; 8 * ROWS] = numbers(|r, g| {
            let low = *blocks[r].add(4 + g / 2) >> (g % 2 * 4) & 15;
            low | ((half(blocks[r].add(2)) >> (2 * g) & 3) << 4) as u8
        });
        weave_six_bits(&numbers, to.add(16));
        false
    }
    #[inline(always)]
    unsafe fn own(woven: *const u8) -> Scales {
        Scales::only(halves(woven))
    }
    #[inline(always)]
    unsafe fn four(woven: *const u8, j: usize) -> [[B16; 2]; 2] {
        [six_bits(woven.add(16), 8, j).map(|s| s.sub(B16::splat(32))), [B16::splat(0); 2]]
    }
}
