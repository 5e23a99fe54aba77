/**
 * What a small linear gate expects the model to need. The gate is fitted on the user's own machine (`palisade
 * calibrate`): per layer a ridge regression from the attention layer's input to the logarithm of KVzip's importance.
 * After Fast KVzip, arXiv 2601.17668, whose gates are trained networks.
 *
 * score[g, i] = the foretold ln importance: known when the key is made, for one small product per token, so that
 * `read=stream` can evict while reading (`model/read/streaming.ts`). Variants: `combine=risk` takes the maximum of
 * foretold importance and defensive risk; `norm` weighs by value norms. Both need the whole context.
 */
import { inputError } from "../errors.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type {
  Budget,
  LayerScores,
  Observation,
  Parameter,
  ParameterValues,
  PolicyEntry,
  Scope,
} from "../policy/policy.ts";
import { protectEnds } from "../select/protect.ts";
import { defensiveRisk } from "../worst_case/risk.ts";
import { NORM_AXES, type NormAxis, valueShares } from "../measure/value_share.ts";
import { COMPETE } from "./kvzip.ts";

/**
 * The window is shorter than the observing policies': the gate scores recent entries as well as any, and at 10 % of 1k
 * tokens a window of 32 is a third of the budget (bench/results/gates.md).
 */
const PARAMETERS: readonly Parameter[] = [
  {
    name: "read",
    type: "text",
    default: "layer",
    choices: ["layer", "stream"],
    help: "score everything, then evict; or evict while reading, in one pass of bounded memory",
  },
  {
    name: "combine",
    type: "text",
    default: "none",
    choices: ["none", "risk"],
    help: "the gate alone, or the maximum of gate and defensive risk",
  },
  { name: "norm", type: "text", default: "off", choices: NORM_AXES, help: "what value norms are divided by; or off" },
  COMPETE,
  { ...WINDOW, default: 8, help: "last tokens that are never evicted, and observed by combine=risk" },
  SINKS,
  { ...KERNEL, help: "width of the average pooling of combine=risk, odd" },
  {
    name: "coverage",
    type: "number",
    default: 0.9,
    min: 0.5,
    max: 0.999,
    help: "how probable it is that --risk-worst holds in a new text",
  },
];

export const gate: PolicyEntry = {
  name: "gate",
  summary: "Keeps what a gate, fitted by palisade calibrate, expects the model to need",
  paper: "after Fast KVzip, Kim et al. 2026, arXiv 2601.17668",
  source: "our own; the idea of gating on hidden states: kvpress/presses/fastkvzip_press.py",
  parameters: PARAMETERS,
  create: (values: ParameterValues) => ({
    ...streaming(values),
    ...(values.combine === "none" && values.norm === "off" && { foretold: { coverage: Number(values.coverage) } }),
    name: "gate",
    parameters: values,
    needs: {
      gate: true,
      ...(values.combine === "risk" && { window: ["pooledMax"], kernel: Number(values.kernel) }),
      ...(values.norm !== "off" && { valueNorms: "l1" }),
    },
    scope: values.compete as Scope,
    arithmetic: "floor",
    sinks: Number(values.sinks),
    window: Number(values.window),
    score: (observation, budget) => score(observation, budget, values),
  }),
};

/** @throws PalisadeError `policy.value` when a late score is to be streamed. */
function streaming({ read, combine, norm }: ParameterValues): { streams?: true } {
  if (read === "layer") return {};
  if (combine === "none" && norm === "off") return { streams: true };
  const late = combine === "none" ? `norm=${norm}` : `combine=${combine}`;
  throw inputError(
    "policy.value",
    `gate(read=stream, ${late}): what needs the whole context can't be streamed`,
    "--policy",
  );
}

function score(observation: Observation, budget: Budget, { combine, norm }: ParameterValues): LayerScores {
  const protectedEntries = protectEnds(budget);
  const { gate, length, shape: { kvHeads }, valueNorms } = observation;
  if (combine === "none" && norm === "off") return { scores: gate!.slice(), protectedEntries };
  const scores = gate!.map(Math.exp);
  if (combine === "risk") raise(scores, observation);
  if (norm !== "off") {
    const shares = valueShares(valueNorms!, { kvHeads, length, prefix: length }, norm as NormAxis);
    for (let i = 0; i < scores.length; i++) scores[i] *= shares[i];
  }
  return { scores, second: gate, protectedEntries };
}

/** The larger of score and defensive risk, in place; the observation window has no risk. */
function raise(scores: Float32Array, { pooledMax, length, window, shape: { kvHeads } }: Observation): void {
  const prefix = length - window, risk = defensiveRisk(pooledMax!, kvHeads);
  for (let head = 0; head < kvHeads; head++) {
    for (let i = 0; i < prefix; i++) {
      const at = head * length + i;
      scores[at] = Math.max(scores[at], risk[head * prefix + i]);
    }
  }
}
