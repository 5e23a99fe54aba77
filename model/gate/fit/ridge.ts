/** Ridge regression by normal equations: memory width² whatever the number of rows. All sums are float64. */

/** Rows of one design matrix, column by column, so that sums over rows read memory in order. */
export interface DesignMatrix {
  /** `[width, rows]`. */
  readonly data: Float64Array;
  readonly rows: number;
}

/** XᵀX, Xᵀy and yᵀy of a regression with several targets, added up chunk by chunk. */
export class NormalEquations {
  readonly width: number;
  readonly targets: number;
  /** XᵀX, `[width, width]`; only i ≤ j is filled. */
  readonly gram: Float64Array;
  /** Xᵀy, `[targets, width]`. */
  readonly cross: Float64Array;
  /** yᵀy, `[targets]`. */
  readonly squares: Float64Array;
  rows = 0;
  readonly #measured: number;

  /** `measured`: first columns whose mean square a ridge is a share of. Default all. */
  constructor(width: number, targets: number, measured = width) {
    this.width = width;
    this.#measured = measured;
    this.targets = targets;
    this.gram = new Float64Array(width * width);
    this.cross = new Float64Array(targets * width);
    this.squares = new Float64Array(targets);
  }

  /** Adds rows. `y`: `[targets, rows]`. */
  add({ data, rows }: DesignMatrix, y: Float64Array): void {
    const { width, targets } = this;
    if (data.length !== width * rows || y.length !== targets * rows) {
      throw new RangeError(`Cannot add ${data.length} inputs and ${y.length} targets for ${rows} rows of ${width}`);
    }
    for (let i = 0; i < width; i += TILE) {
      for (let j = i; j < width; j += TILE) this.#tile(data, rows, i, j);
    }
    for (let k = 0; k < targets; k++) {
      for (let i = 0; i < width; i++) this.cross[k * width + i] += dot(data, i * rows, y, k * rows, rows);
      this.squares[k] += dot(y, k * rows, y, k * rows, rows);
    }
    this.rows += rows;
  }

  /** Adds another's sums. */
  merge(other: NormalEquations): void {
    other.gram.forEach((value, i) => this.gram[i] += value);
    other.cross.forEach((value, i) => this.cross[i] += value);
    other.squares.forEach((value, i) => this.squares[i] += value);
    this.rows += other.rows;
  }

  /** The same without `count` columns from `from` on. */
  without(from: number, count: number): NormalEquations {
    const { width, targets } = this, left = new NormalEquations(width - count, targets);
    const place = (i: number) => i < from ? i : i + count;
    for (let i = 0; i < left.width; i++) {
      for (let j = i; j < left.width; j++) left.gram[i * left.width + j] = this.gram[place(i) * width + place(j)];
      for (let k = 0; k < targets; k++) left.cross[k * left.width + i] = this.cross[k * width + place(i)];
    }
    left.squares.set(this.squares);
    left.rows = this.rows;
    return left;
  }

  /** Mean of the diagonal of XᵀX, of the columns that are measured. */
  meanDiagonal(): number {
    let sum = 0;
    for (let i = 0; i < this.#measured; i++) sum += this.gram[i * this.width + i];
    return sum / this.#measured;
  }

  /** Σ (y − Xw)² of target `k`, from the sums alone. */
  squaredError(k: number, w: Float64Array): number {
    const { width, gram } = this;
    let error = this.squares[k];
    for (let i = 0; i < width; i++) {
      let row = gram[i * width + i] * w[i] / 2;
      for (let j = i + 1; j < width; j++) row += gram[i * width + j] * w[j];
      error += 2 * w[i] * (row - this.cross[k * width + i]);
    }
    return Math.max(0, error);
  }

  #tile(data: Float64Array, rows: number, i: number, j: number): void {
    const { width } = this, ends = Math.min(i + TILE, width), columns = Math.min(j + TILE, width);
    if (ends - i === TILE && columns - j === TILE) {
      addTile(data, rows, i, j, this.gram, width);
      return;
    }
    for (let a = i; a < ends; a++) {
      for (let b = j; b < columns; b++) this.gram[a * width + b] += dot(data, a * rows, data, b * rows, rows);
    }
  }
}

/** Columns on each side of a tile; its sixteen sums stay in registers. */
const TILE = 4;

function addTile(x: Float64Array, rows: number, i: number, j: number, gram: Float64Array, width: number): void {
  const [a0, a1, a2, a3] = [i * rows, (i + 1) * rows, (i + 2) * rows, (i + 3) * rows];
  const [b0, b1, b2, b3] = [j * rows, (j + 1) * rows, (j + 2) * rows, (j + 3) * rows];
  let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
  let s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
  for (let t = 0; t < rows; t++) {
    const p0 = x[a0 + t], p1 = x[a1 + t], p2 = x[a2 + t], p3 = x[a3 + t];
    const q0 = x[b0 + t], q1 = x[b1 + t], q2 = x[b2 + t], q3 = x[b3 + t];
    s00 += p0 * q0, s01 += p0 * q1, s02 += p0 * q2, s03 += p0 * q3;
    s10 += p1 * q0, s11 += p1 * q1, s12 += p1 * q2, s13 += p1 * q3;
    s20 += p2 * q0, s21 += p2 * q1, s22 += p2 * q2, s23 += p2 * q3;
    s30 += p3 * q0, s31 += p3 * q1, s32 += p3 * q2, s33 += p3 * q3;
  }
  const sums = [s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, s31, s32, s33];
  for (let a = 0; a < TILE; a++) for (let b = 0; b < TILE; b++) gram[(i + a) * width + j + b] += sums[a * TILE + b];
}

function dot(a: Float64Array, from: number, b: Float64Array, start: number, length: number): number {
  let sum = 0;
  for (let t = 0; t < length; t++) sum += a[from + t] * b[start + t];
  return sum;
}

/**
 * Weights of all targets, `[targets][width]`: (XᵀX + λI)⁻¹Xᵀy with λ = `ridge` × the mean diagonal; the last column is
 * the constant and is not shrunk.
 * @throws RangeError when the matrix is not positive definite: no rows, or ridge 0 and dependent columns.
 */
export function solveRidge(equations: NormalEquations, ridge: number): Float64Array[] {
  const { width, targets, cross } = equations;
  const lower = factor(equations, ridge * equations.meanDiagonal());
  return Array.from({ length: targets }, (_, k) => {
    const w = cross.slice(k * width, (k + 1) * width);
    for (let i = 0; i < width; i++) w[i] = (w[i] - dot(lower, i * width, w, 0, i)) / lower[i * width + i];
    for (let i = width - 1; i >= 0; i--) {
      w[i] /= lower[i * width + i];
      for (let j = 0; j < i; j++) w[j] -= lower[i * width + j] * w[i];
    }
    return w;
  });
}

/** The lower Cholesky factor of XᵀX + λI, `[width, width]`, row by row. */
function factor({ width, gram }: NormalEquations, lambda: number): Float64Array {
  const lower = new Float64Array(width * width);
  for (let i = 0; i < width; i++) {
    const row = i * width;
    for (let j = 0; j < i; j++) {
      lower[row + j] = (gram[j * width + i] - dot(lower, row, lower, j * width, j)) / lower[j * width + j];
    }
    const left = gram[row + i] + (i < width - 1 ? lambda : 0) - dot(lower, row, lower, row, i);
    if (!(left > 0)) throw new RangeError(`Cannot solve the ridge regression: pivot ${i} is ${left}`);
    lower[row + i] = Math.sqrt(left);
  }
  return lower;
}

/** Ridges that are tried, shares of the mean diagonal. */
export const RIDGES = [1e-4, 1e-3, 1e-2, 3e-2, 1e-1] as const;

/**
 * The ridge with the smallest error on `heldOut` among {@link RIDGES}, and the weights of both sets together with it.
 * `fit` takes up `heldOut`.
 */
export function fitRidge(
  fit: NormalEquations,
  heldOut: NormalEquations,
): { readonly ridge: number; readonly weights: Float64Array[] } {
  let best = { ridge: RIDGES[0] as number, error: Infinity };
  for (const ridge of RIDGES) {
    const error = solveRidge(fit, ridge).reduce((sum, w, k) => sum + heldOut.squaredError(k, w), 0);
    if (error < best.error) best = { ridge, error };
  }
  fit.merge(heldOut);
  return { ridge: best.ridge, weights: solveRidge(fit, best.ridge) };
}
