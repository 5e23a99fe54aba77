//! Inputs of products with quantised weights: each group of 16 or 32 gets one scale, so that products and sums of a group
//! are whole numbers. In int16 they are off by at most 2⁻¹⁶ of the group's largest, in int8 by 2⁻⁸, as in ggml.

use crate::lanes::{B16, F4, I4, S8};
use crate::memory::{Array, Result};

/// Inputs of one token in the order of `S8::twine`.
pub struct Single {
    pub values: Array<i16>,
    /// One for each group.
    pub scales: Array<f32>,
    /// Sums of the quantised inputs of each group.
    pub sums: Array<f32>,
}

/// Inputs of many tokens, four side by side, padded to whole fours of tokens by zeros. Of each four inputs those at even
/// places are a pair, and those at odd ones.
pub struct Fours {
    /// `(tokens / 4, inputs / 2, 4, 2)`: pairs of inputs.
    pub values: Array<i16>,
    /// `(tokens / 4, groups, 4)`
    pub scales: Array<f32>,
    pub sums: Array<f32>,
}

/// Inputs of one or more tokens in int8.
pub struct ByteInputs {
    /// Inputs of a token.
    pub width: usize,
    /// `(tokens, width)`
    pub values: Array<u8>,
    /// `(tokens / together, groups, together)`
    pub scales: Array<f32>,
    pub sums: Array<f32>,
}

/// Largest numbers of both kinds.
const INT16: f32 = 32767.0;
const INT8: f32 = 127.0;

/// A group of 8 · `V` inputs: its numbers up to `largest`, its scale, their scaled sum.
#[inline(always)]
fn quantise<const V: usize>(group: &[f32], largest: f32) -> ([S8; V], f32, f32) {
    let group = &group[..8 * V];
    let four = |i: usize| -> F4 {
        // SAFETY: within the group.
        unsafe { F4::load(group[4 * i..4 * i + 4].as_ptr()) }
    };
    let x: [[F4; 2]; V] = core::array::from_fn(|v| [four(2 * v), four(2 * v + 1)]);
    let most = x.as_flattened().iter().fold(F4::zero(), |most, x| most.max(x.abs())).peak();
    // 0, or NaN where an input is NaN or infinite: then so is what comes of it.
    let poison = x.as_flattened().iter().fold(F4::zero(), |sum, x| sum.madd(*x, F4::zero())).sum();
    let scale = most / largest + poison;
    let inverse = F4::splat(if most > 0.0 { largest / most } else { 0.0 });
    let eights = x.map(|[a, b]| S8::narrow(a.mul(inverse).round(), b.mul(inverse).round()));
    let ones = S8::narrow(I4::new([1; 4]), I4::new([1; 4]));
    let total = eights.iter().fold(I4::new([0; 4]), |sum, eight| sum.add(eight.dot(ones))).sum();
    (eights, scale, scale * total as f32)
}

impl Single {
    /// `group`: 16 or 32 inputs.
    pub fn new(inputs: &[f32], group: usize) -> Result<Self> {
        let width = inputs.len();
        let mut single = Single {
            values: Array::zeros(width)?,
            scales: Array::zeros(width / group)?,
            sums: Array::zeros(width / group)?,
        };
        match group {
            16 => single.fill::<2>(inputs),
            _ => single.fill::<4>(inputs),
        }
        Ok(single)
    }

    #[inline(never)]
    fn fill<const V: usize>(&mut self, inputs: &[f32]) {
        for (g, group) in inputs.chunks_exact(8 * V).enumerate() {
            let (eights, scale, sum) = quantise::<V>(group, INT16);
            (self.scales.as_mut()[g], self.sums.as_mut()[g]) = (scale, sum);
            let to = &mut self.values.as_mut()[g * 8 * V..(g + 1) * 8 * V];
            for (pair, to) in eights.chunks_exact(2).zip(to.chunks_exact_mut(16)) {
                let [even, odd] = S8::twine([pair[0], pair[1]]);
                // SAFETY: sixteen numbers.
                unsafe {
                    even.store(to.as_mut_ptr());
                    odd.store(to.as_mut_ptr().add(8));
                }
            }
        }
    }
}

impl Fours {
    /// `inputs`: rows of `width`; `group`: 16 or 32 inputs.
    pub fn new(inputs: &[f32], width: usize, group: usize) -> Result<Self> {
        let (groups, fours) = (width / group, (inputs.len() / width).div_ceil(4));
        let mut all = Fours {
            values: Array::zeros(4 * fours * width)?,
            scales: Array::zeros(4 * fours * groups)?,
            sums: Array::zeros(4 * fours * groups)?,
        };
        match group {
            16 => all.fill::<2>(inputs, width),
            _ => all.fill::<4>(inputs, width),
        }
        Ok(all)
    }

    #[inline(never)]
    fn fill<const V: usize>(&mut self, inputs: &[f32], width: usize) {
        let (group, groups) = (8 * V, width / (8 * V));
        let missing = [0.0; 32];
        for at in 0..self.scales.len() / 4 {
            let (four, g) = (at / groups, at % groups);
            let each: [_; 4] = core::array::from_fn(|t| {
                let from = (4 * four + t) * width + g * group;
                quantise::<V>(inputs.get(from..from + group).unwrap_or(&missing), INT16)
            });
            for (t, (_, scale, sum)) in each.iter().enumerate() {
                (self.scales.as_mut()[4 * at + t], self.sums.as_mut()[4 * at + t]) = (*scale, *sum);
            }
            let to = &mut self.values.as_mut()[at * 4 * group..(at + 1) * 4 * group];
            for v in 0..V {
                let eights = [0, 1, 2, 3].map(|t: usize| each[t].0[v].twine_fours());
                let pairs = S8::transpose_pairs(eights);
                for (pair, to) in pairs.into_iter().zip(to[32 * v..].chunks_exact_mut(8)) {
                    // SAFETY: eight numbers.
                    unsafe { pair.store(to.as_mut_ptr()) };
                }
            }
        }
    }
}

impl ByteInputs {
    /// `inputs`: rows of `width`; `group`: 16 or 32 inputs; scales of `together` tokens are side by side, and tokens are
    /// whole multiples of that, padded by zeros.
    pub fn new(inputs: &[f32], width: usize, group: usize, together: usize) -> Result<Self> {
        let tokens = (inputs.len() / width).next_multiple_of(together);
        let mut all = ByteInputs {
            width,
            values: Array::zeros(tokens * width)?,
            scales: Array::zeros(tokens * width / group)?,
            sums: Array::zeros(tokens * width / group)?,
        };
        for (token, row) in inputs.chunks_exact(width).enumerate() {
            match group {
                16 => all.fill::<2>(row, token, together),
                _ => all.fill::<4>(row, token, together),
            }
        }
        Ok(all)
    }

    #[inline(never)]
    fn fill<const V: usize>(&mut self, inputs: &[f32], token: usize, together: usize) {
        let first = token / together * together * (self.width / (8 * V)) + token % together;
        let values = &mut self.values.as_mut()[token * self.width..][..self.width];
        for (g, (group, to)) in inputs.chunks_exact(8 * V).zip(values.chunks_exact_mut(8 * V)).enumerate() {
            let (eights, scale, sum) = quantise::<V>(group, INT8);
            (self.scales.as_mut()[first + g * together], self.sums.as_mut()[first + g * together]) = (scale, sum);
            for (pair, to) in eights.chunks_exact(2).zip(to.chunks_exact_mut(16)) {
                let bytes: B16 = S8::to_bytes(pair[0], pair[1]);
                // SAFETY: sixteen bytes.
                unsafe { bytes.store(to.as_mut_ptr()) };
            }
        }
    }
}
