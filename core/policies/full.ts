/** Keeps everything: what other policies are compared with. */
import { definePolicy } from "../policy/define.ts";
import type { PolicyAbout } from "../policy/policy.ts";

export const full = definePolicy({
  name: "full",
  parameters: [],
  needs: {},
  allocate: { kind: "all" },
  score: (_, { model, length }) => ({ scores: new Float32Array(model.kvHeads * length) }),
});

export const about: PolicyAbout = {
  summary: "Keeps every entry, whatever the budget",
  paper: "baseline",
  source: "none",
};
