//! Weight matrices: which tensor types there are, and how blocks of small integers with a scale, and for some types a
//! minimum, for each group of them are held: *woven*, eight rows side by side (`woven.rs`).

use crate::blocks::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::inputs::{ByteInputs, Single};
use crate::lanes::{B16, BYTE_DOTS, F4};
use crate::stream::{stream, stream_bytes, Byte, WideByte};
use crate::superblocks::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};
use crate::woven::{unpack, weave, Panel, ROWS};

/// Weights of a slice.
pub const SLICE: usize = 32;

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
    /// `(rows, blocks, woven)`, see [`weave`].
    pub weave: unsafe fn([*const u8; ROWS], usize, *mut u8) -> bool,
    /// `(woven, blocks, panel)`, see [`unpack`].
    pub unpack: unsafe fn(*const u8, usize, &mut Panel),
    /// `(woven, blocks, inputs)`, see [`stream`].
    pub stream: unsafe fn(*const u8, usize, &Single) -> [f32; ROWS],
    /// The same with int8 inputs, and that in `Arithmetic::WideInts`.
    pub stream_bytes: [unsafe fn(*const u8, usize, &ByteInputs) -> [f32; ROWS]; 2],
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
        weave: weave::<F>,
        unpack: unpack::<F>,
        stream: stream::<F>,
        stream_bytes: [stream_bytes::<F, Byte>, stream_bytes::<F, WideByte>],
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

/// One format of blocks: weight = scale · (q − ZERO) + minimum, q a number of `BITS` bits or what a table has at its place.
pub trait Format {
    /// 32 or 256.
    const BLOCK: usize;
    const BYTES: usize;
    /// Weights under one scale, 16 or 32. In blocks of 256 scales and minima are small whole numbers under one scale
    /// each.
    const GROUP: usize;
    /// What is taken from q, which is below 128 and not negative; or nothing where q is an int8.
    const ZERO: u8 = 0;
    const SIGNED: bool = false;
    const MINIMA: bool = false;
    /// Whether scales, of blocks of 32 minima too, are float16s.
    const HALVES: bool = true;
    /// Bits of a place: 2 to 6, or 8.
    const BITS: usize;
    /// Largest q where inputs may be int8; 0 where they stay int16.
    const MOST: i32 = 0;

    /// The places of slice `s` of the block at `p`.
    ///
    /// # Safety
    /// `p` is readable for `BYTES`; `s` < `BLOCK` / 32.
    unsafe fn places(p: *const u8, s: usize) -> [B16; 2];

    /// The q of places.
    #[inline(always)]
    fn values(places: B16) -> B16 {
        places
    }

    /// Puts the scales of eight blocks, one of each row, side by side: [`scale_bytes`] for each. Whether some float16 is
    /// infinite or no number and [`Format::own`] would not say so.
    ///
    /// # Safety
    /// Each block is readable for `BYTES`, `to` writable.
    unsafe fn weave(blocks: [*const u8; ROWS], to: *mut u8) -> bool;

    /// Scales and minima of eight blocks that were woven. Float16s that are infinite or no numbers may become 65536 and
    /// more: taking care of those would cost a tenth of a product with one token.
    ///
    /// # Safety
    /// `woven` is readable for what [`Format::weave`] writes.
    unsafe fn own(woven: *const u8) -> Scales;

    /// The whole-number scales and minima of four groups, `4 · j` and so on, as int8: for each two groups those of eight
    /// rows each. In blocks of 256.
    ///
    /// # Safety
    /// As [`Format::own`]; `4 · j` is below the block's groups.
    #[inline(always)]
    unsafe fn four(_woven: *const u8, _j: usize) -> [[B16; 2]; 2] {
        [[B16::splat(0); 2]; 2]
    }
}

/// Of eight rows.
#[derive(Clone, Copy)]
pub struct Scales {
    pub scales: [F4; 2],
    pub minima: [F4; 2],
}

impl Scales {
    /// Without minima.
    #[inline(always)]
    pub fn only(scales: [F4; 2]) -> Self {
        Scales { scales, minima: [F4::zero(); 2] }
    }
    /// Infinite where [`Format::own`] makes 65536 and more.
    #[inline(always)]
    pub fn with_infinities(self) -> Self {
        Scales { scales: self.scales.map(F4::with_infinities), minima: self.minima.map(F4::with_infinities) }
    }
}

/// Whether products with one instruction for 16 int8 are there and meant for the format.
pub const fn byte_inputs<F: Format>() -> bool {
    BYTE_DOTS && F::MOST > 0
}

/// Bytes of a block that are not places.
pub const fn scale_bytes<F: Format>() -> usize {
    F::BYTES - F::BLOCK * F::BITS / 8
}
