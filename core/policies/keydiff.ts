/**
 * Keys that differ from the others. Park et al. 2025, arXiv 2504.15364.
 *
 * score[g, i] = −cos(k_i, a), a = mean over i of k_i / ‖k_i‖. No query and no attention is looked at. Ours differs from
 * the published code in that sinks and the last tokens always survive. The paper also evicts block by block while it
 * reads; this is the form for a whole context.
 */
import { rowNorms } from "../measure/row_norms.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

/** Smallest norm of a key when it is divided by, and of a product of norms: torch's defaults. */
const LEAST_NORM = 1e-12, LEAST_PRODUCT = 1e-8;

export const keydiff = definePolicy({
  name: "keydiff",
  parameters: [{ ...SINKS, oursOnly: true }, RECENT],
  reference: true,
  needs: { rows: true },
  allocate: { kind: "head" },
  score: (observation) => ({ scores: differences(observation) }),
});

export const about: PolicyAbout = {
  summary: "Keeps the keys least like the mean key",
  paper: "Park et al. 2025, arXiv 2504.15364",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/keydiff_press.py",
  reference: "protects nothing",
};

/** `[kvHeads, L]`. */
function differences({ keys, length, shape: { kvHeads, headDim } }: Observed<"keys">): Float32Array {
  const scores = new Float32Array(kvHeads * length);
  for (let head = 0; head < kvHeads; head++) {
    const rows = keys.subarray(head * length * headDim, (head + 1) * length * headDim);
    const norms = rowNorms(rows, headDim);
    const anchor = new Float64Array(headDim);
    for (let i = 0; i < length; i++) {
      const by = Math.max(norms[i], LEAST_NORM) * length;
      for (let j = 0; j < headDim; j++) anchor[j] += rows[i * headDim + j] / by;
    }
    const anchorNorm = Math.sqrt(dot(anchor, 0, anchor, 0, headDim));
    for (let i = 0; i < length; i++) {
      const product = Math.max(norms[i] * anchorNorm, LEAST_PRODUCT);
      scores[head * length + i] = -dot(rows, i * headDim, anchor, 0, headDim) / product;
    }
  }
  return scores;
}

function dot(a: ArrayLike<number>, atA: number, b: ArrayLike<number>, atB: number, count: number): number {
  let sum = 0;
  for (let j = 0; j < count; j++) sum += a[atA + j] * b[atB + j];
  return sum;
}
