//! Rows of four bits: keys in groups of 32 rows of one channel, values in groups of 32 channels of one row (KIVI's layout).
//!
//! A number is zero + scale · q, q from 0 to 15. Scale and zero are float16, as the rows were before: so zero is exactly
//! the group's least, and scale · q is exact. `core/cache/packed.ts` gives the same bits.
//!
//! Of a page's part stand first the codes, `(PAGE, stride / 2)`: of each 32 channels 16 bytes, byte `j` with channel `j` in
//! its low bits and `16 + j` in its high ones. Then scales and zeros: of keys `(2 groups, 2, stride)`, of values
//! `(PAGE, 2, stride / 32)`.

use crate::lanes::{F4, S8};
use crate::memory::{Array, Result};
use crate::rows::{Part, PAGE};
use crate::stored::half;

/// Numbers that share scale and zero.
pub const GROUP: usize = 32;

/// Bytes of a page's part.
fn part_bytes(stride: usize) -> usize {
    PAGE * stride / 2 + 8 * stride
}

/// A page's keys or values; empty while no row is packed.
pub struct Nibbles(Array<u8>);

impl Nibbles {
    pub fn empty() -> Result<Self> {
        Ok(Nibbles(Array::zeros(0)?))
    }

    pub fn make_room(&mut self, stride: usize) -> Result<()> {
        if self.0.len() == 0 {
            self.0 = Array::zeros(part_bytes(stride))?;
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Packs `count` ≤ 32 rows of floats, `(count, stride)`, from row `first` on: the first of a group, of keys.
    pub fn store(&mut self, part: Part, stride: usize, first: usize, rows: &[f32], count: usize) {
        let at = |row: usize, channel: usize| rows[row * stride + channel];
        match part {
            Part::Key => {
                for channel in 0..stride {
                    let parameters = parameters((0..count).map(|row| at(row, channel)));
                    self.set_parameters(part, stride, first, channel, parameters);
                    for row in 0..count {
                        self.set_code(stride, first + row, channel, code(at(row, channel), parameters));
                    }
                }
            }
            Part::Value => {
                for row in 0..count {
                    for start in (0..stride).step_by(GROUP) {
                        let parameters = parameters((start..start + GROUP).map(|channel| at(row, channel)));
                        self.set_parameters(part, stride, first + row, start, parameters);
                        for channel in start..start + GROUP {
                            self.set_code(stride, first + row, channel, code(at(row, channel), parameters));
                        }
                    }
                }
            }
        }
    }

    fn set_code(&mut self, stride: usize, row: usize, channel: usize, code: u8) {
        let shift = channel % GROUP / 16 * 4;
        let byte = &mut self.0.as_mut()[row * stride / 2 + channel / GROUP * 16 + channel % 16];
        *byte = *byte & !(15 << shift) | code << shift;
    }

    fn set_parameters(&mut self, part: Part, stride: usize, row: usize, channel: usize, pair: (u16, u16)) {
        for (which, half) in [pair.0, pair.1].into_iter().enumerate() {
            let at = parameter(part, stride, row, channel, which);
            self.0.as_mut()[at..][..2].copy_from_slice(&half.to_le_bytes());
        }
    }

    fn parameter(&self, part: Part, stride: usize, row: usize, channel: usize, which: usize) -> u16 {
        let at = parameter(part, stride, row, channel, which);
        u16::from_le_bytes([self.0.as_slice()[at], self.0.as_slice()[at + 1]])
    }

    /// `count` rows from `first` on as floats.
    ///
    /// # Safety
    /// first + count ≤ `PAGE`; the rows are packed; `to` is writable for `(count, stride)`, `buffer` has two rows.
    #[inline(never)]
    pub unsafe fn floats(
        &self,
        part: Part,
        stride: usize,
        first: usize,
        count: usize,
        buffer: &mut [f32],
        to: *mut f32,
    ) {
        let (scales, zeros) = buffer.split_at_mut(stride);
        for row in first..first + count {
            // Keys' parameters are good for a group of rows, values' are spread over their channels.
            if part == Part::Value || row == first || row % GROUP == 0 {
                let step = if part == Part::Value { GROUP } else { 1 };
                for channel in (0..stride).step_by(step) {
                    scales[channel..channel + step].fill(float(self.parameter(part, stride, row, channel, 0)));
                    zeros[channel..channel + step].fill(float(self.parameter(part, stride, row, channel, 1)));
                }
            }
            let codes = &self.0.as_slice()[row * stride / 2..][..stride / 2];
            let to = to.add((row - first) * stride);
            for (group, bytes) in codes.chunks_exact(16).enumerate() {
                let mut numbers = [0u8; GROUP];
                for (j, byte) in bytes.iter().enumerate() {
                    numbers[j] = byte & 15;
                    numbers[16 + j] = byte >> 4;
                }
                for half in 0..2 {
                    let at = group * GROUP + 16 * half;
                    let [a, b] = S8::sixteen(numbers.as_ptr().add(16 * half));
                    let [[a, b], [c, d]] = [a.widen(), b.widen()];
                    for (v, four) in [a, b, c, d].into_iter().enumerate() {
                        let place = at + 4 * v;
                        let scale = F4::load(scales.as_ptr().add(place));
                        four.to_floats().mul(scale).add(F4::load(zeros.as_ptr().add(place))).store(to.add(place));
                    }
                }
            }
        }
    }

    /// Copies what belongs to `count` rows between this page, whose first row is the head's `row`, and a head's arrays:
    /// codes, scales and zeros one behind the other, of `total` rows. `give`: out of the page.
    pub fn exchange(&mut self, part: Part, stride: usize, row: usize, count: usize, total: usize, all: &mut Whole) {
        let scales = total * stride / 2;
        let each = match part {
            Part::Key => total.div_ceil(GROUP) * stride,
            Part::Value => total * stride / GROUP,
        };
        all.copy(self.0.as_mut(), 0, row * stride / 2, count * stride / 2);
        let (step, width) = if part == Part::Key { (GROUP, stride) } else { (1, stride / GROUP) };
        for first in (0..count).step_by(step) {
            for which in 0..2 {
                let place = scales + 2 * (which * each + (row + first) / step * width);
                all.copy(self.0.as_mut(), parameter(part, stride, first, 0, which), place, 2 * width);
            }
        }
    }
}

/// A head's arrays, to be read or written.
pub enum Whole<'a> {
    Give(&'a mut [u8]),
    Take(&'a [u8]),
}

impl Whole<'_> {
    fn copy(&mut self, page: &mut [u8], at: usize, place: usize, bytes: usize) {
        match self {
            Whole::Give(all) => all[place..][..bytes].copy_from_slice(&page[at..][..bytes]),
            Whole::Take(all) => page[at..][..bytes].copy_from_slice(&all[place..][..bytes]),
        }
    }
}

/// Bytes of a head's arrays of `rows` rows.
pub fn whole_bytes(part: Part, stride: usize, rows: usize) -> usize {
    let parameters = match part {
        Part::Key => rows.div_ceil(GROUP) * stride,
        Part::Value => rows * stride / GROUP,
    };
    rows * stride / 2 + 4 * parameters
}

/// First byte of the scale (`which` 0) or zero (1) of a row's channel.
fn parameter(part: Part, stride: usize, row: usize, channel: usize, which: usize) -> usize {
    let start = PAGE * stride / 2;
    start
        + 2 * match part {
            Part::Key => (row / GROUP * 2 + which) * stride + channel,
            Part::Value => (row * 2 + which) * (stride / GROUP) + channel / GROUP,
        }
}

/// Scale and zero of a group of floats that float16 holds.
fn parameters(numbers: impl Iterator<Item = f32>) -> (u16, u16) {
    let (least, most) =
        numbers.fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
    let range = most - least;
    let mut scale = half(range / 15.0);
    if float(scale) * 15.0 < range {
        scale += 1;
    }
    // +0 where it is −0.
    (scale, half(least + 0.0))
}

fn code(x: f32, (scale, zero): (u16, u16)) -> u8 {
    match float(scale) {
        0.0 => 0,
        scale => ((x - float(zero)) / scale).round_ties_even().clamp(0.0, 15.0) as u8,
    }
}

/// Exact.
fn float(half: u16) -> f32 {
    let magnitude = f32::from_bits((half as u32 & 0x7fff) << 13) * (1u128 << 112) as f32;
    if half >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::twin;
    use crate::testing::random;

    #[test]
    fn float_is_exact() {
        for half in (0..0x7c00u16).chain(0x8000..0xfc00) {
            assert_eq!(float(half) as f64, twin::float(half));
        }
    }

    /// Rows of `stride` floats that float16 holds, some channels far off zero, one of them constant.
    fn rows(count: usize, stride: usize, seed: u64) -> Vec<f32> {
        let noise = random(count * stride, seed);
        let number = |(i, x): (usize, f32)| match i % stride {
            3 => 40.0 + x,
            7 => 0.25,
            9 => x * 1e-6,
            _ => x,
        };
        noise.into_iter().enumerate().map(number).map(|x| float(half(x))).collect()
    }

    #[test]
    fn numbers_lie_within_half_a_step_of_their_group() {
        let stride = 64;
        for part in [Part::Key, Part::Value] {
            for count in [1, 2, 31, 32] {
                let given = rows(count, stride, 7 + count as u64);
                let mut packed = Nibbles::empty().unwrap();
                packed.make_room(stride).unwrap();
                packed.store(part, stride, 32, &given, count);
                let (mut back, mut buffer) = (vec![0.0f32; count * stride], vec![0.0f32; 2 * stride]);
                // SAFETY: the rows were stored; room for them all.
                unsafe { packed.floats(part, stride, 32, count, &mut buffer, back.as_mut_ptr()) };
                for row in 0..count {
                    for channel in 0..stride {
                        let start = channel / GROUP * GROUP;
                        let group: Vec<f32> = match part {
                            Part::Key => (0..count).map(|r| given[r * stride + channel]).collect(),
                            Part::Value => given[row * stride + start..][..GROUP].to_vec(),
                        };
                        let most = group.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                        let least = group.iter().fold(f32::INFINITY, |a, &b| a.min(b));
                        let off = (back[row * stride + channel] - given[row * stride + channel]).abs();
                        let step = (most - least) / 15.0;
                        // A scale is rounded up to float16, and a sum to float32.
                        assert!(
                            off <= step * 0.5005 + most.abs().max(least.abs()) * 1e-7 + 3.1e-8,
                            "{part:?} {off} {step}"
                        );
                    }
                }
            }
        }
    }
}
