//! Weight matrices as they stand in a GGUF: which tensor types there are, and how a row of blocks becomes small integers
//! with a scale, and for some types a minimum, for each group of them.
//!
//! Everything above this file sees *units* of 128 or 256 weights in *slices* of 32: four blocks of 32, or one of 256.

use crate::blocks::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::dense::Target;
use crate::inputs::{ByteInputs, Single};
use crate::lanes::{B16, BYTE_DOTS, F4, I4};
use crate::stream::{stream, stream_bytes};
use crate::superblocks::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};

/// Weights of a slice.
pub const SLICE: usize = 32;
/// Rows unpacked are as long as the next multiple of this many weights.
pub const WIDEST_UNIT: usize = 256;

/// A tensor type.
#[derive(Clone, Copy)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    Blocks(&'static Codec),
}

/// A type of blocks, for code that all types share.
pub struct Codec {
    /// Weights of a block, 32 or 256, and its bytes.
    pub block: usize,
    pub bytes: usize,
    /// Weights under one scale, 16 or 32.
    pub group: usize,
    /// Whether groups have minima.
    pub minima: bool,
    /// Whether inputs are int8 rather than int16.
    pub bytes_in: bool,
    /// Inputs after which sums in int16 are full, where inputs are int8.
    pub full: usize,
    /// `(row, blocks, out)`, see [`unpack`].
    pub unpack: unsafe fn(*const u8, usize, Unpacked),
    /// `(rows, blocks, inputs, token, target)`, see [`stream`].
    pub stream: fn(&[u8], usize, &Single, usize, &mut Target),
    /// The same with int8 inputs.
    pub stream_bytes: fn(&[u8], usize, &ByteInputs, usize, &mut Target),
    /// `(bytes)`, see [`has_infinities`].
    pub has_infinities: fn(&[u8]) -> bool,
}

const fn codec<F: Format>() -> Codec {
    Codec {
        block: F::BLOCK,
        bytes: F::BYTES,
        group: F::GROUP,
        minima: F::MINIMA,
        bytes_in: byte_inputs::<F>(),
        full: const {
            if F::MOST <= 15 {
                32
            } else if F::MOST <= 31 {
                16
            } else {
                8
            }
        },
        unpack: unpack::<F>,
        stream: stream::<F>,
        stream_bytes: stream_bytes::<F>,
        has_infinities: has_infinities::<F>,
    }
}

impl Kind {
    /// By the type's number in the file.
    pub fn from_number(number: i32) -> Option<Kind> {
        macro_rules! blocks {
            ($format:ty) => {{
                static CODEC: Codec = codec::<$format>();
                Kind::Blocks(&CODEC)
            }};
        }
        Some(match number {
            0 => Kind::F32,
            1 => Kind::F16,
            2 => blocks!(Q4_0),
            3 => blocks!(Q4_1),
            6 => blocks!(Q5_0),
            7 => blocks!(Q5_1),
            8 => blocks!(Q8_0),
            10 => blocks!(Q2K),
            11 => blocks!(Q3K),
            12 => blocks!(Q4K),
            13 => blocks!(Q5K),
            14 => blocks!(Q6K),
            20 => blocks!(Iq4Nl),
            23 => blocks!(Iq4Xs),
            30 => Kind::Bf16,
            39 => blocks!(Mxfp4),
            _ => return None,
        })
    }

    /// Bytes of a row of `inputs` weights; nothing where `inputs` is not whole blocks.
    pub fn row_bytes(self, inputs: usize) -> Option<usize> {
        match self {
            Kind::F32 => inputs.checked_mul(4),
            Kind::F16 | Kind::Bf16 => inputs.checked_mul(2),
            Kind::Blocks(codec) if inputs % codec.block == 0 => (inputs / codec.block).checked_mul(codec.bytes),
            Kind::Blocks(_) => None,
        }
    }
}

/// One format of blocks: weight = scale · (q − ZERO) + minimum.
pub trait Format {
    /// 32 or 256.
    const BLOCK: usize;
    const BYTES: usize;
    /// Weights under one scale, 16 or 32.
    const GROUP: usize;
    /// What is taken from q, which is below 128 and not negative; or nothing where q is an int8.
    const ZERO: u8 = 0;
    const SIGNED: bool = false;
    const MINIMA: bool = false;
    /// Whether [`Format::scales`] makes 65536 and more of a float16 that is infinite or no number: taking care of those
    /// would cost a tenth of a product with one token.
    const FINITE: bool = false;
    /// Largest q where inputs may be int8; 0 where they stay int16.
    const MOST: i32 = 0;

    /// The q of slice `s` of the block at `p`.
    ///
    /// # Safety
    /// `p` is readable for `BYTES`; `s` < `BLOCK` / 32.
    unsafe fn slice(p: *const u8, s: usize) -> [B16; 2];

    /// Scales and minima of the groups of a unit: of four blocks of 32, or of the first of `blocks`. Beyond the unit's
    /// groups anything.
    ///
    /// # Safety
    /// Each pointer is readable for `BYTES`.
    unsafe fn scales(blocks: [*const u8; 4]) -> Scales;
}

pub struct Scales {
    pub scales: [F4; 4],
    pub minima: [F4; 4],
}

impl Scales {
    /// Without minima.
    #[inline(always)]
    pub fn only(scales: [F4; 4]) -> Self {
        Scales { scales, minima: [F4::zero(); 4] }
    }

    /// What the format's definition gives, whatever the float16s are.
    #[inline(always)]
    fn exact<F: Format>(blocks: [*const u8; 4]) -> Self {
        // SAFETY: the caller's promise is the format's.
        let Scales { scales, minima } = unsafe { F::scales(blocks) };
        if F::FINITE {
            Scales { scales: scales.map(F4::with_infinities), minima: minima.map(F4::with_infinities) }
        } else {
            Scales { scales, minima }
        }
    }
}

/// Whether some scale or minimum is infinite or no number and [`Format::scales`] would not say so. Then only what goes
/// through [`unpack`] is right.
fn has_infinities<F: Format>(bytes: &[u8]) -> bool {
    // Blocks of 32, each in all four places.
    F::FINITE
        && bytes.chunks_exact(F::BYTES).any(|block| {
            // SAFETY: a whole block.
            let Scales { scales, minima } = unsafe { F::scales([block.as_ptr(); 4]) };
            let [scale, ..] = scales[0].abs().max(minima[0].abs()).lanes();
            scale >= 65536.0
        })
}

/// Whether products with one instruction for 16 int8 are there and meant for the format.
pub const fn byte_inputs<F: Format>() -> bool {
    BYTE_DOTS && F::MOST > 0
}

/// Slices of a unit.
pub const fn slices<F: Format>() -> usize {
    if F::BLOCK == SLICE {
        4
    } else {
        F::BLOCK / SLICE
    }
}

/// Groups of a unit.
pub const fn groups<F: Format>() -> usize {
    slices::<F>() * SLICE / F::GROUP
}

/// The blocks of unit `unit` of a row of `blocks`; beyond the last one, that one again.
///
/// # Safety
/// `row` is readable for `blocks` blocks, at least one of them in the unit.
#[inline(always)]
pub unsafe fn unit_blocks<F: Format>(row: *const u8, unit: usize, blocks: usize) -> [*const u8; 4] {
    let block = |b: usize| row.add(b.min(blocks - 1) * F::BYTES);
    if F::BLOCK == SLICE {
        [0, 1, 2, 3].map(|i| block(4 * unit + i))
    } else {
        [block(unit); 4]
    }
}

/// The q of slice `s` of a unit.
///
/// # Safety
/// As [`Format::slice`].
#[inline(always)]
pub unsafe fn unit_slice<F: Format>(blocks: [*const u8; 4], s: usize) -> [B16; 2] {
    if F::BLOCK == SLICE {
        F::slice(blocks[s], 0)
    } else {
        F::slice(blocks[0], s)
    }
}

/// Minima for q that ZERO was not taken from.
#[inline(always)]
pub fn with_zero<F: Format>(scale: F4, minimum: F4) -> F4 {
    if F::ZERO == 0 {
        minimum
    } else if !F::MINIMA {
        scale.mul(F4::splat(-(F::ZERO as f32)))
    } else {
        minimum.madd(scale, F4::splat(-(F::ZERO as f32)))
    }
}

/// Where a row goes: `(width)` int8 q − ZERO or q, `(width / GROUP)` scales and minima; `width` rounded up to a multiple of
/// [`WIDEST_UNIT`].
#[derive(Clone, Copy)]
pub struct Unpacked {
    pub quants: *mut u8,
    pub scales: *mut f32,
    pub minima: *mut f32,
    /// q itself, and what ZERO takes off in the minima.
    pub raw: bool,
}

/// Unpacks one row of `blocks` blocks. Where they are not whole units the last block is there again.
///
/// # Safety
/// `row` is readable for them, `out` writable.
#[inline(never)]
unsafe fn unpack<F: Format>(row: *const u8, blocks: usize, out: Unpacked) {
    let (slices, groups) = (const { slices::<F>() }, const { groups::<F>() });
    let (zero, minima_too) = (if out.raw { 0 } else { F::ZERO }, F::MINIMA || out.raw && F::ZERO > 0);
    for unit in 0..(blocks * F::BLOCK).div_ceil(slices * SLICE) {
        let from = unit_blocks::<F>(row, unit, blocks);
        let Scales { scales, minima } = Scales::exact::<F>(from);
        for v in 0..groups / 4 {
            scales[v].store(out.scales.add(unit * groups + 4 * v));
            if minima_too {
                let minimum = if out.raw { with_zero::<F>(scales[v], minima[v]) } else { minima[v] };
                minimum.store(out.minima.add(unit * groups + 4 * v));
            }
        }
        for s in 0..slices {
            let to = out.quants.add((unit * slices + s) * SLICE);
            for (half, q) in unit_slice::<F>(from, s).into_iter().enumerate() {
                q.sub(B16::splat(zero)).store(to.add(16 * half));
            }
        }
    }
}

/// An unpacked row of `width` weights as float32, with the bits that the format's definition gives.
///
/// # Safety
/// `row` as [`unpack`] leaves it; `out` is writable for `width` floats, whole slices.
#[inline(never)]
pub unsafe fn to_floats(codec: &Codec, row: Unpacked, width: usize, out: *mut f32) {
    for at in (0..width).step_by(16) {
        let (scale, minimum) = (row.scales.add(at / codec.group), row.minima.add(at / codec.group));
        let quants: [I4; 4] = B16::load(row.quants.add(at)).to_ints();
        for (v, four) in quants.into_iter().enumerate() {
            let product = four.to_floats().mul(F4::load_splat(scale));
            let weights = if codec.minima { product.add(F4::load_splat(minimum)) } else { product };
            weights.store(out.add(at + 4 * v));
        }
    }
}
