/**
 * SnapKV with budgets that fall from layer to layer: lower layers spread their attention wider. Cai et al. 2024, arXiv
 * 2406.02069.
 *
 * The free budget of a head, F = n − sinks − window, becomes a line from 2F − F/beta in the first layer to F/beta in
 * the last; where the first would have more than the prefix holds, the line is laid flatter around the same mean. The
 * scores are SnapKV's. Ours differs from the published code: budgets sum to kvHeads × layers × n exactly (`apportion`),
 * one layer is no division by 0, and no budget falls back on SnapKV. The published code leaves the window out of its
 * line and falls back as soon as the last layer would get less than the window.
 */
import { definePolicy } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { Budget, PolicyAbout } from "../policy/policy.ts";
import { apportion } from "../select/apportion.ts";
import { memoPerBudget } from "./memo_per_budget.ts";
import { snapScores } from "./snapkv.ts";

export const pyramidkv = definePolicy({
  name: "pyramidkv",
  parameters: [
    {
      name: "beta",
      type: "number",
      default: 20,
      min: 1,
      max: 1000,
    },
    WINDOW,
    KERNEL,
    { ...SINKS, oursOnly: true },
  ],
  reference: true,
  needs: { window: ["mean"] },
  allocate: { kind: "head", uneven: true },
  score: (observation, budget, values, mode) => ({
    scores: snapScores(observation, values.kernel),
    counts: new Int32Array(budget.model.kvHeads).fill(layerCounts[mode](budget, values)[observation.layer]),
  }),
});

export const about: PolicyAbout = {
  summary: "SnapKV's scores, lower layers keeping more than higher ones",
  paper: "Cai et al. 2024, arXiv 2406.02069",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/pyramidkv_press.py",
  reference: "no sinks, rounded budgets that need not add up, SnapKV's even budget where the line is too steep",
  help: {
    beta: "how many times less than the mean the last layer gets of what sinks and window leave",
    window: "last tokens that are observed and never evicted",
  },
};

const layerCounts = {
  ours: memoPerBudget((budget, { beta }: { readonly beta: number }) => exactCounts(budget, beta)),
  reference: memoPerBudget((budget, { beta }: { readonly beta: number }) => publishedCounts(budget, beta)),
};

/** Entries per head of each layer, `[layers]`, layers × `perHead` in all. */
function exactCounts({ length, perHead, sinks, window, model: { layers } }: Budget, beta: number): Int32Array {
  const fixed = sinks + window, free = perHead - fixed, room = length - fixed;
  let last = free / beta, first = 2 * free - last;
  if (first > room) [first, last] = [room, 2 * free - room];
  const line = Float64Array.from(
    { length: layers },
    (_, l) => layers === 1 ? free : first - l * (first - last) / (layers - 1),
  );
  const rooms = new Int32Array(layers).fill(room);
  return apportion(line, rooms, free * layers).map((seats) => seats + fixed);
}

/** The same as published, left to right in doubles; with one layer, where that divides by 0, the even budget. */
function publishedCounts({ length, fraction, perHead, window, model: { layers } }: Budget, beta: number): Int32Array {
  const counts = new Int32Array(layers);
  if (perHead === length) return counts.fill(length);
  const capacity = window + length * fraction;
  let last = (capacity - window) / beta, first = (capacity - window) * 2 - last;
  if (first >= length - window) {
    first = length - window;
    last = (capacity - window) * 2 - first;
  }
  const steep = !(length >= first && first >= last && last >= window);
  if (steep || layers === 1) return counts.fill(roundHalfEven(length * fraction));
  const step = (first - last) / (layers - 1);
  return counts.map((_, layer) => roundHalfEven(first - layer * step));
}

/** Python's `round`. */
function roundHalfEven(value: number): number {
  const down = Math.floor(value), over = value - down;
  return over > 0.5 || (over === 0.5 && down % 2 === 1) ? down + 1 : down;
}
