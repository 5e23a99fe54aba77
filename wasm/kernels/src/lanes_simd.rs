//! The lanes as WebAssembly vectors; see `lanes.rs`.
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
    /// Nearest whole number of each lane, ties to even; |x| < 2²², beyond that something large, of NaN anything.
    #[inline(always)]
    pub fn round(self) -> I4 {
        let whole = f32x4_splat(super::WHOLE);
        I4(i32x4_sub(f32x4_add(self.0, whole), whole))
    }
    /// The first two lanes, then the others.
    #[inline(always)]
    pub fn to_doubles(self) -> [D2; 2] {
        let high = i32x4_shuffle::<2, 3, 2, 3>(self.0, self.0);
        [D2(f64x2_promote_low_f32x4(self.0)), D2(f64x2_promote_low_f32x4(high))]
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
    /// The lanes whose float16 was infinite or no number, too: [`Self::from_halves`] makes 65536 and more of them.
    #[inline(always)]
    pub fn with_infinities(self) -> Self {
        let large = f32x4_ge(f32x4_abs(self.0), f32x4_splat(65536.0));
        F4(v128_or(self.0, v128_and(large, u32x4_splat(0x7f80_0000))))
    }
    /// Four float16 patterns of any kind in the low halves of the lanes, zeros above. No float on the way is below
    /// float32's normal range, as those of [`Self::from_halves`] are for numbers that are so in float16: scales of 256
    /// weights often are, and processors take a hundred cycles for them.
    #[inline(always)]
    pub fn from_any_halves(bits: I4) -> Self {
        let size = v128_and(bits.0, i32x4_splat(0x7fff));
        let normal = i32x4_add(i32x4_shl(size, 13), i32x4_splat(112 << 23));
        let infinite = v128_and(i32x4_ge(size, i32x4_splat(0x7c00)), i32x4_splat(0x7f80_0000));
        let small = f32x4_mul(f32x4_convert_i32x4(size), f32x4_splat(super::SMALLEST_HALF));
        let x = v128_bitselect(small, v128_or(normal, infinite), i32x4_lt(size, i32x4_splat(0x400)));
        F4(v128_or(x, i32x4_shl(v128_xor(bits.0, size), 16)))
    }
    /// Four bfloat16 patterns in the low halves of the lanes.
    #[inline(always)]
    pub fn from_bfloats(bits: I4) -> Self {
        F4(i32x4_shl(bits.0, 16))
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
    /// Four numbers of 16 bits.
    ///
    /// # Safety
    /// `p` is readable for eight bytes.
    #[inline(always)]
    pub unsafe fn load_halves(p: *const u8) -> Self {
        I4(u32x4_load_extend_u16x4(p as *const u16))
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
    #[inline(always)]
    pub fn zero() -> Self {
        S8(i16x8_splat(0))
    }
    #[inline(always)]
    pub fn add(self, b: Self) -> Self {
        S8(i16x8_add(self.0, b.0))
    }
    /// Sums of neighbours.
    #[inline(always)]
    pub fn pair_sums(self) -> I4 {
        I4(i32x4_extadd_pairwise_i16x8(self.0))
    }
    /// Sixteen int8, saturated.
    #[inline(always)]
    pub fn to_bytes(a: Self, b: Self) -> B16 {
        B16(i8x16_narrow_i16x8(a.0, b.0))
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
    /// Eight int8.
    ///
    /// # Safety
    /// `p` is readable for eight bytes.
    #[inline(always)]
    pub unsafe fn eight(p: *const u8) -> Self {
        S8(i16x8_load_extend_i8x8(p as *const i8))
    }
    /// Pair `I` of the numbers, four times.
    #[inline(always)]
    pub fn spread<const I: usize>(self) -> Self {
        S8(i32x4_shuffle::<I, I, I, I>(self.0, self.0))
    }
    /// Of each four numbers those at even places, then those at odd ones.
    #[inline(always)]
    pub fn twine_fours(self) -> Self {
        S8(i16x8_shuffle::<0, 2, 1, 3, 4, 6, 5, 7>(self.0, self.0))
    }
    /// Sixteen numbers in the order of [`B16::twined`]: those at even places, then those at odd ones.
    #[inline(always)]
    pub fn twine([a, b]: [Self; 2]) -> [Self; 2] {
        [
            S8(i16x8_shuffle::<0, 2, 4, 6, 8, 10, 12, 14>(a.0, b.0)),
            S8(i16x8_shuffle::<1, 3, 5, 7, 9, 11, 13, 15>(a.0, b.0)),
        ]
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
}

/// Sixteen bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct B16(v128);

impl B16 {
    #[inline(always)]
    pub fn splat(x: u8) -> Self {
        B16(u8x16_splat(x))
    }
    /// # Safety
    /// `p` is readable for 16 bytes.
    #[inline(always)]
    pub unsafe fn load(p: *const u8) -> Self {
        B16(v128_load(p as *const v128))
    }
    /// # Safety
    /// `p` is writable for 16 bytes.
    #[inline(always)]
    pub unsafe fn store(self, p: *mut u8) {
        v128_store(p as *mut v128, self.0)
    }
    #[inline(always)]
    pub fn and(self, b: Self) -> Self {
        B16(v128_and(self.0, b.0))
    }
    #[inline(always)]
    pub fn or(self, b: Self) -> Self {
        B16(v128_or(self.0, b.0))
    }
    #[inline(always)]
    pub fn sub(self, b: Self) -> Self {
        B16(i8x16_sub(self.0, b.0))
    }
    /// All 128 bits' halves of 16 moved right: what was the neighbour's must be masked off.
    #[inline(always)]
    pub fn right(self, by: u32) -> Self {
        B16(u16x8_shr(self.0, by))
    }
    /// The same to the left.
    #[inline(always)]
    pub fn left(self, by: u32) -> Self {
        B16(i16x8_shl(self.0, by))
    }
    /// See [`super::FixedBytes`].
    #[inline(always)]
    pub fn fixed(x: &'static super::FixedBytes) -> Self {
        // SAFETY: 16 bytes, aligned.
        B16(unsafe { core::ptr::read_volatile(x.0.as_ptr() as *const v128) })
    }
    /// `self[i]` for indices below 16.
    #[inline(always)]
    pub fn look_up(self, indices: Self) -> Self {
        #[cfg(target_feature = "relaxed-simd")]
        return B16(i8x16_relaxed_swizzle(self.0, indices.0));
        #[cfg(not(target_feature = "relaxed-simd"))]
        B16(i8x16_swizzle(self.0, indices.0))
    }
    /// The first or the last 16 of a word's bits as bytes: 255 where a bit is set.
    ///
    /// # Safety
    /// `p` is readable for four bytes.
    #[inline(always)]
    pub unsafe fn load_bits(p: *const u8) -> [Self; 2] {
        let all = B16(v128_load32_splat(p as *const u32));
        let each = Self::fixed(&super::EACH_BIT);
        [0, 1].map(|half| {
            let spread = all.look_up(Self::fixed(&super::BIT_BYTES[half]));
            B16(u8x16_eq(spread.and(each).0, each.0))
        })
    }
    /// Sums of neighbouring products of these numbers, below 128, with int8: one instruction on x86 where there is
    /// relaxed SIMD.
    #[inline(always)]
    pub fn dot(self, b: Self) -> S8 {
        #[cfg(target_feature = "relaxed-simd")]
        return S8(i16x8_relaxed_dot_i8x16_i7x16(b.0, self.0));
        #[cfg(not(target_feature = "relaxed-simd"))]
        {
            let [even, odd] = [self.twined(false), b.twined(true)];
            S8(i16x8_add(i16x8_mul(even[0].0, odd[0].0), i16x8_mul(even[1].0, odd[1].0)))
        }
    }
    /// `sums` and the products of each four of these numbers, below 128, with int8: one instruction where the processor
    /// has one for it and the engine takes it, else five.
    #[inline(always)]
    pub fn dot_add(self, b: Self, sums: I4) -> I4 {
        #[cfg(target_feature = "relaxed-simd")]
        return I4(i32x4_relaxed_dot_i8x16_i7x16_add(b.0, self.0, sums.0));
        #[cfg(not(target_feature = "relaxed-simd"))]
        sums.add(self.dot(b).pair_sums())
    }
    /// Four bytes, number `I` of four such, four times.
    #[inline(always)]
    pub fn spread<const I: usize>(self) -> Self {
        B16(i32x4_shuffle::<I, I, I, I>(self.0, self.0))
    }
    /// As int16, those at even places, then those at odd ones: no lane has to move. `signed`: int8, else below 256.
    #[inline(always)]
    pub fn twined(self, signed: bool) -> [S8; 2] {
        if signed {
            [S8(i16x8_shr(i16x8_shl(self.0, 8), 8)), S8(i16x8_shr(self.0, 8))]
        } else {
            [S8(v128_and(self.0, u16x8_splat(255))), S8(u16x8_shr(self.0, 8))]
        }
    }
    /// The first or the last eight int8 as int32.
    #[inline(always)]
    pub fn half_to_ints<const HALF: usize>(self) -> [I4; 2] {
        let eight = if HALF == 0 { i16x8_extend_low_i8x16(self.0) } else { i16x8_extend_high_i8x16(self.0) };
        [I4(i32x4_extend_low_i16x8(eight)), I4(i32x4_extend_high_i16x8(eight))]
    }
    /// Rows of four bytes to columns.
    #[inline(always)]
    pub fn transpose_words(rows: [Self; 4]) -> [Self; 4] {
        F4::transpose(rows.map(|row| F4(row.0))).map(|column| B16(column.0))
    }
    /// As int32, sixteen int8.
    #[inline(always)]
    pub fn to_ints(self) -> [I4; 4] {
        let (low, high) = (i16x8_extend_low_i8x16(self.0), i16x8_extend_high_i8x16(self.0));
        [
            I4(i32x4_extend_low_i16x8(low)),
            I4(i32x4_extend_high_i16x8(low)),
            I4(i32x4_extend_low_i16x8(high)),
            I4(i32x4_extend_high_i16x8(high)),
        ]
    }
}

/// Two float64.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct D2(v128);

impl D2 {
    #[inline(always)]
    pub fn zero() -> Self {
        Self::splat(0.0)
    }
    #[inline(always)]
    pub fn splat(x: f64) -> Self {
        D2(f64x2_splat(x))
    }
    /// # Safety
    /// `p` is readable for two doubles; no alignment is needed.
    #[inline(always)]
    pub unsafe fn load(p: *const f64) -> Self {
        D2(v128_load(p as *const v128))
    }
    /// `self + a · b`, fused where relaxed SIMD fuses.
    #[inline(always)]
    pub fn madd(self, a: Self, b: Self) -> Self {
        #[cfg(target_feature = "relaxed-simd")]
        return D2(f64x2_relaxed_madd(a.0, b.0, self.0));
        #[cfg(not(target_feature = "relaxed-simd"))]
        D2(f64x2_add(self.0, f64x2_mul(a.0, b.0)))
    }
    #[inline(always)]
    pub fn lanes(self) -> [f64; 2] {
        [f64x2_extract_lane::<0>(self.0), f64x2_extract_lane::<1>(self.0)]
    }
    #[inline(always)]
    pub fn sum(self) -> f64 {
        let [a, b] = self.lanes();
        a + b
    }
}
