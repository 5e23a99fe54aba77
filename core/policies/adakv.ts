/**
 * Heads of a layer compete for the layer's budget, over any scorer; each head is sure of a share. Ada-KV, Feng et al.
 * 2024, arXiv 2407.11550.
 *
 * The `trunc(n · safeguard)` best entries of every head are safe; the rest of kvHeads × n go by score. The published
 * code sets safe scores to the largest float; a mask says the same without touching the scores.
 */
import { defineWrapper } from "../policy/define.ts";
import { parameter } from "../policy/parameters.ts";
import type { Budget, LayerScores, PolicyAbout } from "../policy/policy.ts";
import { segmentsOf } from "../select/allocate.ts";
import { selectTop } from "../select/select.ts";

/** Share of a head's even budget that it can't lose. 0.2: kvpress; the paper's own code has 0.5. */
export const SAFEGUARD = parameter({
  name: "safeguard",
  type: "number",
  default: 0.2,
  min: 0,
  max: 1,
});

export const adakv = defineWrapper({
  name: "adakv",
  parameters: [SAFEGUARD],
  reference: true,
  over: "snapkv",
  allocate: { kind: "layer", fromHeads: true },
  rescore: (layer, _, budget, { safeguard }) => safeguarded(layer, budget, safeguard),
});

export const about: PolicyAbout = {
  summary: "Lets the heads of a layer compete over any scorer's scores",
  paper: "Feng et al. 2024, arXiv 2407.11550",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/adakv_press.py",
  reference: "the published scorer below it, and trunc budgets",
};

/** Scores of which some entries are safe. */
export type Safeguarded = LayerScores & Required<Pick<LayerScores, "protectedEntries">>;

/** The same scores with the best `trunc(n · share)` entries of every head protected as well. */
export function safeguarded(layer: LayerScores, { model, length, perHead }: Budget, share: number): Safeguarded {
  const protectedEntries = layer.protectedEntries?.slice() ?? new Uint8Array(layer.scores.length);
  segmentsOf(layer, model.kvHeads, length).forEach((segment, head) => {
    const [safe] = selectTop({ segments: [segment], count: Math.trunc((layer.counts?.[head] ?? perHead) * share) });
    for (const i of safe) protectedEntries[head * length + i] = 1;
  });
  return { scores: layer.scores, second: layer.second, protectedEntries, counts: layer.counts };
}
