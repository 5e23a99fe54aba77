/**
 * Mean and standard deviation: entries whose attention varies most are spared, the rest goes by its mean.
 * Ren and Zhu 2024, arXiv 2402.06262; code DRSY/EasyKV, easykv/easykv.py.
 *
 * The published decode mode neither counts nor evicts the prompt. Ours counts it, and may evict it outside the protected
 * entries: a cap that leaves the prompt out is none. The number of queries is counted, not derived from the slot.
 */
import { average, type StepRule } from "./rule.ts";

/** Share of the entries with the largest standard deviation that is spared: EasyKV's fixed 0.3 in decode mode. */
const SPARED = 0.3;

export const roco: StepRule = {
  name: "roco",
  summary: "Spares the 30 % whose attention varies most, keeps the rest by mean attention",
  paper: "Ren and Zhu 2024, arXiv 2402.06262",
  difference: "counts the prompt and may evict it outside protected entries; evicts to 90 % instead of one a step",
  headReduction: "mean",
  statistics: 3,
  update([sums, squares, counts], probabilities) {
    for (let i = 0; i < probabilities.length; i++) {
      sums[i] += probabilities[i];
      squares[i] += probabilities[i] ** 2;
      counts[i]++;
    }
  },
  /** The mean, 0 … 1, plus 1 for the spared: above any mean. */
  scores(statistics, entries) {
    const scores = Float32Array.from({ length: entries }, (_, i) => average(statistics[0], statistics[2], i));
    const deviations = Float64Array.from(scores, (_, i) => deviation(statistics, i));
    // Stable, so that among equals the lower position is spared.
    const order = Array.from(scores.keys()).sort((a, b) => deviations[b] - deviations[a]);
    for (const i of order.slice(0, Math.floor(SPARED * entries))) scores[i] += 1;
    return scores;
  },
};

/** Rounding can make a variance slightly negative: that is 0. */
function deviation([sums, squares, counts]: readonly Float64Array[], i: number): number {
  return Math.sqrt(Math.max(0, average(squares, counts, i) - average(sums, counts, i) ** 2));
}
