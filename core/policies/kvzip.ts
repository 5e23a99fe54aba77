/**
 * What the model looks at when it has to repeat the context. KVzip, Kim et al. 2025, arXiv 2505.23416.
 *
 * score[g, i] = the largest attention on entry i over the group and over all tokens of the prompts that make the model
 * repeat the context chunk by chunk (`model/read/reconstruct.ts`). It knows no question, so it serves all of them; the price
 * is a second prefill. The reader measures it; this file only decides who competes.
 */
import { definePolicy } from "../policy/define.ts";
import { parameter, parameters, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

/** Who competes; `model` is KVzip's own choice, `layer` and `head` its uniform variants. */
export const COMPETE = parameter({
  name: "compete",
  type: "text",
  default: "model",
  choices: ["model", "layer", "head"],
});

/** Of KVzip and KVzip+. */
export const KVZIP_PARAMETERS = parameters([
  { name: "chunk", type: "integer", default: 2048, min: 16, max: 65536 },
  {
    name: "postfix",
    type: "integer",
    default: 8,
    min: 0,
    max: 64,
  },
  COMPETE,
  SINKS,
  // No recent token is kept without question: the scores see the end of the context as well as its beginning.
  { ...WINDOW, default: 0, min: 0 },
]);

export const KVZIP_HELP = {
  chunk: "most tokens repeated at once",
  postfix: "tokens before a later chunk that its instruction cites",
};

export const kvzip = definePolicy({
  name: "kvzip",
  parameters: KVZIP_PARAMETERS,
  needs: ({ chunk, postfix }) => ({ reconstruction: { chunk, postfix } }),
  allocate: ({ compete }) => ({ kind: compete }),
  score: ({ reconstruction }) => ({ scores: reconstruction.slice() }),
});

export const about: PolicyAbout = {
  summary: "Keeps what the model needs to repeat the context, for a second prefill",
  paper: "Kim et al. 2025, arXiv 2505.23416",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/kvzip_press.py",
  help: KVZIP_HELP,
};
