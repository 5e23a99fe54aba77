/**
 * Elastic Cache's second stage (arXiv 2407.18121): while an answer is generated no score is updated, and what goes is
 * always at one fixed place, a little before the end of what the context left. So the beginning of the context stays, and
 * the newest tokens.
 */
import type { StepRule } from "./rule.ts";

/** The place, in entries before the end of the compressed context, as published (`distance` −25). */
export const FIXED_DISTANCE = 25;

export const fixedPoint: StepRule = {
  name: "fixed-point",
  summary: "Keeps the context's beginning and the newest: what goes is at a fixed place before the context's end",
  paper: "Liu et al. 2024, arXiv 2407.18121 (Elastic Cache)",
  difference: "the context ends before the question; evicts to 90 % instead of one a step",
  headReduction: "none",
  statistics: 0,
  update() {},
  // Deleting at one place again and again is deleting the run that begins there.
  scores: (_, entries, began) => {
    const at = Math.max(0, began - FIXED_DISTANCE);
    return Float32Array.from({ length: entries }, (_, i) => i < at ? entries + at - i : i - at);
  },
};
