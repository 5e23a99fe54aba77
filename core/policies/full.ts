/** Keeps everything: the yardstick. */
import type { PolicyEntry } from "../policy/policy.ts";

export const full: PolicyEntry = {
  name: "full",
  summary: "Keeps every entry, whatever the budget",
  paper: "baseline",
  source: "none",
  parameters: [],
  create: () => ({
    name: "full",
    parameters: {},
    needs: {},
    scope: "head",
    arithmetic: "floor",
    sinks: 0,
    window: 0,
    keepsAll: true,
    score: (_, { model, length }) => ({ scores: new Float32Array(model.kvHeads * length) }),
  }),
};
