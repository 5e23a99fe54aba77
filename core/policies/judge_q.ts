/**
 * What trained soft tokens attend to. Judge Q, arXiv 2509.10798.
 *
 * Soft tokens are embeddings trained to look at a prompt as the model's own answer does. They stand behind the context
 * while it is read (`model/read/soft_tokens.ts`) and take the place of SnapKV's window queries: score[g, i] = average pool over
 * i of (mean over soft tokens and group of the attention on i). `reduce=max` takes the largest instead. The paper says
 * nothing of pooling and of recent tokens; SnapKV's are the defaults.
 */
import { definePolicy } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { poolHeads } from "../measure/pool.ts";

/** What `file` is where the model's own are looked for. */
const OWN_FILE = "own";

export const judgeQ = definePolicy({
  name: "judge-q",
  parameters: [
    { name: "file", type: "text", default: OWN_FILE },
    {
      name: "reduce",
      type: "text",
      default: "mean",
      choices: ["mean", "max"],
    },
    WINDOW,
    KERNEL,
    SINKS,
  ],
  needs: ({ file, reduce }) => ({
    softTokens: { reduction: reduce },
    ...(file !== OWN_FILE && { file: { kind: "soft-tokens", name: file } }),
  }),
  allocate: { kind: "head" },
  score: ({ softTokens, shape: { kvHeads } }, _, { kernel }) => ({ scores: poolHeads(softTokens, kvHeads, kernel) }),
});

export const about: PolicyAbout = {
  summary: "Keeps what soft tokens trained for the model attend to, per head",
  paper: "Judge Q 2025, arXiv 2509.10798",
  source: "our own, after the paper",
  help: {
    file: "soft tokens that palisade calibrate trained",
    reduce: "what becomes of the attention of all soft tokens on one entry",
  },
};
