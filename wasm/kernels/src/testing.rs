//! Seeded numbers and one comparison for the crate's tests.

/// Roughly normal numbers.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 1.7 - 3.4).collect()
}

/// Root of the summed squared error within `tolerance` of the root of the summed squares.
pub fn close(got: &[f32], want: &[f32], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    let size: f64 = want.iter().map(|b| (*b as f64).powi(2)).sum();
    assert!(error.sqrt() <= tolerance * size.sqrt().max(1e-30), "error {} of {}", error.sqrt(), size.sqrt());
}
