//! Causal attention of few queries over ragged rows, one pass with a running maximum; many queries go to `prefill.rs`.
//!
//! A *block* is a set of queries that read the same KV head: some tokens times the heads of the group, in ascending
//! order of the rows they may see. Scores stay raw (not scaled) until the maximum has been taken off, so that large
//! logits lose nothing: weight = 2^((score − max) · log₂e/√dim).
//!
//! Where a layer's reach is limited a query sees no row before its start either; starts ascend as limits do.

use crate::int8::Narrow;
use crate::lanes::F4;
use crate::math::{exp2, exp2_one, exp2s, LOG2_E};
use crate::memory::{Array, Error, Result};
use crate::prefill;
use crate::reduced::{attend_thin, Asked, Chooser};
use crate::rows::{Head, Layer, Layout, Part, Run, PAGE};
use crate::stored::{Kind, Unpacked};
use crate::tile::{dots, half_place, mix, tile_rows, Floats, Halves, Tile, FEW, QUERY_SCALE};

/// Queries of a block when there are many: enough to reuse each tile, few enough to stay in cache beside it.
const BLOCK: usize = 48;

/// Queries that read one KV head, with their running softmax.
pub struct Block {
    pub rows: usize,
    layout: Layout,
    /// Numbers from one output to the next.
    stride: usize,
    /// The same of queries: as many as a key has.
    key_stride: usize,
    /// A tile of keys or values, where they are not float32.
    tile: Unpacked,
    /// For few queries over int8 rows, which are then not unpacked.
    narrow: Option<Narrow>,
    /// For few queries over float16 rows: unpacked in registers, so queries and outputs are in the order of `half_place`.
    halves: bool,
    /// `(rows, key_stride)`, zero beyond the key's width.
    pub queries: Array<f32>,
    /// `(rows, stride)`, not yet divided by `sums`.
    outputs: Array<f32>,
    /// `(rows, PAGE)`.
    pub scores: Array<f32>,
    /// Largest raw score so far.
    pub maxima: Array<f32>,
    /// Σ 2^((score − max)·c) so far.
    pub sums: Array<f32>,
    /// The first row each query may see, ascending.
    pub starts: Vec<usize>,
    /// The row behind the last one it may see, ascending.
    pub limits: Vec<usize>,
}

impl Block {
    #[inline(never)]
    pub fn new(capacity: usize, layout: Layout) -> Result<Self> {
        let stride = layout.stride;
        let (mut starts, mut limits) = (Vec::new(), Vec::new());
        for list in [&mut starts, &mut limits] {
            list.try_reserve_exact(capacity).map_err(|_| Error::Memory)?;
        }
        Ok(Block {
            rows: 0,
            layout,
            stride,
            key_stride: layout.key_stride,
            tile: layout.unpacked(tile_rows(stride))?,
            narrow: None,
            halves: false,
            queries: Array::zeros(capacity * layout.key_stride)?,
            outputs: Array::zeros(capacity * stride)?,
            scores: Array::zeros(capacity * PAGE)?,
            maxima: Array::zeros(capacity)?,
            sums: Array::zeros(capacity)?,
            starts,
            limits,
        })
    }

    /// For decoding: few queries read the rows as they are stored.
    pub fn new_direct(capacity: usize, layout: Layout) -> Result<Self> {
        let mut block = Self::new(capacity, layout)?;
        if layout.is(Kind::Int8) && capacity <= FEW {
            block.narrow = Some(Narrow::new(capacity, layout.key_stride, layout.stride)?);
        }
        block.halves = layout.is(Kind::F16) && capacity <= FEW;
        Ok(block)
    }

    /// Rows worked on at once.
    fn tile_rows(&self) -> usize {
        if self.layout.is(Kind::F32) && self.limits.len() <= FEW || self.halves || self.narrow.is_some() {
            PAGE
        } else {
            tile_rows(self.stride)
        }
    }

    pub fn clear(&mut self) {
        self.rows = 0;
        self.starts.clear();
        self.limits.clear();
        self.outputs.as_mut().fill(0.0);
        self.maxima.as_mut().fill(f32::NEG_INFINITY);
        self.sums.as_mut().fill(0.0);
    }

    #[inline(never)]
    pub fn push(&mut self, query: &[f32], start: usize, limit: usize) {
        let at = self.rows * self.key_stride;
        let place = &mut self.queries.as_mut()[at..at + self.key_stride];
        if self.halves {
            query.iter().enumerate().for_each(|(d, x)| place[half_place(d)] = x * QUERY_SCALE);
        } else {
            place[..query.len()].copy_from_slice(query);
        }
        if let Some(narrow) = &mut self.narrow {
            narrow.set_query(self.rows, &self.queries.as_slice()[at..at + self.key_stride]);
        }
        self.starts.push(start);
        self.limits.push(limit);
        self.rows += 1;
    }

    /// Gives the query `row` a raw score without a row of keys, −∞ for none: while it has no output yet.
    pub fn add_null(&mut self, row: usize, score: f32, c: f32) {
        let (maximum, sum) = (&mut self.maxima.as_mut()[row], &mut self.sums.as_mut()[row]);
        let peak = maximum.max(score);
        if score > f32::NEG_INFINITY {
            let before = if *sum > 0.0 { *sum * exp2_one((*maximum - peak) * c) } else { 0.0 };
            *sum = before + exp2_one((score - peak) * c);
            *maximum = peak;
        }
    }

    /// Goes on from where a block with the same queries over other rows is.
    pub fn adopt(&mut self, other: &Block) {
        for (to, from, each) in [
            (&mut self.outputs, &other.outputs, self.stride),
            (&mut self.maxima, &other.maxima, 1),
            (&mut self.sums, &other.sums, 1),
        ] {
            to.as_mut()[..self.rows * each].copy_from_slice(&from.as_slice()[..self.rows * each]);
        }
    }

    /// The output of a query: the sums of the softmax divide it once, at the end.
    pub fn write(&self, row: usize, to: &mut [f32]) {
        let share = 1.0 / self.sums.as_slice()[row];
        let output = &self.outputs.as_slice()[row * self.stride..][..self.stride];
        for (d, to) in to.iter_mut().enumerate() {
            *to = output[if self.halves { half_place(d) } else { d }] * share;
        }
    }

    /// Raw scores of a tile for the block's queries from `first` on, −∞ where a query may not look, up to a multiple of
    /// eight. Returns the number of rows of the tile that anyone sees.
    #[inline(never)]
    fn score(&mut self, run: Run, start: usize, first: usize, ahead: *const u8) -> usize {
        let end = start - start % self.tile_rows() + self.tile_rows();
        let seen = self.limits[self.rows - 1].min(end) - start;
        let queries = self.queries.as_slice()[first * self.key_stride..self.rows * self.key_stride].as_ptr();
        let scores = &mut self.scores.as_mut()[first * PAGE..self.rows * PAGE];
        let (page, count, rows) = (&run.pages[start / PAGE], seen.next_multiple_of(4), self.rows - first);
        let (keys, scales) = page.rows(self.layout, Part::Key, start % PAGE);
        let mut tile = Tile { rows: keys, count: seen, stride: self.key_stride, ahead };
        // SAFETY: a tile lies within one page and is no longer than the room for it.
        unsafe {
            if let Some(narrow) = &self.narrow {
                narrow.dots(first, rows, tile, scales, scores.as_mut_ptr());
            } else if self.halves {
                dots::<Halves>(queries, rows, tile, scores.as_mut_ptr(), PAGE);
            } else {
                tile.rows = page.floats(self.layout, Part::Key, start % PAGE, count, &mut self.tile) as *const u8;
                dots::<Floats>(queries, rows, tile, scores.as_mut_ptr(), PAGE);
            }
        }
        if run.is_biased() {
            for row in scores.chunks_exact_mut(PAGE) {
                row[..seen].iter_mut().zip(run.raw_bias(start)).for_each(|(score, bias)| *score += bias);
            }
        }
        let spans = self.starts[first..].iter().zip(&self.limits[first..]);
        for (row, (from, limit)) in scores.chunks_exact_mut(PAGE).zip(spans) {
            let visible = (limit - start).min(seen);
            row[visible..seen.next_multiple_of(8)].fill(f32::NEG_INFINITY);
            row[..from.saturating_sub(start).min(visible)].fill(f32::NEG_INFINITY);
        }
        seen
    }

    /// The first query that sees row `start`.
    fn first_seeing(&self, start: usize) -> usize {
        self.limits.partition_point(|&limit| limit <= start)
    }

    /// Behind the last query that sees a row before `end`.
    fn end_seeing(&self, end: usize) -> usize {
        self.starts.partition_point(|&start| start < end)
    }
}

/// Turns raw scores into 2^((score − max)·c), updating maximum and sum; returns the factor for what came before.
///
/// # Safety
/// `scores` holds `count` rounded up to 8 floats, at least one of them above −∞.
#[inline(always)]
unsafe fn soften(scores: *mut f32, count: usize, maximum: &mut f32, sum: &mut f32, c: f32) -> f32 {
    let mut peaks = [F4::splat(*maximum); 2];
    for k in (0..count).step_by(8) {
        peaks = [peaks[0].max(F4::load(scores.add(k))), peaks[1].max(F4::load(scores.add(k + 4)))];
    }
    let peaks = peaks[0].max(peaks[1]).peaks();
    let peak = peaks.lanes()[0];
    let factor = if peak > *maximum { exp2_one((*maximum - peak) * c) } else { 1.0 };
    *maximum = peak;
    let c = F4::splat(c);
    let mut totals = [F4::zero(); 2];
    for k in (0..count).step_by(8) {
        let at = [scores.add(k), scores.add(k + 4)];
        let weights = exp2s(at.map(|at| F4::load(at).sub(peaks).mul(c)));
        for i in 0..2 {
            weights[i].store(at[i]);
            totals[i] = totals[i].add(weights[i]);
        }
    }
    *sum = *sum * factor + totals[0].add(totals[1]).sum();
    factor
}

/// Rows of so many bytes, read four or eight side by side, are too far apart for the hardware to fetch ahead: in a head
/// that the second-level cache can't hold, fetching them in order takes up to half off (and would add to narrower ones).
const FETCHED_ROW: usize = 384;
const FETCHED_ROWS: usize = 8192;

/// Runs the block over all tiles it may see: fills outputs, maxima and sums.
#[inline(never)]
pub fn attend(run: Run, block: &mut Block, c: f32) {
    let (stride, layout) = (block.stride, block.layout);
    let most = block.limits[block.rows - 1];
    let step = block.tile_rows();
    let fetches =
        step == PAGE && block.rows <= FEW && most >= FETCHED_ROWS && layout.row_bytes(Part::Value) >= FETCHED_ROW;
    let ahead = |page: usize, part| match run.pages.get(page) {
        Some(page) if fetches => page.rows(layout, part, 0).0,
        _ => core::ptr::null(),
    };
    for start in (block.starts[0] / step * step..most).step_by(step) {
        let first = block.first_seeing(start);
        let seen = block.score(run, start, first, ahead(start / PAGE, Part::Value));
        // Those that see nothing of the tile yet have no maximum to go by.
        let rows = block.end_seeing(start + seen);
        let scores = block.scores.as_mut();
        for q in first..rows {
            let (maximum, sum) = (&mut block.maxima.as_mut()[q], &mut block.sums.as_mut()[q]);
            // SAFETY: a row of `PAGE` floats; query `q` sees a row of the tile.
            let factor = unsafe { soften(scores[q * PAGE..].as_mut_ptr(), seen, maximum, sum, c) };
            if factor != 1.0 {
                for x in &mut block.outputs.as_mut()[q * stride..(q + 1) * stride] {
                    *x *= factor;
                }
            }
        }
        let outputs = block.outputs.as_mut()[first * stride..rows * stride].as_mut_ptr();
        let page = &run.pages[start / PAGE];
        let (values, scales) = page.rows(layout, Part::Value, start % PAGE);
        let mut tile = Tile { rows: values, count: seen, stride, ahead: ahead(start / PAGE + 1, Part::Key) };
        // SAFETY: `seen` rows from `start` lie within one page and hold values.
        unsafe {
            let scores = scores[first * PAGE..].as_ptr();
            if let Some(narrow) = &mut block.narrow {
                narrow.mix(scores, rows - first, tile, scales, outputs);
            } else if block.halves {
                mix::<Halves>(scores, PAGE, rows - first, tile, outputs);
            } else {
                tile.rows = page.floats(layout, Part::Value, start % PAGE, seen, &mut block.tile) as *const u8;
                mix::<Floats>(scores, PAGE, rows - first, tile, outputs);
            }
        }
    }
}

/// Maxima and sums alone, over the rows from `start` on.
pub fn measure(run: Run, block: &mut Block, c: f32, mut start: usize) {
    let most = block.limits.last().copied().unwrap_or(0);
    while start < most {
        let first = block.first_seeing(start);
        let seen = block.score(run, start, first, core::ptr::null());
        for q in first..block.end_seeing(start + seen) {
            let (maximum, sum) = (&mut block.maxima.as_mut()[q], &mut block.sums.as_mut()[q]);
            // SAFETY: a row of `PAGE` floats; query `q` sees a row of the tile.
            unsafe { soften(block.scores.as_mut()[q * PAGE..].as_mut_ptr(), seen, maximum, sum, c) };
        }
        start += seen;
    }
}

/// Runs the block over all tiles again, now that `maxima` and `sums` are final, and hands each tile's softmax to
/// `body(start, seen, first query, weights (rows − first, PAGE))`.
pub fn weights(run: Run, block: &mut Block, c: f32, mut body: impl FnMut(usize, usize, usize, &mut [f32])) {
    let most = block.limits[block.rows - 1];
    for start in (0..most).step_by(block.tile_rows()) {
        let first = block.first_seeing(start);
        let seen = block.score(run, start, first, core::ptr::null());
        let rows = block.rows;
        let scores = &mut block.scores.as_mut()[first * PAGE..rows * PAGE];
        for (q, row) in scores.chunks_exact_mut(PAGE).enumerate() {
            let (maximum, sum) = (block.maxima.as_slice()[first + q], block.sums.as_slice()[first + q]);
            normalise(&mut row[..seen.next_multiple_of(4)], maximum, sum, c);
        }
        body(start, seen, first, scores);
    }
}

/// Raw scores to softmax, given the row's maximum and sum.
#[inline(never)]
fn normalise(scores: &mut [f32], maximum: f32, sum: f32, c: f32) {
    let (peak, c, share) = (F4::splat(maximum), F4::splat(c), F4::splat(1.0 / sum));
    for chunk in scores.chunks_exact_mut(4) {
        // SAFETY: four floats.
        unsafe { exp2(F4::load(chunk.as_ptr()).sub(peak).mul(c)).mul(share).store(chunk.as_mut_ptr()) };
    }
}

/// What a causal call may leave beside the outputs. Empty slices: not wanted.
pub struct Extras<'a> {
    /// `(count, heads)`.
    pub log_sum_exp: &'a mut [f32],
    /// `(heads, pitch)`, pitch = rows rounded up to `PAGE`; added to.
    pub column_sum: &'a mut [f32],
    /// `(heads, pitch)`; raised.
    pub column_max: &'a mut [f32],
    /// `(count)`: by what each query's softmax counts in the columns; empty: 1.
    pub row_weights: &'a [f32],
    /// Softmax of the last query, `(heads)` arrays of the KV head's length one after the other.
    pub probabilities: &'a mut [f32],
}

/// Columns of one head in the column arrays.
pub fn column_pitch(layer: &Layer) -> usize {
    layer.rows.iter().map(|head| head.length).max().unwrap_or(0).next_multiple_of(PAGE)
}

/// Attention of `count` queries, `(count, heads, dim)`. Query `t` sees rows `0 … length − behind − count + t` of each
/// head, of them the last as far as the layer reaches; every query must see a row. `sparse`: a single query may read only
/// the rows that its channels choose, in heads that foresee.
pub fn causal(
    layer: &Layer,
    queries: &[f32],
    count: usize,
    behind: usize,
    outputs: &mut [f32],
    extras: &mut Extras,
    sparse: bool,
) -> Result<()> {
    if count == 0 || layer.rows.iter().any(|head| head.length < count + behind) {
        return Err(Error::Shape);
    }
    let columns = !extras.column_sum.is_empty() || !extras.column_max.is_empty();
    let mut few = count;
    if layer.is_thin() {
        if columns || !extras.log_sum_exp.is_empty() {
            return Err(Error::Shape);
        }
        return decode(layer, queries, count, behind, outputs, extras.probabilities, false);
    }
    if count >= prefill::LEAST_TOKENS || columns || !extras.log_sum_exp.is_empty() {
        prefill::causal(layer, queries, count, behind, outputs, extras, true)?;
        // Only the last token's softmax may be wanted beside it.
        few = usize::from(!extras.probabilities.is_empty());
    }
    let rest = (count - few) * layer.heads * layer.dim;
    // Which rows a query reads is foreseen for single ones, and where nobody wants to see all of the softmax.
    let sparse = sparse && count == 1 && behind == 0 && few == 1 && extras.probabilities.is_empty() && layer.foresees();
    decode(layer, &queries[rest..], few, behind, &mut outputs[rest..], extras.probabilities, sparse)
}

/// Attention of any `count` queries over all rows of each head.
pub fn unmasked(layer: &Layer, queries: &[f32], count: usize, outputs: &mut [f32], extras: &mut Extras) -> Result<()> {
    if count == 0 || layer.common_length()? == 0 {
        return Err(Error::Shape);
    }
    prefill::causal(layer, queries, count, 0, outputs, extras, false)
}

/// Attention of few queries, row by row.
fn decode(
    layer: &Layer,
    queries: &[f32],
    count: usize,
    behind: usize,
    outputs: &mut [f32],
    probabilities: &mut [f32],
    sparse: bool,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (heads, dim, group) = (layer.heads, layer.dim, layer.group());
    let last = |head: &Head| head.length - behind;
    // Powers of two instead of e, and 1/√dim, folded into one factor.
    let c = LOG2_E / (dim as f32).sqrt();
    // The queries of a KV head's group meet its keys together, those of several tokens too while a block holds them.
    let tokens = (BLOCK / group).clamp(1, count);
    let mut block = Block::new_direct(tokens * group, layer.layout)?;
    // Where this KV head's probabilities begin.
    let mut offset = 0;
    let mut chooser = if sparse { Some(Chooser::new(layer)?) } else { None };
    for (kv, head) in layer.rows.iter().enumerate() {
        let asked = Asked { queries, count, kv, last: last(head), c };
        let shares = if probabilities.is_empty() { 0 } else { group * last(head) };
        if head.thin.is_some() {
            attend_thin(layer, &asked, outputs, &mut probabilities[offset..offset + shares])?;
            offset += shares;
            continue;
        }
        let reads_all = |entries: usize| head.length <= entries;
        if let Some(chooser) =
            chooser.as_mut().filter(|_| head.foresight.as_ref().is_some_and(|(_, r)| !reads_all(r.entries)))
        {
            chooser.attend(layer, &asked, outputs)?;
            continue;
        }
        for token in (0..count).step_by(tokens) {
            let here = tokens.min(count - token);
            // The queries, each with the number of rows it sees.
            block.clear();
            for t in token..token + here {
                let limit = last(head) - count + t + 1;
                for h in kv * group..(kv + 1) * group {
                    block.push(&queries[(t * heads + h) * dim..][..dim], layer.first_seen(limit), limit);
                    block.add_null(block.rows - 1, layer.raw_null(h), c);
                }
            }
            // Scores, softmax and weighted values, tile by tile.
            attend(head.run(), &mut block, c);
            for row in 0..block.rows {
                let at = (token + row / group) * heads + kv * group + row % group;
                block.write(row, &mut outputs[at * dim..][..dim]);
            }
            // The last token's softmax, where it is wanted, needs the scores once more.
            if !probabilities.is_empty() && token + here == count {
                last_softmax(head, &mut block, c, group, &mut probabilities[offset..]);
            }
        }
        offset += shares;
    }
    Ok(())
}

/// Writes the softmax of the last token's queries, `(group, length)`.
fn last_softmax(head: &Head, block: &mut Block, c: f32, group: usize, out: &mut [f32]) {
    let (rows, length) = (block.rows, block.limits[block.rows - 1]);
    weights(head.run(), block, c, |start, seen, first, scores| {
        for q in 0..group {
            let row = &scores[(rows - group + q - first) * PAGE..][..seen];
            out[q * length + start..][..seen].copy_from_slice(row);
        }
    });
}
