//! Keys and values of one layer, ragged: each KV head owns a list of pages.
//!
//! A page holds 64 keys, then 64 values, one row of `stride` numbers each (head width rounded up to a whole vector, the
//! rest zero, so that no kernel has a tail); int8 rows have their scales behind them. Pages of one head width and kind are
//! all alike: what one layer frees, the next layer takes, and the memory does not fragment however layers are appended
//! and compacted in turn.

use crate::memory::{Array, Error, Result};
use crate::packed::{Packed, Reading};
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
    /// Numbers from one value to the next.
    pub stride: usize,
    /// The same of keys: fewer where channels of theirs are gone (`packed.rs`).
    pub key_stride: usize,
}

impl Layout {
    fn row_bytes(self, part: Part) -> usize {
        self.kind.size() * if part == Part::Key { self.key_stride } else { self.stride }
    }

    fn number_bytes(self) -> usize {
        PAGE * (self.row_bytes(Part::Key) + self.row_bytes(Part::Value))
    }

    pub fn page_bytes(self) -> usize {
        self.number_bytes() + if self.kind == Kind::Int8 { 2 * PAGE * 4 } else { 0 }
    }

    /// First byte of a row.
    fn row(self, part: Part, row: usize) -> usize {
        part as usize * PAGE * self.row_bytes(Part::Key) + row * self.row_bytes(part)
    }

    /// First byte of a row's scale.
    fn scale(self, part: Part, row: usize) -> usize {
        self.number_bytes() + (part as usize * PAGE + row) * 4
    }

    /// Room to unpack one key.
    pub fn unpacked_keys(self) -> Result<Unpacked> {
        Unpacked::new(self.kind, self.key_stride, 1)
    }

    /// Room to unpack `rows` rows.
    pub fn unpacked(self, rows: usize) -> Result<Unpacked> {
        Unpacked::new(self.kind, self.stride, rows)
    }
}

pub struct Page(Array<u8>);

impl Page {
    pub fn new(layout: Layout) -> Result<Self> {
        Array::zeros(layout.page_bytes()).map(Page)
    }

    /// Copies a row of a page of the same layout, as it is stored.
    pub fn copy_row(&mut self, layout: Layout, row: usize, from: &Page, from_row: usize) {
        for part in [Part::Key, Part::Value] {
            let (to, from_at, bytes) = (layout.row(part, row), layout.row(part, from_row), layout.row_bytes(part));
            self.0.as_mut()[to..to + bytes].copy_from_slice(&from.0.as_slice()[from_at..from_at + bytes]);
            if layout.kind == Kind::Int8 {
                let (to, from_at) = (layout.scale(part, row), layout.scale(part, from_row));
                self.0.as_mut()[to..to + 4].copy_from_slice(&from.0.as_slice()[from_at..from_at + 4]);
            }
        }
    }

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
    pub fn store(&mut self, layout: Layout, part: Part, row: usize, numbers: &[f32]) {
        let bytes = self.0.as_mut();
        let scale = layout.kind.store(numbers, &mut bytes[layout.row(part, row)..][..layout.row_bytes(part)]);
        if layout.kind == Kind::Int8 {
            bytes[layout.scale(part, row)..][..4].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

#[derive(Default)]
pub struct Head {
    /// Of the rows behind those of `thin`.
    pub pages: Vec<Page>,
    pub length: usize,
    /// The first rows, where their keys have lost channels.
    pub thin: Option<Packed>,
    /// Channels of all keys once more, and how few rows a query reads by them.
    pub foresight: Option<(Packed, Reading)>,
    /// What is added to the scaled logits of the first rows; those behind have none.
    bias: Vec<f32>,
    /// √dim, once there is a bias: raw scores are not scaled.
    root: f32,
}

/// Rows one behind the other in pages of one layout.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub pages: &'a [Page],
    /// Of the run's first rows.
    bias: &'a [f32],
    root: f32,
}

impl<'a> Run<'a> {
    pub fn unbiased(pages: &'a [Page]) -> Self {
        Run { pages, bias: &[], root: 0.0 }
    }

    /// What is added to the raw scores of the rows from `start` on, as far as they have a bias.
    pub fn raw_bias(self, start: usize) -> impl Iterator<Item = f32> + 'a {
        self.bias[start.min(self.bias.len())..].iter().map(move |b| b * self.root)
    }

    pub fn is_biased(self) -> bool {
        !self.bias.is_empty()
    }

    /// With other biases, scaled ones.
    pub fn with_bias(self, bias: &'a [f32], root: f32) -> Self {
        Run { bias, root, ..self }
    }
}

impl Head {
    /// Rows whose keys have lost channels: the first ones.
    pub fn thinned(&self) -> usize {
        self.thin.as_ref().map_or(0, |thin| thin.rows)
    }

    /// The rows with whole keys.
    pub fn run(&self) -> Run<'_> {
        Run { pages: &self.pages, bias: &self.bias[self.thinned().min(self.bias.len())..], root: self.root }
    }

    /// The rows of `thin`.
    pub fn thin_run<'a>(&'a self, thin: &'a Packed) -> Run<'a> {
        Run { pages: &thin.pages, bias: &self.bias[..thin.rows.min(self.bias.len())], root: self.root }
    }

    pub fn is_biased(&self) -> bool {
        !self.bias.is_empty()
    }

    /// √dim, where there is a bias.
    pub fn root(&self) -> f32 {
        self.root
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
        let layout = Layout { kind, stride: kind.stride(dim), key_stride: kind.stride(dim) };
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

    /// Rows of every head, when they all have the same number, and whole keys.
    pub fn common_length(&self) -> Result<usize> {
        let length = self.rows[0].length;
        if self.is_thin() || self.rows.iter().any(|head| head.length != length) {
            return Err(Error::Shape);
        }
        Ok(length)
    }

    fn make_room(&mut self, head: usize, length: usize) -> Result<()> {
        let head = &mut self.rows[head];
        if let Some((foresight, _)) = &mut head.foresight {
            foresight.make_room(length)?;
        }
        let wanted = (length - head.thinned()).div_ceil(PAGE);
        let pages = &mut head.pages;
        pages.try_reserve(wanted.saturating_sub(pages.len())).map_err(|_| Error::Memory)?;
        while pages.len() < wanted {
            pages.push(Page::new(self.layout)?);
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
        let mut foreseen = Array::zeros(if self.foresees() { self.layout.stride } else { 0 })?;
        let mut unpacked = self.layout.unpacked(usize::from(self.foresees()))?;
        let mut before = Vec::new();
        before.try_reserve_exact(self.kv_heads).map_err(|_| Error::Memory)?;
        before.extend(self.rows.iter().map(|head| head.pages.len()));
        for head in 0..self.kv_heads {
            if let Err(error) = self.make_room(head, self.rows[head].length + count) {
                for (head, pages) in self.rows.iter_mut().zip(before) {
                    head.pages.truncate(pages);
                    if let Some((foresight, _)) = &mut head.foresight {
                        foresight.truncate(head.length);
                    }
                }
                return Err(error);
            }
        }
        for (index, head) in self.rows.iter_mut().enumerate() {
            let thinned = head.thinned();
            for t in 0..count {
                let at = (t * self.kv_heads + index) * self.dim;
                let (page, row) = ((head.length - thinned + t) / PAGE, (head.length - thinned + t) % PAGE);
                head.pages[page].store(self.layout, Part::Key, row, &keys[at..at + self.dim]);
                head.pages[page].store(self.layout, Part::Value, row, &values[at..at + self.dim]);
            }
            head.length += count;
            if let Some((foresight, _)) = &mut head.foresight {
                foresee(foresight, &head.pages, self.layout, head.length, &mut unpacked, foreseen.as_mut());
            }
        }
        Ok(())
    }

    /// Whether any head does.
    pub fn foresees(&self) -> bool {
        self.rows.iter().any(|head| head.foresight.is_some())
    }

    /// Whether keys of any head have lost channels.
    pub fn is_thin(&self) -> bool {
        self.rows.iter().any(|head| head.thin.is_some())
    }

    /// Bytes of what heads hold besides their pages of whole rows.
    pub fn packed_bytes(&self) -> usize {
        let each = |head: &Head| {
            head.thin.as_ref().map_or(0, Packed::bytes)
                + head.foresight.as_ref().map_or(0, |(packed, _)| packed.bytes())
        };
        self.rows.iter().map(each).sum()
    }

    /// Keeps only these channels of the keys of a head's rows, all but the last `recent`; once.
    pub fn thin(&mut self, head: usize, channels: &[i32], recent: usize) -> Result<()> {
        let (dim, layout) = (self.dim, self.layout);
        let known = self.rows.get(head).ok_or(Error::Shape)?;
        let busy = known.thin.is_some() || known.foresight.is_some();
        if busy || recent > known.length || self.reach != usize::MAX {
            return Err(Error::Shape);
        }
        let mut thin = Packed::new(channels, dim, layout.kind, layout.stride)?;
        let (length, rows) = (known.length, known.length - recent);
        thin.make_room(rows)?;
        let (mut packed, mut row_key) = (Array::zeros(dim)?, Array::zeros(layout.stride)?);
        let mut unpacked = layout.unpacked(1)?;
        for row in 0..rows {
            row_key.as_mut().copy_from_slice(self.row(known, Part::Key, row, &mut unpacked));
            let value = self.row(known, Part::Value, row, &mut unpacked);
            thin.push(row_key.as_slice(), Some(&value[..dim]), packed.as_mut());
        }
        // The others move up to the beginning of their pages.
        let mut rest = Vec::new();
        rest.try_reserve_exact(recent).map_err(|_| Error::Memory)?;
        rest.extend(rows as i32..length as i32);
        let known = &mut self.rows[head];
        keep(&mut known.pages, &rest, 0, layout);
        known.pages.truncate(recent.div_ceil(PAGE));
        known.thin = Some(thin);
        Ok(())
    }

    /// From now on a head's single queries read only the rows that these channels choose.
    pub fn foresee(&mut self, head: usize, channels: &[i32], reading: Reading) -> Result<()> {
        let (dim, layout) = (self.dim, self.layout);
        let known = self.rows.get_mut(head).ok_or(Error::Shape)?;
        if known.thin.is_some()
            || self.reach != usize::MAX
            || reading.entries == 0
            || reading.sinks + reading.recent > reading.entries
        {
            return Err(Error::Shape);
        }
        let mut packed = Packed::new(channels, dim, Kind::F32, 0)?;
        packed.make_room(known.length)?;
        let (mut unpacked, mut numbers) = (layout.unpacked(1)?, Array::zeros(layout.stride)?);
        foresee(&mut packed, &known.pages, layout, known.length, &mut unpacked, numbers.as_mut());
        known.foresight = Some((packed, reading));
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
            let thinned = head.thinned();
            let (thin, whole) = mine.split_at(mine.partition_point(|&row| (row as usize) < thinned));
            keep(&mut head.pages, whole, thinned, self.layout);
            if let Some(packed) = &mut head.thin {
                packed.keep(thin);
            }
            if let Some((foresight, _)) = &mut head.foresight {
                foresight.keep(mine);
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
        if values.len() != head.length * dim || bias.len() != head.length || head.thin.is_some() {
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
        let mut parts = match &head.thin {
            Some(thin) => Some((thin, thin.layout.unpacked_keys()?)),
            None => None,
        };
        for to in 0..count {
            let row = wanted.map_or(to, |wanted| wanted[to] as usize);
            if row >= head.length {
                return Err(Error::Shape);
            }
            if let Some((thin, narrow)) = parts.as_mut().filter(|(thin, _)| row < thin.rows) {
                let key = &mut keys[to * dim..][..dim];
                key.fill(0.0);
                // SAFETY: the row exists; there is room for one of each part.
                unsafe {
                    let page = &thin.pages[row / PAGE];
                    let packed = page.floats(thin.layout, Part::Key, row % PAGE, 1, narrow);
                    thin.scatter(core::slice::from_raw_parts(packed, thin.width()), key);
                    let value = page.floats(thin.layout, Part::Value, row % PAGE, 1, &mut unpacked);
                    values[to * dim..][..dim].copy_from_slice(core::slice::from_raw_parts(value, dim));
                }
                continue;
            }
            let row = row - head.thinned();
            for (part, copies) in [(Part::Key, &mut *keys), (Part::Value, &mut *values)] {
                copies[to * dim..][..dim].copy_from_slice(&self.row(head, part, row, &mut unpacked)[..dim]);
            }
        }
        Ok(())
    }

    /// One row with a whole key in float32, `(stride)`, counted behind the thin ones; `unpacked` has room for one.
    pub fn row<'a>(&self, head: &'a Head, part: Part, row: usize, unpacked: &'a mut Unpacked) -> &'a [f32] {
        assert!(row < head.length - head.thinned());
        // SAFETY: the row exists; its float32 form lives as long as the head and `unpacked` are borrowed.
        unsafe {
            let floats = head.pages[row / PAGE].floats(self.layout, part, row % PAGE, 1, unpacked);
            core::slice::from_raw_parts(floats, self.layout.stride)
        }
    }
}

/// Packs the channels of the rows that `packed`, which has room for them, doesn't have yet.
fn foresee(
    packed: &mut Packed,
    pages: &[Page],
    layout: Layout,
    length: usize,
    unpacked: &mut Unpacked,
    numbers: &mut [f32],
) {
    for row in packed.rows..length {
        // SAFETY: the row exists; `unpacked` has room for one.
        let key = unsafe {
            let floats = pages[row / PAGE].floats(layout, Part::Key, row % PAGE, 1, unpacked);
            core::slice::from_raw_parts(floats, layout.key_stride)
        };
        packed.push(key, None, numbers);
    }
}

/// Moves the rows listed, ascending, to the beginning of their pages; `first` is what the first page's first row is
/// called in the list.
pub fn keep(pages: &mut [Page], rows: &[i32], first: usize, layout: Layout) {
    let mut to = 0;
    while to < rows.len() {
        let from = rows[to] as usize - first;
        // Neighbours go together, as far as both their pages reach.
        let room = (rows.len() - to).min(PAGE - to % PAGE).min(PAGE - from % PAGE);
        let run =
            rows[to..to + room].iter().zip(from..).take_while(|&(&row, next)| row as usize - first == next).count();
        if from != to {
            move_rows(pages, from, to, run, layout);
        }
        to += run;
    }
}

/// Copies `count` rows from `from` on to `to` ≤ `from`; both within one page.
fn move_rows(pages: &mut [Page], from: usize, to: usize, count: usize, layout: Layout) {
    let scaled = layout.kind == Kind::Int8;
    for part in [Part::Key, Part::Value] {
        let (from_row, to_row) = (layout.row(part, from % PAGE), layout.row(part, to % PAGE));
        move_bytes(pages, (from / PAGE, from_row), (to / PAGE, to_row), count * layout.row_bytes(part));
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
    if let Some(thin) = &mut head.thin {
        thin.truncate(thin.rows.min(length));
    }
    if let Some((foresight, _)) = &mut head.foresight {
        foresight.truncate(length);
    }
    head.pages.truncate((length - head.thinned()).div_ceil(PAGE));
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
