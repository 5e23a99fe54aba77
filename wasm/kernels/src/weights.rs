//! Weight matrices as they stand in a GGUF: rows of blocks of 32, each block a float16 scale and 32 small integers.

use crate::lanes::{F4, I4, S8};

/// Weights per block.
pub const BLOCK: usize = 32;

/// A tensor type, by its number in the file.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    F32,
    Q4_0,
    Q4_1,
    Q8_0,
}

impl Kind {
    pub fn from_number(number: i32) -> Option<Kind> {
        match number {
            0 => Some(Kind::F32),
            2 => Some(Kind::Q4_0),
            3 => Some(Kind::Q4_1),
            8 => Some(Kind::Q8_0),
            _ => None,
        }
    }

    /// Bytes of a row of `inputs` weights; nothing where `inputs` is not whole blocks.
    pub fn row_bytes(self, inputs: usize) -> Option<usize> {
        let block = match self {
            Kind::F32 => return inputs.checked_mul(4),
            Kind::Q4_0 => Q4_0::BYTES,
            Kind::Q4_1 => Q4_1::BYTES,
            Kind::Q8_0 => Q8_0::BYTES,
        };
        if inputs % BLOCK == 0 {
            (inputs / BLOCK).checked_mul(block)
        } else {
            None
        }
    }
}

/// One block format: weight = scale · q + offset.
pub trait Format {
    const BYTES: usize;
    /// Whether `dot_quants` come in the order of `S8::twine`.
    const TWINED: bool;

    /// The 32 q of the block at `p`.
    ///
    /// # Safety
    /// `p` is readable for `BYTES`.
    unsafe fn quants(p: *const u8) -> [S8; 4];

    /// The same in whatever order is unpacked fastest.
    ///
    /// # Safety
    /// `p` is readable for `BYTES`.
    unsafe fn dot_quants(p: *const u8) -> [S8; 4];

    /// Scale and offset of the blocks of four rows.
    ///
    /// # Safety
    /// Each pointer is readable for `BYTES`.
    unsafe fn scales(rows: [*const u8; 4]) -> (F4, F4);
}

/// d, 16 bytes; d · (q − 8).
pub struct Q4_0;
/// d, m, 16 bytes; d · q + m.
pub struct Q4_1;
/// d, 32 int8; d · q.
pub struct Q8_0;

#[inline(always)]
unsafe fn half(p: *const u8) -> i32 {
    (p as *const u16).read_unaligned() as i32
}

impl Format for Q4_0 {
    const BYTES: usize = 18;
    const TWINED: bool = true;

    #[inline(always)]
    unsafe fn quants(p: *const u8) -> [S8; 4] {
        S8::nibbles(p.add(2))
    }

    #[inline(always)]
    unsafe fn dot_quants(p: *const u8) -> [S8; 4] {
        S8::twined_nibbles(p.add(2))
    }

    #[inline(always)]
    unsafe fn scales(rows: [*const u8; 4]) -> (F4, F4) {
        let scale = F4::from_halves(I4::new([half(rows[0]), half(rows[1]), half(rows[2]), half(rows[3])]));
        (scale, scale.mul(F4::splat(-8.0)))
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 20;
    const TWINED: bool = true;

    #[inline(always)]
    unsafe fn quants(p: *const u8) -> [S8; 4] {
        S8::nibbles(p.add(4))
    }

    #[inline(always)]
    unsafe fn dot_quants(p: *const u8) -> [S8; 4] {
        S8::twined_nibbles(p.add(4))
    }

    #[inline(always)]
    unsafe fn scales(rows: [*const u8; 4]) -> (F4, F4) {
        let pair = |p: *const u8| (p as *const i32).read_unaligned();
        let both = I4::new([pair(rows[0]), pair(rows[1]), pair(rows[2]), pair(rows[3])]);
        (F4::from_halves(both), F4::from_upper_halves(both))
    }
}

impl Format for Q8_0 {
    const BYTES: usize = 34;
    const TWINED: bool = false;

    #[inline(always)]
    unsafe fn quants(p: *const u8) -> [S8; 4] {
        S8::bytes(p.add(2))
    }

    #[inline(always)]
    unsafe fn dot_quants(p: *const u8) -> [S8; 4] {
        Self::quants(p)
    }

    #[inline(always)]
    unsafe fn scales(rows: [*const u8; 4]) -> (F4, F4) {
        let scale = F4::from_halves(I4::new([half(rows[0]), half(rows[1]), half(rows[2]), half(rows[3])]));
        (scale, F4::zero())
    }
}

/// One row of blocks as float32.
///
/// # Safety
/// `row`: `blocks` blocks of `F`; `out` is writable for `32 · blocks` floats.
pub unsafe fn expand<F: Format>(row: *const u8, blocks: usize, out: *mut f32) {
    for b in 0..blocks {
        let (block, out) = (row.add(b * F::BYTES), out.add(b * BLOCK));
        let (scale, offset) = F::scales([block; 4]);
        for (v, eight) in F::quants(block).into_iter().enumerate() {
            let [low, high] = eight.widen();
            offset.add(low.to_floats().mul(scale)).store(out.add(8 * v));
            offset.add(high.to_floats().mul(scale)).store(out.add(8 * v + 4));
        }
    }
}
