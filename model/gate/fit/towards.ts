/**
 * A ridge regression that begins with what is known: weights w0 move only as far as the new rows insist.
 *
 *     w = w0 + argmin over δ of ‖r − X δ‖² + λ ‖δ‖²,   r = y − X w0
 *
 * λ is a share of the mean diagonal of XᵀX, and grows with what stands behind w0: the more rows, the less a new text
 * changes. So what earlier texts taught needs no sums of theirs: XᵀX of a thousand rows would tell which texts can't have
 * been among them, and in layer 0 how often each token was (docs/decisions/self-gate.md). Solved by XᵀX, or by XXᵀ
 * where there are fewer rows than columns; either way the same weights.
 */
import { type Algebra, PLAIN_ALGEBRA, plainProducts, transposed } from "../../../core/refit/linear.ts";
import type { DesignMatrix } from "./ridge.ts";

/** λ for a first text, as a share of the mean diagonal. Measured, with {@link MOST_HELD}: bench/results/gates.md. */
const RIDGE = 0.3;
/** However much is known, a text of its own may say so much: λ grows to this many times its beginning. */
const MOST_HELD = 4;

/** What the regression begins with. */
export interface Known {
  /** `[targets][width]`, the constant last. */
  readonly weights: readonly Float64Array[];
  /** Rows behind them. */
  readonly rows: number;
}

/** A gate's regression for one layer. */
export interface Regression {
  /** `[targets][width]`, the constant last. */
  readonly weights: Float64Array[];
  /** Root of the mean squared residual of each target on the rows that were fitted on, `[targets]`. */
  readonly deviations: Float64Array;
}

/**
 * The regression of each target, from rows whose last column is the constant 1, and `y`, `[targets, rows]`.
 * Without anything known the constant begins at the mean of y.
 * @throws RangeError for no rows, a length that doesn't fit, or numbers that are not finite.
 */
export function fitTowards(
  { data, rows }: DesignMatrix,
  y: Float64Array,
  known: Known | undefined,
  algebra: Solver = PLAIN_ALGEBRA,
): Regression {
  const width = data.length / rows, targets = y.length / rows;
  if (!(rows > 0) || !Number.isInteger(width) || !Number.isInteger(targets)) {
    throw new RangeError(`Cannot fit ${data.length} inputs and ${y.length} targets of ${rows} rows`);
  }
  const start = known?.weights ?? meansOnly(y, rows, width), left = residuals({ data, rows }, y, start);
  const held = RIDGE * Math.min(MOST_HELD, 1 + (known?.rows ?? 0) / rows);
  const change = rows < width ? bySamples : byColumns;
  const changes = change({ data, rows }, left, held, algebra);
  if (!changes) throw new RangeError("Cannot fit a gate: inputs or targets are not finite");
  const weights = start.map((each, k) => each.map((w, i) => w + changes[i * targets + k]));
  return { weights, deviations: deviationsOf(residuals({ data, rows }, y, weights), rows) };
}

function deviationsOf(left: Float64Array, rows: number): Float64Array {
  return Float64Array.from({ length: left.length / rows }, (_, k) => {
    return Math.sqrt(left.subarray(k * rows, (k + 1) * rows).reduce((sum, value) => sum + value * value, 0) / rows);
  });
}

function meansOnly(y: Float64Array, rows: number, width: number): Float64Array[] {
  return Array.from({ length: y.length / rows }, (_, k) => {
    const weights = new Float64Array(width);
    weights[width - 1] = y.subarray(k * rows, (k + 1) * rows).reduce((sum, value) => sum + value, 0) / rows;
    return weights;
  });
}

/** y − X w, `[targets, rows]`. */
function residuals({ data, rows }: DesignMatrix, y: Float64Array, weights: readonly Float64Array[]): Float64Array {
  const left = y.slice();
  weights.forEach((each, k) => {
    const target = left.subarray(k * rows, (k + 1) * rows);
    for (let i = 0; i < each.length; i += COLUMNS) subtract(target, data, i, each);
  });
  return left;
}

/** Columns that are taken off together, so that what is left is read and written less often. */
const COLUMNS = 4;

/** left −= the columns from `first` on, `COLUMNS` at most, each times its weight. */
function subtract(left: Float64Array, data: Float64Array, first: number, weights: Float64Array): void {
  const rows = left.length, column = (i: number) => Math.min(first + i, weights.length - 1) * rows;
  const weight = (i: number) => first + i < weights.length ? weights[first + i] : 0;
  const [p, q, r, s] = [weight(0), weight(1), weight(2), weight(3)];
  const [a, b, c, d] = [column(0), column(1), column(2), column(3)];
  for (let t = 0; t < rows; t++) left[t] -= p * data[a + t] + q * data[b + t] + r * data[c + t] + s * data[d + t];
}

type Solved = Float64Array | undefined;
type Solver = Pick<Algebra, "products" | "solve">;

/** (XᵀX + λI)⁻¹ Xᵀr, `[width, targets]`. */
function byColumns({ data, rows }: DesignMatrix, left: Float64Array, held: number, algebra: Solver): Solved {
  const width = data.length / rows, gram = algebra.products(data, data, rows);
  return algebra.solve(gram, width, held * trace(gram, width) / width, plainProducts(data, left, rows));
}

/** Xᵀ (XXᵀ + λI)⁻¹ r, `[width, targets]`. */
function bySamples({ data, rows }: DesignMatrix, left: Float64Array, held: number, algebra: Solver): Solved {
  const width = data.length / rows, samples = transposed(data, rows), gram = algebra.products(samples, samples, width);
  const duals = algebra.solve(gram, rows, held * trace(gram, rows) / width, transposed(left, rows));
  return duals && plainProducts(data, transposed(duals, left.length / rows), rows);
}

function trace(matrix: Float64Array, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += matrix[i * n + i];
  return sum;
}
