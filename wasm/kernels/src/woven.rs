//! Woven weights: eight rows side by side, block after block, as many bytes as in the file. A block of eight rows has its
//! scales first, then slice by slice the places of 32 weights of each row.
//!
//! Of four weights of the first four rows, and of the other four, each bit or pair or four of them has its plane: 16
//! bytes are four weights of four rows, one after the other. Then a vector has lanes that are rows, with inputs that are
//! the same in every lane; no sum crosses lanes, and one stream of memory is read. A plane's byte has bits of several
//! fours of one row, so that both halves of the rows take the same steps, which V8 may take for both at once.

use crate::lanes::{B16, F4};
use crate::memory::{Array, Result};
use crate::weights::{scale_bytes, Codec, Format, Scales, SLICE};

/// Rows woven together.
pub const ROWS: usize = 8;

/// Puts `size` bytes from each place one after the other.
///
/// # Safety
/// The places are readable, `to` writable for them.
pub unsafe fn side_by_side(from: [*const u8; ROWS], size: usize, to: *mut u8) {
    for (r, from) in from.into_iter().enumerate() {
        core::ptr::copy_nonoverlapping(from, to.add(r * size), size);
    }
}

/// Which planes a place of `BITS` bits takes: of four bits, two and one.
const fn planes(bits: usize) -> [bool; 3] {
    [bits >= 4 && bits < 8, bits == 2 || bits == 3 || bits == 6, bits == 3 || bits == 5]
}

/// Weaves eight rows of `blocks` blocks. Whether some scale is infinite or no number and what streams by would not say
/// so.
///
/// # Safety
/// The rows are readable for the blocks, `to` is writable for as many bytes.
#[inline(never)]
pub unsafe fn weave<F: Format>(rows: [*const u8; ROWS], blocks: usize, mut to: *mut u8) -> bool {
    let mut infinite = false;
    for b in 0..blocks {
        let here = rows.map(|row| row.add(b * F::BYTES));
        infinite |= F::weave(here, to);
        to = to.add(ROWS * scale_bytes::<F>());
        for s in 0..F::BLOCK / SLICE {
            let places = here.map(|row| F::places(row, s));
            weave_slice(&places, F::BITS, to);
            to = to.add(ROWS * SLICE * F::BITS / 8);
        }
    }
    infinite
}

/// `places`: of each row.
///
/// # Safety
/// `to` is writable for the planes.
#[inline(never)]
unsafe fn weave_slice(places: &[[B16; 2]; ROWS], bits: usize, to: *mut u8) {
    let [four, two, one] = planes(bits);
    let (fours, twos, upper) = (if four { 128 } else { 0 }, if two { 64 } else { 0 }, if four { 4 } else { 0 });
    let mut ones = [B16::splat(0); 2];
    for half in 0..2 {
        // Of each four places a vector of four rows, and of the other four.
        let rows = [0, 4].map(|first| B16::transpose_words([0, 1, 2, 3].map(|r: usize| places[first + r][half])));
        for (r, c) in rows.into_iter().enumerate() {
            if bits == 8 {
                for (i, c) in c.into_iter().enumerate() {
                    c.store(to.add(128 * half + 32 * i + 16 * r));
                }
            } else if four {
                let low = |c: B16| c.and(B16::splat(15));
                low(c[0]).or(low(c[1]).left(4)).store(to.add(64 * half + 16 * r));
                low(c[2]).or(low(c[3]).left(4)).store(to.add(64 * half + 32 + 16 * r));
            }
            if two {
                let pairs = [0, 1, 2, 3].map(|i| c[i].right(upper).and(B16::splat(3)).left(2 * i as u32));
                pairs[0].or(pairs[1]).or(pairs[2]).or(pairs[3]).store(to.add(fours + 32 * half + 16 * r));
            }
            if one {
                for (i, c) in c.into_iter().enumerate() {
                    ones[r] = ones[r].or(c.right(bits as u32 - 1).and(B16::splat(1)).left((4 * half + i) as u32));
                }
            }
        }
    }
    if one {
        ones[0].store(to.add(fours + twos));
        ones[1].store(to.add(fours + twos + 16));
    }
}

/// Bits of a plane's byte, `from` the right, moved to `to`.
#[inline(always)]
fn moved(plane: B16, from: usize, to: usize, mask: u8) -> B16 {
    let bits = if from > to {
        plane.right((from - to) as u32)
    } else if to > from {
        plane.left((to - from) as u32)
    } else {
        plane
    };
    bits.and(B16::splat(mask))
}

/// The q of weights `16 · half + 4 · C` … of a slice: four of each of the first four rows, and of the others.
///
/// # Safety
/// `slice` is readable for the planes; `half` < 2, `C` < 4.
#[inline(always)]
pub unsafe fn chunk<F: Format, const C: usize>(slice: *const u8, half: usize) -> [B16; 2] {
    if F::BITS == 8 {
        let at = slice.add(128 * half + 32 * C);
        return [B16::load(at), B16::load(at.add(16))];
    }
    let [four, two, one] = const { planes(F::BITS) };
    let [fours, twos] = [if four { 128 } else { 0 }, if two { 64 } else { 0 }];
    let mut places = [B16::splat(0); 2];
    // Written out: as closures LLVM would not make constants of the places of bits.
    if four {
        let at = slice.add(64 * half + 32 * (C / 2));
        let [low, high] = [B16::load(at), B16::load(at.add(16))];
        places = [moved(low, 4 * (C % 2), 0, 15), moved(high, 4 * (C % 2), 0, 15)];
    }
    if two {
        let (at, to) = (slice.add(32 * half + fours), if four { 4 } else { 0 });
        let [low, high] = [B16::load(at), B16::load(at.add(16))];
        let [low, high] = [moved(low, 2 * C, to, 3 << to), moved(high, 2 * C, to, 3 << to)];
        places = if four { [places[0].or(low), places[1].or(high)] } else { [low, high] };
    }
    if one {
        let (at, to) = (slice.add(fours + twos), F::BITS - 1);
        let [low, high] = [B16::load(at), B16::load(at.add(16))];
        let [low, high] = [moved(low, 4 * half + C, to, 1 << to), moved(high, 4 * half + C, to, 1 << to)];
        places = [places[0].or(low), places[1].or(high)];
    }
    [F::values(places[0]), F::values(places[1])]
}

/// Eight rows unpacked.
pub struct Panel {
    /// `(inputs / 4, 2, 4, 4)`: of each four inputs the weights of four rows, then of the others; int8 q − ZERO, or q.
    pub values: Array<u8>,
    /// `(groups, 8)`
    pub scales: Array<f32>,
    pub minima: Array<f32>,
    /// q itself, and what ZERO takes off in the minima.
    pub raw: bool,
}

impl Panel {
    pub fn new(inputs: usize, codec: &Codec, raw: bool) -> Result<Self> {
        let groups = inputs / codec.group;
        Ok(Panel {
            values: Array::zeros(ROWS * inputs)?,
            scales: Array::zeros(ROWS * groups)?,
            minima: Array::zeros(ROWS * groups)?,
            raw,
        })
    }
}

/// Unpacks eight rows of `blocks` blocks, with the bits that the format's definition gives.
///
/// # Safety
/// `woven` is readable for them; the panel has room.
#[inline(never)]
pub unsafe fn unpack<F: Format>(mut woven: *const u8, blocks: usize, panel: &mut Panel) {
    let raw = panel.raw;
    let zero = B16::splat(if raw { 0 } else { F::ZERO });
    let mut values = panel.values.as_mut()[..ROWS * blocks * F::BLOCK].as_mut_ptr();
    let groups = ROWS * blocks * F::BLOCK / F::GROUP;
    let mut scales = panel.scales.as_mut()[..groups].as_mut_ptr();
    let mut minima = panel.minima.as_mut()[..groups].as_mut_ptr();
    let mut put = |own: Scales| {
        for half in 0..2 {
            let (scale, minimum) = (own.scales[half], own.minima[half]);
            scale.store(scales.add(4 * half));
            let zero = scale.mul(F4::splat(-(F::ZERO as f32)));
            let taken = if F::ZERO > 0 && raw { minimum.add(zero) } else { minimum };
            taken.store(minima.add(4 * half));
        }
        (scales, minima) = (scales.add(ROWS), minima.add(ROWS));
    };
    for _ in 0..blocks {
        let own = F::own(woven);
        if F::BLOCK == SLICE {
            put(if F::HALVES { own.with_infinities() } else { own });
        } else {
            for j in 0..F::BLOCK / F::GROUP / 4 {
                let four = F::four(woven, j).map(|pairs| pairs.map(|pair| pair.to_ints().map(|four| four.to_floats())));
                for g in 0..4 {
                    let of = |which: usize, own: [F4; 2]| {
                        let numbers = four[which][g / 2];
                        [numbers[g % 2 * 2].mul(own[0]), numbers[g % 2 * 2 + 1].mul(own[1])]
                    };
                    put(Scales { scales: of(0, own.scales), minima: of(1, own.minima) });
                }
            }
        }
        woven = woven.add(ROWS * scale_bytes::<F>());
        for _ in 0..F::BLOCK / SLICE {
            macro_rules! chunks {
                ($half:literal: $($c:literal)*) => {$(
                    let [low, high] = chunk::<F, $c>(woven, $half);
                    low.sub(zero).store(values.add(128 * $half + 32 * $c));
                    high.sub(zero).store(values.add(128 * $half + 32 * $c + 16));
                )*};
            }
            chunks!(0: 0 1 2 3);
            chunks!(1: 0 1 2 3);
            values = values.add(ROWS * SLICE);
            woven = woven.add(ROWS * SLICE * F::BITS / 8);
        }
    }
}
