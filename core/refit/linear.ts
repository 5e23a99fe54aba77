/**
 * The linear algebra of a refit: products, Cholesky, and least squares with a lower bound. Matrices are row-major.
 */

/** A·Bᵀ, `[n, m]`, of `a`, `[n, depth]`, and `b`, `[m, depth]`. A backend's kernels may do it in float32. */
export type Products = (a: Float64Array, b: Float64Array, depth: number) => Float64Array;

/** The slow, obvious form. O(n · m · depth). */
export const plainProducts: Products = (a, b, depth) => {
  const n = a.length / depth, m = b.length / depth, product = new Float64Array(n * m);
  for (let i = 0; i < n; i++) {
    const row = a.subarray(i * depth, (i + 1) * depth);
    for (let j = 0; j < m; j++) product[i * m + j] = dot(row, b, j * depth, depth);
  }
  return product;
};

/** Who multiplies and solves: a backend's kernels, or {@link PLAIN_ALGEBRA}. */
export interface Algebra {
  readonly products: Products;
  readonly solve: typeof solve;
  readonly boundedLeastSquares: typeof boundedLeastSquares;
}

/** `[rows, columns]` → `[columns, rows]`. */
export function transposed(matrix: Float64Array, columns: number): Float64Array {
  const rows = matrix.length / columns, turned = new Float64Array(matrix.length);
  for (let i = 0, at = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++, at++) turned[j * rows + i] = matrix[at];
  }
  return turned;
}

/** Multiplies every row, `[columns]` long, by `by`, entry for entry, in place; gives the matrix back. */
export function weigh(matrix: Float64Array, by: Float64Array): Float64Array {
  for (let at = 0; at < matrix.length;) for (let j = 0; j < by.length; j++, at++) matrix[at] *= by[j];
  return matrix;
}

/** Four sums, so that they don't wait for each other. */
function dot(a: Float64Array, b: Float64Array, at: number, count: number): number {
  let [p, q, r, s] = [0, 0, 0, 0], i = 0;
  for (; i + 4 <= count; i += 4) {
    p += a[i] * b[at + i];
    q += a[i + 1] * b[at + i + 1];
    r += a[i + 2] * b[at + i + 2];
    s += a[i + 3] * b[at + i + 3];
  }
  for (; i < count; i++) p += a[i] * b[at + i];
  return p + q + r + s;
}

export function meanOf(numbers: Float64Array): number {
  return numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
}

/** Mean of the diagonal of `[n, n]`. */
export function meanDiagonal(matrix: Float64Array, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += matrix[i * n + i];
  return sum / n;
}

/**
 * Solves (A + ridge · I) X = B for symmetric A, `[n, n]`, and B, `[n, width]`. Undefined where A + ridge · I is not positive
 * definite, or holds a number that is not finite.
 */
export function solve(a: Float64Array, n: number, ridge: number, b: Float64Array): Float64Array | undefined {
  const lower = cholesky(a, n, ridge);
  if (!lower) return undefined;
  const width = b.length / n, x = b.slice();
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) subtract(x, i * width, x, k * width, lower[i * n + k], width);
    scale(x, i * width, 1 / lower[i * n + i], width);
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) subtract(x, i * width, x, k * width, lower[k * n + i], width);
    scale(x, i * width, 1 / lower[i * n + i], width);
  }
  return x.every(Number.isFinite) ? x : undefined;
}

function subtract(to: Float64Array, at: number, from: Float64Array, start: number, by: number, width: number): void {
  for (let d = 0; d < width; d++) to[at + d] -= by * from[start + d];
}

function scale(to: Float64Array, at: number, by: number, width: number): void {
  for (let d = 0; d < width; d++) to[at + d] *= by;
}

/** L with L·Lᵀ = A + ridge · I, row by row, of A's lower half; undefined where that is not positive definite. */
export function cholesky(a: Float64Array, n: number, ridge: number): Float64Array | undefined {
  const lower = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    const row = lower.subarray(i * n, (i + 1) * n);
    for (let j = 0; j < i; j++) row[j] = (a[i * n + j] - dot(row, lower, j * n, j)) / lower[j * n + j];
    const pivot = a[i * n + i] + ridge - dot(row, row, 0, i);
    if (!(pivot > 0)) return undefined;
    row[i] = Math.sqrt(pivot);
  }
  return lower;
}

/**
 * x ≥ `least` with ½xᵀAx − bᵀx small, A symmetric with entries ≥ 0, from `start`: `steps` projected gradient steps, each as
 * long as the largest row sum allows, with Nesterov's momentum.
 */
export function boundedLeastSquares(
  a: Float64Array,
  b: Float64Array,
  start: Float64Array,
  { least, steps }: { readonly least: number; readonly steps: number },
): Float64Array {
  const n = b.length;
  let steepest = 0;
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = 0; j < n; j++) sum += Math.abs(a[i * n + j]);
    steepest = Math.max(steepest, sum);
  }
  let x = start.map((value) => Math.max(least, value)), before = x;
  if (!(steepest > 0)) return x;
  for (let step = 0; step < steps; step++) {
    const momentum = step / (step + 3);
    const ahead = x.map((value, i) => value + momentum * (value - before[i]));
    before = x;
    x = ahead.map((value, i) => Math.max(least, value - (dot(ahead, a, i * n, n) - b[i]) / steepest));
  }
  return x;
}

/** All of it as it stands here, in doubles. */
export const PLAIN_ALGEBRA: Algebra = { products: plainProducts, solve, boundedLeastSquares };
