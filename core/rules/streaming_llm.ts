/** The most recent entries; the first ones are protected by the cache. Xiao et al. 2023, arXiv 2309.17453. */
import type { StepRule } from "./rule.ts";

export const streamingLlmRule: StepRule = {
  name: "streaming-llm",
  summary: "Keeps the most recent",
  paper: "Xiao et al. 2023, arXiv 2309.17453",
  difference: "positions are the paper's only with re-rotated positions; evicts to 90 % instead of one a step",
  headReduction: "none",
  statistics: 0,
  update() {},
  scores: (_, entries) => Float32Array.from({ length: entries }, (_, i) => i),
};
