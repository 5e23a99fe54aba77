//! The exact top n by radix on the bit pattern, O(entries).
//!
//! Order, best first: protected entries; higher score; higher second key; lower index. Scores are float32, −0 counts as
//! +0 and NaN as −∞ (core/select.ts). Three passes of 11, 11 and 10 bits find the score of the last winner; only when
//! that score is shared do three more find its second key; what is shared still goes to the lower index.

use core::cmp::Ordering;

/// Sorts like the float: higher pattern, higher value; NaN and −∞ lowest, −0 equal to +0.
#[inline(always)]
fn pattern(x: f32) -> u32 {
    let bits = if x.is_nan() { f32::NEG_INFINITY.to_bits() } else { (x + 0.0).to_bits() };
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The pattern of the `count`-th best of those `keys` yields (1 ≤ count ≤ their number), and how many of the entries
/// with that pattern belong to the best `count`.
fn threshold(keys: impl Iterator<Item = u32> + Clone, mut count: usize) -> (u32, usize) {
    let mut prefix = 0;
    for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
        let mut histogram = [0u32; 1 << 11];
        let above = if shift == 21 { 0 } else { shift + bits };
        for key in keys.clone() {
            if above == 0 || key >> above == prefix >> above {
                histogram[(key >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        let mut digit = (1 << bits) - 1;
        while (histogram[digit] as usize) < count {
            count -= histogram[digit] as usize;
            digit -= 1;
        }
        prefix |= (digit as u32) << shift;
    }
    (prefix, count)
}

/// Writes the ascending indices of the best `chosen.len()` entries. `second` and `protected` may be empty.
pub fn select(scores: &[f32], second: &[f32], protected: &[u8], chosen: &mut [i32]) {
    let shielded = protected.iter().filter(|&&p| p != 0).count();
    let is = |i: usize| protected.get(i).is_some_and(|&p| p != 0);
    // Either some protected entries lose to each other, or all of them win and the others compete for the rest.
    let all_win = shielded <= chosen.len();
    let wanted = if all_win { chosen.len() - shielded } else { chosen.len() };
    let contends = |i: usize| is(i) != all_win;
    let contenders = (0..scores.len()).filter(|&i| contends(i));

    let (mut score, mut key, mut ties) = (u32::MAX, 0, 0);
    if wanted > 0 {
        (score, ties) = threshold(contenders.clone().map(|i| pattern(scores[i])), wanted);
        if !second.is_empty() {
            let tied = contenders.filter(|&i| pattern(scores[i]) == score).map(|i| pattern(second[i]));
            (key, ties) = threshold(tied, ties);
        }
    }
    let second = |i: usize| second.get(i).map_or(0, |&x| pattern(x));
    let mut next = 0;
    for i in 0..scores.len() {
        let wins = if !contends(i) {
            all_win
        } else {
            match pattern(scores[i]).cmp(&score).then_with(|| second(i).cmp(&key)) {
                Ordering::Greater => wanted > 0,
                Ordering::Less => false,
                Ordering::Equal => {
                    let left = ties > 0;
                    ties -= left as usize;
                    left
                }
            }
        };
        if wins {
            chosen[next] = i as i32;
            next += 1;
        }
    }
    debug_assert_eq!(next, chosen.len());
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
                for (second, protected) in [(&second[..], &protected[..]), (&[], &protected), (&second, &[]), (&[], &[])] {
                    let mut chosen = vec![-1; count];
                    select(&scores, second, protected, &mut chosen);
                    assert_eq!(chosen, twin(&scores, second, protected, count), "seed {seed} count {count}");
                }
            }
        }
    }
}
