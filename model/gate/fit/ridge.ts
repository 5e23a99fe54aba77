/**
 * Ridge regression by normal equations: memory width² whatever the number of rows. Sums over chunks of rows and solutions
 * are float64; a backend's kernels may multiply the rows of a chunk in float32.
 */
import { type Algebra, PLAIN_ALGEBRA, plainProducts, transposed } from "../../../core/refit/linear.ts";

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
  /** XᵀX, `[width, width]`. */
  readonly gram: Float64Array;
  /** Xᵀy, `[targets, width]`. */
  readonly cross: Float64Array;
  /** yᵀy, `[targets]`. */
  readonly squares: Float64Array;
  rows = 0;
  readonly algebra: Pick<Algebra, "products" | "solve">;
  readonly #measured: number;

  /** `measured`: first columns whose mean square a ridge is a share of. Default all. `algebra`: who multiplies and solves. */
  constructor(
    width: number,
    targets: number,
    { measured = width, algebra = PLAIN_ALGEBRA }: {
      readonly measured?: number;
      readonly algebra?: Pick<Algebra, "products" | "solve">;
    } = {},
  ) {
    this.width = width;
    this.algebra = algebra;
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
    this.algebra.products(data, data, rows).forEach((value, i) => this.gram[i] += value);
    plainProducts(y, data, rows).forEach((value, i) => this.cross[i] += value);
    for (let k = 0; k < targets; k++) {
      const target = y.subarray(k * rows, (k + 1) * rows);
      this.squares[k] += plainProducts(target, target, rows)[0];
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
    const { width, targets, algebra } = this, left = new NormalEquations(width - count, targets, { algebra });
    const place = (i: number) => i < from ? i : i + count;
    for (let i = 0; i < left.width; i++) {
      for (let j = 0; j < left.width; j++) left.gram[i * left.width + j] = this.gram[place(i) * width + place(j)];
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
      let row = 0;
      for (let j = 0; j < width; j++) row += gram[i * width + j] * w[j];
      error += w[i] * (row - 2 * this.cross[k * width + i]);
    }
    return Math.max(0, error);
  }
}

/**
 * Weights of all targets, `[targets][width]`: (XᵀX + λI)⁻¹Xᵀy with λ = `ridge` × the mean diagonal; the last column is
 * the constant and is not shrunk.
 * @throws RangeError when the matrix is not positive definite: no rows, or ridge 0 and dependent columns.
 */
export function solveRidge(equations: NormalEquations, ridge: number): Float64Array[] {
  const { width, targets, cross, algebra } = equations, shrunk = equations.gram.slice();
  const lambda = ridge * equations.meanDiagonal();
  for (let i = 0; i < width - 1; i++) shrunk[i * width + i] += lambda;
  const solved = algebra.solve(shrunk, width, 0, transposed(cross, width));
  if (!solved) throw new RangeError(`Cannot solve the ridge regression of ${equations.rows} rows and ${width} columns`);
  const weights = transposed(solved, targets);
  return Array.from({ length: targets }, (_, k) => weights.slice(k * width, (k + 1) * width));
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
