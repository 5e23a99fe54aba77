/**
 * The attention that queries to come are expected to give. Devoto et al. 2025, arXiv 2510.00636.
 *
 * Future queries are taken as normal with the mean μ and covariance C of the context's own, turned by the mean rotation
 * of the next `future` positions: score[h, i] = softmax over i of (μ·k_i / √d + k_iᵀ·C·k_i / 2d), mean over the group,
 * then (score + epsilon) · ‖v_i‖₂ (`norm=values`). The sinks take no part. Ours differs from the published code: sinks
 * and the last tokens always survive, and a context no longer than the sinks counts its last token instead of failing.
 */
import { exp } from "../measure/exp.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { largest } from "../select/protect.ts";
import { rowNorms } from "./knorm.ts";

export const expectedAttention = definePolicy({
  name: "expected-attention",
  parameters: [
    {
      name: "future",
      type: "integer",
      default: 512,
      min: 1,
      max: 65536,
    },
    { name: "epsilon", type: "number", default: 0, min: 0, max: 1 },
    { name: "norm", type: "text", default: "values", choices: ["values", "off"] },
    SINKS,
    RECENT,
  ],
  reference: true,
  needs: ({ sinks, future }) => ({ rows: true, queryStatistics: { sinks, future } }),
  allocate: { kind: "head" },
  ends: ({ sinks, window }, mode) => ({ sinks: mode === "ours" ? sinks : 0, window }),
  score: (observation, { length }, { sinks, norm, epsilon }) => {
    const first = Math.min(sinks, length - 1);
    const scores = expected(observation, first);
    if (norm === "values") weigh(scores, observation, epsilon);
    protectSinks(scores, length, first);
    return { scores };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what queries to come are expected to attend to",
  paper: "Devoto et al. 2025, arXiv 2510.00636",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/expected_attention_press.py",
  reference: "the sinks score the layer's maximum + 1; recent tokens are not protected",
  help: {
    epsilon: "added to the score before value norms",
    norm: "weigh by value norms, or not",
  },
};

/** What expectations are made from. */
type Expecting = Observed<"keys" | "queryMean" | "queryCovariance">;

/** `[kvHeads, L]`, 0 on the sinks. */
function expected(observation: Expecting, sinks: number): Float32Array {
  const { length, shape: { heads, kvHeads, nullLogits } } = observation;
  const scores = new Float32Array(kvHeads * length), group = heads / kvHeads;
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    const sum = new Float64Array(length);
    for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
      const logits = expectedLogits(observation, head, kvHead);
      const top = largest(logits.subarray(sinks));
      let total = nullLogits ? exp(nullLogits[head] - top) : 0;
      for (let i = sinks; i < length; i++) total += logits[i] = exp(logits[i] - top);
      for (let i = sinks; i < length; i++) sum[i] += logits[i] / total;
    }
    scores.set(sum.map((value) => value / group), kvHead * length);
  }
  return scores;
}

/** μ·k_i / √d + k_iᵀ·C·k_i / 2d, `[L]`. */
function expectedLogits(observation: Expecting, head: number, kvHead: number): Float64Array {
  const { keys, queryMean, queryCovariance, length, shape: { headDim } } = observation;
  const scale = Math.sqrt(headDim);
  return Float64Array.from({ length }, (_, i) => {
    const key = (kvHead * length + i) * headDim;
    let linear = 0, square = 0;
    for (let a = 0; a < headDim; a++) {
      const row = (head * headDim + a) * headDim;
      linear += queryMean[head * headDim + a] * keys[key + a];
      let product = 0;
      for (let b = 0; b < headDim; b++) product += queryCovariance[row + b] * keys[key + b];
      square += product * keys[key + a];
    }
    return linear / scale + square / headDim / 2;
  });
}

/** (score + epsilon) · ‖v‖₂ in place. */
function weigh(scores: Float32Array, { values, shape: { headDim } }: Observed<"values">, epsilon: number): void {
  rowNorms(values, headDim).forEach((norm, i) => scores[i] = (scores[i] + epsilon) * norm);
}

function protectSinks(scores: Float32Array, length: number, sinks: number): void {
  for (let at = 0; at < scores.length; at += length) scores.fill(0, at, at + sinks);
  const top = largest(scores) + 1;
  for (let at = 0; at < scores.length; at += length) scores.fill(top, at, at + sinks);
}
