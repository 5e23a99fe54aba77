/** Keeps a random set in every head: what a policy must beat. Sinks and the last tokens stay, as in our others. */
import { definePolicy } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { randomSource } from "../measure/random.ts";

export const random = definePolicy({
  name: "random",
  parameters: [
    { name: "seed", type: "integer", default: 0, min: 0, max: 2 ** 32 - 1 },
    { ...SINKS, oursOnly: true },
    RECENT,
  ],
  reference: true,
  needs: {},
  allocate: { kind: "head" },
  score: ({ layer }, { model, length }, { seed }) => ({
    scores: Float32Array.from({ length: model.kvHeads * length }, randomSource(seed * 2 ** 16 + layer)),
  }),
});

export const about: PolicyAbout = {
  summary: "Keeps a seeded random set in every head",
  paper: "baseline",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/random_press.py",
  reference: "protects nothing",
  help: {
    seed: "seed of the random scores",
  },
};
