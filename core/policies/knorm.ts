/**
 * Keys of small norm draw the most attention. Devoto et al. 2024, arXiv 2406.11430.
 *
 * score[g, i] = −‖k_i‖₂; RoPE leaves norms alone. Ours differs from the published code in that sinks and the last tokens
 * always survive. The paper skips the first layers; neither the published code nor ours does.
 */
import { rowNorms } from "../measure/row_norms.ts";
import { definePolicy } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

export const knorm = definePolicy({
  name: "knorm",
  parameters: [{ ...SINKS, oursOnly: true }, RECENT],
  reference: true,
  needs: { rows: true },
  allocate: { kind: "head" },
  score: ({ keys, shape: { headDim } }) => ({ scores: Float32Array.from(rowNorms(keys, headDim), (norm) => -norm) }),
});

export const about: PolicyAbout = {
  summary: "Keeps the keys of smallest norm",
  paper: "Devoto et al. 2024, arXiv 2406.11430",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/knorm_press.py",
  reference: "protects nothing",
};
