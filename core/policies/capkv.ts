/**
 * How much of what a head can say hangs on an entry: its leverage among the values. CapKV, arXiv 2604.25975.
 *
 * For each query head, w_i = exp(τ · cos(k_i, μ) − the head's largest), μ the mean query as it will be turned over the next
 * `future` positions; A = I + Σ w_i v_i v_iᵀ; score[g, i] = w_i · v_iᵀ A⁻¹ v_i, mean over the group. The paper takes the
 * plain product k_i · μ; the cosine is the published port's, for numbers that stay finite. The sinks take no part. Ours
 * differs from the port in that the last tokens survive, and a context no longer than the sinks counts its last token.
 */
import { exp } from "../measure/exp.ts";
import { groupScores, rowDots } from "../measure/groups.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { FUTURE, RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { cholesky } from "../refit/linear.ts";
import { largest, protectSinks } from "../select/protect.ts";

/** Added to a weight before its root is taken. */
const EPSILON = 1e-6;
/** Least norm that is divided by: torch's default. */
const LEAST_NORM = 1e-12;

export const capkv = definePolicy({
  name: "capkv",
  parameters: [
    { name: "tau", type: "number", default: 5, min: 0, max: 100 },
    FUTURE,
    SINKS,
    RECENT,
  ],
  needs: ({ sinks, future }) => ({ rows: true, queryStatistics: { sinks, future } }),
  allocate: { kind: "head" },
  score: (observation, { length }, { sinks, tau }) => {
    const first = Math.min(sinks, length - 1), scores = capacities(observation, first, tau);
    protectSinks(scores, length, first);
    return { scores };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps the values that little else can say, weighed by how queries to come are aligned with their keys",
  paper: "CapKV, arXiv 2604.25975",
  source: "NVIDIA/kvpress 305a70f, kvpress/presses/cap_press.py",
  help: {
    tau: "how sharply keys are weighed",
  },
};

type Seen = Observed<"keys" | "values" | "queryMean">;

/** `[kvHeads, L]`, 0 on the sinks. */
function capacities(observation: Seen, first: number, tau: number): Float32Array {
  const { values, length, shape } = observation, { headDim } = shape;
  return groupScores(shape, length, (head, start) => {
    const rows = values.subarray(start * headDim, (start + length) * headDim);
    const weights = relevance(observation, head, { start, first, tau });
    return leverages(rows, headDim, weights, first).map((leverage, i) => weights[i] * leverage);
  });
}

/** w_i of one query head, `[L]`, 0 on the sinks. */
function relevance(
  { keys, queryMean, length, shape: { headDim } }: Seen,
  head: number,
  { start, first, tau }: { readonly start: number; readonly first: number; readonly tau: number },
): Float64Array {
  const query = queryMean.subarray(head * headDim, (head + 1) * headDim), norm = normOf(query, 0, headDim);
  const cosines = rowDots(keys, start, length, query).map((dot, i) => {
    const cosine = dot / (normOf(keys, (start + i) * headDim, headDim) * norm);
    return Math.max(-1, Math.min(1, cosine));
  });
  const most = largest(cosines.subarray(first), -Infinity);
  return cosines.map((cosine, i) => i < first ? 0 : exp(tau * (cosine - most)));
}

function normOf(all: ArrayLike<number>, at: number, count: number): number {
  let sum = 0;
  for (let j = at; j < at + count; j++) sum += all[j] * all[j];
  return Math.max(LEAST_NORM, Math.sqrt(sum));
}

/** vᵀ A⁻¹ v of every row from `first` on, `[L]`, as ‖L⁻¹ v‖² with A = L·Lᵀ; 0 where A is not finite. */
function leverages(values: Float32Array, headDim: number, weights: Float64Array, first: number): Float64Array {
  const matrix = new Float64Array(headDim * headDim), length = weights.length;
  for (let i = first; i < length; i++) {
    const weight = weights[i] + EPSILON, row = i * headDim;
    for (let a = 0; a < headDim; a++) {
      const by = weight * values[row + a];
      for (let b = 0; b <= a; b++) matrix[a * headDim + b] += by * values[row + b];
    }
  }
  const leverage = new Float64Array(length), lower = cholesky(matrix, headDim, 1);
  if (!lower) return leverage;
  const x = new Float64Array(headDim);
  for (let i = first; i < length; i++) {
    let square = 0;
    for (let a = 0; a < headDim; a++) {
      let rest = values[i * headDim + a];
      for (let b = 0; b < a; b++) rest -= lower[a * headDim + b] * x[b];
      x[a] = rest / lower[a * headDim + a];
      square += x[a] * x[a];
    }
    leverage[i] = square;
  }
  return leverage;
}
