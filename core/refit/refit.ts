/**
 * Refitting what stays of one KV head, after attention matching (arXiv 2602.16284): a bias per kept entry and new values,
 * so that reference queries get from the kept entries what they got from all.
 *
 * Words: S the kept entries, t of them; a *reference* is one query of one query head of the group, with its output y over
 * the whole context and the log-sum-exp ℓ of its row. p_j = exp(q·k_j/√d − ℓ), j ∈ S, are its true probabilities on S.
 *
 * **Bias.** Weights B ≥ 10⁻³ so that Σ_j p_j B_j is 1 for every reference: ‖P B − 1‖² + λ‖B − 1‖². β = ln B. Then the kept
 * entries weigh as much beside entries to come as the whole context did. Where a share p₀ goes to nothing it is 1 − p₀.
 * **Values.** X = softmax(q·k/√d + β) over S, p₀ in its sum; (XᵀX + λ'I)V' = XᵀY + λ'V.
 * Both ridges are a `ridge` times the mean of the diagonal, so that little evidence changes little.
 *
 * **Defensively.** Least squares means over queries, and forgives itself the rare one that an answer hangs on. So every
 * fourth reference is held out. Of the values with different ridges those are taken that serve the worst held-out
 * references best (the mean of the worst part); then those with the others weighed anew by the errors that they were left
 * with, towards the largest, and half of the step, where they serve better still. A head where none of them beats the old
 * values, or all leave half of an output unexplained, keeps the old ones, without a bias: what explains its references
 * badly says nothing of a question. So does one that kept more entries than there are references to fit them by.
 */
import { exp, ln } from "../measure/exp.ts";
import { type Algebra, meanDiagonal, PLAIN_ALGEBRA, transposed, weighed } from "./linear.ts";

/** What is fitted; `pursuit`: both, of entries that are chosen for it (`pursuit.ts`). */
export const REFITS = ["none", "values", "both", "pursuit"] as const;
export type Refit = typeof REFITS[number];

/** Kept entries of one head, `[count, headDim]` each, as stored. */
export interface KeptRows {
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** What the references of one KV head got from the whole context. */
export interface HeadReferences {
  /** `[count, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** `[count, headDim]`. */
  readonly outputs: Float32Array;
  /** `[count]`, natural, over the whole context. */
  readonly logSumExp: Float32Array;
  /** What of each reference's attention goes to nothing (`AttentionShape.nullLogits`), `[count]`; absent: 0. */
  readonly nothing?: Float64Array;
}

/** One head after its refit. */
export interface RefittedHead {
  readonly values: Float32Array;
  readonly bias: Float32Array;
  /** The worst held-out error before and after, relative to the mean norm of the outputs. */
  readonly before: number;
  readonly after: number;
}

export interface RefitSettings {
  readonly refit: Exclude<Refit, "none">;
  /** Ridges to choose from, each times the mean diagonal. Default {@link RIDGES}. */
  readonly ridges?: readonly number[];
  /** False: one plain fit with the first ridge on all references, as published; nothing is held out. Default true. */
  readonly defensive?: boolean;
  /** The largest worst held-out error that a refit may leave, in units of the mean output. Default 0.5. */
  readonly mostLeft?: number;
  /** Who multiplies and solves. Default: plainly, in doubles. */
  readonly algebra?: Algebra;
}

/** From the published strength to one that changes little. */
export const RIDGES: readonly number[] = [0.01, 0.3];
/** No entry weighs less. */
const LEAST_WEIGHT = 1e-3;
const GRADIENT_STEPS = 60;
/** Of the references one in so many is held out. */
export const HELD_OUT = 4;
/** The part of the held-out references whose errors are compared: the worst twentieth. */
const WORST = 0.05;
/** A refit must better the worst errors by this much, so that it isn't chosen for noise. */
const MUST_WIN = 0.98;
/** And leave less than this part of a mean output unexplained. Measured: bench/results/refit.md. */
const MOST_LEFT = 0.5;

/**
 * The refit of one KV head, or undefined where the head is better left alone: too few references for its entries, no solution, or no win
 * on those held out. O(t² · references) for each ridge.
 * @throws RangeError when a shape doesn't fit.
 */
export function refitHead(
  kept: KeptRows,
  references: HeadReferences,
  headDim: number,
  settings: RefitSettings,
): RefittedHead | undefined {
  checkShapes(kept, references, headDim);
  const { refit, ridges = RIDGES, defensive = true, mostLeft = MOST_LEFT, algebra = PLAIN_ALGEBRA } = settings;
  if (references.logSumExp.length < 2 * HELD_OUT || kept.keys.length === 0) return undefined;
  const all = Samples.of(kept, references, headDim, algebra);
  if (!defensive) {
    const weights = fitWeights(all, refit, ridges[0]), [fitted] = weights ? fitValues(all, weights, [ridges[0]]) : [];
    return fitted && rounded(fitted, worstError(all, all.untouched()), worstError(all, fitted));
  }
  const [training, held] = all.split(HELD_OUT);
  if (training.count < training.kept) return undefined;
  const before = worstError(held, held.untouched()), weights = fitWeights(training, refit, ridges[0]);
  let best: Candidate | undefined, least = Math.min(before * MUST_WIN, mostLeft);
  const consider = (candidate: Candidate) => {
    const error = worstError(held, candidate);
    if (error < least) [best, least] = [candidate, error];
  };
  if (weights) fitValues(training, weights, ridges).forEach(consider);
  if (!best) return undefined;
  const plain: Candidate = best;
  fitValues(training, plain.weights, [plain.ridge], towardsWorst(training.errors(plain))).forEach(consider);
  consider(halfWay(training, plain));
  return rounded(best, before, least);
}

/** The worst held-out error that a head is left with, and whether that is after a refit. */
export function refitOrLeave(
  kept: KeptRows,
  references: HeadReferences,
  headDim: number,
  settings: RefitSettings,
): { readonly error: number; readonly refitted: boolean } {
  const refitted = refitHead(kept, references, headDim, settings);
  if (refitted) return { error: refitted.after, refitted: true };
  if (references.logSumExp.length < HELD_OUT) return { error: 0, refitted: false };
  const [, held] = Samples.of(kept, references, headDim, settings.algebra ?? PLAIN_ALGEBRA).split(HELD_OUT);
  return { error: worstError(held, held.untouched()), refitted: false };
}

/** B, `[t]`, and values, `[t, headDim]`. */
interface Candidate {
  readonly weights: Float64Array;
  readonly values: Float64Array;
  readonly ridge: number;
}

/** New values with each ridge that has a solution. `roots` of what each reference weighs. */
function fitValues(
  samples: Samples,
  weights: Float64Array,
  ridges: readonly number[],
  roots?: Float64Array,
): Candidate[] {
  const { kept, count, algebra: { products, solve } } = samples, shares = samples.shares(weights);
  const [x, y] = roots ? [weighed(shares, roots), weighed(samples.outputs, roots)] : [shares, samples.outputs];
  const matrix = products(x, x, count), target = products(x, y, count), unit = meanDiagonal(matrix, kept);
  return ridges.flatMap((ridge) => {
    const values = solve(matrix, kept, ridge * unit, target.map((sum, i) => sum + ridge * unit * samples.values[i]));
    return values ? [{ weights, values, ridge }] : [];
  });
}

/** B; 1 where values alone are fitted. */
function fitWeights(
  { probabilities, kept, count, algebra, nothing }: Samples,
  refit: RefitSettings["refit"],
  ridge: number,
) {
  const { products, solve, boundedLeastSquares } = algebra;
  const ones = nothing.map((share) => 1 - share);
  if (refit === "values") return new Float64Array(kept).fill(1);
  const matrix = products(probabilities, probabilities, count), strength = ridge * meanDiagonal(matrix, kept);
  const target = products(probabilities, ones, count).map((sum) => sum + strength);
  const start = solve(matrix, kept, strength, target);
  if (!start) return undefined;
  for (let i = 0; i < kept; i++) matrix[i * kept + i] += strength;
  return boundedLeastSquares(matrix, target, start, { least: LEAST_WEIGHT, steps: GRADIENT_STEPS });
}

/** A step of half the length: the geometric mean of the weights, the mean of the values. */
function halfWay({ values: old }: Samples, { weights, values, ridge }: Candidate): Candidate {
  return { weights: weights.map(Math.sqrt), values: values.map((x, i) => (x + old[i]) / 2), ridge };
}

/** Roots of weights that grow with a reference's error, mean 1: re-weighted least squares towards the fourth power. */
export function towardsWorst(errors: Float64Array): Float64Array {
  const squares = errors.map((error) => error * error), mean = meanOf(squares);
  if (!(mean > 0)) return new Float64Array(errors.length).fill(1);
  const capped = squares.map((square) => Math.min(100, square / mean) + 0.1), scale = meanOf(capped);
  return capped.map((weight) => Math.sqrt(weight / scale));
}

/** Mean of the worst part of the errors. */
function worstError(samples: Samples, candidate: Candidate): number {
  const errors = samples.errors(candidate).sort();
  return meanOf(errors.subarray(Math.min(errors.length - 1, Math.floor(errors.length * (1 - WORST)))));
}

function meanOf(numbers: Float64Array): number {
  return numbers.reduce((sum, x) => sum + x, 0) / numbers.length;
}

function rounded({ weights, values }: Candidate, before: number, after: number): RefittedHead {
  return { values: Float32Array.from(values), bias: Float32Array.from(weights, ln), before, after };
}

/** References of one head beside its kept entries. */
class Samples {
  readonly kept: number;
  readonly count: number;
  readonly headDim: number;
  /** `[kept, count]`. */
  readonly probabilities: Float64Array;
  /** `[headDim, count]`. */
  readonly outputs: Float64Array;
  /** `[kept, headDim]`, the old ones. */
  readonly values: Float64Array;
  /** `[count]`. */
  readonly nothing: Float64Array;
  readonly algebra: Algebra;
  /** Mean norm of the outputs. */
  readonly #unit: number;

  constructor(given: Pick<Samples, "headDim" | "probabilities" | "outputs" | "values" | "nothing" | "algebra">) {
    const { headDim, probabilities, outputs, values, nothing, algebra } = given;
    this.headDim = headDim;
    this.kept = values.length / headDim;
    this.count = outputs.length / headDim;
    this.probabilities = probabilities;
    this.outputs = outputs;
    this.values = values;
    this.nothing = nothing;
    this.algebra = algebra;
    this.#unit = meanOf(norms(outputs, this.count)) || 1;
  }

  static of({ keys, values }: KeptRows, references: HeadReferences, headDim: number, algebra: Algebra): Samples {
    return new Samples({
      headDim,
      algebra,
      values: new Float64Array(values),
      outputs: transposed(new Float64Array(references.outputs), headDim),
      probabilities: probabilitiesOf(keys, references, headDim, algebra),
      nothing: references.nothing ?? new Float64Array(references.logSumExp.length),
    });
  }

  /** What is fitted on, and one in `every` that is held out. */
  split(every: number): [Samples, Samples] {
    const of = (held: boolean) => {
      const chosen = Array.from({ length: this.count }, (_, s) => s).filter((s) => (s % every === every - 1) === held);
      return this.#some(chosen);
    };
    return [of(false), of(true)];
  }

  #some(chosen: readonly number[]): Samples {
    const { count } = this;
    const pick = (matrix: Float64Array) => {
      const some = new Float64Array(matrix.length / count * chosen.length);
      for (let start = 0, to = 0; start < matrix.length; start += count) {
        for (const s of chosen) some[to++] = matrix[start + s];
      }
      return some;
    };
    const { headDim, values, algebra } = this;
    return new Samples({
      headDim,
      values,
      algebra,
      probabilities: pick(this.probabilities),
      outputs: pick(this.outputs),
      nothing: pick(this.nothing),
    });
  }

  /** No bias, the old values. */
  untouched(): Candidate {
    return { weights: new Float64Array(this.kept).fill(1), values: this.values, ridge: 0 };
  }

  /** Softmax over the kept entries with ln `weights` added, and nothing, `[kept, count]`. A reference that sees none of them has none. */
  shares(weights: Float64Array): Float64Array {
    const { kept, count, probabilities } = this, shares = new Float64Array(kept * count), sums = this.nothing.slice();
    for (let j = 0, i = 0; j < kept; j++) {
      for (let s = 0; s < count; s++, i++) sums[s] += shares[i] = probabilities[i] * weights[j];
    }
    for (let s = 0; s < count; s++) sums[s] = sums[s] > 0 ? 1 / sums[s] : 0;
    return weighed(shares, sums);
  }

  /** ‖y − ŷ‖₂ of every reference, in units of the mean output. */
  errors({ weights, values }: Candidate): Float64Array {
    const { kept, count, headDim, outputs, algebra } = this;
    const given = algebra.products(transposed(values, headDim), transposed(this.shares(weights), count), kept);
    for (let i = 0; i < given.length; i++) given[i] -= outputs[i];
    return norms(given, count).map((off) => off / this.#unit);
  }
}

/** ‖·‖₂ of every column of `[rows, count]`. */
function norms(matrix: Float64Array, count: number): Float64Array {
  const squares = new Float64Array(count);
  for (let at = 0; at < matrix.length;) for (let s = 0; s < count; s++, at++) squares[s] += matrix[at] * matrix[at];
  return squares.map(Math.sqrt);
}

/** exp(q·k/√d − ℓ), `[kept, count]`. */
export function probabilitiesOf(
  keys: Float32Array,
  { queries, logSumExp }: HeadReferences,
  headDim: number,
  { products }: Algebra,
): Float64Array {
  const count = logSumExp.length, scale = 1 / Math.sqrt(headDim);
  const dots = products(new Float64Array(keys), new Float64Array(queries), headDim);
  for (let at = 0; at < dots.length;) {
    for (let s = 0; s < count; s++, at++) dots[at] = exp(dots[at] * scale - logSumExp[s]);
  }
  return dots;
}

function checkShapes({ keys, values }: KeptRows, references: HeadReferences, headDim: number): void {
  const { queries, outputs, logSumExp } = references, count = logSumExp.length;
  if (keys.length % headDim !== 0 || keys.length !== values.length) {
    throw new RangeError(`Cannot refit ${keys.length} floats of keys and ${values.length} of values`);
  }
  if (queries.length !== count * headDim || outputs.length !== queries.length) {
    throw new RangeError(`Cannot refit by ${count} references with ${queries.length} and ${outputs.length} floats`);
  }
}
