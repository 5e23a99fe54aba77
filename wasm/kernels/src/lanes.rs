//! Four float32 lanes: one 128-bit register on WebAssembly, an array elsewhere.
//!
//! The array form exists so that the same kernels run under `cargo test` on any machine. Which form is compiled is
//! decided by the target features alone; nothing is dispatched at run time, because a WebAssembly module with vector
//! instructions does not load at all where they are missing. The caller picks the module (see `wasm/kernels.ts`).

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod imp {
    use core::arch::wasm32::*;

    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct F4(pub v128);

    impl F4 {
        #[inline(always)]
        pub fn splat(x: f32) -> Self {
            F4(f32x4_splat(x))
        }
        /// # Safety
        /// `p` is readable for four floats; no alignment is needed.
        #[inline(always)]
        pub unsafe fn load(p: *const f32) -> Self {
            F4(v128_load(p as *const v128))
        }
        /// # Safety
        /// `p` is readable for one float.
        #[inline(always)]
        pub unsafe fn load_splat(p: *const f32) -> Self {
            F4(v128_load32_splat(p as *const u32))
        }
        /// See [`super::Fixed`].
        #[inline(always)]
        pub fn fixed(x: &'static super::Fixed) -> Self {
            // SAFETY: 16 bytes, aligned.
            F4(unsafe { core::ptr::read_volatile(x.0.as_ptr() as *const v128) })
        }
        /// # Safety
        /// `p` is writable for four floats; no alignment is needed.
        #[inline(always)]
        pub unsafe fn store(self, p: *mut f32) {
            v128_store(p as *mut v128, self.0)
        }
        #[inline(always)]
        pub fn add(self, b: Self) -> Self {
            F4(f32x4_add(self.0, b.0))
        }
        #[inline(always)]
        pub fn sub(self, b: Self) -> Self {
            F4(f32x4_sub(self.0, b.0))
        }
        #[inline(always)]
        pub fn mul(self, b: Self) -> Self {
            F4(f32x4_mul(self.0, b.0))
        }
        /// `self + a · b`, fused where relaxed SIMD fuses.
        #[inline(always)]
        pub fn madd(self, a: Self, b: Self) -> Self {
            #[cfg(target_feature = "relaxed-simd")]
            return F4(f32x4_relaxed_madd(a.0, b.0, self.0));
            #[cfg(not(target_feature = "relaxed-simd"))]
            F4(f32x4_add(self.0, f32x4_mul(a.0, b.0)))
        }
        /// The larger of each lane; `self` where `b` is NaN.
        #[inline(always)]
        pub fn max(self, b: Self) -> Self {
            F4(f32x4_pmax(self.0, b.0))
        }
        #[inline(always)]
        pub fn abs(self) -> Self {
            F4(f32x4_abs(self.0))
        }
        #[inline(always)]
        pub fn div(self, b: Self) -> Self {
            F4(f32x4_div(self.0, b.0))
        }
        /// The smaller of each lane.
        #[inline(always)]
        pub fn min(self, b: Self) -> Self {
            F4(f32x4_pmin(self.0, b.0))
        }
        /// Lane `I` in all lanes.
        #[inline(always)]
        pub fn spread<const I: usize>(self) -> Self {
            F4(i32x4_shuffle::<I, I, I, I>(self.0, self.0))
        }
        /// The largest lane in all lanes.
        #[inline(always)]
        pub fn peaks(self) -> Self {
            let pair = self.max(F4(i32x4_shuffle::<2, 3, 0, 1>(self.0, self.0)));
            pair.max(F4(i32x4_shuffle::<1, 0, 3, 2>(pair.0, pair.0)))
        }
        /// Nearest whole number of each lane, ties to even; |x| < 2³¹.
        #[inline(always)]
        pub fn round(self) -> I4 {
            I4(i32x4_trunc_sat_f32x4(f32x4_nearest(self.0)))
        }
        #[inline(always)]
        pub fn lanes(self) -> [f32; 4] {
            [
                f32x4_extract_lane::<0>(self.0),
                f32x4_extract_lane::<1>(self.0),
                f32x4_extract_lane::<2>(self.0),
                f32x4_extract_lane::<3>(self.0),
            ]
        }
        /// `[Σa, Σb, Σc, Σd]`.
        #[inline(always)]
        pub fn sums(a: Self, b: Self, c: Self, d: Self) -> Self {
            let ab = f32x4_add(i32x4_shuffle::<0, 4, 1, 5>(a.0, b.0), i32x4_shuffle::<2, 6, 3, 7>(a.0, b.0));
            let cd = f32x4_add(i32x4_shuffle::<0, 4, 1, 5>(c.0, d.0), i32x4_shuffle::<2, 6, 3, 7>(c.0, d.0));
            F4(f32x4_add(i32x4_shuffle::<0, 1, 4, 5>(ab, cd), i32x4_shuffle::<2, 3, 6, 7>(ab, cd)))
        }
        /// Rows to columns.
        #[inline(always)]
        pub fn transpose([a, b, c, d]: [Self; 4]) -> [Self; 4] {
            let low = |x: Self, y: Self| i32x4_shuffle::<0, 4, 1, 5>(x.0, y.0);
            let high = |x: Self, y: Self| i32x4_shuffle::<2, 6, 3, 7>(x.0, y.0);
            let (ac, bd, ca, db) = (low(a, c), low(b, d), high(a, c), high(b, d));
            [low(F4(ac), F4(bd)), high(F4(ac), F4(bd)), low(F4(ca), F4(db)), high(F4(ca), F4(db))].map(F4)
        }
        #[inline(always)]
        pub fn sqrt(self) -> Self {
            F4(f32x4_sqrt(self.0))
        }
        /// 2ⁿ · `self` for whole n held in the low bits of `n`'s pattern (see `math::exp2`), 0 where `x < low`.
        #[inline(always)]
        pub fn scale_exponent(self, n: Self, x: Self, low: Self) -> Self {
            let scaled = i32x4_add(self.0, i32x4_shl(n.0, 23));
            F4(v128_andnot(scaled, f32x4_lt(x.0, low.0)))
        }
        /// Mantissa in [√½, √2) and exponent, so that `self = mantissa · 2^exponent`, for positive normal lanes.
        #[inline(always)]
        pub fn split_exponent(self) -> (Self, Self) {
            let offset = i32x4_sub(self.0, i32x4_splat(0x3f35_04f3));
            let exponent = i32x4_shr(offset, 23);
            let mantissa = i32x4_sub(self.0, i32x4_shl(exponent, 23));
            (F4(mantissa), F4(f32x4_convert_i32x4(exponent)))
        }
        /// Four float16 patterns, finite ones, in the low halves of the lanes.
        #[inline(always)]
        pub fn from_halves(bits: I4) -> Self {
            Self::from_upper_halves(I4(i32x4_shl(bits.0, 16)))
        }
        /// The same in the upper halves of the lanes, whatever the low halves hold.
        #[inline(always)]
        pub fn from_upper_halves(bits: I4) -> Self {
            // The shift spreads the sign over three bits; the mask takes two of them away again.
            let moved = v128_and(i32x4_shr(bits.0, 3), u32x4_splat(0x8fff_e000));
            F4(f32x4_mul(moved, f32x4_splat(super::HALF_BIAS)))
        }
    }

    /// What [`F4::from_half_pairs`] needs beside the numbers: kept in registers around a loop.
    #[derive(Clone, Copy)]
    pub struct HalfMask(v128, v128);

    impl HalfMask {
        #[inline(always)]
        pub fn new() -> Self {
            let [mask, shift] = &super::HALVES;
            HalfMask(F4::fixed(mask).0, F4::fixed(shift).0)
        }
        /// Eight float16 patterns, finite ones, times 2⁻¹¹²: those at even places, then those at odd ones.
        ///
        /// # Safety
        /// `p` is readable for 16 bytes.
        #[inline(always)]
        pub unsafe fn load(self, p: *const u8) -> [F4; 2] {
            let pairs = v128_load(p as *const v128);
            // Both moves spread the sign over four bits; the mask takes three of them away again.
            let even = i32x4_dot_i16x8(pairs, self.1);
            [F4(v128_and(even, self.0)), F4(v128_and(i32x4_shr(pairs, 3), self.0))]
        }
    }

    /// Four int32.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct I4(v128);

    impl I4 {
        #[inline(always)]
        pub fn new(x: [i32; 4]) -> Self {
            I4(i32x4(x[0], x[1], x[2], x[3]))
        }
        /// # Safety
        /// `p` is readable for four numbers.
        #[inline(always)]
        pub unsafe fn load(p: *const i32) -> Self {
            I4(v128_load(p as *const v128))
        }
        /// # Safety
        /// `p` is writable for four numbers.
        #[inline(always)]
        pub unsafe fn store(self, p: *mut i32) {
            v128_store(p as *mut v128, self.0)
        }
        #[inline(always)]
        pub fn add(self, b: Self) -> Self {
            I4(i32x4_add(self.0, b.0))
        }
        #[inline(always)]
        pub fn to_floats(self) -> F4 {
            F4(f32x4_convert_i32x4(self.0))
        }
        /// `[Σa, Σb, Σc, Σd]`.
        #[inline(always)]
        pub fn sums(a: Self, b: Self, c: Self, d: Self) -> Self {
            let ab = i32x4_add(i32x4_shuffle::<0, 4, 1, 5>(a.0, b.0), i32x4_shuffle::<2, 6, 3, 7>(a.0, b.0));
            let cd = i32x4_add(i32x4_shuffle::<0, 4, 1, 5>(c.0, d.0), i32x4_shuffle::<2, 6, 3, 7>(c.0, d.0));
            I4(i32x4_add(i32x4_shuffle::<0, 1, 4, 5>(ab, cd), i32x4_shuffle::<2, 3, 6, 7>(ab, cd)))
        }
        #[inline(always)]
        pub fn sum(self) -> i32 {
            let pair = i32x4_add(self.0, i32x4_shuffle::<2, 3, 0, 1>(self.0, self.0));
            i32x4_extract_lane::<0>(pair) + i32x4_extract_lane::<1>(pair)
        }
    }

    /// Eight int16.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct S8(v128);

    impl S8 {
        /// # Safety
        /// `p` is readable for eight numbers.
        #[inline(always)]
        pub unsafe fn load(p: *const i16) -> Self {
            S8(v128_load(p as *const v128))
        }
        /// The pair at `p`, four times.
        ///
        /// # Safety
        /// `p` is readable for two numbers.
        #[inline(always)]
        pub unsafe fn load_pair_splat(p: *const i16) -> Self {
            S8(v128_load32_splat(p as *const u32))
        }
        /// # Safety
        /// `p` is writable for eight numbers.
        #[inline(always)]
        pub unsafe fn store(self, p: *mut i16) {
            v128_store(p as *mut v128, self.0)
        }
        /// `[first pairs of all four, second pairs, …]`.
        #[inline(always)]
        pub fn transpose_pairs([a, b, c, d]: [Self; 4]) -> [Self; 4] {
            let low = |x: v128, y: v128| i32x4_shuffle::<0, 4, 1, 5>(x, y);
            let high = |x: v128, y: v128| i32x4_shuffle::<2, 6, 3, 7>(x, y);
            let (ab, ab2, cd, cd2) = (low(a.0, b.0), high(a.0, b.0), low(c.0, d.0), high(c.0, d.0));
            let first = |x: v128, y: v128| S8(i64x2_shuffle::<0, 2>(x, y));
            let second = |x: v128, y: v128| S8(i64x2_shuffle::<1, 3>(x, y));
            [first(ab, cd), second(ab, cd), first(ab2, cd2), second(ab2, cd2)]
        }
        /// Eight int8.
        ///
        /// # Safety
        /// `p` is readable for eight bytes.
        #[inline(always)]
        pub unsafe fn eight(p: *const u8) -> Self {
            S8(i16x8_load_extend_i8x8(p as *const i8))
        }
        /// Two numbers, four times over.
        ///
        /// # Safety
        /// `p` is readable for two numbers.
        #[inline(always)]
        pub unsafe fn load_pair(p: *const i16) -> Self {
            S8(v128_load32_splat(p as *const u32))
        }
        /// `[a₀, b₀, a₁, b₁ …]`.
        #[inline(always)]
        pub fn interleave(a: Self, b: Self) -> [Self; 2] {
            [
                S8(i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(a.0, b.0)),
                S8(i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(a.0, b.0)),
            ]
        }
        /// Two times four int32, saturated.
        #[inline(always)]
        pub fn narrow(a: I4, b: I4) -> Self {
            S8(i16x8_narrow_i32x4(a.0, b.0))
        }
        /// Sums of neighbouring products.
        #[inline(always)]
        pub fn dot(self, b: Self) -> I4 {
            I4(i32x4_dot_i16x8(self.0, b.0))
        }
        #[inline(always)]
        pub fn widen(self) -> [I4; 2] {
            [I4(i32x4_extend_low_i16x8(self.0)), I4(i32x4_extend_high_i16x8(self.0))]
        }
        /// 32 numbers of 4 bits: the low halves of 16 bytes, then the high ones.
        ///
        /// # Safety
        /// `p` is readable for 16 bytes.
        #[inline(always)]
        pub unsafe fn nibbles(p: *const u8) -> [Self; 4] {
            let bytes = v128_load(p as *const v128);
            let (low, high) = (v128_and(bytes, u8x16_splat(15)), u8x16_shr(bytes, 4));
            [
                S8(u16x8_extend_low_u8x16(low)),
                S8(u16x8_extend_high_u8x16(low)),
                S8(u16x8_extend_low_u8x16(high)),
                S8(u16x8_extend_high_u8x16(high)),
            ]
        }
        /// The same numbers in the order that needs no widening: each pair of bytes is four of them.
        ///
        /// # Safety
        /// `p` is readable for 16 bytes.
        #[inline(always)]
        pub unsafe fn twined_nibbles(p: *const u8) -> [Self; 4] {
            let pairs = v128_load(p as *const v128);
            let low = |v: v128| S8(v128_and(v, i16x8_splat(15)));
            [low(pairs), low(u16x8_shr(pairs, 8)), low(u16x8_shr(pairs, 4)), S8(u16x8_shr(pairs, 12))]
        }
        /// 32 numbers in the order of `twined_nibbles`: of each half, those at even places, then those at odd ones.
        #[inline(always)]
        pub fn twine([a, b, c, d]: [Self; 4]) -> [Self; 4] {
            let even = |x: Self, y: Self| S8(i16x8_shuffle::<0, 2, 4, 6, 8, 10, 12, 14>(x.0, y.0));
            let odd = |x: Self, y: Self| S8(i16x8_shuffle::<1, 3, 5, 7, 9, 11, 13, 15>(x.0, y.0));
            [even(a, b), odd(a, b), even(c, d), odd(c, d)]
        }
        /// 16 int8.
        ///
        /// # Safety
        /// `p` is readable for 16 bytes.
        #[inline(always)]
        pub unsafe fn sixteen(p: *const u8) -> [Self; 2] {
            let bytes = v128_load(p as *const v128);
            [S8(i16x8_extend_low_i8x16(bytes)), S8(i16x8_extend_high_i8x16(bytes))]
        }
        /// 32 int8.
        ///
        /// # Safety
        /// `p` is readable for 32 bytes.
        #[inline(always)]
        pub unsafe fn bytes(p: *const u8) -> [Self; 4] {
            let (first, second) = (v128_load(p as *const v128), v128_load(p.add(16) as *const v128));
            [
                S8(i16x8_extend_low_i8x16(first)),
                S8(i16x8_extend_high_i8x16(first)),
                S8(i16x8_extend_low_i8x16(second)),
                S8(i16x8_extend_high_i8x16(second)),
            ]
        }
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod imp {
    #[derive(Clone, Copy)]
    pub struct F4([f32; 4]);

    #[inline(always)]
    fn zip(a: F4, b: F4, f: impl Fn(f32, f32) -> f32) -> F4 {
        F4([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
    }

    impl F4 {
        pub fn splat(x: f32) -> Self {
            F4([x; 4])
        }
        /// # Safety
        /// `p` is readable for four floats; no alignment is needed.
        pub unsafe fn load(p: *const f32) -> Self {
            F4((p as *const [f32; 4]).read_unaligned())
        }
        /// # Safety
        /// `p` is readable for one float.
        pub unsafe fn load_splat(p: *const f32) -> Self {
            F4([p.read_unaligned(); 4])
        }
        pub fn fixed(x: &'static super::Fixed) -> Self {
            F4(x.0)
        }
        pub fn peaks(self) -> Self {
            let larger = |x: f32, y: f32| if x < y { y } else { x };
            let [a, b, c, d] = self.0;
            F4([larger(larger(a, c), larger(b, d)); 4])
        }
        /// # Safety
        /// `p` is writable for four floats; no alignment is needed.
        pub unsafe fn store(self, p: *mut f32) {
            (p as *mut [f32; 4]).write_unaligned(self.0)
        }
        pub fn add(self, b: Self) -> Self {
            zip(self, b, |x, y| x + y)
        }
        pub fn sub(self, b: Self) -> Self {
            zip(self, b, |x, y| x - y)
        }
        pub fn mul(self, b: Self) -> Self {
            zip(self, b, |x, y| x * y)
        }
        pub fn madd(self, a: Self, b: Self) -> Self {
            self.add(a.mul(b))
        }
        pub fn max(self, b: Self) -> Self {
            zip(self, b, |x, y| if x < y { y } else { x })
        }
        pub fn abs(self) -> Self {
            zip(self, self, |x, _| x.abs())
        }
        pub fn div(self, b: Self) -> Self {
            zip(self, b, |x, y| x / y)
        }
        pub fn min(self, b: Self) -> Self {
            zip(self, b, |x, y| if y < x { y } else { x })
        }
        pub fn spread<const I: usize>(self) -> Self {
            F4([self.0[I]; 4])
        }
        pub fn round(self) -> I4 {
            I4(self.0.map(|x| x.round_ties_even() as i32))
        }
        pub fn from_halves(bits: I4) -> Self {
            Self::from_upper_halves(I4(bits.0.map(|x| x << 16)))
        }
        pub fn from_upper_halves(bits: I4) -> Self {
            F4(bits.0.map(|x| f32::from_bits((x >> 3) as u32 & 0x8fff_e000) * super::HALF_BIAS))
        }
        pub fn lanes(self) -> [f32; 4] {
            self.0
        }
        pub fn sums(a: Self, b: Self, c: Self, d: Self) -> Self {
            // The order of the vector form, so that both round alike.
            let sum = |v: F4| (v.0[0] + v.0[2]) + (v.0[1] + v.0[3]);
            F4([sum(a), sum(b), sum(c), sum(d)])
        }
        pub fn transpose(rows: [Self; 4]) -> [Self; 4] {
            core::array::from_fn(|i| F4(rows.map(|row| row.0[i])))
        }
        pub fn sqrt(self) -> Self {
            F4(self.0.map(f32::sqrt))
        }
        pub fn scale_exponent(self, n: Self, x: Self, low: Self) -> Self {
            let mut out = [0.0; 4];
            for i in 0..4 {
                if !(x.0[i] < low.0[i]) {
                    out[i] = f32::from_bits(self.0[i].to_bits().wrapping_add(n.0[i].to_bits() << 23));
                }
            }
            F4(out)
        }
        pub fn split_exponent(self) -> (Self, Self) {
            let (mut m, mut e) = ([0.0; 4], [0.0; 4]);
            for i in 0..4 {
                let bits = self.0[i].to_bits() as i32;
                let exponent = bits.wrapping_sub(0x3f35_04f3) >> 23;
                m[i] = f32::from_bits(bits.wrapping_sub(exponent << 23) as u32);
                e[i] = exponent as f32;
            }
            (F4(m), F4(e))
        }
    }

    #[derive(Clone, Copy)]
    pub struct HalfMask;

    impl HalfMask {
        pub fn new() -> Self {
            HalfMask
        }
        /// # Safety
        /// `p` is readable for 16 bytes.
        pub unsafe fn load(self, p: *const u8) -> [F4; 2] {
            let halves = (p as *const [i16; 8]).read_unaligned();
            let float = |i: usize| f32::from_bits((halves[i] as i32 * 8192) as u32 & super::HALVES[0].0[0].to_bits());
            [0, 1].map(|odd| F4(core::array::from_fn(|i| float(2 * i + odd))))
        }
    }

    #[derive(Clone, Copy)]
    pub struct I4([i32; 4]);

    impl I4 {
        pub fn new(x: [i32; 4]) -> Self {
            I4(x)
        }
        /// # Safety
        /// `p` is readable for four numbers.
        pub unsafe fn load(p: *const i32) -> Self {
            I4((p as *const [i32; 4]).read_unaligned())
        }
        /// # Safety
        /// `p` is writable for four numbers.
        pub unsafe fn store(self, p: *mut i32) {
            (p as *mut [i32; 4]).write_unaligned(self.0)
        }
        pub fn add(self, b: Self) -> Self {
            I4([0, 1, 2, 3].map(|i| self.0[i].wrapping_add(b.0[i])))
        }
        pub fn to_floats(self) -> F4 {
            F4(self.0.map(|x| x as f32))
        }
        pub fn sums(a: Self, b: Self, c: Self, d: Self) -> Self {
            I4([a, b, c, d].map(Self::sum))
        }
        pub fn sum(self) -> i32 {
            self.0.iter().fold(0, |sum, x| sum.wrapping_add(*x))
        }
    }

    #[derive(Clone, Copy)]
    pub struct S8([i16; 8]);

    impl S8 {
        /// # Safety
        /// `p` is readable for eight numbers.
        pub unsafe fn load(p: *const i16) -> Self {
            S8((p as *const [i16; 8]).read_unaligned())
        }
        /// # Safety
        /// `p` is readable for two numbers.
        pub unsafe fn load_pair_splat(p: *const i16) -> Self {
            let [a, b] = (p as *const [i16; 2]).read_unaligned();
            S8([a, b, a, b, a, b, a, b])
        }
        pub fn transpose_pairs(x: [Self; 4]) -> [Self; 4] {
            core::array::from_fn(|pair| S8(core::array::from_fn(|i| x[i / 2].0[2 * pair + i % 2])))
        }
        /// # Safety
        /// `p` is writable for eight numbers.
        pub unsafe fn store(self, p: *mut i16) {
            (p as *mut [i16; 8]).write_unaligned(self.0)
        }
        /// # Safety
        /// `p` is readable for eight bytes.
        pub unsafe fn eight(p: *const u8) -> Self {
            S8((p as *const [i8; 8]).read().map(|x| x as i16))
        }
        /// # Safety
        /// `p` is readable for two numbers.
        pub unsafe fn load_pair(p: *const i16) -> Self {
            let pair = (p as *const [i16; 2]).read_unaligned();
            S8(core::array::from_fn(|i| pair[i % 2]))
        }
        pub fn interleave(a: Self, b: Self) -> [Self; 2] {
            let at = |i: usize| if i % 2 == 0 { a.0[i / 2] } else { b.0[i / 2] };
            [0, 8].map(|first| S8(core::array::from_fn(|i| at(first + i))))
        }
        pub fn narrow(a: I4, b: I4) -> Self {
            let at = |i: usize| if i < 4 { a.0[i] } else { b.0[i - 4] };
            S8(core::array::from_fn(|i| at(i).clamp(-32768, 32767) as i16))
        }
        pub fn dot(self, b: Self) -> I4 {
            let product = |i: usize| self.0[i] as i32 * b.0[i] as i32;
            I4(core::array::from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1))))
        }
        pub fn widen(self) -> [I4; 2] {
            [0, 4].map(|first| I4(core::array::from_fn(|i| self.0[first + i] as i32)))
        }
        /// # Safety
        /// `p` is readable for 16 bytes.
        pub unsafe fn nibbles(p: *const u8) -> [Self; 4] {
            let bytes = (p as *const [u8; 16]).read();
            let at = |i: usize| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 };
            core::array::from_fn(|v| S8(core::array::from_fn(|i| at(8 * v + i) as i16)))
        }
        /// # Safety
        /// `p` is readable for 16 bytes.
        pub unsafe fn twined_nibbles(p: *const u8) -> [Self; 4] {
            Self::twine(Self::nibbles(p))
        }
        pub fn twine(x: [Self; 4]) -> [Self; 4] {
            let at = |i: usize| x[i / 8].0[i % 8];
            core::array::from_fn(|v| S8(core::array::from_fn(|i| at(v / 2 * 16 + 2 * i + v % 2))))
        }
        /// # Safety
        /// `p` is readable for 16 bytes.
        pub unsafe fn sixteen(p: *const u8) -> [Self; 2] {
            let bytes = (p as *const [i8; 16]).read();
            core::array::from_fn(|v| S8(core::array::from_fn(|i| bytes[8 * v + i] as i16)))
        }
        /// # Safety
        /// `p` is readable for 32 bytes.
        pub unsafe fn bytes(p: *const u8) -> [Self; 4] {
            let bytes = (p as *const [i8; 32]).read();
            core::array::from_fn(|v| S8(core::array::from_fn(|i| bytes[8 * v + i] as i16)))
        }
    }
}

/// A float16 pattern moved to float32's place is 2¹¹² times too small.
pub const HALF_BIAS: f32 = 5.192_296_858_534_828e33;

/// Where float16's bits stand in a float32 pattern, and what int16 pairs are multiplied by to bring the first one there.
static HALVES: [Fixed; 2] = [Fixed::new(f32::from_bits(0x8fff_e000)), Fixed::new(f32::from_bits(0x2000))];

/// A number in all lanes of a vector in memory. The engine would put a constant in the code together from three
/// instructions each time it is used; from a place that is fixed one instruction reads it, without a check.
#[repr(align(16))]
pub struct Fixed([f32; 4]);

impl Fixed {
    pub const fn new(x: f32) -> Self {
        Fixed([x; 4])
    }
}

pub use imp::{HalfMask, F4, I4, S8};

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
