//! ‖v·Wo_h‖₁ of every row, meaned over the group, without the rows × width product: each product is folded into absolute
//! sums while it is in a register.

use crate::lanes::F4;
use crate::memory::{Array, Result};
use crate::panel::{pack, products, COLUMNS};
use crate::rows::{Head, Layer, Layout, Part, PAGE};
use crate::stored::Unpacked;

/// Adds to `norms` `(kv_heads, rows)` what `width` rows of Wo, `(width, heads · dim)`, contribute.
pub fn add_norms(layer: &Layer, wo: &[f32], width: usize, norms: &mut [f32]) -> Result<()> {
    let (group, length) = (layer.group(), layer.common_length()?);
    let wo = Projection::new(layer, wo, width)?;
    let mut panels = Panels::new(layer.layout)?;
    let share = F4::splat(1.0 / group as f32);
    for (kv, head) in layer.rows.iter().enumerate() {
        for start in (0..length).step_by(PAGE) {
            let count = panels.fill(head, start);
            let mut sums = [[F4::zero(); 2]; PAGE / COLUMNS];
            for h in kv * group..(kv + 1) * group {
                wo.fold(h, &panels, &mut sums);
            }
            let norms = &mut norms[kv * length + start..][..count];
            for (norms, sums) in norms.chunks_mut(COLUMNS).zip(&sums) {
                let lanes = sums.iter().flat_map(|sum| sum.mul(share).lanes());
                norms.iter_mut().zip(lanes).for_each(|(norm, x)| *norm += x);
            }
        }
    }
    Ok(())
}

/// A page of values as panels.
struct Panels {
    layout: Layout,
    count: usize,
    page: Unpacked,
    /// `(PAGE / 8, stride, 8)`
    floats: Array<f32>,
}

impl Panels {
    fn new(layout: Layout) -> Result<Self> {
        Ok(Panels { layout, count: 0, page: layout.unpacked(PAGE)?, floats: Array::zeros(PAGE * layout.stride)? })
    }

    /// Takes the page of rows from `start` on; returns how many there are.
    fn fill(&mut self, head: &Head, start: usize) -> usize {
        self.count = PAGE.min(head.length - start);
        let (stride, page) = (self.layout.stride, &head.pages[start / PAGE]);
        // SAFETY: the rows are there, and `page` has room for all of them.
        let values = unsafe { page.floats(self.layout, Part::Value, 0, self.count, &mut self.page) };
        for (i, panel) in self.floats.as_mut().chunks_exact_mut(COLUMNS * stride).enumerate() {
            let count = COLUMNS.min(self.count.saturating_sub(i * COLUMNS));
            // SAFETY: as above.
            unsafe { pack(values.add(i * COLUMNS * stride), stride, count, stride, panel) };
        }
        self.count
    }

    fn used(&self) -> impl Iterator<Item = &[f32]> {
        self.floats.as_slice().chunks_exact(COLUMNS * self.layout.stride).take(self.count.div_ceil(COLUMNS))
    }
}

/// Rows of Wo, `(width rounded up to 4, heads · stride)`, zero where the given ones end.
struct Projection<'a> {
    given: &'a [f32],
    padded: Array<f32>,
    pitch: usize,
    stride: usize,
}

impl<'a> Projection<'a> {
    fn new(layer: &Layer, wo: &'a [f32], width: usize) -> Result<Self> {
        let (dim, stride, pitch) = (layer.dim, layer.layout.stride, layer.heads * layer.layout.stride);
        let fits = dim == stride && width % 4 == 0;
        let mut padded = Array::zeros(if fits { 0 } else { width.next_multiple_of(4) * pitch })?;
        for (from, to) in wo.chunks_exact(dim).zip(padded.as_mut().chunks_exact_mut(stride)) {
            to[..dim].copy_from_slice(from);
        }
        Ok(Projection { given: wo, padded, pitch, stride })
    }

    fn rows(&self) -> &[f32] {
        if self.padded.len() == 0 {
            self.given
        } else {
            self.padded.as_slice()
        }
    }

    /// Adds |v · Wo_h| of every output to the columns' sums.
    fn fold(&self, head: usize, panels: &Panels, sums: &mut [[F4; 2]; PAGE / COLUMNS]) {
        for four in self.rows().chunks_exact(4 * self.pitch) {
            for (panel, sums) in panels.used().zip(sums.iter_mut()) {
                // SAFETY: four rows of `pitch` floats, the head's part within them; a panel of `stride` rows.
                let block =
                    unsafe { products(four[head * self.stride..].as_ptr(), self.pitch, panel.as_ptr(), self.stride) };
                for row in block {
                    sums[0] = sums[0].add(row[0].abs());
                    sums[1] = sums[1].add(row[1].abs());
                }
            }
        }
    }
}
