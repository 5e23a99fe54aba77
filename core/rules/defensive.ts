/**
 * The defensive rule, step by step: the most attention an entry has ever received from one query of one head, where
 * the others take means. After DefensiveKV, arXiv 2510.13334, which has no rule for decoding: this is ours. The paper's
 * floor, the mean risk of the head, is left out: heads don't compete here, and inside one it changes no order.
 */
import type { StepRule } from "./rule.ts";

export const defensiveRule: StepRule = {
  name: "defensive",
  summary: "Keeps what some query of some head has needed most (running maximum)",
  paper: "ours, after Feng et al. 2025, arXiv 2510.13334",
  difference: "the paper evicts before decoding only; no pooling, no value norms, no floor",
  headReduction: "max",
  statistics: 1,
  update([maxima], probabilities) {
    for (let i = 0; i < probabilities.length; i++) maxima[i] = Math.max(maxima[i], probabilities[i]);
  },
  scores: ([maxima], entries) => Float32Array.from(maxima.subarray(0, entries)),
};
