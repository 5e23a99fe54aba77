/** Keeps a random set in every head: what a policy must beat. Sinks and the last tokens stay, as in our others. */
import { SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyEntry } from "../policy/policy.ts";
import { protectEnds } from "../select/protect.ts";
import { randomSource } from "../measure/random.ts";

export const random: PolicyEntry = {
  name: "random",
  summary: "Keeps a seeded random set in every head",
  paper: "baseline",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/random_press.py",
  parameters: [
    { name: "seed", type: "integer", default: 0, min: 0, max: 2 ** 32 - 1, help: "seed of the random scores" },
    { ...SINKS, oursOnly: true },
    { ...WINDOW, help: "last tokens that are never evicted", oursOnly: true },
  ],
  reference: "protects nothing",
  create: (values, mode) => {
    const ours = mode === "ours";
    const seed = Number(values.seed);
    return {
      name: ours ? "random" : "random@reference",
      parameters: values,
      needs: {},
      scope: "head",
      arithmetic: ours ? "floor" : "reference",
      sinks: ours ? Number(values.sinks) : 0,
      window: ours ? Number(values.window) : 0,
      score: ({ layer }, budget) => {
        const next = randomSource(seed * 2 ** 16 + layer);
        const scores = Float32Array.from({ length: budget.model.kvHeads * budget.length }, next);
        return ours ? { scores, protectedEntries: protectEnds(budget) } : { scores };
      },
    };
  },
};
