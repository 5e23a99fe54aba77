/**
 * Ada-KV budgets, then the value's way through the output projection decides the second half of each head. CriticalKV,
 * Feng et al. 2025, arXiv 2502.03805.
 *
 * Head budgets b_g as in Ada-KV. Stage 1: the `trunc(b_g / 2)` best entries of a head stay. Stage 2: the others go by
 * (score + 1e−4) · ‖v·Wo‖₁ (meaned over the group). The published code marks stage 1 by the largest float, which
 * overflows in half precision when multiplied; a mask does not.
 */
import { segmentsOf, selectLayer } from "../select/allocate.ts";
import { defineWrapper } from "../policy/define.ts";
import { parameter } from "../policy/parameters.ts";
import type { Budget, LayerScores, PolicyAbout } from "../policy/policy.ts";
import { selectTop } from "../select/select.ts";
import { SAFEGUARD, type Safeguarded, safeguarded } from "./adakv.ts";

/** Keeps value norms in play where attention is 0. kvpress: without it golden sets miss an entry or two per layer. */
export const CRITICAL_EPSILON = 1e-4;

export const FIRST = parameter({
  name: "first",
  type: "number",
  default: 0.5,
  min: 0,
  max: 1,
});

export const criticalAdakv = defineWrapper({
  name: "critical-adakv",
  parameters: [SAFEGUARD, FIRST],
  reference: true,
  over: "snapkv",
  needs: { valueNorms: "l1" },
  allocate: { kind: "head", fromHeads: true },
  rescore: (layer, { valueNorms }, budget, { safeguard, first }) =>
    twoStages(safeguarded(layer, budget, safeguard), budget, valueNorms, first),
});

export const about: PolicyAbout = {
  summary: "Ada-KV head budgets, half of each decided by value norms",
  paper: "Feng et al. 2025, arXiv 2502.03805",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/critical_kv_press.py",
  reference: "the published scorer below it, and trunc budgets",
};

/** Scores `[kvHeads, L]` with stage 1 protected, stage 2 weighed by `norms`, and the head budgets as counts. */
function twoStages(layer: Safeguarded, budget: Budget, norms: Float32Array, first: number): LayerScores {
  const { model, length } = budget;
  const counts = Int32Array.from(selectLayer({ allocate: { kind: "layer" } }, budget, layer), (kept) => kept.length);
  const protectedEntries = layer.protectedEntries.slice();
  segmentsOf(layer, model.kvHeads, length).forEach((segment, head) => {
    const [stageOne] = selectTop({ segments: [segment], count: Math.trunc(counts[head] * first) });
    for (const i of stageOne) protectedEntries[head * length + i] = 1;
  });
  const scores = Float32Array.from(layer.scores, (score, i) => (score + CRITICAL_EPSILON) * norms[i]);
  return { scores, protectedEntries, counts };
}
