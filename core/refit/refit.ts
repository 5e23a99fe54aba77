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
 * fourth reference is held out from new values at first, and a head where these don't serve the worst of the held-out
 * better than the old ones do keeps the old ones, without a bias. So does one that kept more entries than there are
 * references to fit them by. Where they do, the values are solved once more by all references.
 */
import { exp, ln } from "../measure/exp.ts";
import { type Algebra, meanDiagonal, meanOf, PLAIN_ALGEBRA, transposed, weigh } from "./linear.ts";

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
  /** What both ridges are, times the mean diagonal. Default {@link RIDGE}. */
  readonly ridge?: number;
  /** False: every head is refitted, as published; nothing is held out. Default true. */
  readonly defensive?: boolean;
  /** What part of the worst held-out error a refit may leave at most. Default {@link MOST_LEFT}. */
  readonly mostLeft?: number;
  /** Who multiplies and solves. Default: plainly, in doubles. */
  readonly algebra?: Algebra;
}

/** Measured: bench/results/refit.md. */
export const RIDGE = 0.003;
/** No entry weighs less. */
const LEAST_WEIGHT = 1e-3;
const GRADIENT_STEPS = 60;
/** Of the references one in so many is held out. */
const HELD_OUT = 4;
/** The part of the held-out references whose errors are compared: the worst twentieth. */
const WORST = 0.05;
/** A refit must win by more than noise. Measured: bench/results/refit.md. */
const MOST_LEFT = 0.98;

/**
 * The refit of one KV head, or undefined where the head is better left alone: too few references for its entries, no
 * solution, or no win on those held out. O(t² · references).
 * @throws RangeError when a shape doesn't fit.
 */
export function refitHead(
  kept: KeptRows,
  references: HeadReferences,
  headDim: number,
  settings: RefitSettings,
): RefittedHead | undefined {
  checkShapes(kept, references, headDim);
  const { refit, ridge = RIDGE, defensive = true, mostLeft = MOST_LEFT, algebra = PLAIN_ALGEBRA } = settings;
  if (references.logSumExp.length < 2 * HELD_OUT || kept.keys.length === 0) return undefined;
  const split = defensive ? splitReferences(references, headDim) : [references];
  if (defensive && split[0].logSumExp.length < kept.keys.length / headDim) return undefined;
  const parts = split.map((part) => Samples.of(kept, part, headDim, algebra));
  const [training] = parts, judges = parts.at(-1)!;
  const weights = fitWeights(parts, refit, ridge);
  if (!weights) return undefined;
  const before = worstError(judges, judges.untouched()), known = normalEquations(training, weights);
  const tried = solveValues(training, known, ridge), after = tried && worstError(judges, { weights, values: tried });
  if (after === undefined || !defensive) return tried && rounded({ weights, values: tried }, before, after!);
  if (!(after < before * mostLeft)) return undefined;
  const values = solveValues(training, sumOf(known, normalEquations(judges, weights)), ridge);
  return values && rounded({ weights, values }, before, after);
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
  const [, others] = splitReferences(references, headDim);
  const held = Samples.of(kept, others, headDim, settings.algebra ?? PLAIN_ALGEBRA);
  return { error: worstError(held, held.untouched()), refitted: false };
}

/** What is fitted on, and what is held out. */
function splitReferences(references: HeadReferences, headDim: number): HeadReferences[] {
  const all = Array.from(references.logSumExp, (_, s) => s);
  return [all.filter((s) => !isHeldOut(s)), all.filter(isHeldOut)].map((some) =>
    pickReferences(references, some, headDim)
  );
}

/** One reference in {@link HELD_OUT}, each time another of them, so that no query head of a group has them all. */
export function isHeldOut(reference: number): boolean {
  return (reference + Math.floor(reference / HELD_OUT)) % HELD_OUT === HELD_OUT - 1;
}

/** Some of the references. */
export function pickReferences(all: HeadReferences, chosen: readonly number[], headDim: number): HeadReferences {
  const rows = (from: Float32Array) => {
    const some = new Float32Array(chosen.length * headDim);
    chosen.forEach((s, i) => some.set(from.subarray(s * headDim, (s + 1) * headDim), i * headDim));
    return some;
  };
  const { nothing } = all;
  return {
    queries: rows(all.queries),
    outputs: rows(all.outputs),
    logSumExp: Float32Array.from(chosen, (s) => all.logSumExp[s]),
    ...(nothing && { nothing: Float64Array.from(chosen, (s) => nothing[s]) }),
  };
}

/** B, `[t]`, and values, `[t, headDim]`. */
interface Candidate {
  readonly weights: Float64Array;
  readonly values: Float64Array;
}

/** XᵀX, `[t, t]`, and XᵀY, `[t, headDim]`. */
interface NormalEquations {
  readonly matrix: Float64Array;
  readonly target: Float64Array;
}

function normalEquations(samples: Samples, weights: Float64Array): NormalEquations {
  const { count, outputs, algebra: { products } } = samples, x = samples.shares(weights);
  return { matrix: products(x, x, count), target: products(x, outputs, count) };
}

function sumOf(one: NormalEquations, other: NormalEquations): NormalEquations {
  const sum = (a: Float64Array, b: Float64Array) => a.map((x, i) => x + b[i]);
  return { matrix: sum(one.matrix, other.matrix), target: sum(one.target, other.target) };
}

/** V', towards the old values; undefined where there is no solution. */
function solveValues({ kept, values, algebra }: Samples, { matrix, target }: NormalEquations, ridge: number) {
  const strength = ridge * meanDiagonal(matrix, kept);
  return algebra.solve(matrix, kept, strength, target.map((sum, i) => sum + strength * values[i]));
}

/** B, by all of the parts; 1 where values alone are fitted. */
function fitWeights(parts: readonly Samples[], refit: RefitSettings["refit"], ridge: number) {
  const [{ kept, algebra: { products, solve, boundedLeastSquares } }] = parts;
  if (refit === "values") return new Float64Array(kept).fill(1);
  const { matrix, target } = parts.map(({ probabilities, count, nothing }): NormalEquations => ({
    matrix: products(probabilities, probabilities, count),
    target: products(probabilities, nothing.map((share) => 1 - share), count),
  })).reduce(sumOf);
  const strength = ridge * meanDiagonal(matrix, kept), towards = target.map((sum) => sum + strength);
  const start = solve(matrix, kept, strength, towards);
  if (!start) return undefined;
  for (let i = 0; i < kept; i++) matrix[i * kept + i] += strength;
  return boundedLeastSquares(matrix, towards, start, { least: LEAST_WEIGHT, steps: GRADIENT_STEPS });
}

/** Mean of the worst part of the errors. */
function worstError(samples: Samples, candidate: Candidate): number {
  const errors = samples.errors(candidate).sort();
  return meanOf(errors.subarray(Math.min(errors.length - 1, Math.floor(errors.length * (1 - WORST)))));
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

  /** No bias, the old values. */
  untouched(): Candidate {
    return { weights: new Float64Array(this.kept).fill(1), values: this.values };
  }

  /** Softmax over the kept entries with ln `weights` added, and nothing, `[kept, count]`. A reference that sees none of them has none. */
  shares(weights: Float64Array): Float64Array {
    const { kept, count, probabilities } = this, shares = new Float64Array(kept * count), sums = this.nothing.slice();
    for (let j = 0, i = 0; j < kept; j++) {
      for (let s = 0; s < count; s++, i++) sums[s] += shares[i] = probabilities[i] * weights[j];
    }
    for (let s = 0; s < count; s++) sums[s] = sums[s] > 0 ? 1 / sums[s] : 0;
    return weigh(shares, sums);
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
