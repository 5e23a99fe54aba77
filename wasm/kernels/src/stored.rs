//! The types that rows are stored as: float32, float16, int8 with one float32 scale per row, or four bits (`nibbles.rs`),
//! which are float16 until they are packed.
//!
//! core/backend/stored_rows.ts stores the same bits. Everything that is not decode attention unpacks a tile of rows to
//! float32 and goes on as if they had been that.

use crate::lanes::{F4, S8};
use crate::memory::{Array, Error, Result};
use crate::nibbles::GROUP;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F32,
    F16,
    Int8,
    Int4,
}

impl Kind {
    pub fn from_number(number: i32) -> Option<Self> {
        [Kind::F32, Kind::F16, Kind::Int8, Kind::Int4].get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of a number; of four bits, until they are packed.
    pub const fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Int4 => 2,
            Kind::Int8 => 1,
        }
    }

    /// Numbers from one row to the next: `dim` rounded up to 16 bytes, so that no kernel has a tail; to whole groups of
    /// four bits.
    pub fn stride(self, dim: usize) -> usize {
        dim.next_multiple_of(if self == Kind::Int4 { GROUP } else { 16 / self.size() })
    }

    /// Refuses numbers that rows of this kind can't hold; float32 holds anything.
    #[inline(never)]
    pub fn check(self, numbers: &[f32]) -> Result<()> {
        let limit = match self {
            Kind::F32 => return Ok(()),
            // Would be rounded to infinity.
            Kind::F16 | Kind::Int4 => 65520f32,
            Kind::Int8 => f32::INFINITY,
        };
        match largest(numbers) < limit.to_bits() {
            true => Ok(()),
            false => Err(Error::Value),
        }
    }

    /// Stores a row that passes `check`; `out` holds at least as many numbers. Returns its scale.
    #[inline(never)]
    pub fn store(self, row: &[f32], out: &mut [u8]) -> f32 {
        match self {
            Kind::F32 => out.chunks_exact_mut(4).zip(row).for_each(|(out, x)| out.copy_from_slice(&x.to_le_bytes())),
            Kind::F16 | Kind::Int4 => {
                out.chunks_exact_mut(2).zip(row).for_each(|(out, x)| out.copy_from_slice(&half(*x).to_le_bytes()))
            }
            Kind::Int8 => return store_int8(row, out),
        }
        1.0
    }
}

/// Pattern of the largest magnitude; above infinity's where there is a NaN.
fn largest(numbers: &[f32]) -> u32 {
    numbers.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
}

/// The nearest float16, ties to even, for |x| < 65520. Normal ones lose 13 bits, with a carry; below, adding ½ leaves
/// multiples of 2⁻²⁴ in the low bits.
pub fn half(x: f32) -> u16 {
    let (sign, magnitude) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    let normal = magnitude.wrapping_sub(0x3800_0000).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    (sign | if magnitude >= 0x3880_0000 { normal } else { small }) as u16
}

/// Scale: largest / 127, rounded up to 17 bits of mantissa. Then a whole number times the scale is exact in float32,
/// and storing what was read gives the same row.
fn store_int8(row: &[f32], out: &mut [u8]) -> f32 {
    let most = f32::from_bits(largest(row));
    let scale = f32::from_bits((most / 127.0).to_bits() + 0x7f & !0x7f);
    let divisor = if scale > 0.0 { scale } else { f32::INFINITY };
    for (out, x) in out.iter_mut().zip(row) {
        *out = (x / divisor).round_ties_even() as i8 as u8;
    }
    scale
}

/// A tile of rows in float32. Empty where all rows are float32 themselves.
pub struct Unpacked {
    stride: usize,
    floats: Array<f32>,
    /// Scales and zeros of a group of four-bit keys, `(2, stride)`.
    pub parameters: Array<f32>,
}

impl Unpacked {
    /// Room for `rows` rows of `stride` numbers of any of these kinds.
    pub fn new(kinds: [Kind; 2], stride: usize, rows: usize) -> Result<Self> {
        let length = if kinds == [Kind::F32; 2] { 0 } else { rows * stride };
        let parameters = if kinds.contains(&Kind::Int4) { 2 * stride } else { 0 };
        Ok(Unpacked { stride, floats: Array::zeros(length)?, parameters: Array::zeros(parameters)? })
    }

    /// Where the tile's floats go.
    pub fn room(&mut self) -> *mut f32 {
        self.floats.as_mut().as_mut_ptr()
    }

    /// `count` rows of `kind` as float32, `(count, stride)`, good until the next call.
    ///
    /// # Safety
    /// `rows` is readable for `count` rows of `stride` numbers, `scales` for `count` floats where the kind is int8; the
    /// room is no smaller. No row is packed.
    #[inline(never)]
    pub unsafe fn floats(&mut self, kind: Kind, rows: *const u8, scales: *const f32, count: usize) -> *const f32 {
        debug_assert!(kind == Kind::F32 || count * self.stride <= self.floats.len());
        let to = self.room();
        match kind {
            Kind::F32 => return rows as *const f32,
            Kind::F16 | Kind::Int4 => unpack_halves(rows as *const i16, count * self.stride, to),
            Kind::Int8 => {
                for row in 0..count {
                    let (from, to) = (rows.add(row * self.stride), to.add(row * self.stride));
                    unpack_int8(from, self.stride, F4::load_splat(scales.add(row)), to);
                }
            }
        }
        to
    }
}

/// # Safety
/// `from` is readable, `to` writable for `count` numbers, a multiple of eight.
pub unsafe fn unpack_halves(from: *const i16, count: usize, to: *mut f32) {
    for i in (0..count).step_by(8) {
        let [a, b] = S8::load(from.add(i)).widen();
        F4::from_halves(a).store(to.add(i));
        F4::from_halves(b).store(to.add(i + 4));
    }
}

unsafe fn unpack_int8(from: *const u8, count: usize, scale: F4, to: *mut f32) {
    for i in (0..count).step_by(16) {
        let [a, b] = S8::sixteen(from.add(i));
        let [[a, b], [c, d]] = [a.widen(), b.widen()];
        for (v, four) in [a, b, c, d].into_iter().enumerate() {
            four.to_floats().mul(scale).store(to.add(i + 4 * v));
        }
    }
}

/// The slow, obvious versions.
#[cfg(test)]
pub mod twin {
    /// Tries all 65536 halves; ties to the even pattern.
    pub fn half(x: f32) -> u16 {
        let off = |half: u16| (float(half) - x as f64).abs();
        let finite = (0..0x7c00u16).chain(0x8000..0xfc00).filter(|half| half >> 15 == (x.to_bits() >> 31) as u16);
        finite.min_by(|&a, &b| off(a).total_cmp(&off(b)).then((a & 1).cmp(&(b & 1)))).unwrap()
    }

    pub fn float(half: u16) -> f64 {
        let (exponent, mantissa) = ((half >> 10 & 31) as i32, (half & 1023) as f64);
        let magnitude =
            if exponent == 0 { mantissa * 2f64.powi(-24) } else { (1024.0 + mantissa) * 2f64.powi(exponent - 25) };
        if half >> 15 == 1 {
            -magnitude
        } else {
            magnitude
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn stored(kind: Kind, row: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0u8; row.len() * kind.size()];
        let scale = kind.store(row, &mut bytes);
        let mut unpacked = Unpacked::new([kind; 2], row.len(), 1).unwrap();
        // SAFETY: one row, a multiple of 16 numbers.
        unsafe {
            let floats = unpacked.floats(kind, bytes.as_ptr(), &scale, 1);
            core::slice::from_raw_parts(floats, row.len()).to_vec()
        }
    }

    #[test]
    fn half_is_the_nearest_float16() {
        let edges = [
            0.0,
            -0.0,
            1e-8,
            2.98e-8,
            2.981e-8,
            5.9e-8,
            6.1e-5,
            6.103e-5,
            6.10352e-5,
            3.0517576e-5,
            1.0,
            2049.0,
            2051.0,
            65519.9,
        ];
        for x in edges.into_iter().chain(random(200, 1)).chain(random(50, 2).into_iter().map(|x| x * 1e-5)) {
            for x in [x, -x] {
                assert_eq!(half(x), twin::half(x), "{x}");
            }
        }
    }

    #[test]
    fn unpacked_halves_are_exact() {
        let all: Vec<f32> = (0..0x7c00u16).chain(0x8000..0xfc00).map(|h| twin::float(h) as f32).collect();
        let back = stored(Kind::F16, &all);
        assert!(all.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn int8_rows_lie_within_half_a_step_and_are_stored_again_as_they_are() {
        for seed in 1..500 {
            let row: Vec<f32> = random(64, seed).into_iter().map(|x| x * 1.37f32.powi(seed as i32 - 250)).collect();
            let most = f32::from_bits(largest(&row));
            let once = stored(Kind::Int8, &row);
            for (x, y) in row.iter().zip(&once) {
                assert!((x - y).abs() <= most / 253.9, "{x} as {y}");
            }
            assert_eq!(stored(Kind::Int8, &once), once);
        }
        assert_eq!(stored(Kind::Int8, &[0.0; 16]), [0.0; 16]);
        assert_eq!(stored(Kind::Int8, &[1e-45; 16]), [0.0; 16]);
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        let cases =
            [(65519.0, true, true), (65520.0, false, true), (f32::NAN, false, false), (-f32::INFINITY, false, false)];
        for (x, f16, int8) in cases {
            assert_eq!(Kind::F16.check(&[1.0, x]).is_ok(), f16, "{x}");
            assert_eq!(Kind::Int8.check(&[1.0, x]).is_ok(), int8, "{x}");
            assert!(Kind::F32.check(&[x]).is_ok());
        }
    }
}
