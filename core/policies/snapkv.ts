/**
 * What the last queries attend to on average, smoothed over positions. Li et al. 2024, arXiv 2404.14469.
 *
 * score[g, i] = average pool over i of (mean over the window's queries and the group of the attention on i).
 * Like kvpress, ours means over the group and over the window (the paper's code sums: the same order).
 */
import { poolHeads } from "../measure/pool.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { appendWindow, largest } from "../select/protect.ts";

export const snapkv = definePolicy({
  name: "snapkv",
  parameters: [WINDOW, KERNEL, { ...SINKS, oursOnly: true }],
  reference: true,
  needs: { window: ["mean"] },
  allocate: { kind: "head" },
  score: (observation, _, { kernel }) => ({ scores: snapScores(observation, kernel) }),
});

export const about: PolicyAbout = {
  summary: "Keeps what the last queries attend to on average, per head",
  paper: "Li et al. 2024, arXiv 2404.14469",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/snapkv_press.py",
  reference: "no sinks; the window scores the layer's maximum + 1 and never shrinks, so a budget below it cuts into it",
  help: {
    window: "last tokens that are observed and never evicted",
  },
};

/** SnapKV's scores, `[kvHeads, L]`: plain pooling, not scaled back to each row's mass; the window at maximum + 1. */
export function snapScores({ mean, window, shape: { kvHeads } }: Observed<"mean">, kernel: number): Float32Array {
  const prefix = poolHeads(mean, kvHeads, kernel);
  return appendWindow(prefix, kvHeads, window, largest(prefix) + 1);
}
