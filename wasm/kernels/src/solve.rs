//! Systems of symmetric equations in float64: what a refit and a gate are fitted by. The other side has the same in plain
//! form (`core/refit/linear.ts`).

use crate::lanes::D2;
use crate::memory::{Error, Result};

/// Numbers of a right side that stay in registers together.
const COLUMNS: usize = 8;

/// `(A + ridge · I) X = B`, `A`: `(n, n)`, symmetric, its lower half is read and becomes the factor; `B`: `(n, width)`
/// becomes X. `Error::Value` where A + ridge · I is not positive definite, or holds a number that is not finite.
pub fn solve(a: &mut [f64], n: usize, ridge: f64, b: &mut [f64]) -> Result<()> {
    factor(a, n, ridge)?;
    let width = b.len() / n;
    for first in (0..width).step_by(COLUMNS) {
        let columns = Columns { n, width, first, count: (width - first).min(COLUMNS) };
        columns.forward(a, b);
        columns.backward(a, b);
    }
    if b.iter().all(|x| x.is_finite()) {
        Ok(())
    } else {
        Err(Error::Value)
    }
}

/// L with L·Lᵀ = A + ridge · I in the lower half, four columns at a time: what the finished columns take off are products
/// of rows, which lie in order.
fn factor(a: &mut [f64], n: usize, ridge: f64) -> Result<()> {
    for column in (0..n).step_by(4) {
        let columns = (n - column).min(4);
        for row in column..n {
            let taken = products(a, n, row, column, columns);
            for j in 0..columns.min(row - column + 1) {
                let (left, right) = (row * n + column, (column + j) * n + column);
                let within: f64 = (0..j).map(|k| a[left + k] * a[right + k]).sum();
                let value = a[left + j] - taken[j] - within;
                if row > column + j {
                    a[left + j] = value / a[right + j];
                } else if value + ridge > 0.0 {
                    a[left + j] = (value + ridge).sqrt();
                } else {
                    return Err(Error::Value);
                }
            }
        }
    }
    Ok(())
}

/// Products of the first `column` numbers of row `row` with those of the rows `column … column + count − 1`.
#[inline(always)]
fn products(a: &[f64], n: usize, row: usize, column: usize, count: usize) -> [f64; 4] {
    let mut sums = [[D2::zero(); 2]; 4];
    let left = &a[row * n..][..column];
    // Beyond the last row the first stands in; nobody reads its products.
    let right: [&[f64]; 4] = core::array::from_fn(|j| &a[(column + if j < count { j } else { 0 }) * n..][..column]);
    // `column` is a multiple of four.
    for k in (0..column).step_by(4) {
        // SAFETY: four numbers are left in each of the five.
        unsafe {
            let [x, y] = [D2::load(left.as_ptr().add(k)), D2::load(left.as_ptr().add(k + 2))];
            for (sum, row) in sums.iter_mut().zip(right) {
                sum[0] = sum[0].madd(x, D2::load(row.as_ptr().add(k)));
                sum[1] = sum[1].madd(y, D2::load(row.as_ptr().add(k + 2)));
            }
        }
    }
    sums.map(|[x, y]| x.sum() + y.sum())
}

/// Some columns of a right side.
struct Columns {
    n: usize,
    width: usize,
    first: usize,
    count: usize,
}

impl Columns {
    /// L Y = B.
    fn forward(&self, lower: &[f64], b: &mut [f64]) {
        for i in 0..self.n {
            let row = &lower[i * self.n..];
            self.finish(b, i, 0..i, |k| row[k], row[i]);
        }
    }

    /// Lᵀ X = Y.
    fn backward(&self, lower: &[f64], b: &mut [f64]) {
        for i in (0..self.n).rev() {
            self.finish(b, i, i + 1..self.n, |k| lower[k * self.n + i], lower[i * self.n + i]);
        }
    }

    /// `b[i] = (b[i] − Σ factor(k) · b[k]) / pivot`.
    #[inline(always)]
    fn finish(
        &self,
        b: &mut [f64],
        i: usize,
        others: core::ops::Range<usize>,
        factor: impl Fn(usize) -> f64,
        pivot: f64,
    ) {
        let at = |k: usize| k * self.width + self.first;
        let mut taken = [0.0; COLUMNS];
        if self.count == COLUMNS {
            let mut sums = [D2::zero(); COLUMNS / 2];
            for k in others {
                let (by, row) = (D2::splat(factor(k)), &b[at(k)..][..COLUMNS]);
                for (d, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the row has `COLUMNS` numbers.
                    *sum = sum.madd(by, unsafe { D2::load(row.as_ptr().add(2 * d)) });
                }
            }
            for (d, sum) in sums.iter().enumerate() {
                [taken[2 * d], taken[2 * d + 1]] = sum.lanes();
            }
        } else {
            for k in others {
                let by = factor(k);
                for (sum, x) in taken.iter_mut().zip(&b[at(k)..][..self.count]) {
                    *sum += by * x;
                }
            }
        }
        for (x, taken) in b[at(i)..][..self.count].iter_mut().zip(taken) {
            *x = (*x - taken) / pivot;
        }
    }
}

/// `x ≥ least` with ½xᵀAx − bᵀx small, from `x`: `steps` projected gradient steps, each as long as the largest row sum
/// allows, with Nesterov's momentum. `a`: `(n, n)`, symmetric; `work`: `(2, n)`.
pub fn descend(a: &[f64], b: &[f64], x: &mut [f64], work: &mut [f64], least: f64, steps: usize) {
    let n = b.len();
    let steepest = a.chunks_exact(n).map(|row| row.iter().map(|v| v.abs()).sum::<f64>()).fold(0.0, f64::max);
    let (before, ahead) = work.split_at_mut(n);
    for value in x.iter_mut() {
        *value = value.max(least);
    }
    before.copy_from_slice(x);
    // A NaN is not above zero either.
    if !(steepest > 0.0) {
        return;
    }
    for step in 0..steps {
        let momentum = step as f64 / (step as f64 + 3.0);
        for i in 0..n {
            ahead[i] = x[i] + momentum * (x[i] - before[i]);
        }
        before.copy_from_slice(x);
        for i in 0..n {
            x[i] = (ahead[i] - (dot(&a[i * n..][..n], ahead) - b[i]) / steepest).max(least);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [D2::zero(); 4];
    let whole = a.len() / 8 * 8;
    for k in (0..whole).step_by(8) {
        for (d, sum) in sums.iter_mut().enumerate() {
            // SAFETY: eight numbers are left in both.
            unsafe {
                let (x, y) = (D2::load(a.as_ptr().add(k + 2 * d)), D2::load(b.as_ptr().add(k + 2 * d)));
                *sum = sum.madd(x, y);
            }
        }
    }
    let rest: f64 = a[whole..].iter().zip(&b[whole..]).map(|(x, y)| x * y).sum();
    sums.iter().map(|sum| sum.sum()).sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// A symmetric matrix of so many columns, positive definite.
    fn definite(n: usize, seed: u64) -> Vec<f64> {
        let x: Vec<f64> = random(n * (n + 3), seed).iter().map(|v| *v as f64).collect();
        (0..n * n).map(|i| (0..n + 3).map(|k| x[i / n * (n + 3) + k] * x[i % n * (n + 3) + k]).sum()).collect()
    }

    #[test]
    fn solve_gives_back_the_right_side() {
        for (n, width) in [(1, 1), (2, 3), (3, 8), (4, 9), (5, 1), (7, 16), (8, 2), (13, 17), (33, 64)] {
            let (a, ridge) = (definite(n, n as u64), 0.25);
            let b: Vec<f64> = random(n * width, 7).iter().map(|v| *v as f64).collect();
            let (mut factor, mut x) = (a.clone(), b.clone());
            solve(&mut factor, n, ridge, &mut x).unwrap();
            for i in 0..n {
                for d in 0..width {
                    let got: f64 =
                        (0..n).map(|k| a[i * n + k] * x[k * width + d]).sum::<f64>() + ridge * x[i * width + d];
                    assert!((got - b[i * width + d]).abs() < 1e-8, "{n}, {width}");
                }
            }
        }
    }

    #[test]
    fn solve_refuses_what_is_not_definite_or_not_finite() {
        let refused = |a: &[f64], ridge| solve(&mut a.to_vec(), 2, ridge, &mut [1.0, 1.0]);
        assert_eq!(refused(&[1.0, 2.0, 2.0, 1.0], 0.0), Err(Error::Value));
        assert_eq!(refused(&[0.0; 4], 0.0), Err(Error::Value));
        assert_eq!(refused(&[f64::NAN, 0.0, 0.0, 1.0], 0.0), Err(Error::Value));
        assert_eq!(refused(&[0.0; 4], 1.0), Ok(()));
        assert_eq!(solve(&mut [1.0], 1, 0.0, &mut [f64::INFINITY]), Err(Error::Value));
    }

    #[test]
    fn descend_finds_the_least_and_keeps_the_bound() {
        let n = 11;
        let a: Vec<f64> =
            definite(n, 3).iter().enumerate().map(|(i, v)| if i % (n + 1) == 0 { v + 50.0 } else { *v }).collect();
        let b: Vec<f64> = random(n, 5).iter().map(|v| *v as f64 * 40.0).collect();
        let (mut free, mut factor) = (b.clone(), a.clone());
        solve(&mut factor, n, 0.0, &mut free).unwrap();
        for least in [-1e9, 0.1] {
            let (mut x, mut work) = (vec![1.0; n], vec![0.0; 2 * n]);
            descend(&a, &b, &mut x, &mut work, least, 3000);
            for i in 0..n {
                let slope = dot(&a[i * n..][..n], &x) - b[i];
                assert!(x[i] >= least && (slope.abs() < 1e-6 || (x[i] == least && slope > 0.0)), "{i}: {slope}");
                assert!(least > 0.0 || (x[i] - free[i]).abs() < 1e-6);
            }
        }
        let (mut x, mut work) = ([3.0], [0.0; 2]);
        descend(&[0.0], &[1.0], &mut x, &mut work, 5.0, 4);
        assert_eq!(x, [5.0]);
    }
}
