/** Keeps everything: what other policies are compared with. */
import { definePolicy } from "../policy/define.ts";

export const full = definePolicy({
  name: "full",
  summary: "Keeps every entry, whatever the budget",
  paper: "baseline",
  source: "none",
  parameters: [],
  needs: {},
  allocate: { kind: "all" },
  score: (_, { model, length }) => ({ scores: new Float32Array(model.kvHeads * length) }),
});
