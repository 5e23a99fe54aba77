//! The softmax of the last queries over all rows, reduced on the fly: two passes over the keys, nothing of size
//! queries × rows. Rows that a query can't reach have no share.
//!
//! Pass one finds each row's maximum and sums (over the prefix and over all it sees), hence log-sum-exp and mass. Pass
//! two recomputes the softmax tile by tile and folds it into the column reductions. Pooling needs each row's pooled sum
//! before the second pass: every prefix column is counted `kernel` times, less what falls off the two borders, so the
//! sum is kernel · mass minus a handful of border columns, which are recomputed alone.

use crate::attention::{measure, weights, Block};
use crate::lanes::F4;
use crate::math::{exp2_one, ln, LOG2_E};
use crate::memory::{Array, Error, Result};
use crate::rows::{Head, Layer, Part, PAGE};

pub const MAX_KERNEL: usize = 1023;

/// The reductions of `core/policy/policy.ts`. Empty slices: not wanted. `N` = rows − window.
pub struct Reductions<'a> {
    /// `(kv_heads, N)`
    pub mean: &'a mut [f32],
    /// `(kv_heads, N)`
    pub variance: &'a mut [f32],
    /// `(heads, window)`
    pub entropy: &'a mut [f32],
    /// `(kv_heads, N)`
    pub pooled_mean: &'a mut [f32],
    /// `(kv_heads, N)`
    pub pooled_max: &'a mut [f32],
    /// `(heads, window)`
    pub mass: &'a mut [f32],
    /// `(heads, window)`
    pub log_sum_exp: &'a mut [f32],
}

/// `queries`: `(window, heads, dim)`; 1 ≤ window ≤ rows, all heads equally long, `kernel` odd.
pub fn observe(layer: &Layer, queries: &[f32], window: usize, kernel: usize, out: &mut Reductions) -> Result<()> {
    let length = layer.common_length()?;
    if window == 0 || window > length || kernel % 2 == 0 || kernel > MAX_KERNEL {
        return Err(Error::Shape);
    }
    let (group, prefix) = (layer.group(), length - window);
    let c = LOG2_E / (layer.dim as f32).sqrt();
    let mut block = Block::new(group * window, layer.layout)?;
    let mut rows = Rows::new(group * window, prefix, kernel)?;
    for (kv, head) in layer.rows.iter().enumerate() {
        block.clear();
        for t in 0..window {
            let start = layer.first_seen(prefix + t + 1);
            for h in kv * group..(kv + 1) * group {
                block.push(&queries[(t * layer.heads + h) * layer.dim..][..layer.dim], start, prefix);
            }
        }
        rows.first_pass(layer, kv, &mut block, c);
        rows.write(&block, kv, group, window, layer.dim, out);
        if !out.pooled_mean.is_empty() || !out.pooled_max.is_empty() {
            rows.pooled_factors(layer, head, &block, c)?;
        }
        rows.second_pass(head, &mut block, c, group, window, out);
        rows.write_columns(kv, group, window, out);
    }
    Ok(())
}

/// State of one KV head's rows; row = token · group + head within the group.
struct Rows {
    prefix: usize,
    kernel: usize,
    /// Maxima, then sums of the rows over the prefix alone.
    before: Array<f32>,
    /// Share of each row that lies on the prefix.
    mass: Vec<f64>,
    /// Pooled sum of `kernel` columns → pooled share with the row's own mass.
    factor: Array<f32>,
    /// Last `kernel − 1` columns of the tile before, `(rows, kernel − 1)`.
    carry: Array<f32>,
    entropy: Vec<f64>,
    /// Column `i` stands at `i + kernel/2`.
    pooled_sum: Array<f32>,
    pooled_max: Array<f32>,
    mean: Array<f32>,
    variance: Array<f32>,
    /// One row's carry and tile, zero-extended.
    line: Array<f32>,
}

fn zeros(count: usize) -> Result<Vec<f64>> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(count).map_err(|_| Error::Memory)?;
    numbers.resize(count, 0.0);
    Ok(numbers)
}

impl Rows {
    fn new(rows: usize, prefix: usize, kernel: usize) -> Result<Self> {
        let columns = prefix + kernel + PAGE;
        Ok(Rows {
            prefix,
            kernel,
            before: Array::zeros(2 * rows)?,
            mass: zeros(rows)?,
            factor: Array::zeros(rows)?,
            carry: Array::zeros(rows * (kernel - 1))?,
            entropy: zeros(rows)?,
            pooled_sum: Array::zeros(columns)?,
            pooled_max: Array::zeros(columns)?,
            mean: Array::zeros(columns)?,
            variance: Array::zeros(columns)?,
            line: Array::zeros(2 * kernel + PAGE + 4)?,
        })
    }

    /// Prefix first, then the window, so that the prefix's share falls out of the running sum.
    fn first_pass(&mut self, layer: &Layer, kv: usize, block: &mut Block, c: f32) {
        let (head, group) = (&layer.rows[kv], layer.group());
        // Maximum and sum of each row over the prefix.
        measure(head.run(), block, c, 0);
        let rows = block.rows;
        // Put aside before the rest goes on from them.
        self.before.as_mut()[..rows].copy_from_slice(&block.maxima.as_slice()[..rows]);
        self.before.as_mut()[rows..2 * rows].copy_from_slice(&block.sums.as_slice()[..rows]);
        for row in 0..rows {
            block.add_null(row, layer.raw_null(kv * group + row % group), c);
        }
        // A query of the window sees the window's entries up to its own.
        for (row, limit) in block.limits.iter_mut().enumerate() {
            *limit = self.prefix + row / group + 1;
        }
        // The same sums, now over all that a row sees.
        measure(head.run(), block, c, self.prefix);
        for row in 0..block.rows {
            let (maximum, sum) = (block.maxima.as_slice()[row], block.sums.as_slice()[row]);
            let (maximum_before, sum_before) = (self.before.as_slice()[row], self.before.as_slice()[rows + row]);
            // The window may have raised the maximum: bring the prefix's sum to the same scale, then take its share.
            let before = sum_before as f64 * exp2_one((maximum_before - maximum) * c) as f64;
            self.mass[row] = if self.prefix == 0 { 0.0 } else { before / sum as f64 };
        }
        // The second pass goes over the prefix alone.
        block.limits.fill(self.prefix);
    }

    fn write(&self, block: &Block, kv: usize, group: usize, window: usize, dim: usize, out: &mut Reductions) {
        for row in 0..block.rows {
            let at = (kv * group + row % group) * window + row / group;
            if let Some(place) = out.mass.get_mut(at) {
                *place = self.mass[row] as f32;
            }
            if let Some(place) = out.log_sum_exp.get_mut(at) {
                let (maximum, sum) = (block.maxima.as_slice()[row] as f64, block.sums.as_slice()[row] as f64);
                *place = (maximum / (dim as f64).sqrt() + sum.ln()) as f32;
            }
        }
    }

    /// mass / Σᵢ Σ_{|j−i| ≤ kernel/2} aⱼ for each row.
    fn pooled_factors(&mut self, layer: &Layer, head: &Head, block: &Block, c: f32) -> Result<()> {
        let (half, prefix, stride) = (self.kernel / 2, self.prefix, layer.layout.stride);
        let mut unpacked = layer.layout.unpacked(1)?;
        for row in 0..block.rows {
            let query = &block.queries.as_slice()[row * stride..][..stride];
            let (maximum, sum) = (block.maxima.as_slice()[row], block.sums.as_slice()[row]);
            let mut total = self.kernel as f64 * self.mass[row];
            let borders = (0..half.min(prefix)).chain(half.max(prefix.saturating_sub(half))..prefix);
            for j in borders.filter(|&j| j >= block.starts[row]) {
                let counted = (prefix - 1).min(j + half) - j.saturating_sub(half) + 1;
                let key = layer.row(head, Part::Key, j, &mut unpacked);
                let product: f32 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                let score = product + head.run().raw_bias(j).next().unwrap_or(0.0);
                let share = exp2_one((score - maximum) * c) as f64 / sum as f64;
                total -= (self.kernel - counted) as f64 * share;
            }
            self.factor.as_mut()[row] = if total > 0.0 { (self.mass[row] / total) as f32 } else { 0.0 };
        }
        Ok(())
    }

    fn second_pass(
        &mut self,
        head: &Head,
        block: &mut Block,
        c: f32,
        group: usize,
        window: usize,
        out: &mut Reductions,
    ) {
        self.entropy.fill(0.0);
        for array in [&mut self.pooled_sum, &mut self.pooled_max, &mut self.mean, &mut self.variance, &mut self.carry] {
            array.as_mut().fill(0.0);
        }
        let pooled = !out.pooled_mean.is_empty() || !out.pooled_max.is_empty();
        let (mean, variance) = (!out.mean.is_empty(), !out.variance.is_empty());
        let entropy = !out.entropy.is_empty();
        if !(pooled || mean || variance || entropy) {
            return;
        }
        weights(head.run(), block, c, |start, seen, _, tile| {
            if entropy {
                self.fold_entropy(tile, seen);
            }
            if mean {
                fold_mean(tile, seen, &mut self.mean.as_mut()[start..]);
            }
            if variance {
                fold_variance(tile, seen, group, window, &mut self.variance.as_mut()[start..]);
            }
            if pooled {
                self.fold_pooled(tile, start, seen);
            }
        });
    }

    fn fold_entropy(&mut self, tile: &[f32], seen: usize) {
        let tiny = F4::splat(1e-10);
        for (row, total) in tile.chunks_exact(PAGE).zip(&mut self.entropy) {
            let mut sum = F4::zero();
            // Columns past the prefix hold 0, and 0 · ln 1e−10 adds nothing.
            for four in row[..seen.next_multiple_of(4)].chunks_exact(4) {
                // SAFETY: four floats.
                let a = unsafe { F4::load(four.as_ptr()) };
                sum = sum.madd(a, ln(a.add(tiny)));
            }
            *total -= sum.sum() as f64;
        }
    }

    fn fold_pooled(&mut self, tile: &[f32], start: usize, seen: usize) {
        let (kernel, halo) = (self.kernel, self.kernel - 1);
        let ends = start + seen == self.prefix;
        let count = if ends { seen + kernel / 2 } else { seen };
        for (index, row) in tile.chunks_exact(PAGE).enumerate() {
            let line = self.line.as_mut();
            let carry = &mut self.carry.as_mut()[index * halo..(index + 1) * halo];
            line[..halo].copy_from_slice(carry);
            line[halo..halo + seen].copy_from_slice(&row[..seen]);
            line[halo + seen..].fill(0.0);
            carry.copy_from_slice(&line[seen..seen + halo]);
            let factor = F4::splat(self.factor.as_slice()[index]);
            for o in (0..count).step_by(4) {
                let (sums, maxima) =
                    (&mut self.pooled_sum.as_mut()[start + o..], &mut self.pooled_max.as_mut()[start + o..]);
                debug_assert!(o + kernel + 3 <= line.len() && sums.len() >= 4);
                // SAFETY: the line has 2 · kernel + PAGE + 4 floats, the columns prefix + kernel + PAGE.
                unsafe {
                    let mut pool = F4::load(line.as_ptr().add(o));
                    for j in 1..kernel {
                        pool = pool.add(F4::load(line.as_ptr().add(o + j)));
                    }
                    let pool = pool.mul(factor);
                    F4::load(sums.as_ptr()).add(pool).store(sums.as_mut_ptr());
                    F4::load(maxima.as_ptr()).max(pool).store(maxima.as_mut_ptr());
                }
            }
        }
    }

    fn write_columns(&self, kv: usize, group: usize, window: usize, out: &mut Reductions) {
        let (prefix, half) = (self.prefix, self.kernel / 2);
        let share = 1.0 / (group * window) as f32;
        let mine = kv * prefix..(kv + 1) * prefix;
        let copy = |to: &mut [f32], from: &[f32], scale: f32| {
            if let Some(to) = to.get_mut(mine.clone()) {
                to.iter_mut().zip(from).for_each(|(to, x)| *to = x * scale);
            }
        };
        copy(out.mean, self.mean.as_slice(), share);
        copy(out.variance, self.variance.as_slice(), 1.0 / group as f32);
        copy(out.pooled_mean, &self.pooled_sum.as_slice()[half..], share);
        copy(out.pooled_max, &self.pooled_max.as_slice()[half..], 1.0);
        if let Some(maxima) = out.pooled_max.get_mut(mine.clone()) {
            // The vector maximum drops NaN; the sum does not.
            for (most, sum) in maxima.iter_mut().zip(&self.pooled_sum.as_slice()[half..]) {
                *most = if sum.is_nan() { *sum } else { *most };
            }
        }
        for (row, entropy) in self.entropy.iter().enumerate() {
            if let Some(place) = out.entropy.get_mut((kv * group + row % group) * window + row / group) {
                *place = *entropy as f32;
            }
        }
    }
}

/// Adds each column's sum over the rows.
fn fold_mean(tile: &[f32], seen: usize, sums: &mut [f32]) {
    for o in (0..seen).step_by(4) {
        let mut sum = F4::zero();
        for row in tile.chunks_exact(PAGE) {
            // SAFETY: a row has `PAGE` floats.
            sum = sum.add(unsafe { F4::load(row.as_ptr().add(o)) });
        }
        // SAFETY: the columns are padded by a page.
        unsafe { sum.store(sums[o..o + 4].as_mut_ptr()) };
    }
}

/// Writes each column's unbiased variance over the window, summed over the group.
fn fold_variance(tile: &[f32], seen: usize, group: usize, window: usize, sums: &mut [f32]) {
    // One query has no variance: stays 0.
    let unbiased = if window == 1 { 0.0 } else { 1.0 / (window as f32 - 1.0) };
    let (share, unbiased) = (F4::splat(1.0 / window as f32), F4::splat(unbiased));
    for o in (0..seen).step_by(4) {
        let mut total = F4::zero();
        for j in 0..group {
            // SAFETY: row < group · window, each of `PAGE` floats.
            let at = |t: usize| unsafe { F4::load(tile[(t * group + j) * PAGE + o..].as_ptr()) };
            let mean = (0..window).fold(F4::zero(), |sum, t| sum.add(at(t))).mul(share);
            let squares = (0..window).fold(F4::zero(), |sum, t| {
                let off = at(t).sub(mean);
                sum.madd(off, off)
            });
            total = total.madd(squares, unbiased);
        }
        // SAFETY: the columns are padded by a page.
        unsafe { total.store(sums[o..o + 4].as_mut_ptr()) };
    }
}
