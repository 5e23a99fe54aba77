//! Causal attention of many queries over ragged rows: a lane is a query, so that the softmax sums nothing across lanes.
//!
//! A *block* is some tokens, a multiple of four, times the heads of a group, head after head: four neighbouring lanes
//! always belong to one head. Block by block and tile by tile: scores, softmax with a running maximum, blend. Scores stay
//! raw (not scaled) until the maximum has been taken off, as in `attention.rs`.
//!
//! Column sums and maxima need each query's final sum: where they are asked for, the block's raw scores (48 × rows) wait
//! for it, which costs less than the products again. A column's largest share is 2^max((score − max)·c − log₂ sum), so
//! one exponential serves all queries of a head.
//!
//! Rows before a lane's start are masked by a finite number: a tile in which a lane sees nothing yet leaves weights behind
//! that the first row it sees takes off again.

use crate::attention::{column_pitch, Extras};
use crate::lanes::F4;
use crate::math::{exp2, exp2s, LOG2_E};
use crate::memory::{Array, Error, Result};
use crate::panel::{blend, score_panel, COLUMNS};
use crate::rows::{Head, Layer, Layout, Part, PAGE};
use crate::stored::Unpacked;
use crate::tile::tile_rows;

/// Queries of a block: enough to reuse each tile, few enough to stay in cache beside it.
const BLOCK: usize = 48;
/// The score of a row that is out of reach.
const UNREACHED: f32 = f32::MIN;
/// Fewer tokens would leave lanes empty.
pub const LEAST_TOKENS: usize = 4;

/// As `attention::causal`, less the probabilities; not `masked`, every query sees every row, whatever `behind`.
pub fn causal(
    layer: &Layer,
    queries: &[f32],
    count: usize,
    behind: usize,
    outputs: &mut [f32],
    extras: &mut Extras,
    masked: bool,
) -> Result<()> {
    let (dim, group) = (layer.dim, layer.group());
    let c = LOG2_E / (dim as f32).sqrt();
    let tokens = (BLOCK / group).max(1).next_multiple_of(4).min(count.next_multiple_of(4));
    let keep = !extras.column_sum.is_empty() || !extras.column_max.is_empty();
    let span = if keep { column_pitch(layer) } else { tile_rows(layer.layout.stride) };
    let mut block = Block::new(layer.layout, group, tokens, span)?;
    for (kv, head) in layer.rows.iter().enumerate() {
        for first in (0..count).step_by(tokens) {
            let here = Tokens { first, count: tokens.min(count - first), kv };
            block.take(layer, queries, here);
            if masked {
                block.mask(layer, here, head.length - behind - count + first);
            } else {
                block.unmask(head.length);
            }
            block.attend(head, c, keep);
            block.write(layer, here, outputs, extras.log_sum_exp);
            if keep {
                block.columns(here, c, column_pitch(layer), extras);
            }
        }
    }
    Ok(())
}

/// The tokens of a block among those of the call, and the KV head they look at.
#[derive(Clone, Copy)]
struct Tokens {
    first: usize,
    count: usize,
    kv: usize,
}

struct Block {
    layout: Layout,
    group: usize,
    /// Lanes of a head, a multiple of four.
    tokens: usize,
    /// Lanes in all, a multiple of eight.
    columns: usize,
    /// The first row that each lane may see; `(columns)`.
    starts: Array<u32>,
    /// The row behind the last one; `(columns)`.
    limits: Array<u32>,
    /// Panels, `(columns / 8, stride, 8)`.
    queries: Array<f32>,
    /// `(columns, stride)`, not yet divided by `sums`.
    outputs: Array<f32>,
    /// Raw, `(columns / 8, span, 8)`; −∞ where a query may not look.
    scores: Array<f32>,
    span: usize,
    /// Of one tile, `(columns / 8, PAGE, 8)`.
    weights: Array<f32>,
    /// Largest raw score so far.
    maxima: Array<f32>,
    /// Σ 2^((score − max)·c) so far.
    sums: Array<f32>,
    /// A tile of rows, where they are not float32.
    tile: Unpacked,
}

impl Block {
    fn new(layout: Layout, group: usize, tokens: usize, span: usize) -> Result<Self> {
        let columns = (group * tokens).next_multiple_of(COLUMNS);
        Ok(Block {
            layout,
            group,
            tokens,
            columns,
            starts: Array::zeros(columns)?,
            limits: Array::zeros(columns)?,
            queries: Array::zeros(columns * layout.stride)?,
            outputs: Array::zeros(columns * layout.stride)?,
            scores: Array::zeros(columns.checked_mul(span).ok_or(Error::Memory)?)?,
            span,
            weights: Array::zeros(columns * PAGE)?,
            maxima: Array::zeros(columns)?,
            sums: Array::zeros(columns)?,
            tile: layout.unpacked(tile_rows(layout.stride))?,
        })
    }

    /// Starts with the queries of `here`, `(count, heads, dim)`; empty lanes hold zeros. What they see is not said yet.
    fn take(&mut self, layer: &Layer, queries: &[f32], here: Tokens) {
        let stride = self.layout.stride;
        self.outputs.as_mut().fill(0.0);
        self.maxima.as_mut().fill(f32::NEG_INFINITY);
        self.sums.as_mut().fill(0.0);
        self.queries.as_mut().fill(0.0);
        for head in 0..self.group {
            let null = layer.raw_null(here.kv * self.group + head);
            for t in 0..here.count {
                let column = head * self.tokens + t;
                if null > f32::NEG_INFINITY {
                    self.maxima.as_mut()[column] = null;
                    self.sums.as_mut()[column] = 1.0;
                }
                let from = ((here.first + t) * layer.heads + here.kv * self.group + head) * layer.dim;
                let panel = &mut self.queries.as_mut()[column / COLUMNS * COLUMNS * stride..];
                for (x, place) in queries[from..from + layer.dim].iter().zip(panel.chunks_exact_mut(COLUMNS)) {
                    place[column % COLUMNS] = *x;
                }
            }
        }
    }

    /// Every query of `here` sees the rows up to its own, which `before` rows precede for the first. Empty lanes see what
    /// the last token sees.
    fn mask(&mut self, layer: &Layer, here: Tokens, before: usize) {
        self.limits.as_mut().fill((before + here.count) as u32);
        self.starts.as_mut().fill(layer.first_seen(before + here.count) as u32);
        for head in 0..self.group {
            for t in 0..here.count {
                let column = head * self.tokens + t;
                self.limits.as_mut()[column] = (before + t + 1) as u32;
                self.starts.as_mut()[column] = layer.first_seen(before + t + 1) as u32;
            }
        }
    }

    /// Every lane sees every row.
    fn unmask(&mut self, length: usize) {
        self.starts.as_mut().fill(0);
        self.limits.as_mut().fill(length as u32);
    }

    /// Rows that the last token sees, hence anyone.
    fn most(&self) -> usize {
        self.limits.as_slice().iter().fold(0, |most, &limit| most.max(limit as usize))
    }

    /// The first row of the first tile that anyone sees something of.
    fn least(&self) -> usize {
        let step = tile_rows(self.layout.stride);
        self.starts.as_slice().iter().fold(usize::MAX, |least, &start| least.min(start as usize)) / step * step
    }

    /// Runs over all tiles: fills outputs, maxima and sums, and leaves all scores behind where they are to be kept.
    fn attend(&mut self, head: &Head, c: f32, keep: bool) {
        let (stride, most) = (self.layout.stride, self.most());
        let step = tile_rows(stride);
        for start in (self.least()..most).step_by(step) {
            let (seen, at) = (step.min(most - start), if keep { start } else { 0 });
            self.score(head, start, seen, at);
            self.soften(seen, at, c);
            // SAFETY: `seen` rows from `start` lie within one page; the tile has room for them.
            let values = unsafe {
                head.pages[start / PAGE].floats(self.layout, Part::Value, start % PAGE, seen, &mut self.tile)
            };
            for column in (0..self.columns).step_by(4) {
                let weights = &self.weights.as_slice()[column / COLUMNS * COLUMNS * PAGE + column % COLUMNS..];
                let outputs = &mut self.outputs.as_mut()[column * stride..(column + 4) * stride];
                // SAFETY: `seen` ≤ `PAGE` rows of weights and values; four rows of outputs.
                unsafe { blend(weights.as_ptr(), COLUMNS, values, seen, stride, outputs.as_mut_ptr(), stride) };
            }
        }
    }

    /// Raw scores of `seen` rows from `start` on, written from place `at` of each panel's scores; up to a multiple of
    /// four they are −∞.
    fn score(&mut self, head: &Head, start: usize, seen: usize, at: usize) {
        let (stride, padded) = (self.layout.stride, seen.next_multiple_of(4));
        let page = &head.pages[start / PAGE];
        // SAFETY: a tile lies within one page and is a multiple of four long.
        let keys = unsafe { page.floats(self.layout, Part::Key, start % PAGE, padded, &mut self.tile) };
        let panels = self.queries.as_slice().chunks_exact(COLUMNS * stride);
        for (panel, scores) in panels.zip(self.scores.as_mut().chunks_exact_mut(COLUMNS * self.span)) {
            let scores = &mut scores[at * COLUMNS..(at + padded) * COLUMNS];
            // SAFETY: `padded` rows of keys; a panel of `stride` rows; room for `padded` rows of scores.
            unsafe { score_panel(keys, padded, stride, panel.as_ptr(), scores.as_mut_ptr()) };
            if head.run().is_biased() {
                for (row, bias) in scores.chunks_exact_mut(COLUMNS).take(seen).zip(head.run().raw_bias(start)) {
                    row.iter_mut().for_each(|score| *score += bias);
                }
            }
        }
        let spans = self.starts.as_slice().iter().zip(self.limits.as_slice());
        for (column, (&from, &limit)) in spans.enumerate() {
            let visible = (limit as usize).saturating_sub(start).min(seen);
            let scores = &mut self.scores.as_mut()[column / COLUMNS * COLUMNS * self.span..];
            for row in 0..(from as usize).saturating_sub(start).min(visible) {
                scores[(at + row) * COLUMNS + column % COLUMNS] = UNREACHED;
            }
            for row in visible..padded {
                scores[(at + row) * COLUMNS + column % COLUMNS] = f32::NEG_INFINITY;
            }
        }
    }

    /// Weights of a tile from its scores; maxima, sums and outputs follow a raised maximum.
    fn soften(&mut self, seen: usize, at: usize, c: f32) {
        let stride = self.layout.stride;
        for column in (0..self.columns).step_by(4) {
            let (panel, half) = (column / COLUMNS * COLUMNS, column % COLUMNS);
            let scores = &self.scores.as_slice()[panel * self.span + at * COLUMNS + half..];
            let weights = &mut self.weights.as_mut()[panel * PAGE + half..];
            let (maxima, sums) = (&mut self.maxima.as_mut()[column..], &mut self.sums.as_mut()[column..]);
            // SAFETY: `seen` rows of eight floats from the panel's first on, less `half`; four maxima and sums.
            let factors = unsafe {
                soften_four(scores.as_ptr(), weights.as_mut_ptr(), seen, maxima.as_mut_ptr(), sums.as_mut_ptr(), c)
            };
            for (factor, row) in factors.into_iter().zip(self.outputs.as_mut()[column * stride..].chunks_mut(stride)) {
                if factor != 1.0 {
                    row.iter_mut().for_each(|x| *x *= factor);
                }
            }
        }
    }

    /// Writes the outputs, `(count, heads, dim)`, and the log-sum-exps, `(count, heads)`, of `here`.
    fn write(&self, layer: &Layer, here: Tokens, outputs: &mut [f32], log_sum_exp: &mut [f32]) {
        let (dim, stride) = (layer.dim, self.layout.stride);
        for head in 0..self.group {
            for t in 0..here.count {
                let column = head * self.tokens + t;
                let at = (here.first + t) * layer.heads + here.kv * self.group + head;
                let (maximum, sum) = (self.maxima.as_slice()[column], self.sums.as_slice()[column]);
                let share = 1.0 / sum;
                let output = &self.outputs.as_slice()[column * stride..][..dim];
                for (to, x) in outputs[at * dim..][..dim].iter_mut().zip(output) {
                    *to = x * share;
                }
                if let Some(place) = log_sum_exp.get_mut(at) {
                    *place = ((maximum as f64) / (dim as f64).sqrt() + (sum as f64).ln()) as f32;
                }
            }
        }
    }

    /// Adds the block's softmax to the column sums and raises the column maxima, `(heads, pitch)`.
    fn columns(&mut self, here: Tokens, c: f32, pitch: usize, extras: &mut Extras) {
        let (least, most) = (self.least(), self.most().next_multiple_of(4));
        let weights = extras.row_weights.get(here.first..here.first + here.count).unwrap_or(&[]);
        for head in 0..self.group {
            let lanes = head * self.tokens..head * self.tokens + here.count;
            let at = (here.kv * self.group + head) * pitch;
            if let Some(maxima) = extras.column_max.get_mut(at + least..at + most) {
                self.raise(lanes.clone(), least, c, weights, maxima);
            }
            if let Some(sums) = extras.column_sum.get_mut(at + least..at + most) {
                self.add(lanes, least, c, weights, sums);
            }
        }
    }

    /// The scores of four rows from `row` on for the four lanes from `column` on.
    fn four(&self, column: usize, row: usize) -> [F4; 4] {
        let panel = &self.scores.as_slice()[column / COLUMNS * COLUMNS * self.span..][..COLUMNS * self.span];
        let rows = &panel[row * COLUMNS..(row + 4) * COLUMNS];
        // SAFETY: four rows of eight floats; `column` is a multiple of four.
        [0, 1, 2, 3].map(|i| unsafe { F4::load(rows.as_ptr().add(i * COLUMNS + column % COLUMNS)) })
    }

    /// Maximum and `per_sum(lane, sum)` of four lanes; `otherwise` beyond `end`.
    fn statistics(&self, column: usize, end: usize, per_sum: impl Fn(usize, f64) -> f64, otherwise: f32) -> (F4, F4) {
        let of = |lane: usize| match column + lane < end {
            true => per_sum(column + lane, self.sums.as_slice()[column + lane] as f64) as f32,
            false => otherwise,
        };
        let shares = [of(0), of(1), of(2), of(3)];
        // SAFETY: four floats each.
        unsafe { (F4::load(self.maxima.as_slice()[column..][..4].as_ptr()), F4::load(shares.as_ptr())) }
    }

    /// `maxima`: those of the rows from `least` on, as `sums` below.
    fn raise(&self, lanes: core::ops::Range<usize>, least: usize, c: f32, weights: &[f32], maxima: &mut [f32]) {
        let weigh = |lane: usize, sum: f64| (sum / weight(weights, lane - lanes.start)).log2();
        let scale = F4::splat(c);
        let mut statistics = [(F4::zero(), F4::zero()); BLOCK / 4 + 1];
        for (place, column) in statistics.iter_mut().zip(lanes.clone().step_by(4)) {
            *place = self.statistics(column, lanes.end, weigh, f32::INFINITY);
        }
        for (row, four) in maxima.chunks_exact_mut(4).enumerate() {
            let mut best = [F4::splat(f32::NEG_INFINITY); 4];
            for (column, (maximum, log)) in lanes.clone().step_by(4).zip(&statistics) {
                for (best, score) in best.iter_mut().zip(self.four(column, least + row * 4)) {
                    *best = best.max(score.sub(*maximum).mul(scale).sub(*log));
                }
            }
            let [a, b, c, d] = F4::transpose(best);
            // SAFETY: four floats.
            unsafe { F4::load(four.as_ptr()).max(exp2(a.max(b).max(c.max(d)))).store(four.as_mut_ptr()) };
        }
        // The vector maximum drops NaN. A query that meets one has no softmax anywhere.
        for lane in lanes.filter(|&lane| self.sums.as_slice()[lane].is_nan()) {
            let (start, limit) = (self.starts.as_slice()[lane], self.limits.as_slice()[lane]);
            maxima[start as usize - least..limit as usize - least].fill(f32::NAN);
        }
    }

    fn add(&self, lanes: core::ops::Range<usize>, least: usize, c: f32, weights: &[f32], sums: &mut [f32]) {
        let weigh = |lane: usize, sum: f64| weight(weights, lane - lanes.start) / sum;
        let scale = F4::splat(c);
        for column in lanes.clone().step_by(4) {
            let (maximum, share) = self.statistics(column, lanes.end, weigh, 0.0);
            for (row, four) in sums.chunks_exact_mut(4).enumerate() {
                let [a, b, c, d] =
                    self.four(column, least + row * 4).map(|score| exp2(score.sub(maximum).mul(scale)).mul(share));
                // SAFETY: four floats.
                unsafe { F4::load(four.as_ptr()).add(F4::sums(a, b, c, d)).store(four.as_mut_ptr()) };
            }
        }
    }
}

/// By what a query's softmax counts.
fn weight(weights: &[f32], query: usize) -> f64 {
    weights.get(query).map_or(1.0, |&weight| weight as f64)
}

/// Turns the raw scores of four lanes into 2^((score − max)·c), updating maxima and sums; returns the factors for what
/// came before.
///
/// # Safety
/// `scores`, `weights`: `count` rows, rounded up to two, of four floats, eight apart; `maxima`, `sums`: four floats.
#[inline(always)]
unsafe fn soften_four(
    scores: *const f32,
    weights: *mut f32,
    count: usize,
    maxima: *mut f32,
    sums: *mut f32,
    c: f32,
) -> [f32; 4] {
    let (before, c) = (F4::load(maxima), F4::splat(c));
    let mut peaks = [before; 2];
    for row in (0..count).step_by(2) {
        peaks = [0, 1].map(|i| peaks[i].max(F4::load(scores.add((row + i) * COLUMNS))));
    }
    let peak = peaks[0].max(peaks[1]);
    let factor = exp2(before.sub(peak).mul(c));
    let mut totals = [F4::zero(); 2];
    for row in (0..count).step_by(2) {
        let two = exp2s([0, 1].map(|i| F4::load(scores.add((row + i) * COLUMNS)).sub(peak).mul(c)));
        for i in 0..2 {
            two[i].store(weights.add((row + i) * COLUMNS));
            totals[i] = totals[i].add(two[i]);
        }
    }
    let total = totals[0].add(totals[1]);
    peak.store(maxima);
    total.madd(F4::load(sums), factor).store(sums);
    factor.lanes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::Kind;
    use crate::testing::{close, random};

    /// Outputs, log-sum-exps, column sums and column maxima, in float64, one query at a time.
    fn twin(layer: &Layer, keys: &[f32], values: &[f32], queries: &[f32], count: usize) -> [Vec<f32>; 4] {
        let (heads, dim, length, pitch) = (layer.heads, layer.dim, layer.rows[0].length, column_pitch(layer));
        let mut out =
            [count * heads * dim, count * heads, heads * pitch, heads * pitch].map(|length| vec![0.0; length]);
        for (t, h) in (0..count).flat_map(|t| (0..heads).map(move |h| (t, h))) {
            let row = |all: &[f32], i: usize| {
                let at = (i * layer.kv_heads + h / layer.group()) * dim;
                all[at..at + dim].iter().map(|x| *x as f64).collect::<Vec<_>>()
            };
            let query = &queries[(t * heads + h) * dim..][..dim];
            let seen = length - count + t + 1;
            let start = seen.saturating_sub(layer.reach);
            let scores: Vec<f64> = (start..seen)
                .map(|i| row(keys, i).iter().zip(query).map(|(k, q)| k * *q as f64).sum::<f64>() / (dim as f64).sqrt())
                .collect();
            let sum: f64 = scores.iter().map(|score| score.exp()).sum();
            out[1][t * heads + h] = sum.ln() as f32;
            for (i, score) in (start..).zip(&scores) {
                let share = score.exp() / sum;
                for (d, value) in row(values, i).iter().enumerate() {
                    out[0][(t * heads + h) * dim + d] += (share * value) as f32;
                }
                out[2][h * pitch + i] += share as f32;
                out[3][h * pitch + i] = out[3][h * pitch + i].max(share as f32);
            }
        }
        out
    }

    #[test]
    fn causal_agrees_with_its_twin() {
        let shapes = [(6, 2, 8, 70, 33), (5, 1, 6, 20, 20), (2, 2, 4, 66, 5), (3, 1, 8, 300, 90)];
        let reaches = [usize::MAX, 1, 7, 40, 65];
        for ((heads, kv_heads, dim, length, count), reach) in
            shapes.into_iter().flat_map(|shape| reaches.map(|reach| (shape, reach)))
        {
            let mut layer = Layer::new(heads, kv_heads, dim, 0, [Kind::F32; 2]).unwrap();
            layer.reach = reach;
            let (keys, values) = (random(length * kv_heads * dim, 1), random(length * kv_heads * dim, 2));
            layer.append(&keys, &values, length).unwrap();
            let queries = random(count * heads * dim, 3);
            let want = twin(&layer, &keys, &values, &queries, count);
            let mut got = want.clone().map(|want| vec![0.0; want.len()]);
            let [outputs, log_sum_exp, column_sum, column_max] = &mut got;
            let mut extras = Extras { log_sum_exp, column_sum, column_max, probabilities: &mut [], row_weights: &[] };
            causal(&layer, &queries, count, 0, outputs, &mut extras, true).unwrap();
            for (got, want) in got.iter().zip(&want) {
                close(got, want, 1e-5);
            }
        }
    }
}
