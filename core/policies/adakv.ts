/**
 * Heads of a layer compete for the layer's budget, over any scorer; each head is sure of a share. Ada-KV, Feng et al.
 * 2024, arXiv 2407.11550.
 *
 * The `trunc(n · safeguard)` best entries of every head are safe; the rest of kvHeads × n go by score. The published
 * code sets safe scores to the largest float; a mask says the same without touching the scores.
 */
import type { Budget, LayerScores, Parameter, PolicyEntry } from "../policy/policy.ts";
import { segmentsOf } from "../select/allocate.ts";
import { selectTop } from "../select/select.ts";

/** Share of a head's even budget that it can't lose. 0.2: kvpress; the paper's own code has 0.5. */
export const SAFEGUARD: Parameter = {
  name: "safeguard",
  type: "number",
  default: 0.2,
  min: 0,
  max: 1,
  help: "share of its even budget that every head is sure of",
};

export const adakv: PolicyEntry = {
  name: "adakv",
  summary: "Lets the heads of a layer compete over any scorer's scores",
  paper: "Feng et al. 2024, arXiv 2407.11550",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/adakv_press.py",
  parameters: [SAFEGUARD],
  reference: "the published scorer below it, and trunc budgets",
  over: "snapkv",
  create: (values, mode, scorer) => ({
    name: mode === "ours" ? "adakv" : "adakv@reference",
    parameters: values,
    needs: scorer!.needs,
    scope: "layer",
    arithmetic: mode === "ours" ? "floor" : "reference",
    perLayerFromHeads: true,
    ...(scorer!.uneven && { uneven: true }),
    sinks: scorer!.sinks,
    window: scorer!.window,
    score: (observation, budget) => safeguarded(scorer!.score(observation, budget), budget, Number(values.safeguard)),
  }),
};

/** The same scores with the best `trunc(n · share)` entries of every head protected as well. */
export function safeguarded(layer: LayerScores, { model, length, perHead }: Budget, share: number): LayerScores {
  const protectedEntries = layer.protectedEntries?.slice() ?? new Uint8Array(layer.scores.length);
  segmentsOf(layer, model.kvHeads, length).forEach((segment, head) => {
    const [safe] = selectTop({ segments: [segment], count: Math.trunc((layer.counts?.[head] ?? perHead) * share) });
    for (const i of safe) protectedEntries[head * length + i] = 1;
  });
  return { scores: layer.scores, second: layer.second, protectedEntries, counts: layer.counts };
}
