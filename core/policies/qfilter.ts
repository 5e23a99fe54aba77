/**
 * How far a key lies along the direction that queries of its head share. Q-Filters, Godey et al. 2025, arXiv 2503.02812.
 *
 * For each query head the first principal direction u of its queries, signed so that they lie along it on average;
 * score[g, i] = mean over the group of u · k_i. The paper finds u once for a model, from calibration texts, with an SVD:
 * `statistics=calibrated`. By default ours finds it in the context's own queries. u is an eigenvector of their second
 * moments, so an SVD needs no queries, only sums. The published filters are −u and the published score is minus their
 * product with the keys (NathanGodey/qfilters, `make_filters.py`, where u lies along most queries instead of their mean);
 * keys come after RoPE there. So here queries are turned by the mean rotation over the next `future` positions first. No
 * attention is looked at.
 */
import { groupScores, rowDots } from "../measure/groups.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { FUTURE, RECENT, SINKS, STATISTICS, statisticsNeed } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

/** Rounds of the power iteration; the first direction stands far above the second where the method works at all. */
const ROUNDS = 64;

export const qfilter = definePolicy({
  name: "qfilter",
  parameters: [
    FUTURE,
    SINKS,
    RECENT,
    { ...STATISTICS, later: true },
  ],
  needs(values) {
    const { need, file } = statisticsNeed(values);
    return { rows: true, queryStatistics: need, file };
  },
  allocate: { kind: "head" },
  score: (observation) => {
    const { keys, length, shape } = observation;
    const scoresOf = (head: number, first: number) => rowDots(keys, first, length, direction(observation, head));
    return { scores: groupScores(shape, length, scoresOf) };
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
    vector = unit(rowDots(covariance, 0, headDim, vector).map((dot, a) => along * mean[a] + dot));
  }
  return dotOf(mean, vector) < 0 ? vector.map((x) => -x) : vector;
}

function unit(vector: Float64Array): Float64Array {
  const norm = Math.sqrt(dotOf(vector, vector));
  return norm > 0 ? vector.map((x) => x / norm) : vector.fill(0);
}

function dotOf(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return rowDots(a, 0, 1, b)[0];
}
