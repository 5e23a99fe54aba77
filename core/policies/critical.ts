/**
 * Half of each head by any scorer's scores, the other half by score and the value's way through the output projection.
 * CriticalKV, Feng et al. 2025, arXiv 2502.03805.
 *
 * Stage 1: the `first` share of a head's count stays by score. Stage 2: the others go by (score + 1e−4) · ‖v·Wo‖₁,
 * meaned over the group. Only the scorer's scores and counts are taken over: heads never compete here
 * (`critical-adakv` lets them). Over `expected-attention` use `norm=off`, or value norms count twice. Ours differs from
 * the published code: stage 1 and what the scorer protects are a mask, not the largest float, which overflows in half
 * precision when it is multiplied.
 */
import { segmentsOf } from "../select/allocate.ts";
import { defineWrapper } from "../policy/define.ts";
import type { Budget, LayerScores, PolicyAbout, PolicyMode } from "../policy/policy.ts";
import { selectTop } from "../select/select.ts";
import { CRITICAL_EPSILON, FIRST } from "./critical_adakv.ts";

export const critical = defineWrapper({
  name: "critical",
  parameters: [FIRST],
  reference: true,
  over: "snapkv",
  needs: { valueNorms: "l1" },
  allocate: { kind: "head" },
  rescore: (layer, { valueNorms }, budget, { first }, mode) =>
    weighed(layer, budget, valueNorms, stageOneSizes(layer, budget, mode, first)),
});

export const about: PolicyAbout = {
  summary: "Any scorer's scores, half of each head decided by value norms",
  paper: "Feng et al. 2025, arXiv 2502.03805",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/criticalkv_press.py",
  reference: "the published scorer below it, trunc budgets, stage 1 = trunc(L·(1−r)·first)",
};

/** Entries of each head that stay by score, `[kvHeads]`. */
function stageOneSizes({ counts }: LayerScores, budget: Budget, mode: PolicyMode, first: number): number[] {
  const { fraction, length, perHead, model } = budget;
  return Array.from({ length: model.kvHeads }, (_, head) => {
    if (mode === "reference" && !counts) return Math.trunc(fraction * length * first);
    return Math.trunc((counts?.[head] ?? perHead) * first);
  });
}

function weighed(layer: LayerScores, budget: Budget, norms: Float32Array, sizes: readonly number[]): LayerScores {
  const { model, length } = budget;
  const protectedEntries = layer.protectedEntries?.slice() ?? new Uint8Array(layer.scores.length);
  segmentsOf(layer, model.kvHeads, length).forEach((segment, head) => {
    const [stageOne] = selectTop({ segments: [segment], count: sizes[head] });
    for (const i of stageOne) protectedEntries[head * length + i] = 1;
  });
  const scores = layer.scores.map((score, i) => (score + CRITICAL_EPSILON) * norms[i]);
  return { scores, protectedEntries, counts: layer.counts };
}
