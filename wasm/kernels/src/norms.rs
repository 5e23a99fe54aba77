//! ‖v·Wo_h‖₁ of every row, meaned over the group, without the rows × width product: products of 64 rows of Wo with a page
//! of values, folded into absolute sums while they are in cache.

use crate::lanes::F4;
use crate::memory::{Array, Result};
use crate::rows::{Layer, Part, PAGE};
use crate::tile::dots;

/// Rows of Wo packed at once: with their products they stay in a second-level cache.
const PANEL: usize = 64;

/// Adds to `norms` `(kv_heads, rows)` what `width` rows of Wo, `(width, heads · dim)`, contribute.
pub fn add_norms(layer: &Layer, wo: &[f32], width: usize, norms: &mut [f32]) -> Result<()> {
    let (dim, stride, group, length) = (layer.dim, layer.layout.stride, layer.group(), layer.common_length()?);
    let mut panel = Array::<f32>::zeros(PANEL * stride)?;
    let mut products = Array::<f32>::zeros(PANEL * PAGE)?;
    let mut unpacked = layer.layout.unpacked(PAGE)?;
    let share = 1.0 / group as f32;
    for start in (0..width).step_by(PANEL) {
        let count = PANEL.min(width - start);
        for h in 0..layer.heads {
            for n in 0..count {
                let from = (start + n) * layer.heads * dim + h * dim;
                panel.as_mut()[n * stride..n * stride + dim].copy_from_slice(&wo[from..from + dim]);
            }
            let norms = &mut norms[h / group * length..][..length];
            for (norms, page) in norms.chunks_mut(PAGE).zip(&layer.rows[h / group].pages) {
                let (rows, products) = (norms.len(), products.as_mut());
                // SAFETY: the panel holds `count` rows, the page 64 values, the products (64, 64).
                unsafe {
                    let values = page.floats(layer.layout, Part::Value, 0, rows.next_multiple_of(4), &mut unpacked);
                    dots(panel.as_slice().as_ptr(), count, values, rows, stride, products.as_mut_ptr(), PAGE);
                }
                for (four, norms) in norms.chunks_mut(4).enumerate() {
                    for (norm, x) in norms.iter_mut().zip(absolute_sums(products, count, four * 4).lanes()) {
                        *norm += x * share;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Σ |products[n][at …]| over the first `count` rows, four columns.
fn absolute_sums(products: &[f32], count: usize, at: usize) -> F4 {
    products.chunks_exact(PAGE).take(count).fold(F4::zero(), |sum, row| {
        // SAFETY: a row has `PAGE` floats, `at` is a multiple of four below it.
        sum.add(unsafe { F4::load(row.as_ptr().add(at)) }.abs())
    })
}
