/**
 * The first tokens and the most recent ones. Xiao et al. 2023, arXiv 2309.17453.
 *
 * Ours scores by recency and protects the sinks. `@reference` gives the sinks and the recent part 1 and the middle 0,
 * as kvpress does. Positions stay true ones in both; the paper's are relative to the cache.
 */
import { definePolicy } from "../policy/define.ts";
import { SINKS } from "../policy/parameters.ts";
import type { Budget, PolicyAbout } from "../policy/policy.ts";

export const streamingLlm = definePolicy({
  name: "streaming-llm",
  parameters: [SINKS],
  reference: true,
  needs: {},
  allocate: { kind: "head" },
  ends: ({ sinks }, mode) => ({ sinks, window: mode === "ours" ? 1 : 0 }),
  score: (_, budget, { sinks }, mode) => ({
    scores: mode === "ours" ? recency(budget) : sinksAndRecent(budget, sinks),
  }),
});

export const about: PolicyAbout = {
  summary: "Keeps the first tokens and the most recent ones",
  paper: "Xiao et al. 2023, arXiv 2309.17453",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/streaming_llm_press.py",
  reference: "scores 1 and 0 instead of recency; the same set unless the budget is below the sinks",
};

/** Score = position; `[kvHeads, L]`. */
function recency({ model, length }: Budget): Float32Array {
  return Float32Array.from({ length: model.kvHeads * length }, (_, i) => i % length);
}

/** Score 0 for the `L − n` positions after the sinks, 1 elsewhere; `[kvHeads, L]`. */
function sinksAndRecent({ model, length, perHead }: Budget, sinks: number): Float32Array {
  const lastOut = sinks + length - perHead;
  return Float32Array.from({ length: model.kvHeads * length }, (_, i) => {
    const position = i % length;
    return position >= sinks && position < lastOut ? 0 : 1;
  });
}
