/**
 * What a gate expects KVzip+ to score above a threshold, whatever share that is. KVzap, Jegou et al. 2026, arXiv 2601.07891.
 *
 * score[g, i] = w · norm(h_i) + b, the predicted ln of KVzip+'s score: the paper's linear form, fitted by `palisade
 * calibrate` for `kvzap`. An entry stays when score ≥ threshold, or among the last `window`. Ours differs from the
 * published code: the first tokens always survive too, and the window counts from the context's end, not from the token
 * that is being read.
 */
import { definePolicy } from "../policy/define.ts";
import { SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";

export const kvzap = definePolicy({
  name: "kvzap",
  parameters: [
    {
      name: "threshold",
      type: "number",
      default: -5,
      min: -30,
      max: 10,
    },
    { ...WINDOW, default: 128, min: 0 },
    SINKS,
  ],
  needs: { gate: "kvzip-plus" },
  allocate: { kind: "head" },
  threshold: ({ threshold }) => threshold,
  score: ({ gate }) => ({ scores: gate.slice() }),
});

export const about: PolicyAbout = {
  summary: "Keeps what a gate expects kvzip-plus to score above a threshold; no budget",
  paper: "Jegou et al. 2026, arXiv 2601.07891",
  source: "NVIDIA/kvpress 3a056f7, kvpress/presses/kvzap_press.py, dms_press.py",
  help: {
    threshold: "the least predicted ln score that stays",
  },
};
