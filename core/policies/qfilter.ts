/**
 * How far a key lies along the direction that queries of its head share. Q-Filters, Godey et al. 2025, arXiv 2503.02812.
 *
 * For each query head the first principal direction u of its queries, signed so that they lie along it on average;
 * score[g, i] = mean over the group of u · k_i. The paper finds u once for a model, from calibration texts, with an SVD.
 * Ours finds it in the context's own queries, as they will be turned over the next `future` positions: nothing to fit
 * beforehand, and no file that may belong to another model. No attention is looked at.
 */
import { definePolicy, type Observed } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

/** Rounds of the power iteration; the first direction stands far above the second where the method works at all. */
const ROUNDS = 64;

export const qfilter = definePolicy({
  name: "qfilter",
  parameters: [
    {
      name: "future",
      type: "integer",
      default: 512,
      min: 1,
      max: 65536,
    },
    SINKS,
    RECENT,
  ],
  needs: ({ sinks, future }) => ({ rows: true, queryStatistics: { sinks, future } }),
  allocate: { kind: "head" },
  score: (observation) => {
    const { keys, length, shape: { heads, kvHeads, headDim } } = observation, group = heads / kvHeads;
    const scores = new Float32Array(kvHeads * length);
    for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
      const filter = new Float64Array(headDim);
      for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
        direction(observation, head).forEach((x, d) => filter[d] += x / group);
      }
      for (let i = 0; i < length; i++) {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += filter[d] * keys[(kvHead * length + i) * headDim + d];
        scores[kvHead * length + i] = dot;
      }
    }
    return { scores };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps the keys that lie furthest along their queries' first principal direction",
  paper: "Godey et al. 2025, arXiv 2503.02812",
  source: "NVIDIA/kvpress 00a150c, kvpress/presses/qfilter_press.py",
};

/** The first eigenvector of C + μμᵀ, of length 1, along μ: by power iteration from μ. Zeros where queries are zero. */
export function direction(
  { queryMean, queryCovariance, shape: { headDim } }: Observed<"queryMean" | "queryCovariance">,
  head: number,
): Float64Array {
  const mean = queryMean.subarray(head * headDim, (head + 1) * headDim);
  const covariance = queryCovariance.subarray(head * headDim ** 2, (head + 1) * headDim ** 2);
  // Not μ alone: where it is no part of the first direction, the iteration would never find it.
  let vector = unit(Float64Array.from(mean, (x, d) => x + 1e-3 * Math.sqrt(Math.max(0, covariance[d * headDim + d]))));
  for (let round = 0; round < ROUNDS; round++) {
    const along = dotOf(mean, vector);
    vector = unit(vector.map((_, a) => {
      let sum = along * mean[a];
      for (let b = 0; b < headDim; b++) sum += covariance[a * headDim + b] * vector[b];
      return sum;
    }));
  }
  return dotOf(mean, vector) < 0 ? vector.map((x) => -x) : vector;
}

function unit(vector: Float64Array): Float64Array {
  const norm = Math.sqrt(dotOf(vector, vector));
  return norm > 0 ? vector.map((x) => x / norm) : vector.fill(0);
}

function dotOf(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let d = 0; d < a.length; d++) sum += a[d] * b[d];
  return sum;
}
