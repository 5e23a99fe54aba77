/**
 * The attention that queries to come are expected to give. Devoto et al. 2025, arXiv 2510.00636.
 *
 * Future queries are taken as normal with the mean μ and covariance C of the context's own, or of calibration texts
 * (`statistics`), turned by the mean rotation of the next `future` positions: score[h, i] = softmax over i of (μ·k_i / √d + k_iᵀ·C·k_i / 2d), mean over the group,
 * then (score + epsilon) · ‖v_i‖₂ (`norm=values`). The sinks take no part. Ours differs from the published code: sinks
 * and the last tokens always survive, and a context no longer than the sinks counts its last token instead of failing.
 */
import { groupScores, rowDots } from "../measure/groups.ts";
import { exp } from "../measure/exp.ts";
import { rowNorms } from "../measure/row_norms.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { FUTURE, RECENT, SINKS, STATISTICS, statisticsNeed } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { largest, protectSinks } from "../select/protect.ts";

export const expectedAttention = definePolicy({
  name: "expected-attention",
  parameters: [
    FUTURE,
    { name: "epsilon", type: "number", default: 0, min: 0, max: 1 },
    { name: "norm", type: "text", default: "values", choices: ["values", "off"] },
    SINKS,
    RECENT,
    { ...STATISTICS, later: true, oursOnly: true },
  ],
  reference: true,
  needs(values) {
    const { need, file } = statisticsNeed(values);
    return { rows: true, queryStatistics: need, file };
  },
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
  const { length, shape } = observation, { nullLogits } = shape;
  return groupScores(shape, length, (head, first) => {
    const logits = expectedLogits(observation, head, first), top = largest(logits.subarray(sinks));
    let total = nullLogits ? exp(nullLogits[head] - top) : 0;
    for (let i = sinks; i < length; i++) total += logits[i] = exp(logits[i] - top);
    return logits.map((x, i) => i < sinks ? 0 : x / total);
  });
}

/** μ·k_i / √d + k_iᵀ·C·k_i / 2d, `[L]`. */
function expectedLogits(observation: Expecting, head: number, first: number): Float64Array {
  const { keys, queryMean, queryCovariance, length, shape: { headDim } } = observation;
  const scale = Math.sqrt(headDim), mean = queryMean.subarray(head * headDim, (head + 1) * headDim);
  return rowDots(keys, first, length, mean).map((linear, i) => {
    const key = (first + i) * headDim;
    let square = 0;
    for (let a = 0; a < headDim; a++) {
      const row = (head * headDim + a) * headDim;
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
