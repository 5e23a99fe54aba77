//! Attention of few queries over heads whose first keys are thin, and of one query over the rows that its channels choose
//! (`packed.rs`).

use crate::attention::{attend, weights, Block};
use crate::lanes::F4;
use crate::memory::{Array, Error, Result};
use crate::packed::{Packed, Reading};
use crate::rows::{Head, Layer, Page, Part, Run, PAGE};
use crate::tile::{dots, Floats, Tile, FEW};

/// Queries of one KV head's group: which, and what they see.
pub struct Asked<'a> {
    /// `(count, heads, dim)`.
    pub queries: &'a [f32],
    pub count: usize,
    pub kv: usize,
    /// Rows that the last query sees.
    pub last: usize,
    /// Turns raw scores into exponents of two.
    pub c: f32,
}

impl Asked<'_> {
    /// The query head of query number `i`.
    fn head(&self, layer: &Layer, i: usize) -> usize {
        self.kv * layer.group() + i % layer.group()
    }

    /// Query number `i` of the group's, token by token; where it stands, and how many rows it sees.
    fn query(&self, layer: &Layer, i: usize) -> (usize, usize) {
        let (group, t) = (layer.group(), i / layer.group());
        ((t * layer.heads + self.kv * group + i % group) * layer.dim, self.last - self.count + t + 1)
    }
}

/// All queries over a head with thin keys. `probabilities`: `(group, last)` of the last token, or empty.
pub fn attend_thin(layer: &Layer, asked: &Asked, outputs: &mut [f32], probabilities: &mut [f32]) -> Result<()> {
    let head = &layer.rows[asked.kv];
    let thin = head.thin.as_ref().ok_or(Error::Shape)?;
    let (dim, pairs) = (layer.dim, asked.count * layer.group());
    let mut old = Block::new_direct(FEW.min(pairs), thin.layout)?;
    let mut new = Block::new_direct(FEW.min(pairs), layer.layout)?;
    let mut packed = Array::zeros(dim)?;
    for first in (0..pairs).step_by(FEW) {
        old.clear();
        new.clear();
        for i in first..pairs.min(first + FEW) {
            let (at, limit) = asked.query(layer, i);
            let query = &asked.queries[at..at + dim];
            thin.gather(query, packed.as_mut());
            old.push(&packed.as_slice()[..thin.width()], 0, limit.min(thin.rows));
            new.push(query, 0, limit - limit.min(thin.rows));
            for block in [&mut old, &mut new] {
                block.add_null(block.rows - 1, layer.raw_null(asked.head(layer, i)), asked.c);
            }
        }
        // The running softmax goes on where the thin rows end.
        if thin.rows > 0 {
            attend(head.thin_run(thin), &mut old, asked.c);
            new.adopt(&old);
        }
        if head.length > thin.rows {
            attend(head.run(), &mut new, asked.c);
        }
        for row in 0..new.rows {
            let (at, _) = asked.query(layer, first + row);
            new.write(row, &mut outputs[at..at + dim]);
        }
        if !probabilities.is_empty() {
            old.adopt(&new);
            last_softmax(layer, asked, first, [&mut old, &mut new], probabilities);
        }
    }
    Ok(())
}

/// Writes the softmax of those of the block's queries that are the last token's.
fn last_softmax(layer: &Layer, asked: &Asked, first: usize, blocks: [&mut Block; 2], out: &mut [f32]) {
    let (head, group) = (&layer.rows[asked.kv], layer.group());
    let Some(thin) = &head.thin else { return };
    let [old, new] = blocks;
    let mut write = |offset: usize, start: usize, seen: usize, from: usize, scores: &[f32]| {
        for (row, scores) in (first + from..).zip(scores.chunks_exact(PAGE)) {
            if row / group == asked.count - 1 {
                out[row % group * asked.last + offset + start..][..seen].copy_from_slice(&scores[..seen]);
            }
        }
    };
    if thin.rows > 0 {
        weights(head.thin_run(thin), old, asked.c, |start, seen, from, scores| write(0, start, seen, from, scores));
    }
    if head.length > thin.rows {
        weights(head.run(), new, asked.c, |start, seen, from, scores| write(thin.rows, start, seen, from, scores));
    }
}

/// What choosing rows works in, for one layer's heads one after the other.
pub struct Chooser {
    /// `(group, rows rounded up to a page)`.
    scores: Array<f32>,
    queries: Array<f32>,
    pages: Vec<Page>,
    bias: Vec<f32>,
}

impl Chooser {
    pub fn new(layer: &Layer) -> Result<Self> {
        let (mut longest, mut entries) = (0, 0);
        for head in &layer.rows {
            longest = longest.max(head.length.next_multiple_of(PAGE));
            entries = entries.max(head.foresight.as_ref().map_or(0, |(_, reading)| reading.entries.min(head.length)));
        }
        let mut pages = Vec::new();
        pages.try_reserve_exact(entries.div_ceil(PAGE)).map_err(|_| Error::Memory)?;
        for _ in 0..entries.div_ceil(PAGE) {
            pages.push(Page::new(layer.layout)?);
        }
        Ok(Chooser {
            scores: Array::zeros(layer.group() * longest)?,
            queries: Array::zeros(layer.group() * layer.dim.next_multiple_of(4))?,
            pages,
            bias: Vec::new(),
        })
    }

    /// One query of each query head of a KV head over the rows that they choose together.
    pub fn attend(&mut self, layer: &Layer, asked: &Asked, outputs: &mut [f32]) -> Result<()> {
        let head = &layer.rows[asked.kv];
        let (packed, reading) = head.foresight.as_ref().ok_or(Error::Shape)?;
        let chosen = self.choose(layer, asked, head, packed, *reading)?;
        self.bias.clear();
        self.bias.try_reserve(chosen.len()).map_err(|_| Error::Memory)?;
        for (to, &row) in chosen.as_slice().iter().enumerate() {
            let row = row as usize;
            self.pages[to / PAGE].copy_row(layer.layout, to % PAGE, &head.pages[row / PAGE], row % PAGE);
            if head.is_biased() {
                self.bias.push(head.bias().get(row).copied().unwrap_or(0.0));
            }
        }
        let run = Run::unbiased(&self.pages).with_bias(&self.bias, head.root());
        let mut block = Block::new_direct(layer.group(), layer.layout)?;
        block.clear();
        for i in 0..layer.group() {
            let (at, _) = asked.query(layer, i);
            block.push(&asked.queries[at..at + layer.dim], 0, chosen.len());
            block.add_null(i, layer.raw_null(asked.head(layer, i)), asked.c);
        }
        attend(run, &mut block, asked.c);
        for row in 0..block.rows {
            let (at, _) = asked.query(layer, row);
            block.write(row, &mut outputs[at..at + layer.dim]);
        }
        Ok(())
    }

    /// An entry ranks by how little its partial score is below the best one of a query head: of the head where that is
    /// least.
    fn choose(
        &mut self,
        layer: &Layer,
        asked: &Asked,
        head: &Head,
        packed: &Packed,
        reading: Reading,
    ) -> Result<Array<i32>> {
        let (group, stride, length) = (layer.group(), packed.layout.key_stride, head.length);
        let pitch = length.next_multiple_of(PAGE);
        let queries = &mut self.queries.as_mut()[..group * stride];
        queries.fill(0.0);
        for (i, to) in queries.chunks_exact_mut(stride).enumerate() {
            let (at, _) = asked.query(layer, i);
            packed.gather(&asked.queries[at..at + layer.dim], to);
        }
        for (page, start) in packed.pages.iter().zip((0..length).step_by(PAGE)) {
            let (rows, _) = page.rows(packed.layout, Part::Key, 0);
            let tile = Tile { rows, count: (length - start).min(PAGE), stride, ahead: core::ptr::null() };
            // SAFETY: a page of keys; `group` rows of `pitch` scores, of which a page from `start` on is left.
            unsafe { dots::<Floats>(queries.as_ptr(), group, tile, self.scores.as_mut()[start..].as_mut_ptr(), pitch) };
        }
        let scores = &mut self.scores.as_mut()[..group * pitch];
        for q in 0..group {
            let row = &mut scores[q * pitch..][..pitch];
            row[length..].fill(f32::NEG_INFINITY);
            let peak = highest(row);
            let peaks = F4::splat(peak);
            if q == 0 {
                for four in row.chunks_exact_mut(4) {
                    // SAFETY: four floats.
                    unsafe { F4::load(four.as_ptr()).sub(peaks).store(four.as_mut_ptr()) };
                }
                continue;
            }
            let (ranks, rest) = scores.split_at_mut(pitch);
            for (rank, four) in ranks.chunks_exact_mut(4).zip(rest[(q - 1) * pitch..].chunks_exact(4)) {
                // SAFETY: four floats each.
                unsafe { F4::load(rank.as_ptr()).max(F4::load(four.as_ptr()).sub(peaks)).store(rank.as_mut_ptr()) };
            }
        }
        reading.choose(&self.scores.as_slice()[..length])
    }
}

/// The largest of a multiple of four floats.
fn highest(row: &[f32]) -> f32 {
    // SAFETY: four floats each.
    row.chunks_exact(4)
        .fold(F4::splat(f32::NEG_INFINITY), |most, four| most.max(unsafe { F4::load(four.as_ptr()) }))
        .peak()
}
