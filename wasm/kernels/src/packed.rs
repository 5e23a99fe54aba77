//! Some channels of a head's keys, packed, with the list of which they are.
//!
//! A *thin* head (ThinK, arXiv 2407.21018) keeps only these channels of its first rows' keys, whole
//! values beside them; scores over them are the query's channels times theirs. A *foreseeing* head (FASA, arXiv
//! 2602.03152) has a copy of them for all of its rows, in float32, to find out which rows a query needs.

use crate::memory::{Array, Error, Result};
use crate::rows::{keep, Layout, Page, Part, PAGE};
use crate::select::select;
use crate::stored::Kind;

/// Packed keys and, in thin heads, values.
pub struct Packed {
    pub layout: Layout,
    pub pages: Vec<Page>,
    pub rows: usize,
    channels: Vec<u16>,
}

impl Packed {
    /// Nothing yet. `channels` ascend below `dim`; `values`: numbers from one value to the next.
    pub fn new(channels: &[i32], dim: usize, kind: Kind, values: usize) -> Result<Self> {
        let mut list = Vec::new();
        list.try_reserve_exact(channels.len()).map_err(|_| Error::Memory)?;
        for &channel in channels {
            if channel < 0 || channel as usize >= dim || list.last().is_some_and(|&last| channel <= i32::from(last)) {
                return Err(Error::Shape);
            }
            list.push(channel as u16);
        }
        if list.is_empty() {
            return Err(Error::Shape);
        }
        let layout = Layout { kinds: [kind; 2], stride: values, key_stride: kind.stride(list.len()) };
        Ok(Packed { layout, pages: Vec::new(), rows: 0, channels: list })
    }

    /// Pages for `rows` rows, so that storing them can't fail.
    pub fn make_room(&mut self, rows: usize) -> Result<()> {
        let wanted = rows.div_ceil(PAGE);
        self.pages.try_reserve(wanted.saturating_sub(self.pages.len())).map_err(|_| Error::Memory)?;
        while self.pages.len() < wanted {
            self.pages.push(Page::new(self.layout)?);
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.pages.len() * self.layout.page_bytes()
    }

    /// The channels of a whole row, `(channels)`, into `to`, which may be longer.
    pub fn gather(&self, row: &[f32], to: &mut [f32]) {
        for (to, &channel) in to.iter_mut().zip(&self.channels) {
            *to = row[channel as usize];
        }
    }

    /// Packed numbers back to their places in `to`, whose others stay.
    pub fn scatter(&self, packed: &[f32], to: &mut [f32]) {
        for (x, &channel) in packed.iter().zip(&self.channels) {
            to[channel as usize] = *x;
        }
    }

    pub fn width(&self) -> usize {
        self.channels.len()
    }

    /// Stores a row behind the last one, where there is room; `key` whole, `value` where there are values; `packed` holds
    /// `width` numbers.
    pub fn push(&mut self, key: &[f32], value: Option<&[f32]>, packed: &mut [f32]) {
        self.gather(key, packed);
        let (page, row) = (&mut self.pages[self.rows / PAGE], self.rows % PAGE);
        page.store(self.layout, Part::Key, row, &packed[..self.channels.len()]);
        if let Some(value) = value {
            page.store(self.layout, Part::Value, row, value);
        }
        self.rows += 1;
    }

    /// Keeps these rows, ascending.
    pub fn keep(&mut self, rows: &[i32]) {
        keep(&mut self.pages, rows, 0, self.layout);
        self.truncate(rows.len());
    }

    pub fn truncate(&mut self, rows: usize) {
        self.rows = rows;
        self.pages.truncate(rows.div_ceil(PAGE));
    }
}

/// How a foreseeing head reads: its first `sinks` rows, its last `recent`, and of the others those that its channels
/// choose, `entries` in all.
#[derive(Clone, Copy)]
pub struct Reading {
    pub entries: usize,
    pub sinks: usize,
    pub recent: usize,
}

impl Reading {
    /// The rows to read, ascending: those of highest rank, of equal ones the earlier; NaN ranks lowest.
    pub fn choose(self, ranks: &[f32]) -> Result<Array<i32>> {
        let length = ranks.len();
        let mut chosen = Array::zeros(self.entries.min(length))?;
        let mut always = Array::<u8>::zeros(length)?;
        always.as_mut()[..self.sinks.min(length)].fill(1);
        always.as_mut()[length - self.recent.min(length)..].fill(1);
        select(ranks, &[], always.as_slice(), chosen.as_mut())?;
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_are_chosen_and_of_equals_the_earlier() {
        let reading = Reading { entries: 5, sinks: 1, recent: 2 };
        let ranks = [-1.0, 3.0, 2.0, f32::NAN, 2.0, 2.0, -5.0, -6.0];
        assert_eq!(reading.choose(&ranks).unwrap().as_slice(), [0, 1, 2, 6, 7]);
        assert_eq!(reading.choose(&[0.0; 3]).unwrap().as_slice(), [0, 1, 2]);
        assert_eq!(reading.choose(&[1.0; 9]).unwrap().as_slice(), [0, 1, 2, 7, 8]);
    }

    #[test]
    fn bad_lists_of_channels_are_refused() {
        for list in [&[][..], &[3, 3], &[4, 2], &[-1], &[0, 8]] {
            assert!(Packed::new(list, 8, Kind::F32, 8).is_err());
        }
    }
}
