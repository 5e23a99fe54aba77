//! Keys and values of one layer, ragged: each KV head owns a list of pages.
//!
//! A page holds 64 keys, then 64 values, one row of `stride` numbers each (head width rounded up to a whole vector, the
//! rest zero, so that no kernel has a tail); int8 rows have their scales behind them. Pages of one head width and kind are
//! all alike: what one layer frees, the next layer takes, and the memory does not fragment however layers are appended
//! and compacted in turn.
//!
//! Rows of four bits are float16 when they are appended. `pack` packs what a head holds then; rows that are appended
//! later stand behind those, as float16. A page has both forms where it must, each row in one.

use crate::memory::{Array, Error, Result};
use crate::nibbles::{whole_bytes, Nibbles, Whole, GROUP};
use crate::packed::{Packed, Reading};
use crate::stored::{unpack_halves, Kind, Unpacked};

/// Rows of a page.
pub const PAGE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    Key,
    Value,
}

pub const PARTS: [Part; 2] = [Part::Key, Part::Value];

/// Where things stand in a page.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Of keys and of values.
    pub kinds: [Kind; 2],
    /// Numbers from one value to the next.
    pub stride: usize,
    /// The same of keys: fewer where channels of theirs are gone (`packed.rs`).
    pub key_stride: usize,
}

impl Layout {
    pub fn kind(self, part: Part) -> Kind {
        self.kinds[part as usize]
    }

    /// Whether keys and values are of this kind.
    pub fn is(self, kind: Kind) -> bool {
        self.kinds == [kind; 2]
    }

    /// The kind of keys and values, where rows are each for itself and alike.
    fn common_kind(self) -> Result<Kind> {
        match self.kinds {
            [keys, values] if keys == values && keys != Kind::Int4 => Ok(keys),
            _ => Err(Error::Shape),
        }
    }

    fn packs(self, part: Part) -> bool {
        self.kind(part) == Kind::Int4
    }

    pub fn row_bytes(self, part: Part) -> usize {
        self.kind(part).size() * if part == Part::Key { self.key_stride } else { self.stride }
    }

    fn part_bytes(self, part: Part) -> usize {
        PAGE * self.row_bytes(part) + if self.kind(part) == Kind::Int8 { PAGE * 4 } else { 0 }
    }

    pub fn page_bytes(self) -> usize {
        self.part_bytes(Part::Key) + self.part_bytes(Part::Value)
    }

    /// First byte of a row's scale.
    fn scale(self, part: Part, row: usize) -> usize {
        PAGE * self.row_bytes(part) + row * 4
    }

    /// Room to unpack one key.
    pub fn unpacked_keys(self) -> Result<Unpacked> {
        Unpacked::new(self.kinds, self.key_stride, 1)
    }

    /// Room to unpack `rows` rows.
    pub fn unpacked(self, rows: usize) -> Result<Unpacked> {
        Unpacked::new(self.kinds, self.stride, rows)
    }
}

pub struct Page {
    /// Keys and values row by row; none of a part whose rows are all packed.
    loose: [Array<u8>; 2],
    packed: [Nibbles; 2],
    /// The first so many rows of four bits are packed.
    packed_rows: usize,
}

impl Page {
    pub fn new(layout: Layout) -> Result<Self> {
        let mut page = Page {
            loose: [Array::zeros(0)?, Array::zeros(0)?],
            packed: [Nibbles::empty()?, Nibbles::empty()?],
            packed_rows: 0,
        };
        page.make_loose(layout)?;
        Ok(page)
    }

    fn make_loose(&mut self, layout: Layout) -> Result<()> {
        for part in PARTS {
            if self.loose[part as usize].len() == 0 {
                self.loose[part as usize] = Array::zeros(layout.part_bytes(part))?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.loose.iter().map(Array::len).chain(self.packed.iter().map(Nibbles::bytes)).sum()
    }

    /// Copies a row of a page of the same layout, as it is stored; neither is packed.
    pub fn copy_row(&mut self, layout: Layout, row: usize, from: &Page, from_row: usize) {
        for part in PARTS {
            let bytes = layout.row_bytes(part);
            let (to, theirs) = (self.loose[part as usize].as_mut(), from.loose[part as usize].as_slice());
            to[row * bytes..][..bytes].copy_from_slice(&theirs[from_row * bytes..][..bytes]);
            if layout.kind(part) == Kind::Int8 {
                let (at, from_at) = (layout.scale(part, row), layout.scale(part, from_row));
                to[at..at + 4].copy_from_slice(&theirs[from_at..from_at + 4]);
            }
        }
    }

    /// Rows from `row` on as they are stored, `(rows, stride)`, and their scales, which are no scales unless the kind is
    /// int8. Null where all of them are packed.
    pub fn rows(&self, layout: Layout, part: Part, row: usize) -> (*const u8, *const f32) {
        let bytes = self.loose[part as usize].as_slice();
        if bytes.is_empty() {
            return (core::ptr::null(), core::ptr::null());
        }
        let scales = &bytes[layout.scale(part, row).min(bytes.len())..];
        (bytes[row * layout.row_bytes(part)..].as_ptr(), scales.as_ptr() as *const f32)
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
        let packed = if layout.packs(part) { self.packed_rows.saturating_sub(row).min(count) } else { 0 };
        if packed == 0 && self.loose[part as usize].len() > 0 {
            let (rows, scales) = self.rows(layout, part, row);
            return unpacked.floats(layout.kind(part), rows, scales, count);
        }
        let (stride, to) = (layout.stride, unpacked.room());
        self.packed[part as usize].floats(part, stride, row, packed, unpacked.parameters.as_mut(), to);
        let (left, to) = ((count - packed) * stride, to.add(packed * stride));
        if self.loose[part as usize].len() > 0 && left > 0 {
            unpack_halves(self.rows(layout, part, row + packed).0 as *const i16, left, to);
        } else {
            // Behind the head's last row.
            core::ptr::write_bytes(to, 0, left);
        }
        to.sub(packed * stride)
    }

    #[inline(never)]
    pub fn store(&mut self, layout: Layout, part: Part, row: usize, numbers: &[f32]) {
        let bytes = self.loose[part as usize].as_mut();
        let each = layout.row_bytes(part);
        let scale = layout.kind(part).store(numbers, &mut bytes[row * each..][..each]);
        if layout.kind(part) == Kind::Int8 {
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
    /// The first so many rows are packed, where rows are.
    pub packed: usize,
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
    /// What each query head adds to every softmax without a row: raw scores, none or one for each.
    nulls: Vec<f32>,
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
    pub fn new(heads: usize, kv_heads: usize, dim: usize, reserve: usize, kinds: [Kind; 2]) -> Result<Self> {
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 || heads > MAX_HEADS {
            return Err(Error::Shape);
        }
        if dim == 0 || dim > MAX_DIM || reserve > MAX_ROWS {
            return Err(Error::Shape);
        }
        let mut rows = Vec::new();
        rows.try_reserve_exact(kv_heads).map_err(|_| Error::Memory)?;
        rows.resize_with(kv_heads, Head::default);
        let stride = kinds[0].stride(dim).max(kinds[1].stride(dim));
        let layout = Layout { kinds, stride, key_stride: stride };
        let mut layer = Layer { heads, kv_heads, dim, reach: usize::MAX, nulls: Vec::new(), layout, rows };
        for head in 0..kv_heads {
            layer.make_room(head, reserve)?;
        }
        Ok(layer)
    }

    /// The first row that a query sees whose last one comes before `limit`.
    pub fn first_seen(&self, limit: usize) -> usize {
        limit.saturating_sub(self.reach)
    }

    /// A finite logit for each query head.
    pub fn take_nulls(&mut self, logits: &[f32]) -> Result<()> {
        if logits.len() != self.heads || logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::Shape);
        }
        let root = (self.dim as f32).sqrt();
        self.nulls.clear();
        self.nulls.try_reserve_exact(logits.len()).map_err(|_| Error::Memory)?;
        self.nulls.extend(logits.iter().map(|logit| logit * root));
        Ok(())
    }

    /// The raw score that a query head gives to nothing; −∞ for none.
    pub fn raw_null(&self, head: usize) -> f32 {
        self.nulls.get(head).copied().unwrap_or(f32::NEG_INFINITY)
    }

    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub fn pages(&self) -> usize {
        self.rows.iter().map(|head| head.pages.len()).sum()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.rows.iter().flat_map(|head| &head.pages).map(Page::bytes).sum()
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
        let (layout, head) = (self.layout, &mut self.rows[head]);
        if let Some((foresight, _)) = &mut head.foresight {
            foresight.make_room(length)?;
        }
        let (before, wanted) = ((head.length - head.thinned()) / PAGE, (length - head.thinned()).div_ceil(PAGE));
        let pages = &mut head.pages;
        pages.try_reserve(wanted.saturating_sub(pages.len())).map_err(|_| Error::Memory)?;
        // The last page's rows may all be packed.
        for page in pages.iter_mut().skip(before).take(wanted.saturating_sub(before)) {
            page.make_loose(layout)?;
        }
        while pages.len() < wanted {
            pages.push(Page::new(layout)?);
        }
        Ok(())
    }

    /// Appends `count` rows to every head from `(count, kv_heads, dim)` arrays. All heads or none.
    pub fn append(&mut self, keys: &[f32], values: &[f32], count: usize) -> Result<()> {
        let longest = self.rows.iter().map(|head| head.length).max().unwrap_or(0);
        if count > MAX_ROWS - longest {
            return Err(Error::Shape);
        }
        self.layout.kind(Part::Key).check(keys)?;
        self.layout.kind(Part::Value).check(values)?;
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
        let mut thin = Packed::new(channels, dim, layout.common_kind()?, layout.stride)?;
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
        layout.common_kind()?;
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
        for (index, &count) in counts.iter().enumerate() {
            let (mine, others) = rest.split_at(count as usize);
            rest = others;
            // Rows from the first one that moves on can't stay in their groups.
            let still = mine.iter().enumerate().take_while(|&(to, &from)| to == from as usize).count();
            if still < mine.len() && still < self.rows[index].packed {
                self.loosen(index, still - still % GROUP)?;
            }
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
        layout.kind(Part::Value).check(values)?;
        head.bias.try_reserve_exact(bias.len().saturating_sub(head.bias.len())).map_err(|_| Error::Memory)?;
        head.bias.clear();
        head.bias.extend_from_slice(bias);
        head.root = root;
        let packed = if layout.packs(Part::Value) { head.packed } else { 0 };
        let mut padded = Array::zeros(layout.stride)?;
        for (row, value) in values.chunks_exact(dim).enumerate() {
            let page = &mut head.pages[row / PAGE];
            if row < packed {
                padded.as_mut()[..dim].iter_mut().zip(value).for_each(|(to, &x)| *to = rounded(x));
                page.packed[1].store(Part::Value, layout.stride, row % PAGE, padded.as_slice(), 1);
            } else {
                page.store(layout, Part::Value, row % PAGE, value);
            }
        }
        Ok(())
    }

    /// Packs what is of four bits: all rows of all heads.
    pub fn pack(&mut self) -> Result<()> {
        let layout = self.layout;
        let mut unpacked = layout.unpacked(GROUP)?;
        for index in 0..self.kv_heads {
            let head = &mut self.rows[index];
            if head.packed == head.length {
                continue;
            }
            // A last group that is not full is made anew.
            let from = head.packed - head.packed % GROUP;
            self.loosen(index, from)?;
            let head = &mut self.rows[index];
            make_packed(head, layout, from, head.length)?;
            for start in (from..head.length).step_by(GROUP) {
                let (page, first, count) =
                    (&mut head.pages[start / PAGE], start % PAGE, GROUP.min(head.length - start));
                for part in PARTS.into_iter().filter(|&part| layout.packs(part)) {
                    // SAFETY: the rows are there and not packed; room for a group.
                    let floats = unsafe {
                        let floats = page.floats(layout, part, first, count, &mut unpacked);
                        core::slice::from_raw_parts(floats, count * layout.stride)
                    };
                    page.packed[part as usize].store(part, layout.stride, first, floats, count);
                }
                page.packed_rows = first + count;
            }
            drop_loose(head, layout)?;
        }
        Ok(())
    }

    /// Takes the codes, scales and zeros of one head's first `count` rows, in the order of `nibbles::Nibbles::exchange`,
    /// instead of making them; none of a part that isn't packed.
    pub fn take_packed(&mut self, index: usize, count: usize, parts: [&[u8]; 2]) -> Result<()> {
        let layout = self.layout;
        let head = self.rows.get_mut(index).ok_or(Error::Shape)?;
        let fits = PARTS.into_iter().filter(|&part| layout.packs(part));
        if head.packed != 0 || count > head.length {
            return Err(Error::Shape);
        }
        for part in fits.clone() {
            if parts[part as usize].len() < whole_bytes(part, layout.stride, count) {
                return Err(Error::Buffer);
            }
        }
        make_packed(head, layout, 0, count)?;
        for start in (0..count).step_by(PAGE) {
            let (page, here) = (&mut head.pages[start / PAGE], PAGE.min(count - start));
            for part in fits.clone() {
                let mut all = Whole::Take(parts[part as usize]);
                page.packed[part as usize].exchange(part, layout.stride, start, here, count, &mut all);
            }
            page.packed_rows = here;
        }
        head.packed = count;
        free_loose(head, layout)
    }

    /// Gives the codes, scales and zeros of one head's packed rows.
    pub fn give_packed(&mut self, index: usize, part: Part, out: &mut [u8]) -> Result<()> {
        let layout = self.layout;
        let head = self.rows.get_mut(index).ok_or(Error::Shape)?;
        if !layout.packs(part) || out.len() < whole_bytes(part, layout.stride, head.packed) {
            return Err(Error::Buffer);
        }
        for start in (0..head.packed).step_by(PAGE) {
            let (page, here) = (&mut head.pages[start / PAGE], PAGE.min(head.packed - start));
            let mut all = Whole::Give(&mut *out);
            page.packed[part as usize].exchange(part, layout.stride, start, here, head.packed, &mut all);
        }
        Ok(())
    }

    /// Makes the packed rows from `from` on, the first of a group, float16 again.
    fn loosen(&mut self, index: usize, from: usize) -> Result<()> {
        let layout = self.layout;
        let head = &mut self.rows[index];
        if from >= head.packed {
            return Ok(());
        }
        for page in &mut head.pages[from / PAGE..head.packed.div_ceil(PAGE)] {
            page.make_loose(layout)?;
        }
        let mut unpacked = layout.unpacked(1)?;
        for row in from..head.packed {
            let page = &mut head.pages[row / PAGE];
            for part in PARTS.into_iter().filter(|&part| layout.packs(part)) {
                // SAFETY: one packed row, and room for it.
                let floats = unsafe {
                    let floats = page.floats(layout, part, row % PAGE, 1, &mut unpacked);
                    core::slice::from_raw_parts(floats, layout.stride)
                };
                page.store(layout, part, row % PAGE, floats);
            }
        }
        head.packed = from;
        for (number, page) in head.pages.iter_mut().enumerate().skip(from / PAGE) {
            page.packed_rows = from.saturating_sub(number * PAGE);
            if page.packed_rows == 0 {
                page.packed = [Nibbles::empty()?, Nibbles::empty()?];
            }
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

/// Room for packed rows `from … to` of a head.
fn make_packed(head: &mut Head, layout: Layout, from: usize, to: usize) -> Result<()> {
    for page in &mut head.pages[from / PAGE..to.div_ceil(PAGE)] {
        for part in PARTS.into_iter().filter(|&part| layout.packs(part)) {
            page.packed[part as usize].make_room(layout.stride)?;
        }
    }
    Ok(())
}

/// All rows are packed now.
fn drop_loose(head: &mut Head, layout: Layout) -> Result<()> {
    head.packed = head.length;
    free_loose(head, layout)
}

/// Frees the loose rows of four bits in pages where all rows are packed.
fn free_loose(head: &mut Head, layout: Layout) -> Result<()> {
    for (number, page) in head.pages.iter_mut().enumerate() {
        let rows = PAGE.min(head.length.saturating_sub(number * PAGE));
        for part in PARTS.into_iter().filter(|&part| layout.packs(part) && rows > 0 && page.packed_rows >= rows) {
            page.loose[part as usize] = Array::zeros(0)?;
        }
    }
    Ok(())
}

/// The nearest float16.
fn rounded(x: f32) -> f32 {
    let mut bytes = [0u8; 16];
    Kind::F16.store(&[x], &mut bytes);
    let mut floats = [0.0; 8];
    // SAFETY: eight numbers each.
    unsafe { unpack_halves(bytes.as_ptr() as *const i16, 8, floats.as_mut_ptr()) };
    floats[0]
}

/// Copies `count` rows from `from` on to `to` ≤ `from`; both within one page.
fn move_rows(pages: &mut [Page], from: usize, to: usize, count: usize, layout: Layout) {
    for part in PARTS {
        let each = layout.row_bytes(part);
        move_bytes(pages, part, (from / PAGE, from % PAGE * each), (to / PAGE, to % PAGE * each), count * each);
        if layout.kind(part) == Kind::Int8 {
            let (from_scale, to_scale) = (layout.scale(part, from % PAGE), layout.scale(part, to % PAGE));
            move_bytes(pages, part, (from / PAGE, from_scale), (to / PAGE, to_scale), count * 4);
        }
    }
}

/// Copies `count` bytes; places are page and byte, `to`'s page not after `from`'s.
#[inline(never)]
fn move_bytes(pages: &mut [Page], part: Part, from: (usize, usize), to: (usize, usize), count: usize) {
    let part = part as usize;
    if from.0 == to.0 {
        pages[to.0].loose[part].as_mut().copy_within(from.1..from.1 + count, to.1);
    } else {
        let (low, high) = pages.split_at_mut(from.0);
        low[to.0].loose[part].as_mut()[to.1..][..count]
            .copy_from_slice(&high[0].loose[part].as_slice()[from.1..][..count]);
    }
}

/// Sets the length and frees the pages beyond it.
fn shrink(head: &mut Head, length: usize) {
    head.length = length;
    head.packed = head.packed.min(length);
    head.bias.truncate(length);
    if let Some(thin) = &mut head.thin {
        thin.truncate(thin.rows.min(length));
    }
    if let Some((foresight, _)) = &mut head.foresight {
        foresight.truncate(length);
    }
    head.pages.truncate((length - head.thinned()).div_ceil(PAGE));
    if let (Some(page), true) = (head.pages.last_mut(), head.packed > 0) {
        page.packed_rows = page.packed_rows.min((length - 1) % PAGE + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_moves_rows_of_every_kind_and_frees_pages() {
        let (kv_heads, dim, count) = (2, 3, 200);
        for kind in [Kind::F32, Kind::F16, Kind::Int8, Kind::Int4] {
            let mut layer = Layer::new(4, kv_heads, dim, 0, [kind; 2]).unwrap();
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
