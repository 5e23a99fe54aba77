/**
 * Tokens that stand out against the chunk after theirs. Liang et al. 2025, arXiv 2504.04704.
 *
 * What follows the sinks is split into chunks of `lag`. Each channel x of a chunk is put on the next chunk's scale,
 * x' = (x − min) / (max − min); a token's s = softmax over its chunk of the standard deviation of x' over channels;
 * score = rank of (s of keys + s of values) in the chunk / lag. Sinks, the last full chunk and what is left score 1. A
 * context without two full chunks is scored by recency. Equal scores, of which there are many: the later token stays
 * (torch leaves that open).
 *
 * Ours differs from the published code: sinks and the last tokens always survive, also where the budget is below what
 * scores 1. In both forms a channel without a range counts 0, where the published code divides by 0 and loses the
 * chunk to NaN.
 */
import { softmaxOf } from "../measure/softmax.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

export const lagkv = definePolicy({
  name: "lagkv",
  parameters: [
    { name: "lag", type: "integer", default: 128, min: 1, max: 65536 },
    SINKS,
    RECENT,
  ],
  reference: true,
  needs: { rows: true },
  allocate: { kind: "head" },
  ends: ({ sinks, window }, mode) => ({ sinks: mode === "ours" ? sinks : 0, window }),
  score: (observation, { length }, { sinks, lag }) => {
    const scores = lagScores(observation, sinks, lag);
    return { scores, second: scores.map((_, i) => i % length) };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps the tokens of each chunk that stand out against the next chunk",
  paper: "Liang et al. 2025, arXiv 2504.04704",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/lagkv_press.py",
  reference: "protects its sinks, last chunk and remainder by score 1 only, so a budget below them cuts into them",
  help: {
    lag: "tokens of a chunk",
  },
};

/** `[kvHeads, L]`, 0 … 1. */
function lagScores(
  { keys, values, length, shape }: Observed<"keys" | "values">,
  sinks: number,
  lag: number,
): Float32Array {
  const { kvHeads, headDim } = shape;
  const scores = new Float32Array(kvHeads * length).fill(1);
  const chunks = Math.floor((length - sinks) / lag);
  for (let head = 0; head < kvHeads; head++) {
    const row = scores.subarray(head * length, (head + 1) * length);
    if (chunks < 2) {
      for (let i = sinks; i < length; i++) row[i] = (i - sinks) / (length - sinks);
      continue;
    }
    for (let chunk = 0; chunk < chunks - 1; chunk++) {
      const first = sinks + chunk * lag, at = head * length + first;
      const outstanding = [keys, values].map((rows) => softmaxOfDeviations(rows, at, lag, headDim));
      const order = Array.from({ length: lag }, (_, i) => i);
      const sum = order.map((i) => outstanding[0][i] + outstanding[1][i]);
      order.sort((a, b) => sum[a] - sum[b] || a - b).forEach((i, rank) => row[first + i] = rank / lag);
    }
  }
  return scores;
}

/** The `lag` rows from row `at` on the scale of the `lag` rows after them: softmax of their deviation, `[lag]`. */
function softmaxOfDeviations(rows: Float32Array, at: number, lag: number, headDim: number): Float64Array {
  const scales = Array.from({ length: headDim }, (_, channel) => {
    let least = Infinity, most = -Infinity;
    for (let i = at + lag; i < at + 2 * lag; i++) {
      least = Math.min(least, rows[i * headDim + channel]);
      most = Math.max(most, rows[i * headDim + channel]);
    }
    return { least, range: most - least };
  });
  return softmaxOf(Float64Array.from({ length: lag }, (_, i) => {
    const scaled = scales.map(({ least, range }, j) => range > 0 ? (rows[(at + i) * headDim + j] - least) / range : 0);
    return deviation(scaled);
  }));
}

/** Unbiased standard deviation; 0 for a single value. */
function deviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
}
