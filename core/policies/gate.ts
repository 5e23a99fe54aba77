/**
 * What a small linear gate expects the model to need. The gate is fitted on the user's own machine (`palisade
 * calibrate`): per layer a ridge regression from the attention layer's input to the logarithm of KVzip's importance.
 * After Fast KVzip, arXiv 2601.17668, whose gates are trained networks.
 *
 * score[g, i] = the predicted ln importance, by one small product per token and what its key says beside that
 * (`model/gate/key_terms.ts`). Without the latter it is known when the key is made, so that `read=stream` can evict while
 * reading (`model/read/streaming.ts`). Variants: `combine=risk` takes the maximum of
 * predicted importance and defensive risk; `norm` weighs by value norms. Both need the whole context.
 */
import { inputError, option } from "../errors.ts";
import { definePolicy, type ValuesOf } from "../policy/define.ts";
import { KERNEL, parameters, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { defensiveRisk } from "../worst_case/risk.ts";
import { NORM_AXES, valueShares } from "../measure/value_share.ts";
import { COMPETE } from "./kvzip.ts";

/**
 * The window is shorter than the observing policies': the gate scores recent entries as well as any, and at 10 % of 1k
 * tokens a window of 32 is a third of the budget (bench/results/gates.md).
 */
const PARAMETERS = parameters([
  {
    name: "read",
    type: "text",
    default: "layer",
    choices: ["layer", "stream"],
  },
  {
    name: "combine",
    type: "text",
    default: "none",
    choices: ["none", "risk"],
  },
  { name: "norm", type: "text", default: "off", choices: NORM_AXES },
  COMPETE,
  { ...WINDOW, default: 8 },
  SINKS,
  KERNEL,
  {
    name: "coverage",
    type: "number",
    default: 0.9,
    min: 0.5,
    max: 0.999,
  },
]);

type Values = ValuesOf<typeof PARAMETERS>;

export const gate = definePolicy({
  name: "gate",
  parameters: PARAMETERS,
  check: refuseLateStream,
  needs: ({ combine, norm, kernel }) => ({
    gate: true,
    ...(combine === "risk" && { window: ["pooledMax"], kernel }),
    ...(norm !== "off" && { valueNorms: "l1" }),
  }),
  allocate: ({ compete }) => ({ kind: compete }),
  meaning: (values) => isPlain(values) ? { kind: "predicted", coverage: values.coverage } : { kind: "order" },
  evicts: ({ read }) => read === "stream" ? "early" : "late",
  score: ({ gate, pooledMax, valueNorms, window, length, shape: { kvHeads } }, _, values) => {
    if (isPlain(values)) return { scores: gate.slice() };
    const scores = gate.map(Math.exp);
    if (pooledMax) raiseByRisk(scores, defensiveRisk(pooledMax, kvHeads), length, length - window);
    if (valueNorms) {
      const shares = valueShares(valueNorms, { kvHeads, length, prefix: length }, values.norm);
      for (let i = 0; i < scores.length; i++) scores[i] *= shares[i];
    }
    return { scores, second: gate };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what a gate, fitted by palisade calibrate, expects the model to need",
  paper: "after Fast KVzip, Kim et al. 2026, arXiv 2601.17668",
  source: "our own; the idea of gating on hidden states: kvpress/presses/fastkvzip_press.py",
  help: {
    read: "score everything, then evict; or evict while reading, in one pass of bounded memory",
    combine: "the gate alone, or the maximum of gate and defensive risk",
    norm: "what value norms are divided by; or off",
    window: "last tokens that are never evicted, and observed by combine=risk",
    kernel: "width of the average pooling of combine=risk, odd",
    coverage: "how probable it is that the worst case it bounds holds in a new text",
  },
};

/** The gate's own scores, unchanged. */
function isPlain({ combine, norm }: Pick<Values, "combine" | "norm">): boolean {
  return combine === "none" && norm === "off";
}

/** @throws PalisadeError `policy.value` when a late score is to be streamed. */
function refuseLateStream({ read, combine, norm }: Values): void {
  if (read === "layer" || isPlain({ combine, norm })) return;
  const late = combine === "none" ? `norm=${norm}` : `combine=${combine}`;
  throw inputError(
    "policy.value",
    `gate(read=stream, ${late}): what needs the whole context can't be streamed`,
    option("policy"),
  );
}

/** The larger of score and defensive risk, `[kvHeads, prefix]`, in place; the observation window has no risk. */
export function raiseByRisk(scores: Float32Array, risk: Float32Array, length: number, prefix: number): void {
  for (let at = 0, i = 0; at < scores.length; at += length) {
    for (let column = 0; column < prefix; column++, i++) {
      scores[at + column] = Math.max(scores[at + column], risk[i]);
    }
  }
}
