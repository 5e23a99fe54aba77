/**
 * What recent queries look at, less what other keys say too. R-KV, Cai et al. 2025, arXiv 2505.24133, made for long
 * reasoning; here for a whole context.
 *
 * score[g, i] = λ · importance − (1 − λ) · redundancy. Importance: maximum pool over i of the window's attention, meaned
 * over queries and group. Redundancy: softmax over i of the mean over j of cos(k_j, k_i), where each key j spares the last
 * other key that is more like it than `alike`: of a run of copies the latest stays. Ours differs from the published code:
 * the group's attention is meaned where theirs takes the largest logit, and rows see the window too; sinks survive.
 *
 * The mean needs no pair of keys, the spared one a look back from the end: linear where keys are alike, as keys are after
 * RoPE, at worst O(kvHeads · L² · headDim).
 */
import { softmaxOf } from "../measure/softmax.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { appendWindow, largest } from "../select/protect.ts";

export const rkv = definePolicy({
  name: "rkv",
  parameters: [
    { name: "mix", type: "number", default: 0.07, min: 0, max: 1 },
    { name: "alike", type: "number", default: 0.5, min: -1, max: 1 },
    { ...WINDOW, default: 8 },
    { ...KERNEL, default: 7 },
    SINKS,
  ],
  needs: { window: ["mean"], rows: true },
  allocate: { kind: "head" },
  score: (observation, _, { mix, alike, kernel }) => {
    const { mean, window, length, shape: { kvHeads } } = observation, prefix = length - window;
    const scores = new Float32Array(kvHeads * prefix);
    for (let head = 0; head < kvHeads; head++) {
      const importance = mean.subarray(head * prefix, (head + 1) * prefix);
      const redundancy = softmaxOf(redundancies(observation, head, alike));
      for (let i = 0; i < prefix; i++) {
        scores[head * prefix + i] = mix * largestAround(importance, i, kernel) - (1 - mix) * redundancy[i];
      }
    }
    return { scores: appendWindow(scores, kvHeads, window, largest(scores)) };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what recent queries look at, less what other keys say too",
  paper: "Cai et al. 2025, arXiv 2505.24133",
  source: "Zefan-Cai/R-KV 31cf555, rkv/compression/r1_kv.py; cc5a9b9, rkv/utils.py",
  help: {
    mix: "share of importance against redundancy",
    alike: "cosine from which keys count as copies",
    window: "last tokens that are observed and never evicted",
    kernel: "width of the maximum pooling over positions, odd",
  },
};

/** Mean over j of cos(k_j, k_i), what each j spares left out, `[L]`. */
function redundancies(
  { keys, length, shape: { headDim } }: Observed<"keys">,
  head: number,
  alike: number,
): Float64Array {
  const units = unitRows(keys.subarray(head * length * headDim, (head + 1) * length * headDim), headDim);
  const sum = new Float64Array(headDim), totals = new Float64Array(length);
  for (let at = 0; at < units.length; at++) sum[at % headDim] += units[at];
  const cosine = (i: number, j: number) => {
    let dot = 0;
    for (let d = 0; d < headDim; d++) dot += units[i * headDim + d] * units[j * headDim + d];
    return dot;
  };
  for (let i = 0; i < length; i++) {
    let all = 0;
    for (let d = 0; d < headDim; d++) all += units[i * headDim + d] * sum[d];
    totals[i] += all - cosine(i, i);
    let spared = length - 1;
    while (spared > 0 && (spared === i || !(cosine(i, spared) > alike))) spared--;
    // A key that is like no other spares the first, as the published code does.
    if (spared !== i) totals[spared] -= cosine(i, spared);
  }
  return totals.map((total) => total / length);
}

/** Every row divided by its norm; a row of zeros stays. */
function unitRows(rows: Float32Array, headDim: number): Float64Array {
  const units = Float64Array.from(rows);
  for (let at = 0; at < units.length; at += headDim) {
    const row = units.subarray(at, at + headDim), norm = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0)) + 1e-8;
    row.forEach((x, d) => row[d] = x / norm);
  }
  return units;
}

function largestAround(row: Float32Array, at: number, kernel: number): number {
  const reach = (kernel - 1) / 2;
  return largest(row.subarray(Math.max(0, at - reach), at + reach + 1), NaN);
}
