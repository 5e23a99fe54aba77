/** Keeps a random set in every head: what a policy must beat. Sinks and the last tokens stay, as in our others. */
import { definePolicy } from "../policy/define.ts";
import { RECENT, SINKS } from "../policy/parameters.ts";
import { randomSource } from "../measure/random.ts";

export const random = definePolicy({
  name: "random",
  summary: "Keeps a seeded random set in every head",
  paper: "baseline",
  source: "NVIDIA/kvpress 8bb29b9, kvpress/presses/random_press.py",
  parameters: [
    { name: "seed", type: "integer", default: 0, min: 0, max: 2 ** 32 - 1, help: "seed of the random scores" },
    { ...SINKS, oursOnly: true },
    RECENT,
  ],
  reference: "protects nothing",
  needs: {},
  allocate: { kind: "head" },
  score: ({ layer }, { model, length }, { seed }) => ({
    scores: Float32Array.from({ length: model.kvHeads * length }, randomSource(seed * 2 ** 16 + layer)),
  }),
});
