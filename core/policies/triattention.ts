/**
 * What queries to come would look at if each were its head's mean query, and each pair of RoPE counted by itself.
 * TriAttention, arXiv 2604.04921.
 *
 * Per pair f, before RoPE: c = E[q_f] as a complex number, a = E|q_f|. A key k at position p, seen from behind the end P:
 * score = Σ_f m² · |k_f| · (|c| · mean over d of cos(ω_f (P − p + d) + arg(c · k̄_f)) + a − |c|), d = 1, 2, 4, … `future`;
 * the largest of the group. m is what RoPE multiplies by (YaRN). The first part is a dot product of the key as it is cached
 * with the mean query, turned by the mean rotation over all d (`core/measure/query_statistics.ts`), so no key is turned back.
 * What RoPE doesn't turn are pairs with ω = 0. c and a are of the context's own queries; of calibration texts, as published,
 * with `statistics=calibrated`. Ours differs from the published code: sinks and the last tokens survive, and nothing is
 * evicted in rounds while decoding.
 */
import { groupScores, rowDots } from "../measure/groups.ts";
import { pairLength } from "../measure/query_statistics.ts";
import { definePolicy } from "../policy/define.ts";
import { FUTURE, RECENT, SINKS, STATISTICS, statisticsNeed } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

export const triattention = definePolicy({
  name: "triattention",
  parameters: [
    { ...FUTURE, default: 65536 },
    { name: "normalise", type: "text", default: "off", choices: ["off", "heads"] },
    SINKS,
    RECENT,
    STATISTICS,
  ],
  needs(values) {
    const { need, file } = statisticsNeed(values);
    return { rows: true, pairStatistics: need, file };
  },
  allocate: { kind: "head" },
  score: ({ keys, pairs, pairMean, pairRest, length, shape }, _, { normalise }) => {
    const { headDim } = shape;
    const scoresOf = (head: number, first: number) => {
      const dots = rowDots(keys, first, length, pairMean.subarray(head * headDim, (head + 1) * headDim));
      const scores = dots.map((dot, i) => {
        return pairs.reduce((sum, pair, f) => {
          return sum + pairRest[head * pairs.length + f] * pairLength(keys, (first + i) * headDim, pair);
        }, dot);
      });
      return normalise === "heads" ? standardised(scores) : scores;
    };
    return { scores: groupScores(shape, length, scoresOf, "max") };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what the mean query would look at over the distances to come, pair by pair of RoPE",
  paper: "Mao et al. 2026, arXiv 2604.04921",
  source: "WeianMao/triattention 092e4dc, triattention/methods/pruning_utils.py",
  help: {
    future: "largest of the distances 1, 2, 4, … that are meaned over",
    normalise: "whether each query head's scores are brought to mean 0 and variance 1 before the largest is taken",
  },
};

/** Brought to mean 0 and variance 1; zeros where all are alike. */
function standardised(scores: Float64Array): Float64Array {
  const meanOf = (values: Float64Array) => values.reduce((sum, x) => sum + x, 0) / values.length;
  const mean = meanOf(scores), deviation = Math.sqrt(meanOf(scores.map((x) => (x - mean) ** 2)));
  return scores.map((x) => (x - mean) / Math.max(1e-6, deviation));
}
