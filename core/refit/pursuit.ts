/**
 * Which entries of a head stay, when what stays will be refitted: greedy pursuit on the error of the output.
 *
 * A refit gives every kept entry a weight and a value of its own. So over entries S a query gets nearly Σ_{j ∈ S} p_j w_j,
 * p_j its true probabilities (`refit.ts`) and w_j free: S is to make min_W Σ_s u_s ‖y_s − Σ_{j ∈ S} p_sj w_j‖² + λ Σ_j ‖w_j − v_j‖²
 * small. y_s: the output of query s over all entries, and beside it its mass, 1, in units of the mean output; v_j the old
 * value and 1. This is orthogonal matching pursuit for many targets at once (Tropp 2006), each step with the entry that
 * takes most off the error once all weights are solved anew (orthogonal least squares, Chen 1989).
 *
 * With K = PᵀUP + λI and T = PᵀUY + λV over the candidates, entry j takes ‖t_j‖² / k_jj off, both after elimination of what
 * was chosen. So a step is one column of a pivoted Cholesky factor, and one rank-one update of T.
 *
 * **Defensively.** u is 1 at first, then grows with the error that a query was left with. Either set, and the policy's own,
 * is refitted, and the one stays that serves the worst held-out queries best: never worse there than the policy's.
 */
import { meanOf, PLAIN_ALGEBRA, plainProducts, transposed } from "./linear.ts";
import {
  type HeadReferences,
  isHeldOut,
  type KeptRows,
  pickReferences,
  probabilitiesOf,
  refitOrLeave,
  type RefitSettings,
} from "./refit.ts";

/** Queries that a pursuit goes by at most, about. */
const MOST_QUERIES = 384;
const RIDGE = 0.01;
/** A pivot below this part of what it was is nothing but rounding. */
const SINGULAR = 1e-12;

/** What a head may keep, indices into its rows, ascending. */
export interface HeadChoice {
  /** What the policy keeps; as many are chosen. */
  readonly policy: Int32Array;
  /** Those of them that stay whatever the error. */
  readonly protectedRows: Int32Array;
}

export interface Pursued {
  /** Ascending indices of the rows that stay, as many as the policy's. */
  readonly rows: Int32Array;
  /** The worst held-out error with the policy's rows and with these, each after its refit. */
  readonly before: number;
  readonly after: number;
}

/**
 * Chooses among the candidates of one head. The policy's own rows where a pursuit doesn't serve better.
 * O(kept · candidates · queries), and the refits.
 * @throws RangeError as `refitHead`.
 */
export function pursueHead(
  candidates: KeptRows,
  references: HeadReferences,
  headDim: number,
  choice: HeadChoice,
  settings: RefitSettings,
): Pursued {
  const { policy } = choice;
  const errorOf = (rows: Int32Array) => refitOrLeave(picked(candidates, rows, headDim), references, headDim, settings);
  const { error: before } = errorOf(policy);
  let best: Pursued = { rows: policy, before, after: before };
  if (policy.length === 0 || policy.length === candidates.keys.length / headDim) return best;
  const pursuit = Pursuit.of(candidates, references, headDim, settings);
  if (!pursuit) return best;
  const plain = pursuit.choose(choice);
  for (const rows of [plain, pursuit.towardsWorst(plain).choose(choice)]) {
    const { error, refitted } = errorOf(rows);
    // Entries chosen for their refit are no good without.
    if (refitted && error < best.after) best = { rows, before, after: error };
  }
  return best;
}

/** Candidates and targets of one head, each query weighed. */
export class Pursuit {
  /** √u · p, `[candidates, queries]`. */
  readonly #columns: Float64Array;
  /** √u · y and mass, `[width, queries]`. */
  readonly #targets: Float64Array;
  /** Old values and mass, `[candidates, width]`. */
  readonly #old: Float64Array;
  readonly #count: number;
  readonly #width: number;

  /** `columns`: `[candidates, queries]`; `targets`: `[width, queries]`; `old`: `[candidates, width]`. */
  constructor(columns: Float64Array, targets: Float64Array, old: Float64Array, queries: number) {
    this.#columns = columns;
    this.#targets = targets;
    this.#old = old;
    this.#count = columns.length / queries;
    this.#width = old.length / this.#count;
  }

  /** By the references that a refit doesn't hold out, some of them; undefined where there are none. */
  static of(
    candidates: KeptRows,
    references: HeadReferences,
    headDim: number,
    { algebra = PLAIN_ALGEBRA }: RefitSettings,
  ) {
    const all = references.logSumExp.length;
    const training = Array.from({ length: all }, (_, s) => s).filter((s) => !isHeldOut(s));
    const every = Math.ceil(training.length / MOST_QUERIES), chosen = training.filter((_, i) => i % every === 0);
    if (chosen.length === 0) return undefined;
    const some = pickReferences(references, chosen, headDim), count = candidates.keys.length / headDim;
    const nothing = some.nothing ?? new Float64Array(chosen.length);
    const outputs = transposed(new Float64Array(some.outputs), headDim);
    const unit = Math.sqrt(outputs.reduce((sum, y) => sum + y * y, 0) / chosen.length) || 1;
    const targets = new Float64Array((headDim + 1) * chosen.length);
    targets.set(outputs);
    nothing.forEach((share, s) => targets[headDim * chosen.length + s] = unit * (1 - share));
    const old = new Float64Array(count * (headDim + 1)).fill(unit);
    for (let j = 0; j < count; j++) {
      old.set(candidates.values.subarray(j * headDim, (j + 1) * headDim), j * (headDim + 1));
    }
    return new Pursuit(probabilitiesOf(candidates.keys, some, headDim, algebra), targets, old, chosen.length);
  }

  /** Rows, ascending: the protected ones, then the best of each step, until there are as many as the policy's. */
  choose({ policy, protectedRows }: HeadChoice): Int32Array {
    const steps = new Elimination(this.#columns, this.#targets, this.#old, this.#count, this.#ridge);
    const wanted = policy.length, rows: number[] = [];
    const take = (row: number) => {
      rows.push(row);
      if (rows.length < wanted) steps.take(row);
    };
    for (const row of protectedRows.subarray(0, wanted)) take(row);
    while (rows.length < wanted) {
      const row = steps.best();
      if (row < 0) break;
      take(row);
    }
    // Nothing takes anything off any more: the policy knows best.
    const taken = new Set(rows);
    for (const row of policy) if (taken.size < wanted) taken.add(row);
    return Int32Array.from(taken).sort();
  }

  /** The same with every query weighed by the error that these rows leave it with. */
  towardsWorst(rows: Int32Array): Pursuit {
    const errors = this.errors(rows), roots = towardsWorst(errors), queries = roots.length;
    const weighed = (matrix: Float64Array) => matrix.map((x, i) => x * roots[i % queries]);
    return new Pursuit(weighed(this.#columns), weighed(this.#targets), this.#old, queries);
  }

  /** ‖y − Σ p w‖ of every query, weighed as it is, with the best weights and values for these rows. */
  errors(rows: Int32Array): Float64Array {
    const queries = this.#columns.length / this.#count, left = this.#targets.slice();
    const columns = gather(this.#columns, rows, queries), ridge = this.#ridge;
    const target = plainProducts(columns, this.#targets, queries), old = gather(this.#old, rows, this.#width);
    for (let i = 0; i < target.length; i++) target[i] += ridge * old[i];
    const values = PLAIN_ALGEBRA.solve(plainProducts(columns, columns, queries), rows.length, ridge, target);
    if (values) {
      const given = plainProducts(transposed(values, this.#width), transposed(columns, queries), rows.length);
      for (let i = 0; i < left.length; i++) left[i] -= given[i];
    }
    const squares = new Float64Array(queries);
    for (let i = 0; i < left.length; i++) squares[i % queries] += left[i] * left[i];
    return squares.map(Math.sqrt);
  }

  get #ridge(): number {
    return RIDGE * this.#columns.reduce((sum, x) => sum + x * x, 0) / this.#count || Number.MIN_VALUE;
  }
}

/** A Cholesky factor that grows by the column that is asked for. */
class Elimination {
  readonly #columns: Float64Array;
  readonly #queries: number;
  readonly #count: number;
  readonly #width: number;
  /** What is left of T, `[candidates, width]`. */
  readonly #left: Float64Array;
  /** What is left of K's diagonal; 0 for what was taken. */
  readonly #diagonal: Float64Array;
  readonly #first: Float64Array;
  /** Columns of the factor, `[candidates]` each. */
  readonly #factor: Float64Array[] = [];

  constructor(columns: Float64Array, targets: Float64Array, old: Float64Array, count: number, ridge: number) {
    this.#columns = columns;
    this.#count = count;
    this.#queries = columns.length / this.#count;
    this.#width = old.length / this.#count;
    this.#left = plainProducts(columns, targets, this.#queries);
    for (let i = 0; i < this.#left.length; i++) this.#left[i] += ridge * old[i];
    this.#diagonal = new Float64Array(this.#count).fill(ridge);
    for (let i = 0; i < columns.length; i++) this.#diagonal[Math.floor(i / this.#queries)] += columns[i] * columns[i];
    this.#first = this.#diagonal.slice();
  }

  /** The row that takes most off the error, the first of equals; −1 where none takes anything. */
  best(): number {
    let best = -1, most = 0;
    for (let j = 0; j < this.#count; j++) {
      if (!(this.#diagonal[j] > SINGULAR * this.#first[j])) continue;
      let square = 0;
      for (let d = j * this.#width, end = d + this.#width; d < end; d++) square += this.#left[d] * this.#left[d];
      const gain = square / this.#diagonal[j];
      if (gain > most) [best, most] = [j, gain];
    }
    return best;
  }

  /** Eliminates a row: one more column of the factor, a rank-one update of what is left. */
  take(row: number): void {
    const pivot = this.#diagonal[row];
    if (!(pivot > SINGULAR * this.#first[row])) {
      this.#diagonal[row] = 0;
      return;
    }
    const { root, column } = this.#column(row, Math.sqrt(pivot));
    const width = this.#width, left = this.#left, from = left.slice(row * width, (row + 1) * width);
    for (let j = 0; j < this.#count; j++) {
      this.#diagonal[j] -= column[j] * column[j];
      const by = column[j] / root;
      for (let d = 0; d < width; d++) left[j * width + d] -= by * from[d];
    }
    this.#diagonal[row] = 0;
    this.#factor.push(column);
  }

  #column(row: number, root: number) {
    const asked = this.#columns.subarray(row * this.#queries, (row + 1) * this.#queries);
    const column = plainProducts(this.#columns, asked, this.#queries);
    for (const before of this.#factor) {
      const by = before[row];
      for (let j = 0; j < column.length; j++) column[j] -= by * before[j];
    }
    for (let j = 0; j < column.length; j++) column[j] /= root;
    column[row] = root;
    return { root, column };
  }
}

function gather(matrix: Float64Array, rows: Int32Array, width: number): Float64Array {
  const some = new Float64Array(rows.length * width);
  rows.forEach((row, i) => some.set(matrix.subarray(row * width, (row + 1) * width), i * width));
  return some;
}

function picked({ keys, values }: KeptRows, rows: Int32Array, headDim: number): KeptRows {
  const of = (all: Float32Array) => {
    const some = new Float32Array(rows.length * headDim);
    rows.forEach((row, i) => some.set(all.subarray(row * headDim, (row + 1) * headDim), i * headDim));
    return some;
  };
  return { keys: of(keys), values: of(values) };
}

/** Roots of weights that grow with a reference's error, mean 1: re-weighted least squares towards the fourth power. */
function towardsWorst(errors: Float64Array): Float64Array {
  const squares = errors.map((error) => error * error), mean = meanOf(squares);
  if (!(mean > 0)) return new Float64Array(errors.length).fill(1);
  const capped = squares.map((square) => Math.min(100, square / mean) + 0.1), scale = meanOf(capped);
  return capped.map((weight) => Math.sqrt(weight / scale));
}
