/**
 * What the model looks at when it has to repeat the context. KVzip, Kim et al. 2025, arXiv 2505.23416.
 *
 * score[g, i] = the largest attention on entry i over the group and over all tokens of the prompts that make the model
 * repeat the context chunk by chunk (`model/read/reconstruct.ts`). It knows no question, so it serves all of them; the price
 * is a second prefill. The reader measures it; this file only decides who competes.
 */
import { SINKS } from "../policy/parameters.ts";
import type { Parameter, ParameterValues, PolicyEntry, Scope } from "../policy/policy.ts";
import { protectEnds } from "../select/protect.ts";

/** Who competes; `model` is KVzip's own choice, `layer` and `head` its uniform variants. */
export const COMPETE: Parameter = {
  name: "compete",
  type: "text",
  default: "model",
  choices: ["model", "layer", "head"],
  help: "who shares a budget: all layers, the heads of a layer, or nobody",
};

/** Recent tokens kept without question. 0: the scores see the end of the context as well as its beginning. */
const RECENT: Parameter = {
  name: "window",
  type: "integer",
  default: 0,
  min: 0,
  max: 65536,
  help: "last tokens that are never evicted",
};

const CHUNK: Parameter = {
  name: "chunk",
  type: "integer",
  default: 2048,
  min: 16,
  max: 65536,
  help: "most tokens repeated at once",
};

const POSTFIX: Parameter = {
  name: "postfix",
  type: "integer",
  default: 8,
  min: 0,
  max: 64,
  help: "tokens before a later chunk that its instruction cites",
};

export const kvzip: PolicyEntry = {
  name: "kvzip",
  summary: "Keeps what the model needs to repeat the context, for a second prefill",
  paper: "Kim et al. 2025, arXiv 2505.23416",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/kvzip_press.py",
  parameters: [CHUNK, POSTFIX, COMPETE, SINKS, RECENT],
  create: (values: ParameterValues) => ({
    name: "kvzip",
    parameters: values,
    needs: { reconstruction: { chunk: Number(values.chunk), postfix: Number(values.postfix) } },
    scope: values.compete as Scope,
    arithmetic: "floor",
    sinks: Number(values.sinks),
    window: Number(values.window),
    score: ({ reconstruction }, budget) => ({ scores: reconstruction!.slice(), protectedEntries: protectEnds(budget) }),
  }),
};
