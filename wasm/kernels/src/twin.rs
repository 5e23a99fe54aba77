//! Weights one by one, from the definitions of the formats: the slow, obvious version that the kernels are tested against.

/// Every type: number, weights of a block, bytes of a block, where its float16s stand.
pub const TYPES: [(i32, usize, usize, &[usize]); 16] = [
    (0, 1, 4, &[]),
    (1, 1, 2, &[]),
    (2, 32, 18, &[0]),
    (3, 32, 20, &[0, 2]),
    (6, 32, 22, &[0]),
    (7, 32, 24, &[0, 2]),
    (8, 32, 34, &[0]),
    (10, 256, 84, &[80, 82]),
    (11, 256, 110, &[108]),
    (12, 256, 144, &[0, 2]),
    (13, 256, 176, &[0, 2]),
    (14, 256, 210, &[208]),
    (20, 32, 18, &[0]),
    (23, 256, 136, &[0]),
    (30, 1, 2, &[]),
    (39, 32, 17, &[]),
];

const TABLE: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const DOUBLES: [i32; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Value of a float16.
pub fn half(bits: u16) -> f32 {
    let (exponent, mantissa) = ((bits >> 10 & 31) as i32, (bits & 1023) as f32);
    let size = match exponent {
        0 => mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 {
        -size
    } else {
        size
    }
}

/// Scale and minimum, 6 bits each, of group `g` of Q4_K and Q5_K.
fn six(p: &[u8], g: usize) -> (f32, f32) {
    let (s, m) = match g {
        0..4 => (p[g] & 63, p[g + 4] & 63),
        _ => (p[g + 4] & 15 | p[g - 4] >> 6 << 4, p[g + 4] >> 4 | p[g] >> 6 << 4),
    };
    (s as f32, m as f32)
}

/// Scale of 16 weights of Q3_K.
fn six_of_three(p: &[u8], g: usize) -> f32 {
    let low = p[g % 8] >> (g / 8 * 4) & 15;
    (low | (p[8 + g % 4] >> (g / 4 * 2) & 3) << 4) as f32 - 32.0
}

/// Weight `k` of a block of type `kind`.
pub fn weight(kind: i32, p: &[u8], k: usize) -> f32 {
    let at16 = |i: usize| half(u16::from_le_bytes([p[i], p[i + 1]]));
    let nibble = |from: usize| (p[from + k % 16] >> (k / 16 * 4) & 15) as usize;
    let fifth = |from: usize| (p[from + k / 8] >> (k % 8) & 1) as usize * 16;
    let slice = k / 32;
    let four = |from: usize| (p[from + slice / 2 * 32 + k % 32] >> (slice % 2 * 4) & 15) as f32;
    let two = |from: usize| (p[from + slice / 4 * 32 + k % 32] >> (slice % 4 * 2) & 3) as f32;
    match kind {
        0 => f32::from_le_bytes(p[..4].try_into().unwrap()),
        1 => at16(0),
        2 => at16(0) * (nibble(2) as f32 - 8.0),
        3 => at16(0) * nibble(4) as f32 + at16(2),
        6 => at16(0) * ((nibble(6) | fifth(2)) as f32 - 16.0),
        7 => at16(0) * (nibble(8) | fifth(4)) as f32 + at16(2),
        8 => at16(0) * (p[2 + k] as i8) as f32,
        10 => {
            let scales = p[k / 16];
            at16(80) * (scales & 15) as f32 * two(16) - at16(82) * (scales >> 4) as f32
        }
        11 => {
            let third = (p[k % 32] >> slice & 1) as f32 * 4.0;
            at16(108) * six_of_three(&p[96..], k / 16) * (two(32) + third - 4.0)
        }
        12 => {
            let (s, m) = six(&p[4..], slice);
            at16(0) * s * four(16) - at16(2) * m
        }
        13 => {
            let ((s, m), fifth) = (six(&p[4..], slice), (p[16 + k % 32] >> slice & 1) as f32 * 16.0);
            at16(0) * s * (four(48) + fifth) - at16(2) * m
        }
        14 => {
            let half = k / 128;
            let low = p[half * 64 + k % 64] >> (k / 64 % 2 * 4) & 15;
            let high = p[128 + half * 32 + k % 32] >> (k / 32 % 4 * 2) & 3;
            at16(208) * (p[192 + k / 16] as i8) as f32 * ((low | high << 4) as f32 - 32.0)
        }
        20 => at16(0) * TABLE[nibble(2)] as f32,
        23 => {
            let high = u16::from_le_bytes([p[2], p[3]]) >> (2 * slice) & 3;
            let s = (p[4 + slice / 2] >> (slice % 2 * 4) & 15) as f32 + 16.0 * high as f32 - 32.0;
            let place = p[8 + 16 * slice + k % 16] >> (k / 16 % 2 * 4) & 15;
            at16(0) * s * TABLE[place as usize] as f32
        }
        30 => f32::from_bits((u16::from_le_bytes([p[0], p[1]]) as u32) << 16),
        39 => 2f64.powi(p[0] as i32 - 128) as f32 * DOUBLES[nibble(1)] as f32,
        _ => unreachable!(),
    }
}

/// Products of every row with every input, summed in float64; and sums of the products' sizes.
pub fn products(kind: i32, bytes: &[u8], inputs: &[f32], width: usize) -> Vec<(f32, f32)> {
    let (_, block, size, _) = TYPES.into_iter().find(|each| each.0 == kind).unwrap();
    let mut out = Vec::new();
    for x in inputs.chunks(width) {
        for row in bytes.chunks(width / block * size) {
            let term = |k: usize| weight(kind, &row[k / block * size..][..size], k % block) as f64 * x[k] as f64;
            let (sum, most) = (0..width).fold((0.0, 0.0), |(sum, most), k| (sum + term(k), most + term(k).abs()));
            out.push((sum as f32, most as f32));
        }
    }
    out
}
