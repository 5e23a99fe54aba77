//! ‖v·Wo_h‖ of every row, meaned over the group, without the rows × width product: each product is folded into sums while
//! it is in a register. The L2 norm needs only the Gram matrix M = Wo_hᵀ·Wo_h, because ‖v·Wo_h‖₂² = v·M·v.

use crate::joined;
use crate::lanes::F4;
use crate::memory::{Array, Error, Result};
use crate::panel::{blend, joined_products, pack, products, COLUMNS};
use crate::rows::{Head, Layer, Layout, Part, PAGE};
use crate::stored::Unpacked;

/// Adds to `norms` `(kv_heads, rows)` what `width` rows of Wo, `(width, heads · dim)`, contribute.
pub fn add_norms(layer: &Layer, wo: &[f32], width: usize, norms: &mut [f32]) -> Result<()> {
    let wo = Projection::new(layer, wo, width)?;
    each_page(layer, norms, &wo, Projection::fold)
}

/// Adds to `gram` `(dim, heads · dim)`, Gram matrices side by side, what `width` rows of Wo contribute.
pub fn add_gram(layer: &Layer, wo: &[f32], width: usize, gram: &mut [f32]) -> Result<()> {
    let (dim, stride) = (layer.dim, layer.layout.stride);
    if width == 0 {
        return Err(Error::Shape);
    }
    let wo = Projection::new(layer, wo, width)?;
    let mut matrix = Array::<f32>::zeros(stride * stride)?;
    for head in 0..layer.heads {
        matrix.as_mut().fill(0.0);
        let (mine, rows) = (wo.of(head).as_ptr(), wo.width);
        for (four, out) in matrix.as_mut().chunks_exact_mut(4 * stride).enumerate() {
            // SAFETY: `rows` rows of `stride` floats; four rows of `stride`.
            unsafe { blend(mine.add(4 * four), stride, mine, rows, stride, out.as_mut_ptr(), stride) };
        }
        for (row, from) in matrix.as_slice().chunks_exact(stride).take(dim).enumerate() {
            let to = &mut gram[(row * layer.heads + head) * dim..][..dim];
            to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
        }
    }
    Ok(())
}

/// Adds the L2 norms to `norms` `(kv_heads, rows)`, given the whole of `add_gram`.
pub fn gram_norms(layer: &Layer, gram: &[f32], norms: &mut [f32]) -> Result<()> {
    let gram = Projection::new(layer, gram, layer.dim)?;
    each_page(layer, norms, &gram, Projection::fold_roots)
}

type Sums = [[F4; 2]; PAGE / COLUMNS];

type Fold = fn(&Projection, usize, &Panels, &mut Sums);

/// Adds the group's mean of what `fold(matrix, head, page, sums)` leaves for each row of each page.
fn each_page(layer: &Layer, norms: &mut [f32], matrix: &Projection, fold: Fold) -> Result<()> {
    let (group, length) = (layer.group(), layer.common_length()?);
    let mut panels = Panels::new(layer.layout)?;
    let share = F4::splat(1.0 / group as f32);
    for (kv, head) in layer.rows.iter().enumerate() {
        for start in (0..length).step_by(PAGE) {
            let count = panels.fill(head, start);
            let mut sums = [[F4::zero(); 2]; PAGE / COLUMNS];
            for h in kv * group..(kv + 1) * group {
                fold(matrix, h, &panels, &mut sums);
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
    #[inline(never)]
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

/// Wo, head by head: `(heads, width rounded up to 4, stride)`, zero where the given rows end.
struct Projection {
    rows: Array<f32>,
    /// Rounded up.
    width: usize,
    stride: usize,
}

impl Projection {
    #[inline(never)]
    fn new(layer: &Layer, wo: &[f32], width: usize) -> Result<Self> {
        let (dim, stride, heads, width) = (layer.dim, layer.layout.stride, layer.heads, width.next_multiple_of(4));
        let mut rows = Array::zeros(heads * width * stride)?;
        for (row, from) in wo.chunks_exact(heads * dim).enumerate() {
            for (head, from) in from.chunks_exact(dim).enumerate() {
                rows.as_mut()[(head * width + row) * stride..][..dim].copy_from_slice(from);
            }
        }
        Ok(Projection { rows, width, stride })
    }

    /// `(width, stride)`
    fn of(&self, head: usize) -> &[f32] {
        &self.rows.as_slice()[head * self.width * self.stride..][..self.width * self.stride]
    }

    /// Adds |v · Wo_h| of every output to the columns' sums.
    fn fold(&self, head: usize, panels: &Panels, sums: &mut Sums) {
        let (stride, eights) = (self.stride, if joined::vectors() { self.width / 8 * 8 } else { 0 });
        let (eights, fours) = self.of(head).split_at(eights * stride);
        for eight in eights.chunks_exact(8 * stride) {
            for (panel, sums) in panels.used().zip(sums.iter_mut()) {
                // SAFETY: eight rows of `stride` floats; a panel of `stride` rows.
                fold_block(unsafe { &joined_products(eight.as_ptr(), stride, panel.as_ptr(), stride) }, sums);
            }
        }
        for four in fours.chunks_exact(4 * stride) {
            for (panel, sums) in panels.used().zip(sums.iter_mut()) {
                // SAFETY: the same with four rows.
                fold_block(unsafe { &products(four.as_ptr(), stride, panel.as_ptr(), stride) }, sums);
            }
        }
    }

    /// Adds √(v · M · v), these rows being M, to the columns' sums.
    fn fold_roots(&self, head: usize, panels: &Panels, sums: &mut Sums) {
        let mut squares = [[F4::zero(); 2]; PAGE / COLUMNS];
        for (first, four) in self.of(head).chunks_exact(4 * self.stride).enumerate() {
            for (panel, squares) in panels.used().zip(squares.iter_mut()) {
                // SAFETY: as in `fold`; the panel has as many rows as M, rounded up to four.
                unsafe {
                    let block = products(four.as_ptr(), self.stride, panel.as_ptr(), self.stride);
                    for (i, row) in block.iter().enumerate() {
                        let values = panel.as_ptr().add((4 * first + i) * COLUMNS);
                        squares[0] = squares[0].madd(row[0], F4::load(values));
                        squares[1] = squares[1].madd(row[1], F4::load(values.add(4)));
                    }
                }
            }
        }
        for (sum, square) in sums.iter_mut().flatten().zip(squares.iter().flatten()) {
            // Rounding may leave a little less than nothing; NaN stays.
            *sum = sum.add(square.max(F4::zero()).sqrt());
        }
    }
}

#[inline(always)]
fn fold_block(block: &[[F4; 2]], sums: &mut [F4; 2]) {
    for row in block {
        sums[0] = sums[0].add(row[0].abs());
        sums[1] = sums[1].add(row[1].abs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::Kind;
    use crate::testing::{close, random};

    /// `[L1, L2]` from the whole product, in float64.
    fn twin(layer: &Layer, values: &[f32], wo: &[f32]) -> [Vec<f32>; 2] {
        let (heads, kv_heads, dim, length) = (layer.heads, layer.kv_heads, layer.dim, layer.rows[0].length);
        let mut norms = [vec![0.0; kv_heads * length], vec![0.0; kv_heads * length]];
        for (h, i) in (0..heads).flat_map(|h| (0..length).map(move |i| (h, i))) {
            let kv = h / layer.group();
            let value = &values[(i * kv_heads + kv) * dim..][..dim];
            let products = wo
                .chunks(heads * dim)
                .map(|row| row[h * dim..][..dim].iter().zip(value).map(|(w, v)| *w as f64 * *v as f64).sum::<f64>());
            let (sum, squares) = products.fold((0.0, 0.0), |(sum, squares), x| (sum + x.abs(), squares + x * x));
            norms[0][kv * length + i] += (sum / layer.group() as f64) as f32;
            norms[1][kv * length + i] += (squares.sqrt() / layer.group() as f64) as f32;
        }
        norms
    }

    #[test]
    fn norms_agree_with_their_twin_however_wo_is_cut() {
        for (heads, kv_heads, dim, length, width) in [(6, 2, 8, 70, 20), (3, 1, 5, 9, 7), (2, 2, 20, 65, 13)] {
            let mut layer = Layer::new(heads, kv_heads, dim, 0, [Kind::F32; 2]).unwrap();
            let (values, wo) = (random(length * kv_heads * dim, 1), random(width * heads * dim, 2));
            layer.append(&values, &values, length).unwrap();
            let mut norms = [vec![0.0; kv_heads * length], vec![0.0; kv_heads * length]];
            let mut gram = vec![0.0; dim * heads * dim];
            for part in wo.chunks(6 * heads * dim) {
                add_norms(&layer, part, part.len() / heads / dim, &mut norms[0]).unwrap();
                add_gram(&layer, part, part.len() / heads / dim, &mut gram).unwrap();
            }
            gram_norms(&layer, &gram, &mut norms[1]).unwrap();
            for (got, want) in norms.iter().zip(&twin(&layer, &values, &wo)) {
                close(got, want, 1e-5);
            }
        }
    }
}
