/**
 * The first tokens and the most recent ones. Xiao et al. 2023, arXiv 2309.17453.
 *
 * Ours scores by recency and protects the sinks. `@reference` gives the sinks and the recent part 1 and the middle 0,
 * as kvpress does. Positions stay true ones in both; the paper's are relative to the cache.
 */
import { SINKS } from "../policy/parameters.ts";
import type { Budget, LayerScores, PolicyEntry } from "../policy/policy.ts";
import { protectEnds } from "../select/protect.ts";

export const streamingLlm: PolicyEntry = {
  name: "streaming-llm",
  summary: "Keeps the first tokens and the most recent ones",
  paper: "Xiao et al. 2023, arXiv 2309.17453",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/streaming_llm_press.py",
  parameters: [SINKS],
  reference: "scores 1 and 0 instead of recency; the same set unless the budget is below the sinks",
  create: (values, mode) => {
    const sinks = Number(values.sinks);
    return {
      name: mode === "ours" ? "streaming-llm" : "streaming-llm@reference",
      parameters: values,
      needs: {},
      scope: "head",
      arithmetic: mode === "ours" ? "floor" : "reference",
      sinks,
      window: mode === "ours" ? 1 : 0,
      score: (_, budget) => mode === "ours" ? recency(budget) : ends(budget, sinks),
    };
  },
};

/** Score = position; `[kvHeads, L]`. */
function recency(budget: Budget): LayerScores {
  const { model, length } = budget;
  const scores = Float32Array.from({ length: model.kvHeads * length }, (_, i) => i % length);
  return { scores, protectedEntries: protectEnds(budget) };
}

/** Score 0 for the `L − n` positions after the sinks, 1 elsewhere; `[kvHeads, L]`. */
function ends({ model, length, perHead }: Budget, sinks: number): LayerScores {
  const lastOut = sinks + length - perHead;
  const scores = Float32Array.from({ length: model.kvHeads * length }, (_, i) => {
    const position = i % length;
    return position >= sinks && position < lastOut ? 0 : 1;
  });
  return { scores };
}
