/**
 * What the last queries attend to on average, smoothed over positions. Li et al. 2024, arXiv 2404.14469.
 *
 * score[g, i] = average pool over i of (mean over the window's queries and the group of the attention on i).
 * Like kvpress, ours means over the group and over the window (the paper's code sums: the same order).
 */
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { Observation, PolicyEntry } from "../policy/policy.ts";
import { poolHeads } from "../measure/pool.ts";
import { appendWindow, largest, protectEnds } from "../select/protect.ts";

export const snapkv: PolicyEntry = {
  name: "snapkv",
  summary: "Keeps what the last queries attend to on average, per head",
  paper: "Li et al. 2024, arXiv 2404.14469",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/snapkv_press.py",
  parameters: [WINDOW, KERNEL, { ...SINKS, oursOnly: true }],
  reference: "no sinks; the window scores the layer's maximum + 1 and never shrinks, so a budget below it cuts into it",
  create: (values, mode) => {
    const ours = mode === "ours";
    const kernel = Number(values.kernel);
    return {
      name: ours ? "snapkv" : "snapkv@reference",
      parameters: values,
      needs: { window: ["mean"] },
      scope: "head",
      arithmetic: ours ? "floor" : "reference",
      sinks: ours ? Number(values.sinks) : 0,
      window: Number(values.window),
      score: (observation, budget) => {
        const scores = snapScores(observation, kernel);
        return ours ? { scores, protectedEntries: protectEnds(budget) } : { scores };
      },
    };
  },
};

/** SnapKV's scores, `[kvHeads, L]`: plain pooling, not scaled back to each row's mass; the window at maximum + 1. */
export function snapScores({ mean, window, shape: { kvHeads } }: Observation, kernel: number): Float32Array {
  const prefix = poolHeads(mean!, kvHeads, kernel);
  return appendWindow(prefix, kvHeads, window, largest(prefix) + 1);
}
