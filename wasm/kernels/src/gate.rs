//! A linear gate over a layer's input: a few products with each token's normed hidden state.

use crate::lanes::F4;
use crate::memory::{Array, Result};
use crate::panel::{score_panel, COLUMNS};

/// The gate of one layer, over inputs of `width` numbers.
pub struct Gate<'a> {
    pub width: usize,
    /// `(heads, width)`, the norm's gains within them.
    pub weights: &'a [f32],
    /// `(heads)`.
    pub bias: &'a [f32],
    pub epsilon: f32,
}

impl Gate<'_> {
    /// `out[t][g] = weights[g] · x[t] / √(mean x[t]² + epsilon) + bias[g]`; `x`: `(count, width)`, `out`: `(count, heads)`.
    pub fn score(&self, x: &[f32], out: &mut [f32]) -> Result<()> {
        let (width, heads, count) = (self.width, self.bias.len(), x.len() / self.width);
        let stride = width.next_multiple_of(4);
        let panels = self.panels(stride)?;
        // Four tokens side by side; beyond the last one the rows keep what they held, and nobody reads their products.
        let mut rows = Array::<f32>::zeros(4 * stride)?;
        let mut products = [0.0f32; 4 * COLUMNS];
        for first in (0..count).step_by(4) {
            let here = (count - first).min(4);
            for t in 0..here {
                rows.as_mut()[t * stride..][..width].copy_from_slice(&x[(first + t) * width..][..width]);
            }
            let scales = self.scales(rows.as_slice(), stride);
            for head in (0..heads).step_by(COLUMNS) {
                let (rows, panel) = (rows.as_slice().as_ptr(), &panels.as_slice()[head * stride..][..COLUMNS * stride]);
                // SAFETY: four rows of `stride`, a panel of as many, room for four by eight products.
                unsafe { score_panel(rows, 4, stride, panel.as_ptr(), products.as_mut_ptr()) };
                let columns = (heads - head).min(COLUMNS);
                for i in 0..here * columns {
                    let (t, g) = (i / columns, i % columns);
                    out[(first + t) * heads + head + g] = products[t * COLUMNS + g] * scales[t] + self.bias[head + g];
                }
            }
        }
        Ok(())
    }

    /// `1 / √(mean row² + epsilon)` of four rows of `stride` numbers, zeros beyond the width.
    #[inline(never)]
    fn scales(&self, rows: &[f32], stride: usize) -> [f32; 4] {
        let mut sums = [F4::zero(); 4];
        for d in (0..stride).step_by(4) {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: four floats.
                let x = unsafe { F4::load(rows[r * stride + d..][..4].as_ptr()) };
                *sum = sum.madd(x, x);
            }
        }
        let [a, b, c, d] = sums;
        let squares = F4::sums(a, b, c, d).lanes();
        squares.map(|sum| (1.0 / (sum as f64 / self.width as f64 + self.epsilon as f64).sqrt()) as f32)
    }

    /// The weights as panels, `(heads / 8, stride, 8)`.
    #[inline(never)]
    fn panels(&self, stride: usize) -> Result<Array<f32>> {
        let mut panels = Array::zeros(self.bias.len().div_ceil(COLUMNS) * COLUMNS * stride)?;
        for (i, x) in self.weights.iter().enumerate() {
            let (head, d) = (i / self.width, i % self.width);
            panels.as_mut()[(head / COLUMNS * stride + d) * COLUMNS + head % COLUMNS] = *x;
        }
        Ok(panels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn score_agrees_with_its_twin() {
        for (width, heads, count) in [(8, 3, 5), (30, 1, 1), (64, 8, 4), (36, 17, 7)] {
            let (weights, bias, x) = (random(heads * width, 1), random(heads, 2), random(count * width, 3));
            let gate = Gate { width, weights: &weights, bias: &bias, epsilon: 1e-3 };
            let mut got = vec![0.0; count * heads];
            gate.score(&x, &mut got).unwrap();
            let want: Vec<f32> = x
                .chunks(width)
                .flat_map(|x| {
                    let mean = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / width as f64;
                    let scale = 1.0 / (mean + 1e-3f32 as f64).sqrt();
                    let dot = move |w: &[f32]| w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum::<f64>();
                    weights
                        .chunks(width)
                        .zip(&bias)
                        .map(move |(w, b)| (dot(w) * scale + *b as f64) as f32)
                        .collect::<Vec<_>>()
                })
                .collect();
            close(&got, &want, 1e-6);
        }
    }
}
