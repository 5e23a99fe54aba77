//! Keys and values of one layer, ragged: each KV head owns a list of pages.
//!
//! A page holds 64 keys, then 64 values, one row of `stride` numbers each (head width rounded up to a whole vector, the
//! rest zero, so that no kernel has a tail); int8 rows have their scales behind them. Pages of one head width and kind are
//! all alike: what one layer frees, the next layer takes, and the memory does not fragment however layers are appended
//! and compacted in turn.

use crate::memory::{Array, Error, Result};
use crate::stored::{Kind, Unpacked};

/// Rows of a page.
pub const PAGE: usize = 64;

#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    Key,
    Value,
}

/// Where things stand in a page.
#[derive(Clone, Copy)]
pub struct Layout {
    pub kind: Kind,
    /// Numbers from one row to the next.
    pub stride: usize,
}

impl Layout {
    fn row_bytes(self) -> usize {
        self.stride * self.kind.size()
    }

    fn page_bytes(self) -> usize {
        2 * PAGE * self.row_bytes() + if self.kind == Kind::Int8 { 2 * PAGE * 4 } else { 0 }
    }

    /// First byte of a row.
    fn row(self, part: Part, row: usize) -> usize {
        (part as usize * PAGE + row) * self.row_bytes()
    }

    /// First byte of a row's scale.
    fn scale(self, part: Part, row: usize) -> usize {
        2 * PAGE * self.row_bytes() + (part as usize * PAGE + row) * 4
    }

    /// Room to unpack `rows` rows.
    pub fn unpacked(self, rows: usize) -> Result<Unpacked> {
        Unpacked::new(self.kind, self.stride, rows)
    }
}

pub struct Page(Array<u8>);

impl Page {
    /// Rows from `row` on, `(rows, stride)`, and their scales, which are no scales unless the kind is int8.
    pub fn rows(&self, layout: Layout, part: Part, row: usize) -> (*const u8, *const f32) {
        let bytes = self.0.as_slice();
        let scales = &bytes[layout.scale(part, row).min(bytes.len())..];
        (bytes[layout.row(part, row)..].as_ptr(), scales.as_ptr() as *const f32)
    }

    /// `count` rows from `row` on in float32, `(count, stride)`, good until the next call with `unpacked`.
    ///
    /// # Safety
    /// row + count ≤ `PAGE`, and `unpacked` has room for `count` rows.
    #[inline(never)]
    pub unsafe fn floats(
        &self,
        layout: Layout,
        part: Part,
        row: usize,
        count: usize,
        unpacked: &mut Unpacked,
    ) -> *const f32 {
        let (rows, scales) = self.rows(layout, part, row);
        unpacked.floats(rows, scales, count)
    }

    #[inline(never)]
    fn store(&mut self, layout: Layout, part: Part, row: usize, numbers: &[f32]) {
        let bytes = self.0.as_mut();
        let scale = layout.kind.store(numbers, &mut bytes[layout.row(part, row)..][..layout.row_bytes()]);
        if layout.kind == Kind::Int8 {
            bytes[layout.scale(part, row)..][..4].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

#[derive(Default)]
pub struct Head {
    pub pages: Vec<Page>,
    pub length: usize,
    /// What is added to the scaled logits of the first rows; those behind have none.
    bias: Vec<f32>,
    /// √dim, once there is a bias: raw scores are not scaled.
    root: f32,
}

impl Head {
    /// What is added to the raw scores of the rows from `start` on, as far as they have a bias.
    pub fn raw_bias(&self, start: usize) -> impl Iterator<Item = f32> + '_ {
        self.bias[start.min(self.bias.len())..].iter().map(|b| b * self.root)
    }

    pub fn is_biased(&self) -> bool {
        !self.bias.is_empty()
    }

    pub fn bias(&self) -> &[f32] {
        &self.bias
    }
}

pub struct Layer {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    /// Rows that a query looks back, its own among them.
    pub reach: usize,
    pub layout: Layout,
    /// One per KV head.
    pub rows: Vec<Head>,
}

/// Largest counts accepted; products of two of them fit 32 bits.
const MAX_HEADS: usize = 1 << 12;
const MAX_DIM: usize = 1 << 12;
pub const MAX_ROWS: usize = 1 << 28;

impl Layer {
    /// Empty rows with room for `reserve` rows in each head.
    pub fn new(heads: usize, kv_heads: usize, dim: usize, reserve: usize, kind: Kind) -> Result<Self> {
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 || heads > MAX_HEADS {
            return Err(Error::Shape);
        }
        if dim == 0 || dim > MAX_DIM || reserve > MAX_ROWS {
            return Err(Error::Shape);
        }
        let mut rows = Vec::new();
        rows.try_reserve_exact(kv_heads).map_err(|_| Error::Memory)?;
        rows.resize_with(kv_heads, Head::default);
        let layout = Layout { kind, stride: kind.stride(dim) };
        let mut layer = Layer { heads, kv_heads, dim, reach: usize::MAX, layout, rows };
        for head in 0..kv_heads {
            layer.make_room(head, reserve)?;
        }
        Ok(layer)
    }

    /// The first row that a query sees whose last one comes before `limit`.
    pub fn first_seen(&self, limit: usize) -> usize {
        limit.saturating_sub(self.reach)
    }

    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub fn pages(&self) -> usize {
        self.rows.iter().map(|head| head.pages.len()).sum()
    }

    /// Rows of every head, when they all have the same number.
    pub fn common_length(&self) -> Result<usize> {
        let length = self.rows[0].length;
        if self.rows.iter().any(|head| head.length != length) {
            return Err(Error::Shape);
        }
        Ok(length)
    }

    fn make_room(&mut self, head: usize, length: usize) -> Result<()> {
        let bytes = self.layout.page_bytes();
        let pages = &mut self.rows[head].pages;
        let wanted = length.div_ceil(PAGE);
        pages.try_reserve(wanted.saturating_sub(pages.len())).map_err(|_| Error::Memory)?;
        while pages.len() < wanted {
            pages.push(Page(Array::zeros(bytes)?));
        }
        Ok(())
    }

    /// Appends `count` rows to every head from `(count, kv_heads, dim)` arrays. All heads or none.
    pub fn append(&mut self, keys: &[f32], values: &[f32], count: usize) -> Result<()> {
        let longest = self.rows.iter().map(|head| head.length).max().unwrap_or(0);
        if count > MAX_ROWS - longest {
            return Err(Error::Shape);
        }
        self.layout.kind.check(keys)?;
        self.layout.kind.check(values)?;
        let mut before = Vec::new();
        before.try_reserve_exact(self.kv_heads).map_err(|_| Error::Memory)?;
        before.extend(self.rows.iter().map(|head| head.pages.len()));
        for head in 0..self.kv_heads {
            if let Err(error) = self.make_room(head, self.rows[head].length + count) {
                for (head, pages) in self.rows.iter_mut().zip(before) {
                    head.pages.truncate(pages);
                }
                return Err(error);
            }
        }
        for (index, head) in self.rows.iter_mut().enumerate() {
            for t in 0..count {
                let at = (t * self.kv_heads + index) * self.dim;
                let (page, row) = ((head.length + t) / PAGE, (head.length + t) % PAGE);
                head.pages[page].store(self.layout, Part::Key, row, &keys[at..at + self.dim]);
                head.pages[page].store(self.layout, Part::Value, row, &values[at..at + self.dim]);
            }
            head.length += count;
        }
        Ok(())
    }

    /// Keeps the rows listed in `kept`, head after head, `counts` of them each; ascending, unique, in range.
    pub fn compact(&mut self, kept: &[i32], counts: &[i32]) -> Result<()> {
        let mut rest = kept;
        for (head, &count) in self.rows.iter().zip(counts) {
            let count = usize::try_from(count).map_err(|_| Error::Shape)?;
            let mine = rest.get(..count).ok_or(Error::Shape)?;
            rest = &rest[count..];
            let mut least = 0;
            for &row in mine {
                if row < least || row as usize >= head.length {
                    return Err(Error::Shape);
                }
                least = row + 1;
            }
        }
        if !rest.is_empty() {
            return Err(Error::Shape);
        }
        let mut rest = kept;
        for (head, &count) in self.rows.iter_mut().zip(counts) {
            let (mine, others) = rest.split_at(count as usize);
            rest = others;
            let mut to = 0;
            while to < mine.len() {
                let from = mine[to] as usize;
                // Neighbours go together, as far as both their pages reach.
                let room = (mine.len() - to).min(PAGE - to % PAGE).min(PAGE - from % PAGE);
                let run =
                    mine[to..to + room].iter().zip(from..).take_while(|&(&row, next)| row as usize == next).count();
                if from != to {
                    move_rows(&mut head.pages, from, to, run, self.layout);
                }
                to += run;
            }
            // Ascending, so that those with a bias come first.
            let biased = mine.partition_point(|&row| (row as usize) < head.bias.len());
            for (to, &from) in mine[..biased].iter().enumerate() {
                head.bias[to] = head.bias[from as usize];
            }
            head.bias.truncate(biased);
            shrink(head, mine.len());
        }
        Ok(())
    }

    /// Drops rows from the end, and the pages they leave empty.
    pub fn truncate(&mut self, lengths: &[i32]) -> Result<()> {
        if self.rows.iter().zip(lengths).any(|(head, &length)| length < 0 || length as usize > head.length) {
            return Err(Error::Shape);
        }
        for (head, &length) in self.rows.iter_mut().zip(lengths) {
            shrink(head, length as usize);
        }
        Ok(())
    }

    /// Gives a head other values, `(length, dim)`, and its rows a bias, `(length)`.
    pub fn refit(&mut self, head: usize, values: &[f32], bias: &[f32]) -> Result<()> {
        let (dim, layout, root) = (self.dim, self.layout, (self.dim as f32).sqrt());
        let head = self.rows.get_mut(head).ok_or(Error::Shape)?;
        if values.len() != head.length * dim || bias.len() != head.length {
            return Err(Error::Shape);
        }
        layout.kind.check(values)?;
        head.bias.try_reserve_exact(bias.len().saturating_sub(head.bias.len())).map_err(|_| Error::Memory)?;
        head.bias.clear();
        head.bias.extend_from_slice(bias);
        head.root = root;
        for (row, value) in values.chunks_exact(dim).enumerate() {
            head.pages[row / PAGE].store(layout, Part::Value, row % PAGE, value);
        }
        Ok(())
    }

    /// Copies one head's rows out, `(length, dim)` each.
    pub fn copy(&self, head: usize, keys: &mut [f32], values: &mut [f32]) -> Result<()> {
        self.copy_rows(head, None, self.rows[head].length, keys, values)
    }

    /// Copies the rows listed in `wanted` (any order) out, `(wanted, dim)` each.
    pub fn copy_some(&self, head: usize, wanted: &[i32], keys: &mut [f32], values: &mut [f32]) -> Result<()> {
        self.copy_rows(head, Some(wanted), wanted.len(), keys, values)
    }

    #[inline(never)]
    fn copy_rows(
        &self,
        head: usize,
        wanted: Option<&[i32]>,
        count: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        let (dim, head) = (self.dim, &self.rows[head]);
        let mut unpacked = self.layout.unpacked(1)?;
        for to in 0..count {
            let row = wanted.map_or(to, |wanted| wanted[to] as usize);
            if row >= head.length {
                return Err(Error::Shape);
            }
            for (part, copies) in [(Part::Key, &mut *keys), (Part::Value, &mut *values)] {
                copies[to * dim..][..dim].copy_from_slice(&self.row(head, part, row, &mut unpacked)[..dim]);
            }
        }
        Ok(())
    }

    /// One row in float32, `(stride)`; `unpacked` has room for one.
    pub fn row<'a>(&self, head: &'a Head, part: Part, row: usize, unpacked: &'a mut Unpacked) -> &'a [f32] {
        assert!(row < head.length);
        // SAFETY: the row exists; its float32 form lives as long as the head and `unpacked` are borrowed.
        unsafe {
            let floats = head.pages[row / PAGE].floats(self.layout, part, row % PAGE, 1, unpacked);
            core::slice::from_raw_parts(floats, self.layout.stride)
        }
    }
}

/// Copies `count` rows from `from` on to `to` ≤ `from`; both within one page.
fn move_rows(pages: &mut [Page], from: usize, to: usize, count: usize, layout: Layout) {
    let scaled = layout.kind == Kind::Int8;
    for part in [Part::Key, Part::Value] {
        let (from_row, to_row) = (layout.row(part, from % PAGE), layout.row(part, to % PAGE));
        move_bytes(pages, (from / PAGE, from_row), (to / PAGE, to_row), count * layout.row_bytes());
        if scaled {
            let (from_scale, to_scale) = (layout.scale(part, from % PAGE), layout.scale(part, to % PAGE));
            move_bytes(pages, (from / PAGE, from_scale), (to / PAGE, to_scale), count * 4);
        }
    }
}

/// Copies `count` bytes; places are page and byte, `to`'s page not after `from`'s.
#[inline(never)]
fn move_bytes(pages: &mut [Page], from: (usize, usize), to: (usize, usize), count: usize) {
    if from.0 == to.0 {
        pages[to.0].0.as_mut().copy_within(from.1..from.1 + count, to.1);
    } else {
        let (low, high) = pages.split_at_mut(from.0);
        low[to.0].0.as_mut()[to.1..][..count].copy_from_slice(&high[0].0.as_slice()[from.1..][..count]);
    }
}

/// Sets the length and frees the pages beyond it.
fn shrink(head: &mut Head, length: usize) {
    head.length = length;
    head.bias.truncate(length);
    head.pages.truncate(length.div_ceil(PAGE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_moves_rows_of_every_kind_and_frees_pages() {
        let (kv_heads, dim, count) = (2, 3, 200);
        for kind in [Kind::F32, Kind::F16, Kind::Int8] {
            let mut layer = Layer::new(4, kv_heads, dim, 0, kind).unwrap();
            // Each row is exact as int8: its largest is 127 · 2ⁿ.
            let number = |row: usize, d: usize| [127.0, (row % 127) as f32, (row / 127) as f32][d];
            let keys: Vec<f32> = (0..count * kv_heads * dim).map(|i| number(i / dim, i % dim)).collect();
            let values: Vec<f32> = keys.iter().map(|x| -2.0 * x).collect();
            layer.append(&keys, &values, count).unwrap();
            assert_eq!(layer.pages(), 8);
            let kept: Vec<i32> = (0..200).filter(|i| i % 3 == 1 || *i > 100).chain([5, 199]).collect();
            let first = kept.len() as i32 - 2;
            assert_eq!(layer.compact(&kept, &[first, 3]), Err(Error::Shape));
            layer.compact(&kept, &[first, 2]).unwrap();
            assert_eq!(layer.pages(), 4);
            for head in 0..2 {
                let length = layer.rows[head].length;
                let (mut k, mut v) = (vec![0.0; length * dim], vec![0.0; length * dim]);
                layer.copy(head, &mut k, &mut v).unwrap();
                let mine = if head == 0 { &kept[..first as usize] } else { &kept[first as usize..] };
                for (i, &row) in mine.iter().enumerate() {
                    for d in 0..dim {
                        let want = number(row as usize * kv_heads + head, d);
                        assert_eq!((k[i * dim + d], v[i * dim + d]), (want, -2.0 * want));
                    }
                }
            }
        }
    }
}
