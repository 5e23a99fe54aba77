/**
 * Heavy hitters: the attention an entry has received so far. Zhang et al. 2023, arXiv 2306.14048, algorithm 1.
 *
 * `h2o` sums, as the paper does; old entries have had more queries to collect from. `h2o-normalised` divides by the
 * queries that could see the entry, its own included, as kvpress does for whole prompts.
 */
import { average, type StepRule } from "./rule.ts";

export const h2o: StepRule = {
  name: "h2o",
  summary: "Keeps what has received the most attention in all",
  paper: "Zhang et al. 2023, arXiv 2306.14048",
  difference: "counts from the question on, the context's own queries left out; evicts to 90 % instead of one a step",
  headReduction: "mean",
  statistics: 1,
  update([sums], probabilities) {
    for (let i = 0; i < probabilities.length; i++) sums[i] += probabilities[i];
  },
  scores: ([sums], entries) => Float32Array.from(sums.subarray(0, entries)),
};

export const h2oNormalised: StepRule = {
  ...h2o,
  name: "h2o-normalised",
  summary: "Keeps what has received the most attention per query that could see it",
  statistics: 2,
  update([sums, counts], probabilities) {
    for (let i = 0; i < probabilities.length; i++) {
      sums[i] += probabilities[i];
      counts[i]++;
    }
  },
  scores: ([sums, counts], entries) => Float32Array.from({ length: entries }, (_, i) => average(sums, counts, i)),
};
