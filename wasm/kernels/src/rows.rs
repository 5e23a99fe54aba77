//! Keys and values of one layer, ragged: each KV head owns a list of pages.
//!
//! A page holds 64 keys, then 64 values, one row of `stride` floats each (head width rounded up to a whole vector, the
//! rest zero, so that no kernel has a tail). Pages of one head width are all alike: what one layer frees, the next
//! layer takes, and the memory does not fragment however layers are appended and compacted in turn.

use crate::memory::{Array, Error, Result};

/// Rows of a page.
pub const PAGE: usize = 64;

pub struct Page(Array<f32>);

impl Page {
    fn new(stride: usize) -> Result<Self> {
        Ok(Page(Array::zeros(2 * PAGE * stride)?))
    }

    /// `(64, stride)`.
    pub fn keys(&self) -> *const f32 {
        self.0.as_slice().as_ptr()
    }

    /// `(64, stride)`.
    pub fn values(&self) -> *const f32 {
        self.0.as_slice()[self.0.len() / 2..].as_ptr()
    }

    /// Keys, then values.
    pub fn floats(&self) -> &[f32] {
        self.0.as_slice()
    }

    fn row(&mut self, part: Part, row: usize, stride: usize) -> &mut [f32] {
        let first = (if part == Part::Key { 0 } else { PAGE } + row) * stride;
        &mut self.0.as_mut()[first..first + stride]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Key,
    Value,
}

#[derive(Default)]
pub struct Head {
    pub pages: Vec<Page>,
    pub length: usize,
}

pub struct Layer {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    /// Floats from one row to the next: `dim` rounded up to 4.
    pub stride: usize,
    /// One per KV head.
    pub rows: Vec<Head>,
}

/// Largest counts accepted; products of two of them fit 32 bits.
const MAX_HEADS: usize = 1 << 12;
const MAX_DIM: usize = 1 << 12;
pub const MAX_ROWS: usize = 1 << 28;

impl Layer {
    /// Empty rows with room for `reserve` rows in each head.
    pub fn new(heads: usize, kv_heads: usize, dim: usize, reserve: usize) -> Result<Self> {
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 || heads > MAX_HEADS {
            return Err(Error::Shape);
        }
        if dim == 0 || dim > MAX_DIM || reserve > MAX_ROWS {
            return Err(Error::Shape);
        }
        let mut rows = Vec::new();
        rows.try_reserve_exact(kv_heads).map_err(|_| Error::Memory)?;
        rows.resize_with(kv_heads, Head::default);
        let mut layer = Layer { heads, kv_heads, dim, stride: dim.next_multiple_of(4), rows };
        for head in 0..kv_heads {
            layer.make_room(head, reserve)?;
        }
        Ok(layer)
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
        let stride = self.stride;
        let pages = &mut self.rows[head].pages;
        let wanted = length.div_ceil(PAGE);
        pages.try_reserve(wanted.saturating_sub(pages.len())).map_err(|_| Error::Memory)?;
        while pages.len() < wanted {
            pages.push(Page::new(stride)?);
        }
        Ok(())
    }

    /// Appends `count` rows to every head from `(count, kv_heads, dim)` arrays. All heads or none.
    pub fn append(&mut self, keys: &[f32], values: &[f32], count: usize) -> Result<()> {
        let longest = self.rows.iter().map(|head| head.length).max().unwrap_or(0);
        if count > MAX_ROWS - longest {
            return Err(Error::Shape);
        }
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
                let page = &mut head.pages[page];
                page.row(Part::Key, row, self.stride)[..self.dim].copy_from_slice(&keys[at..at + self.dim]);
                page.row(Part::Value, row, self.stride)[..self.dim].copy_from_slice(&values[at..at + self.dim]);
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
            let ascending = mine.windows(2).all(|pair| pair[0] < pair[1]);
            let in_range =
                mine.first().is_none_or(|&i| i >= 0) && mine.last().is_none_or(|&i| (i as usize) < head.length);
            if !ascending || !in_range {
                return Err(Error::Shape);
            }
        }
        if !rest.is_empty() {
            return Err(Error::Shape);
        }
        let mut rest = kept;
        for (head, &count) in self.rows.iter_mut().zip(counts) {
            let (mine, others) = rest.split_at(count as usize);
            rest = others;
            for (to, &from) in mine.iter().enumerate() {
                move_row(&mut head.pages, from as usize, to, self.stride);
            }
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

    /// Copies one head's rows out, `(length, dim)` each.
    pub fn copy(&mut self, head: usize, keys: &mut [f32], values: &mut [f32]) {
        for row in 0..self.rows[head].length {
            self.copy_row(head, row, row, keys, values);
        }
    }

    /// Copies the rows listed in `wanted` (any order) out, `(wanted, dim)` each.
    pub fn copy_some(&mut self, head: usize, wanted: &[i32], keys: &mut [f32], values: &mut [f32]) -> Result<()> {
        let length = self.rows[head].length;
        if wanted.iter().any(|&row| row < 0 || row as usize >= length) {
            return Err(Error::Shape);
        }
        for (to, &row) in wanted.iter().enumerate() {
            self.copy_row(head, row as usize, to, keys, values);
        }
        Ok(())
    }

    fn copy_row(&mut self, head: usize, row: usize, to: usize, keys: &mut [f32], values: &mut [f32]) {
        let (dim, stride) = (self.dim, self.stride);
        let page = &mut self.rows[head].pages[row / PAGE];
        keys[to * dim..][..dim].copy_from_slice(&page.row(Part::Key, row % PAGE, stride)[..dim]);
        values[to * dim..][..dim].copy_from_slice(&page.row(Part::Value, row % PAGE, stride)[..dim]);
    }
}

/// Copies row `from` over row `to` ≤ `from`.
fn move_row(pages: &mut [Page], from: usize, to: usize, stride: usize) {
    if from == to {
        return;
    }
    for part in [Part::Key, Part::Value] {
        let (page, row) = (to / PAGE, to % PAGE);
        if from / PAGE == page {
            let base = if part == Part::Key { 0 } else { PAGE };
            let (from, to) = (base + from % PAGE, base + row);
            pages[page].0.as_mut().copy_within(from * stride..(from + 1) * stride, to * stride);
        } else {
            let (low, high) = pages.split_at_mut(from / PAGE);
            low[page].row(part, row, stride).copy_from_slice(high[0].row(part, from % PAGE, stride));
        }
    }
}

/// Sets the length and frees the pages beyond it.
fn shrink(head: &mut Head, length: usize) {
    head.length = length;
    head.pages.truncate(length.div_ceil(PAGE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_moves_rows_and_frees_pages() {
        let (kv_heads, dim, count) = (2, 3, 200);
        let mut layer = Layer::new(4, kv_heads, dim, 0).unwrap();
        let keys: Vec<f32> = (0..count * kv_heads * dim).map(|i| i as f32).collect();
        let values: Vec<f32> = keys.iter().map(|x| -x).collect();
        layer.append(&keys, &values, count).unwrap();
        assert_eq!(layer.pages(), 8);
        let kept: Vec<i32> = (0..200).filter(|i| i % 3 == 1).chain([5, 199]).collect();
        let first = kept.len() as i32 - 2;
        assert_eq!(layer.compact(&kept, &[first, 3]), Err(Error::Shape));
        layer.compact(&kept, &[first, 2]).unwrap();
        assert_eq!(layer.pages(), 3);
        for head in 0..2 {
            let length = layer.rows[head].length;
            let (mut k, mut v) = (vec![0.0; length * dim], vec![0.0; length * dim]);
            layer.copy(head, &mut k, &mut v);
            let mine = if head == 0 { &kept[..first as usize] } else { &kept[first as usize..] };
            for (i, &row) in mine.iter().enumerate() {
                for d in 0..dim {
                    let want = ((row as usize * kv_heads + head) * dim + d) as f32;
                    assert_eq!((k[i * dim + d], v[i * dim + d]), (want, -want));
                }
            }
        }
    }
}
