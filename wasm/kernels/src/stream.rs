//! Products of quantised weights with the inputs of one token: eight woven rows at a time, straight from the packed
//! blocks as they stream by. The arithmetic of a group is in whole numbers, its lanes are rows.

use crate::inputs::{ByteInputs, Single};
use crate::lanes::{B16, F4, I4, S8};
use crate::weights::{byte_inputs, scale_bytes, Format, SLICE};
use crate::woven::{chunk, ROWS};

/// How inputs are stored: int16 in the order of `S8::twine`, or int8.
pub trait Stored: Copy {
    /// Whole-number products of eight rows with the 32 inputs of a slice; of groups of 16 both.
    ///
    /// # Safety
    /// `slice` is readable for the planes, `inputs` for 32 numbers.
    unsafe fn dots<F: Format>(slice: *const u8, inputs: *const Self) -> [[I4; 2]; 2];
}

#[inline(always)]
fn both<T: Copy, U>(a: [T; 2], b: [T; 2], f: impl Fn(T, T) -> U) -> [U; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Calls a macro with the chunks of both halves of a slice, written out: as a loop LLVM would keep it.
macro_rules! sums {
    ($dot:ident) => {
        [[$dot!(0, 0), $dot!(0, 1), $dot!(0, 2), $dot!(0, 3)], [$dot!(1, 0), $dot!(1, 1), $dot!(1, 2), $dot!(1, 3)]]
    };
}

impl Stored for i16 {
    #[inline(always)]
    unsafe fn dots<F: Format>(slice: *const u8, inputs: *const i16) -> [[I4; 2]; 2] {
        let x = [0, 1].map(|half| [S8::load(inputs.add(16 * half)), S8::load(inputs.add(16 * half + 8))]);
        macro_rules! dot {
            ($half:literal, $c:literal) => {{
                let (even, odd) = (x[$half][0].spread::<$c>(), x[$half][1].spread::<$c>());
                chunk::<F, $c>(slice, $half).map(|q| {
                    let q = q.twined(F::SIGNED);
                    q[0].dot(even).add(q[1].dot(odd))
                })
            }};
        }
        let halves = sums!(dot).map(|[a, b, c, d]| both(both(a, b, I4::add), both(c, d, I4::add), I4::add));
        if F::GROUP == SLICE {
            [both(halves[0], halves[1], I4::add), [I4::new([0; 4]); 2]]
        } else {
            halves
        }
    }
}

/// int8 whose products are summed in int16 at first.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Byte(u8);

/// int8 whose products are summed in int32 at once.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct WideByte(u8);

impl Stored for WideByte {
    #[inline(always)]
    unsafe fn dots<F: Format>(slice: *const u8, inputs: *const Self) -> [[I4; 2]; 2] {
        let (zero, inputs) = (I4::new([0; 4]), inputs as *const u8);
        let x = [B16::load(inputs), B16::load(inputs.add(16))];
        macro_rules! add {
            ($sums:ident, $half:literal: $($c:literal)*) => {{
                let mut sums = $sums;
                $(
                    let (four, [low, high]) = (x[$half].spread::<$c>(), chunk::<F, $c>(slice, $half));
                    sums = [low.dot_add(four, sums[0]), high.dot_add(four, sums[1])];
                )*
                sums
            }};
        }
        let first = [zero; 2];
        let first = add!(first, 0: 0 1 2 3);
        if F::GROUP == SLICE {
            [add!(first, 1: 0 1 2 3), [zero; 2]]
        } else {
            let second = [zero; 2];
            [first, add!(second, 1: 0 1 2 3)]
        }
    }
}

impl Stored for Byte {
    #[inline(always)]
    unsafe fn dots<F: Format>(slice: *const u8, inputs: *const Self) -> [[I4; 2]; 2] {
        let inputs = inputs as *const u8;
        let x = [B16::load(inputs), B16::load(inputs.add(16))];
        macro_rules! dot {
            ($half:literal, $c:literal) => {{
                let four = x[$half].spread::<$c>();
                chunk::<F, $c>(slice, $half).map(|q| q.dot(four))
            }};
        }
        // Sums in int16 hold eight inputs of the widest q, sixteen of up to 31, and 32 of up to 15.
        let wide = |sums: [S8; 2]| sums.map(S8::pair_sums);
        let halves = sums!(dot).map(|[a, b, c, d]| [both(a, b, S8::add), both(c, d, S8::add)]);
        let [first, second] = if F::MOST <= 15 && F::GROUP == SLICE {
            let [a, b] = halves.map(|[a, b]| both(a, b, S8::add));
            return [wide(both(a, b, S8::add)), [I4::new([0; 4]); 2]];
        } else if F::MOST <= 31 {
            halves.map(|[a, b]| wide(both(a, b, S8::add)))
        } else {
            halves.map(|[a, b]| both(wide(a), wide(b), I4::add))
        };
        if F::GROUP == SLICE {
            [both(first, second, I4::add), [I4::new([0; 4]); 2]]
        } else {
            [first, second]
        }
    }
}

/// Where the inputs of a block are.
#[derive(Clone, Copy)]
struct Inputs<T> {
    values: *const T,
    scales: *const f32,
    sums: *const f32,
}

/// Products of eight woven rows of `blocks` blocks with the inputs.
///
/// # Safety
/// `woven` is readable for the rows; there are as many inputs.
#[inline(never)]
pub unsafe fn stream<F: Format>(woven: *const u8, blocks: usize, x: &Single) -> [f32; ROWS] {
    if const { byte_inputs::<F>() } {
        return [0.0; ROWS];
    }
    let inputs = Inputs {
        values: x.values.as_slice().as_ptr(),
        scales: x.scales.as_slice().as_ptr(),
        sums: x.sums.as_slice().as_ptr(),
    };
    rows::<F, i16>(woven, blocks, inputs)
}

/// The same for formats with int8 inputs; `T`: [`Byte`] or [`WideByte`].
///
/// # Safety
/// As [`stream`].
#[inline(never)]
pub unsafe fn stream_bytes<F: Format, T: Stored>(woven: *const u8, blocks: usize, x: &ByteInputs) -> [f32; ROWS] {
    if const { !byte_inputs::<F>() } {
        return [0.0; ROWS];
    }
    let inputs = Inputs {
        values: x.values.as_slice().as_ptr() as *const T,
        scales: x.scales.as_slice().as_ptr(),
        sums: x.sums.as_slice().as_ptr(),
    };
    rows::<F, T>(woven, blocks, inputs)
}

#[inline(always)]
unsafe fn rows<F: Format, T: Stored>(mut at: *const u8, blocks: usize, mut x: Inputs<T>) -> [f32; ROWS] {
    let mut totals = [F4::zero(); 2];
    let end = at.add(ROWS * blocks * F::BYTES);
    while at < end {
        if F::BLOCK == SLICE {
            small::<F, T>(at, x, &mut totals);
        } else {
            large::<F, T>(at, x, &mut totals);
        }
        at = at.add(ROWS * F::BYTES);
        x.values = x.values.add(F::BLOCK);
        x.scales = x.scales.add(F::BLOCK / F::GROUP);
        x.sums = x.sums.add(F::BLOCK / F::GROUP);
    }
    let mut products = [0.0; ROWS];
    totals[0].store(products.as_mut_ptr());
    totals[1].store(products.as_mut_ptr().add(4));
    products
}

/// `sum − ZERO · all`, rounded twice.
#[inline(always)]
fn shifted<F: Format>(sum: F4, all: F4) -> F4 {
    let zero = F4::splat(-(F::ZERO as f32));
    // A power of two times a number is exact, so that a fused step rounds no less. LLVM would put other products of one
    // number with that of the next groups into one vector, and V8 join no more of this loop's.
    if F::ZERO.is_power_of_two() {
        sum.madd(all, zero)
    } else {
        sum.add(all.mul(zero))
    }
}

/// A block of 32.
#[inline(always)]
unsafe fn small<F: Format, T: Stored>(at: *const u8, x: Inputs<T>, totals: &mut [F4; 2]) {
    let [dots, _] = T::dots::<F>(at.add(ROWS * scale_bytes::<F>()), x.values);
    let (own, step) = (F::own(at), F4::load_splat(x.scales));
    // What each row's scale is multiplied by.
    let mut sums = dots.map(|dot| dot.to_floats().mul(step));
    let all = F4::load_splat(x.sums);
    if F::ZERO > 0 {
        sums = sums.map(|sum| shifted::<F>(sum, all));
    }
    *totals = [0, 1].map(|half| totals[half].madd(own.scales[half], sums[half]));
    if F::MINIMA {
        *totals = [0, 1].map(|half| totals[half].madd(own.minima[half], all));
    }
}

/// A block of 256: whole-number scales first, the block's own last.
#[inline(always)]
unsafe fn large<F: Format, T: Stored>(at: *const u8, x: Inputs<T>, totals: &mut [F4; 2]) {
    let (mut scaled, mut less) = ([F4::zero(); 2], [F4::zero(); 2]);
    let mut slice = at.add(ROWS * scale_bytes::<F>());
    let slice_bytes = ROWS * SLICE * F::BITS / 8;
    let slices = if F::GROUP == SLICE { 4 } else { 2 };
    for j in 0..F::BLOCK / F::GROUP / 4 {
        let [scales, minima] = F::four(at, j);
        macro_rules! group {
            ($g:literal, $dots:expr) => {{
                let (step, all) = (F4::load_splat(x.scales.add(4 * j + $g)), F4::load_splat(x.sums.add(4 * j + $g)));
                let mut sums = $dots.map(|dot| dot.to_floats().mul(step));
                if F::ZERO > 0 {
                    sums = sums.map(|sum| shifted::<F>(sum, all));
                }
                let of = |pair: [B16; 2]| pair[$g / 2].half_to_ints::<{ $g % 2 }>().map(|four| four.to_floats());
                let own = of(scales);
                scaled = [0, 1].map(|half| scaled[half].madd(own[half], sums[half]));
                if F::MINIMA {
                    let own = of(minima);
                    less = [0, 1].map(|half| less[half].madd(own[half], all));
                }
            }};
        }
        let values = x.values.add(slices * SLICE * j);
        if F::GROUP == SLICE {
            let dots = |s: usize| T::dots::<F>(slice.add(s * slice_bytes), values.add(s * SLICE))[0];
            group!(0, dots(0));
            group!(1, dots(1));
            group!(2, dots(2));
            group!(3, dots(3));
        } else {
            let dots = |s: usize| T::dots::<F>(slice.add(s * slice_bytes), values.add(s * SLICE));
            let [a, b] = dots(0);
            group!(0, a);
            group!(1, b);
            let [a, b] = dots(1);
            group!(2, a);
            group!(3, b);
        }
        slice = slice.add(slices * slice_bytes);
    }
    let own = F::own(at);
    *totals = [0, 1].map(|half| totals[half].madd(own.scales[half], scaled[half]));
    if F::MINIMA {
        *totals = [0, 1].map(|half| totals[half].madd(own.minima[half], less[half]));
    }
}
