/**
 * What attention would lose if the entry alone went. DropKV, OpenReview MqfNzH3TVH.
 *
 * score[g, i] = average pool over i of (Σ over the window's queries of (p / (1 − p))² ‖v_i − o‖², meaned over the group):
 * the squared change of the attention's output, exact for one entry (`core/measure/drop_errors.ts`). Ours differs from the
 * published code in that sinks always survive. `compete`: the published code gives every head the same count; the error is
 * one of outputs, so heads and layers can be compared by it.
 */
import { poolHeads } from "../measure/pool.ts";
import { definePolicy } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { appendWindow, largest } from "../select/protect.ts";
import { COMPETE } from "./kvzip.ts";

export const dropkv = definePolicy({
  name: "dropkv",
  parameters: [WINDOW, { ...KERNEL, default: 7 }, { ...COMPETE, default: "head" }, SINKS],
  needs: { window: ["logSumExp"], dropErrors: true },
  allocate: ({ compete }) => ({ kind: compete }),
  score: ({ dropErrors, window, shape: { kvHeads } }, _, { kernel }) => {
    const prefix = poolHeads(dropErrors, kvHeads, kernel);
    return { scores: appendWindow(prefix, kvHeads, window, largest(prefix) + 1) };
  },
});

export const about: PolicyAbout = {
  summary: "Keeps what changes the attention's output most when it alone goes",
  paper: "DropKV, OpenReview MqfNzH3TVH",
  source: "NVIDIA/kvpress 7fb8625, kvpress/presses/dropkv_press.py",
  help: {
    window: "last tokens that are observed and never evicted",
  },
};
