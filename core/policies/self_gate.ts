/**
 * A gate that fits itself while the text is read, for models without one. Some of the context is repeated by the model, as
 * KVzip has all of it repeated; in each layer a ridge regression learns from that what of hidden state and key makes an
 * entry needed, begun with what earlier texts taught, and scores the rest (`model/read/replay.ts`).
 *
 * score[g, i] = ln importance: as the repetition measured it where entry i was repeated, else as the gate predicts it.
 * `tokens` are repeated, or, where it is 0, 1,024 and more where `work` pays for more: a prompt looks at its own piece
 * alone, so the longer a text is, the less its repetition costs beside the reading. A text of no more than that is
 * repeated whole, in short chunks. `combine=risk` takes the maximum of importance and defensive risk.
 */
import { inputError, option } from "../errors.ts";
import { definePolicy, type ValuesOf } from "../policy/define.ts";
import { KERNEL, parameters, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { defensiveRisk } from "../worst_case/risk.ts";
import { raiseByRisk } from "./gate.ts";
import { COMPETE } from "./kvzip.ts";

/** Tokens that are repeated where `work` pays for fewer. */
const LEAST = 1024;

const PARAMETERS = parameters([
  {
    name: "tokens",
    type: "integer",
    default: 0,
    min: 0,
    max: 65536,
  },
  { name: "chunk", type: "integer", default: 512, min: 16, max: 4096 },
  { name: "work", type: "number", default: 0.2, min: 0, max: 8 },
  {
    name: "combine",
    type: "text",
    default: "none",
    choices: ["none", "risk"],
  },
  COMPETE,
  // No recent token is kept without question: a repetition sees the end of a text as well as its beginning.
  {
    ...WINDOW,
    default: 0,
    min: 0,
  },
  SINKS,
  KERNEL,
]);

export const selfGate = definePolicy({
  name: "self-gate",
  parameters: PARAMETERS,
  check: refuseBlindRisk,
  needs: ({ tokens, chunk, work, combine, kernel }) => ({
    selfGate: { tokens: tokens || LEAST, chunk, work: tokens ? 0 : work },
    ...(combine === "risk" && { window: ["pooledMax"], kernel }),
  }),
  allocate: ({ compete }) => ({ kind: compete }),
  score: ({ selfGate, pooledMax, window, length, shape: { kvHeads } }) => {
    if (!pooledMax) return { scores: selfGate.slice() };
    const scores = selfGate.map(Math.exp);
    raiseByRisk(scores, defensiveRisk(pooledMax, kvHeads), length, length - window);
    return { scores, second: selfGate };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what a gate, fitted on a part of the text while reading, expects the model to need",
  paper: "ours, after KVzip, arXiv 2505.23416, and Fast KVzip, arXiv 2601.17668",
  source: "our own",
  help: {
    tokens: "how much of the text the model repeats, spread evenly over it; 0: what `work` pays for, at least 1024",
    chunk: "most tokens repeated at once",
    work: "share of the reading's arithmetic that repeating may take, where `tokens` is 0",
    combine: "the gate alone, or the maximum of gate and defensive risk",
    window: "last tokens that are never evicted, and observed by combine=risk, which needs one or more",
    kernel: "width of the average pooling of combine=risk, odd",
  },
};

/** @throws PalisadeError `policy.value` where a risk is to be seen by no query. */
function refuseBlindRisk({ combine, window }: Pick<ValuesOf<typeof PARAMETERS>, "combine" | "window">): void {
  if (combine === "none" || window > 0) return;
  const message = "self-gate(combine=risk) looks through the queries of the last tokens: want window=8, or 1 and more";
  throw inputError("policy.value", message, option("policy"));
}
