/**
 * Heavy hitters: what all queries together attend to most. Zhang et al. 2023, arXiv 2306.14048.
 *
 * score[g, i] = mean over the group of Σ over queries of the attention on i, divided (`normalise=length`) by the L − i
 * queries that could see i. The paper sums without dividing, which favours early tokens (`normalise=none`). Ours differs
 * from the published code: sinks and the last tokens always survive; the paper gives half of the budget to the last
 * tokens, ours `window` of them. Needs the attention of every query: no window, no sampling.
 */
import { definePolicy, type Observed } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

export const h2o = definePolicy({
  name: "h2o",
  parameters: [
    {
      name: "normalise",
      type: "text",
      default: "length",
      choices: ["length", "none"],
    },
    { ...SINKS, oursOnly: true },
    RECENT,
  ],
  reference: true,
  needs: { columnSum: true },
  allocate: { kind: "head" },
  score: (observation, _, { normalise }) => ({ scores: received(observation, normalise === "length") }),
});

export const about: PolicyAbout = {
  summary: "Keeps what all queries together attended to most",
  paper: "Zhang et al. 2023, arXiv 2306.14048",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/observed_attention_press.py",
  reference: "protects nothing",
  help: {
    normalise: "divide by the number of queries that could see the token, as published code does, or not",
  },
};

/** `[kvHeads, L]`. */
function received(
  { columnSum, length, shape: { heads, kvHeads } }: Observed<"columnSum">,
  normalise: boolean,
): Float32Array {
  const group = heads / kvHeads;
  return Float32Array.from({ length: kvHeads * length }, (_, at) => {
    const i = at % length, kvHead = (at - i) / length;
    let sum = 0;
    for (let head = kvHead * group; head < (kvHead + 1) * group; head++) sum += columnSum[head * length + i];
    return sum / group / (normalise ? length - i : 1);
  });
}
