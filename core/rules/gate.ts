/**
 * What a gate predicted when the key was made, once and for all: it looks at no attention, so tokens need not come one by
 * one. Needs a gate fitted for the model (`model/gate/`); the context's entries are scored while they are read, whatever
 * policy reads them.
 */
import type { StepRule } from "./rule.ts";

export const gateRule: StepRule = {
  name: "gate",
  summary: "Keeps what a gate, fitted by palisade calibrate, expects the model to need",
  paper: "after Fast KVzip, Kim et al. 2026, arXiv 2601.17668",
  difference: "a ridge regression on KVzip's importance instead of trained gates; evicts to 90 % instead of one a step",
  headReduction: "none",
  predicted: true,
  statistics: 1,
  update() {},
  scores: ([predicted], entries) => Float32Array.from(predicted.subarray(0, entries)),
};
