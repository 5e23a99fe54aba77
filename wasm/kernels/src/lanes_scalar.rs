//! The lanes one by one, for tests and targets without vectors; see `lanes.rs`.
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
        I4(self.0.map(|x| ((x + super::WHOLE).to_bits() as i32).wrapping_sub(super::WHOLE.to_bits() as i32)))
    }
    pub fn to_doubles(self) -> [D2; 2] {
        let [a, b, c, d] = self.0.map(f64::from);
        [D2([a, b]), D2([c, d])]
    }
    pub fn from_halves(bits: I4) -> Self {
        Self::from_upper_halves(I4(bits.0.map(|x| x << 16)))
    }
    pub fn from_upper_halves(bits: I4) -> Self {
        F4(bits.0.map(|x| f32::from_bits((x >> 3) as u32 & 0x8fff_e000) * super::HALF_BIAS))
    }
    pub fn with_infinities(self) -> Self {
        F4(self.0.map(|x| if x.abs() >= 65536.0 { f32::from_bits(x.to_bits() | 0x7f80_0000) } else { x }))
    }
    pub fn from_any_halves(bits: I4) -> Self {
        F4(bits.0.map(|bits| {
            let size = bits as u32 & 0x7fff;
            let x = match size {
                0..0x400 => size as f32 * super::SMALLEST_HALF,
                0x400..0x7c00 => f32::from_bits((size << 13) + (112 << 23)),
                _ => f32::from_bits(size << 13 | 0x7f80_0000),
            };
            f32::from_bits(x.to_bits() | (bits as u32 & 0x8000) << 16)
        }))
    }
    pub fn from_bfloats(bits: I4) -> Self {
        F4(bits.0.map(|x| f32::from_bits((x as u32) << 16)))
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
    /// `p` is readable for eight bytes.
    pub unsafe fn load_halves(p: *const u8) -> Self {
        I4((p as *const [u16; 4]).read_unaligned().map(|x| x as i32))
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
    pub fn zero() -> Self {
        S8([0; 8])
    }
    /// Without wrapping: the kernels see to it that sums fit, and tests would hear of it.
    pub fn add(self, b: Self) -> Self {
        S8(core::array::from_fn(|i| self.0[i] + b.0[i]))
    }
    pub fn pair_sums(self) -> I4 {
        I4(core::array::from_fn(|i| self.0[2 * i] as i32 + self.0[2 * i + 1] as i32))
    }
    pub fn to_bytes(a: Self, b: Self) -> B16 {
        let at = |i: usize| if i < 8 { a.0[i] } else { b.0[i - 8] };
        B16(core::array::from_fn(|i| at(i).clamp(-128, 127) as i8 as u8))
    }
    pub fn dot(self, b: Self) -> I4 {
        let product = |i: usize| self.0[i] as i32 * b.0[i] as i32;
        I4(core::array::from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1))))
    }
    pub fn widen(self) -> [I4; 2] {
        [0, 4].map(|first| I4(core::array::from_fn(|i| self.0[first + i] as i32)))
    }
    pub fn spread<const I: usize>(self) -> Self {
        S8(core::array::from_fn(|i| self.0[2 * I + i % 2]))
    }
    pub fn twine_fours(self) -> Self {
        S8([0, 2, 1, 3, 4, 6, 5, 7].map(|i: usize| self.0[i]))
    }
    pub fn twine(x: [Self; 2]) -> [Self; 2] {
        [0, 1].map(|odd| S8(core::array::from_fn(|i| x[i / 4].0[2 * i % 8 + odd])))
    }
    /// # Safety
    /// `p` is readable for 16 bytes.
    pub unsafe fn sixteen(p: *const u8) -> [Self; 2] {
        let bytes = (p as *const [i8; 16]).read();
        core::array::from_fn(|v| S8(core::array::from_fn(|i| bytes[8 * v + i] as i16)))
    }
}

#[derive(Clone, Copy)]
pub struct B16([u8; 16]);

impl B16 {
    pub fn splat(x: u8) -> Self {
        B16([x; 16])
    }
    /// # Safety
    /// `p` is readable for 16 bytes.
    pub unsafe fn load(p: *const u8) -> Self {
        B16((p as *const [u8; 16]).read())
    }
    /// # Safety
    /// `p` is writable for 16 bytes.
    pub unsafe fn store(self, p: *mut u8) {
        (p as *mut [u8; 16]).write(self.0)
    }
    pub fn and(self, b: Self) -> Self {
        B16(core::array::from_fn(|i| self.0[i] & b.0[i]))
    }
    pub fn or(self, b: Self) -> Self {
        B16(core::array::from_fn(|i| self.0[i] | b.0[i]))
    }
    pub fn sub(self, b: Self) -> Self {
        B16(core::array::from_fn(|i| self.0[i].wrapping_sub(b.0[i])))
    }
    fn pairs(self, f: impl Fn(u16) -> u16) -> Self {
        B16(core::array::from_fn(|i| f(u16::from_le_bytes([self.0[i & !1], self.0[i | 1]])).to_le_bytes()[i & 1]))
    }
    pub fn right(self, by: u32) -> Self {
        self.pairs(|x| x >> by)
    }
    pub fn left(self, by: u32) -> Self {
        self.pairs(|x| x << by)
    }
    pub fn look_up(self, indices: Self) -> Self {
        B16(indices.0.map(|i| self.0[i as usize]))
    }
    pub fn fixed(x: &'static super::FixedBytes) -> Self {
        B16(x.0)
    }
    /// # Safety
    /// `p` is readable for four bytes.
    pub unsafe fn load_bits(p: *const u8) -> [Self; 2] {
        let (all, each) = (B16((p as *const [u8; 4]).read().repeat(4).try_into().unwrap()), super::EACH_BIT.0);
        super::BIT_BYTES.each_ref().map(|bytes| {
            let spread = all.look_up(Self::fixed(bytes));
            B16(core::array::from_fn(|i| if spread.0[i] & each[i] == 0 { 0 } else { 255 }))
        })
    }
    pub fn dot(self, b: Self) -> S8 {
        let product = |i: usize| self.0[i] as i16 * b.0[i] as i8 as i16;
        S8(core::array::from_fn(|i| product(2 * i) + product(2 * i + 1)))
    }
    pub fn dot_add(self, b: Self, sums: I4) -> I4 {
        let product = |i: usize| self.0[i] as i32 * b.0[i] as i8 as i32;
        I4(core::array::from_fn(|i| sums.0[i] + (4 * i..4 * i + 4).map(product).sum::<i32>()))
    }
    pub fn spread<const I: usize>(self) -> Self {
        B16(core::array::from_fn(|i| self.0[4 * I + i % 4]))
    }
    pub fn twined(self, signed: bool) -> [S8; 2] {
        let wide = |x: u8| if signed { x as i8 as i16 } else { x as i16 };
        [0, 1].map(|odd| S8(core::array::from_fn(|i| wide(self.0[2 * i + odd]))))
    }
    pub fn transpose_words(rows: [Self; 4]) -> [Self; 4] {
        [0, 1, 2, 3].map(|c| B16(core::array::from_fn(|i| rows[i / 4].0[4 * c + i % 4])))
    }
    pub fn half_to_ints<const HALF: usize>(self) -> [I4; 2] {
        [0, 4].map(|at| I4(core::array::from_fn(|i| self.0[8 * HALF + at + i] as i8 as i32)))
    }
    pub fn to_ints(self) -> [I4; 4] {
        [0, 4, 8, 12].map(|at| I4(core::array::from_fn(|i| self.0[at + i] as i8 as i32)))
    }
}

#[derive(Clone, Copy)]
pub struct D2([f64; 2]);

impl D2 {
    pub fn zero() -> Self {
        Self::splat(0.0)
    }
    pub fn splat(x: f64) -> Self {
        D2([x; 2])
    }
    /// # Safety
    /// `p` is readable for two doubles; no alignment is needed.
    pub unsafe fn load(p: *const f64) -> Self {
        D2((p as *const [f64; 2]).read_unaligned())
    }
    pub fn madd(self, a: Self, b: Self) -> Self {
        D2([self.0[0] + a.0[0] * b.0[0], self.0[1] + a.0[1] * b.0[1]])
    }
    pub fn lanes(self) -> [f64; 2] {
        self.0
    }
    pub fn sum(self) -> f64 {
        self.0[0] + self.0[1]
    }
}
