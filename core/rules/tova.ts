/** What the last query looks at. Oren et al. 2024, arXiv 2401.06104. */
import type { StepRule } from "./rule.ts";

export const tova: StepRule = {
  name: "tova",
  summary: "Keeps what the last query looks at most",
  paper: "Oren et al. 2024, arXiv 2401.06104",
  difference: "mean over the heads of a group instead of all heads of the layer; evicts to 90 % instead of one a step",
  headReduction: "mean",
  statistics: 1,
  update([last], probabilities) {
    last.set(probabilities);
  },
  scores: ([last], entries) => Float32Array.from(last.subarray(0, entries)),
};
