//! The exact top n by radix on the bit pattern, O(entries).
//!
//! Order, best first: protected entries; higher score; higher second key; lower index. Scores are float32, −0 counts as
//! +0 and NaN as −∞ (core/select/select.ts). Three passes of 11, 11 and 10 bits find the score of the last winner; only when
//! that score is shared do three more find its second key; what is shared still goes to the lower index.

use crate::memory::{Array, Result};
use core::cmp::Ordering;

/// Sorts like the float: higher pattern, higher value; NaN and −∞ lowest, −0 equal to +0.
#[inline(always)]
fn pattern(x: f32) -> u32 {
    let bits = if x.is_nan() { f32::NEG_INFINITY.to_bits() } else { (x + 0.0).to_bits() };
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// Key of an entry that does not compete: below the pattern of every float, −∞ included.
const ABSENT: u32 = 0;

/// The `count`-th best of `keys` (1 ≤ count ≤ those present), and how many entries of that key belong to the best
/// `count`.
fn threshold(keys: &[u32], mut count: usize) -> (u32, usize) {
    let mut prefix = 0;
    for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
        let mut histogram = [0u32; 1 << 11];
        let mask = (1 << bits) - 1;
        if shift == 21 {
            for key in keys {
                histogram[(key >> shift) as usize & 2047] += 1;
            }
        } else {
            let wanted = prefix >> (shift + bits);
            for key in keys.iter().filter(|key| *key >> (shift + bits) == wanted) {
                histogram[(key >> shift) as usize & mask] += 1;
            }
        }
        let mut digit = mask;
        while (histogram[digit] as usize) < count {
            count -= histogram[digit] as usize;
            digit -= 1;
        }
        prefix |= (digit as u32) << shift;
    }
    (prefix, count)
}

/// Writes the ascending indices of the best `chosen.len()` entries. `second` and `protected` may be empty.
pub fn select(scores: &[f32], second: &[f32], protected: &[u8], chosen: &mut [i32]) -> Result<()> {
    let shielded = protected.iter().filter(|&&p| p != 0).count();
    // Either some protected entries lose to each other, or all of them win and the others compete for the rest.
    let all_win = shielded <= chosen.len();
    let wanted = if all_win { chosen.len() - shielded } else { chosen.len() };

    let mut keys = Array::<u32>::zeros(scores.len())?;
    let keys = keys.as_mut();
    for (key, score) in keys.iter_mut().zip(scores) {
        *key = pattern(*score);
    }
    for (key, protected) in keys.iter_mut().zip(protected) {
        if (*protected != 0) == all_win {
            *key = ABSENT;
        }
    }
    let (mut score, mut ties, mut second_key) = (u32::MAX, 0, ABSENT);
    if wanted > 0 {
        (score, ties) = threshold(keys, wanted);
        if !second.is_empty() {
            let mut tied = Array::<u32>::zeros(scores.len())?;
            for ((to, key), second) in tied.as_mut().iter_mut().zip(&*keys).zip(second) {
                *to = if *key == score { pattern(*second) } else { ABSENT };
            }
            (second_key, ties) = threshold(tied.as_slice(), ties);
        }
    }
    let mut next = 0;
    for (i, key) in keys.iter().enumerate() {
        let order = match key.cmp(&score) {
            Ordering::Equal => second.get(i).map_or(Ordering::Equal, |&x| pattern(x).cmp(&second_key)),
            Ordering::Less if *key == ABSENT && all_win => Ordering::Greater,
            other => other,
        };
        if order == Ordering::Equal && ties > 0 || order == Ordering::Greater {
            ties -= (order == Ordering::Equal) as usize;
            chosen[next] = i as i32;
            next += 1;
        }
    }
    debug_assert_eq!(next, chosen.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// Sorts everything.
    fn twin(scores: &[f32], second: &[f32], protected: &[u8], count: usize) -> Vec<i32> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        let key = |i: usize| {
            (protected.get(i).is_some_and(|&p| p != 0), pattern(scores[i]), second.get(i).map_or(0, |&s| pattern(s)))
        };
        order.sort_by(|&a, &b| key(b).cmp(&key(a)).then(a.cmp(&b)));
        let mut best: Vec<i32> = order[..count].iter().map(|&i| i as i32).collect();
        best.sort();
        best
    }

    #[test]
    fn patterns_sort_like_floats() {
        let sorted = [f32::NEG_INFINITY, -2.0, -1e-45, 0.0, 1e-45, 1.0, 1.5, f32::INFINITY];
        assert!(sorted.windows(2).all(|pair| pattern(pair[0]) < pattern(pair[1])));
        assert_eq!(pattern(-0.0), pattern(0.0));
        assert_eq!(pattern(f32::NAN), pattern(f32::NEG_INFINITY));
        assert_eq!(pattern(-f32::NAN), pattern(f32::NEG_INFINITY));
    }

    #[test]
    fn select_agrees_with_a_sort() {
        for seed in 0..60 {
            let n = 1 + seed as usize * 7;
            let mut scores = random(n, seed);
            if seed % 2 == 0 {
                scores.iter_mut().for_each(|x| *x = (*x * 3.0).round() / 3.0);
            }
            for i in (0..n).step_by(11) {
                scores[i] = [f32::NAN, -0.0, 0.0, f32::INFINITY, f32::NEG_INFINITY][i % 5];
            }
            let second: Vec<f32> = random(n, seed + 100).iter().map(|x| (x * 2.0).round()).collect();
            let protected: Vec<u8> = random(n, seed + 200).iter().map(|&x| (x > 1.2) as u8).collect();
            for count in [0, 1, n / 4, n / 2, n.saturating_sub(1), n] {
                for (second, protected) in
                    [(&second[..], &protected[..]), (&[], &protected), (&second, &[]), (&[], &[])]
                {
                    let mut chosen = vec![-1; count];
                    select(&scores, second, protected, &mut chosen).unwrap();
                    assert_eq!(chosen, twin(&scores, second, protected, count), "seed {seed} count {count}");
                }
            }
        }
    }
}
