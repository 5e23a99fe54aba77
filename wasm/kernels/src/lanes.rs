//! Vectors of 128 bits: one register on WebAssembly, an array elsewhere. `F4` are four float32, `I4` four int32, `S8`
//! eight int16, `B16` sixteen bytes, `D2` two float64.
//!
//! The array form exists so that the same kernels run under `cargo test` on any machine. Which form is compiled is
//! decided by the target features alone; nothing is dispatched at run time, because a WebAssembly module with vector
//! instructions does not load at all where they are missing. The caller picks the module (see `wasm/module.ts`).

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
#[path = "lanes_simd.rs"]
mod imp;

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
#[path = "lanes_scalar.rs"]
mod imp;

/// A float16 pattern moved to float32's place is 2¹¹² times too small.
pub const HALF_BIAS: f32 = 5.192_296_858_534_828e33;

/// Smallest float16 above zero, 2⁻²⁴.
pub const SMALLEST_HALF: f32 = 5.960_464_477_539_063e-8;

/// Where float16's bits stand in a float32 pattern, and what int16 pairs are multiplied by to bring the first one there.
static HALVES: [Fixed; 2] = [Fixed::new(f32::from_bits(0x8fff_e000)), Fixed::new(f32::from_bits(0x2000))];

/// 1.5 · 2²³: a float32 beside it is a whole number, in its low bits.
pub const WHOLE: f32 = 12_582_912.0;

/// A number in all lanes of a vector in memory. The engine would put a constant in the code together from three
/// instructions each time it is used; from a place that is fixed one instruction reads it, without a check.
#[repr(align(16))]
pub struct Fixed([f32; 4]);

impl Fixed {
    pub const fn new(x: f32) -> Self {
        Fixed([x; 4])
    }
}

/// Sixteen bytes in memory, for the same reason.
#[repr(align(16))]
pub struct FixedBytes([u8; 16]);

impl FixedBytes {
    pub const fn new(bytes: [u8; 16]) -> Self {
        FixedBytes(bytes)
    }
}

/// Which byte of a word holds a number's bit, for the word's first and last 16 bits; and which bit it is.
static BIT_BYTES: [FixedBytes; 2] = [
    FixedBytes::new([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
    FixedBytes::new([2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
];
static EACH_BIT: FixedBytes = FixedBytes::new([1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128]);

/// Whether [`B16::dot`] is fast: with relaxed SIMD. The array form has it, so that it is tested.
pub const BYTE_DOTS: bool = cfg!(any(target_feature = "relaxed-simd", not(target_feature = "simd128")));

pub use imp::{HalfMask, B16, D2, F4, I4, S8};

impl F4 {
    pub fn zero() -> Self {
        F4::splat(0.0)
    }
    /// Sum of the lanes.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        let x = self.lanes();
        (x[0] + x[2]) + (x[1] + x[3])
    }
    /// Largest lane.
    #[inline(always)]
    pub fn peak(self) -> f32 {
        self.peaks().lanes()[0]
    }
}
