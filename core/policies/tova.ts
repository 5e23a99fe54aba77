/**
 * What the last query attends to. Oren et al. 2024, arXiv 2401.06104.
 *
 * score[i] = attention of the last query on i, mean over ALL heads of the layer: the same for every KV head. The last
 * token stays. Ours differs from the published code in that the sinks always survive. The paper evicts one entry a step
 * while it decodes; this is its decision after the last token of the context.
 */
import { definePolicy, type Observed } from "../policy/define.ts";
import { SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { appendWindow, largest } from "../select/protect.ts";

export const tova = definePolicy({
  name: "tova",
  parameters: [{ ...SINKS, oursOnly: true }],
  reference: true,
  needs: { window: ["mean"] },
  allocate: { kind: "head" },
  ends: ({ sinks }) => ({ sinks, window: 1 }),
  score: (observation) => {
    const prefix = meanOverHeads(observation);
    return { scores: appendWindow(prefix, observation.shape.kvHeads, 1, largest(prefix) + 1) };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what the last query attends to, alike in all heads of a layer",
  paper: "Oren et al. 2024, arXiv 2401.06104",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/tova_press.py",
  reference: "no sinks; the last token scores the layer's maximum + 1",
};

/** The mean over KV heads, for each of them: `[kvHeads, N]`. */
function meanOverHeads({ mean, shape: { kvHeads } }: Observed<"mean">): Float32Array {
  const prefixLength = mean.length / kvHeads;
  return Float32Array.from(mean, (_, at) => {
    let sum = 0;
    for (let i = at % prefixLength; i < mean.length; i += prefixLength) sum += mean[i];
    return sum / kvHeads;
  });
}
