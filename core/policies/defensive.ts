/**
 * The worst case instead of the mean: R = max(largest importance seen, the head's mean risk), weighed by the value's
 * way through the output projection. DefensiveKV, arXiv 2510.13334, sections on defensive aggregation and layer-wise
 * allocation; formulas and quirks Q1–Q10 as read in the published code.
 *
 * score[g, i] = R[g, i] · ν[g, i]; the entries that cover most of the mean attention (stage 1) are raised to the
 * layer's maximum, and so is the window. `defensive`: the heads of a layer compete; `layer-defensive`: all layers do.
 *
 * Ours differs from the published code (`@reference`) where that can only hurt: sinks and window always survive, the
 * cap on stage 1 is never negative (Q4), rows without mass count as 0 (Q7), equal scores fall back on the risk before
 * the floor. `beta`, `forced` and `norm` are choices, kept open to measurement.
 */
import { coverageSet } from "../measure/coverage.ts";
import { definePolicy, type Observed, type ValuesOf } from "../policy/define.ts";
import { KERNEL, parameters, SINKS, WINDOW } from "../policy/parameters.ts";
import type { Allocation, Budget, LayerScores, PolicyAbout, PolicyMode } from "../policy/policy.ts";
import { appendWindow, largest, protectEnds } from "../select/protect.ts";
import { defensiveRisk } from "../worst_case/risk.ts";
import { NORM_AXES, valueShares } from "../measure/value_share.ts";

const PARAMETERS = parameters([
  WINDOW,
  KERNEL,
  { name: "coverage", type: "number", default: 0.9, min: 0, max: 1 },
  {
    name: "norm",
    type: "text",
    default: "heads",
    choices: NORM_AXES,
  },
  {
    name: "beta",
    type: "text",
    default: "before-window",
    choices: ["before-window", "window", "none"],
    oursOnly: true,
  },
  {
    name: "forced",
    type: "text",
    default: "maximum",
    choices: ["maximum", "protect", "none"],
    oursOnly: true,
  },
  {
    name: "order",
    type: "text",
    default: "l1",
    choices: ["l1", "l2"],
    oursOnly: true,
  },
  { ...SINKS, oursOnly: true },
]);

export const defensive = entry("defensive", { kind: "layer" });

export const layerDefensive = entry("layer-defensive", { kind: "model" });

const PAPER = "Feng et al. 2025, arXiv 2510.13334";
const HELP = {
  window: "last tokens that are observed and never evicted",
  coverage: "share of mean attention stage 1 covers",
  norm: "what value norms are divided by: the heads' sum, the tokens' sum, nothing; or off",
  beta: "taken off the coverage: mean mass on as many tokens before the window, on the window itself, or nothing",
  forced: "stage 1 entries get the layer's maximum, or stand above every layer's entries, or are left alone",
  order: "of the value norm: l1 as published, or l2, which a tenth of the time gives",
};

export const aboutDefensive: PolicyAbout = {
  summary: "Keeps what the worst case needs, heads of a layer competing",
  paper: PAPER,
  source: "FFY0/DefensiveKV 9251b95, kvpress/presses/efficient_defensivekv_press.py",
  reference: "trunc budgets, β from before the window, a negative cap forces nearly all (short prompts), no sinks",
  help: HELP,
};

export const aboutLayerDefensive: PolicyAbout = {
  summary: "Keeps what the worst case needs, all layers and heads competing",
  paper: PAPER,
  source: "FFY0/DefensiveKV 9251b95, kvpress/presses/efficient_layer_defensivekv_press.py",
  reference: "as defensive's; a layer of small scores can lose even its window",
  help: HELP,
};

function entry<const Name extends string>(name: Name, allocate: Allocation) {
  return definePolicy({
    ...{ name, parameters: PARAMETERS, reference: true, allocate },
    needs: ({ kernel, norm, order }) => ({
      window: ["mean", "pooledMax"],
      kernel,
      ...(norm !== "off" && { valueNorms: order }),
    }),
    score: (observation, budget, values, mode) => scoreLayer(observation, budget, values, mode),
  });
}

type Values = ValuesOf<typeof PARAMETERS>;

function scoreLayer(
  observation: Observed<"mean" | "pooledMax"> & Partial<Observed<"valueNorms">>,
  budget: Budget,
  { norm, coverage, beta, forced }: Values,
  mode: PolicyMode,
): LayerScores {
  const { shape: { kvHeads }, length, window, mean, pooledMax, valueNorms } = observation;
  const prefix = length - window;
  const risk = defensiveRisk(pooledMax, kvHeads);
  if (valueNorms) weigh(risk, valueShares(valueNorms, { kvHeads, length, prefix }, norm));
  const top = largest(risk);
  const covered = forced !== "none" && coverageSet(mean, kvHeads, {
    threshold: coverage - massTakenOff(observation, beta),
    cap: stageOneCap(budget, prefix, mode, forced),
  });
  if (covered && forced === "maximum") covered.forEach((yes, i) => yes && (risk[i] = top));
  const scores = appendWindow(risk, kvHeads, window, top);
  if (mode === "reference") return { scores };

  const protectedEntries = protectEnds(budget);
  if (covered && forced === "protect") {
    covered.forEach((yes, i) => yes && (protectedEntries[Math.floor(i / prefix) * length + i % prefix] = 1));
  }
  return { scores, second: appendWindow(pooledMax, kvHeads, window, top), protectedEntries };
}

/** risk · ν in place. */
function weigh(risk: Float32Array, shares: ArrayLike<number>): void {
  for (let i = 0; i < risk.length; i++) risk[i] *= shares[i];
}

/** Mean mass of a window query, over heads and queries, on the tokens that `beta` names (quirk Q2). */
function massTakenOff(
  { mean, window, length, shape: { kvHeads } }: Observed<"mean">,
  beta: Values["beta"],
): number {
  if (beta === "none") return 0;
  const prefix = length - window;
  const first = beta === "window" ? 0 : Math.max(0, prefix - window);
  let sum = 0;
  for (let head = 0; head < kvHeads; head++) {
    for (let i = first; i < prefix; i++) sum += mean[head * prefix + i];
  }
  return beta === "window" ? 1 - sum / kvHeads : sum / kvHeads;
}

/** The most entries of one head that stage 1 may force: what the prefix keeps, less the window. */
function stageOneCap(
  { fraction, window, sinks }: Budget,
  prefix: number,
  mode: PolicyMode,
  forced: Values["forced"],
): number {
  const cap = prefix * fraction - window;
  if (mode === "reference") return Math.trunc(cap);
  return Math.max(0, Math.floor(cap + 1e-9 - (forced === "protect" ? sinks : 0)));
}
