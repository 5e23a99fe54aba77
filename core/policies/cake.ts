/**
 * Layers share the budget by how spread and how restless their attention is. CAKE, Qin et al. 2025, arXiv 2503.12491.
 *
 * Preference of a layer: H^(1/tau1) · V^(1/tau2), H the entropy of the window's attention on the prefix, summed over
 * heads and queries, V its variance over the queries, summed over heads and positions. Score of an entry: mean +
 * gamma · variance over the window, average-pooled, meaned over the group. Layers get their share of what sinks and
 * windows leave, every head of a layer alike.
 *
 * Ours differs from the published code: sinks survive; shares are rounded and capped by `apportion` instead of cutting
 * them, spreading the excess evenly and mending the sum by ±1. Even spreading can give a layer entries back after it
 * lost them; ours can't, so the cascade (layers shrink while later ones arrive, peak = budget + one layer) equals the
 * split after the last layer exactly. No eviction while decoding. tau1, tau2: those of Llama 3.1; the paper tunes them
 * per model.
 */
import { exp, ln } from "../measure/exp.ts";
import { definePolicy, type Observed } from "../policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type { PolicyAbout } from "../policy/policy.ts";
import { poolHeads } from "../measure/pool.ts";
import { appendWindow, largest } from "../select/protect.ts";

export const cake = definePolicy({
  name: "cake",
  parameters: [
    {
      name: "gamma",
      type: "number",
      default: 200,
      min: 0,
      max: 1e6,
    },
    {
      name: "tau1",
      type: "number",
      default: 1.6,
      min: 0.05,
      max: 20,
    },
    {
      name: "tau2",
      type: "number",
      default: 0.6,
      min: 0.05,
      max: 20,
    },
    WINDOW,
    KERNEL,
    SINKS,
  ],
  needs: { window: ["mean", "variance", "entropy"] },
  allocate: { kind: "cascade" },
  score: (observation, _, { gamma, kernel, tau1, tau2 }) => {
    const { mean, variance, window, shape: { kvHeads } } = observation;
    const prefix = poolHeads(mean.map((value, i) => value + gamma * variance[i]), kvHeads, kernel);
    return {
      scores: appendWindow(prefix, kvHeads, window, largest(prefix)),
      preference: preferenceOf(observation, tau1, tau2),
    };
  },
});

export const about: PolicyAbout = {
  summary: "Layers share the budget by entropy and variance of their attention",
  paper: "Qin et al. 2025, arXiv 2503.12491",
  source: "antgroup/cakekv; FFY0/DefensiveKV 9251b95, kvpress/presses/cake_global_press.py",
  help: {
    gamma: "weight of the variance in an entry's score",
    tau1: "temperature of the entropy; higher: less",
    tau2: "temperature of the variance; higher: less",
    window: "last tokens that are observed and never evicted",
  },
};

function preferenceOf(
  { entropy, variance, shape }: Observed<"entropy" | "variance">,
  tau1: number,
  tau2: number,
): number {
  const sum = (values: Float32Array) => values.reduce((a, b) => a + b, 0);
  // `variance` is meaned over the group.
  return power(sum(entropy), 1 / tau1) * power(sum(variance) * shape.heads / shape.kvHeads, 1 / tau2);
}

/** xʸ for x ≥ 0, the same bits in every runtime. */
function power(x: number, y: number): number {
  return exp(y * ln(x));
}
