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
import { KERNEL, SINKS, WINDOW } from "../policy/parameters.ts";
import type {
  Budget,
  LayerScores,
  Observation,
  Parameter,
  ParameterValues,
  Policy,
  PolicyEntry,
  PolicyMode,
} from "../policy/policy.ts";
import { appendWindow, largest, protectEnds } from "../select/protect.ts";
import { defensiveRisk } from "../worst_case/risk.ts";
import { NORM_AXES, type NormAxis, valueShares } from "../measure/value_share.ts";

const PARAMETERS: readonly Parameter[] = [
  WINDOW,
  KERNEL,
  { name: "coverage", type: "number", default: 0.9, min: 0, max: 1, help: "share of mean attention stage 1 covers" },
  {
    name: "norm",
    type: "text",
    default: "heads",
    choices: NORM_AXES,
    help: "what value norms are divided by: the heads' sum, the tokens' sum, nothing; or off",
  },
  {
    name: "beta",
    type: "text",
    default: "before-window",
    choices: ["before-window", "window", "none"],
    oursOnly: true,
    help: "taken off the coverage: mean mass on as many tokens before the window, on the window itself, or nothing",
  },
  {
    name: "forced",
    type: "text",
    default: "maximum",
    choices: ["maximum", "protect", "none"],
    oursOnly: true,
    help: "stage 1 entries get the layer's maximum, or stand above every layer's entries, or are left alone",
  },
  {
    name: "order",
    type: "text",
    default: "l1",
    choices: ["l1", "l2"],
    oursOnly: true,
    help: "of the value norm: l1 as published, or l2, which a tenth of the time gives",
  },
  { ...SINKS, oursOnly: true },
];

const PAPER = "Feng et al. 2025, arXiv 2510.13334";
const REFERENCE = "trunc budgets, β from before the window, a negative cap forces nearly all (short prompts), no sinks";

export const defensive: PolicyEntry = {
  name: "defensive",
  summary: "Keeps what the worst case needs, heads of a layer competing",
  paper: PAPER,
  source: "FFY0/DefensiveKV 9251b95, kvpress/presses/efficient_defensivekv_press.py",
  parameters: PARAMETERS,
  reference: REFERENCE,
  create: (values, mode) => createDefensive("defensive", values, mode),
};

export const layerDefensive: PolicyEntry = {
  name: "layer-defensive",
  summary: "Keeps what the worst case needs, all layers and heads competing",
  paper: PAPER,
  source: "FFY0/DefensiveKV 9251b95, kvpress/presses/efficient_layer_defensivekv_press.py",
  parameters: PARAMETERS,
  reference: `${REFERENCE}; a layer of small scores can lose even its window`,
  create: (values, mode) => createDefensive("layer-defensive", values, mode),
};

function createDefensive(
  name: "defensive" | "layer-defensive",
  values: ParameterValues,
  mode: PolicyMode,
): Policy {
  const ours = mode === "ours";
  const norm = values.norm as NormAxis;
  return {
    name: ours ? name : `${name}@reference`,
    parameters: values,
    needs: {
      window: ["mean", "pooledMax"],
      kernel: Number(values.kernel),
      ...(norm !== "off" && { valueNorms: values.order === "l2" ? "l2" : "l1" }),
    },
    scope: name === "defensive" ? "layer" : "model",
    arithmetic: ours ? "floor" : "reference",
    sinks: ours ? Number(values.sinks) : 0,
    window: Number(values.window),
    score: (observation, budget) => scoreLayer(observation, budget, values, mode),
  };
}

function scoreLayer(
  observation: Observation,
  budget: Budget,
  values: ParameterValues,
  mode: PolicyMode,
): LayerScores {
  const { shape: { kvHeads }, length, window, pooledMax } = observation;
  const prefix = length - window;
  const risk = defensiveRisk(pooledMax!, kvHeads);
  if (values.norm !== "off") weigh(risk, observation, values.norm as NormAxis);
  const top = largest(risk);
  const forced = mode === "ours" ? String(values.forced) : "maximum";
  const covered = forced !== "none" && coverageSet(observation.mean!, kvHeads, {
    threshold: Number(values.coverage) - beta(observation, mode === "ours" ? String(values.beta) : "before-window"),
    cap: stageOneCap(budget, prefix, mode, forced),
  });
  if (covered && forced === "maximum") covered.forEach((yes, i) => yes && (risk[i] = top));
  const scores = appendWindow(risk, kvHeads, window, top);
  if (mode === "reference") return { scores };

  const protectedEntries = protectEnds(budget);
  if (covered && forced === "protect") {
    covered.forEach((yes, i) => yes && (protectedEntries[Math.floor(i / prefix) * length + i % prefix] = 1));
  }
  return { scores, second: appendWindow(pooledMax!, kvHeads, window, top), protectedEntries };
}

/** risk · ν in place. */
function weigh(risk: Float32Array, { valueNorms, shape: { kvHeads }, length, window }: Observation, axis: NormAxis) {
  const shares = valueShares(valueNorms!, { kvHeads, length, prefix: length - window }, axis);
  for (let i = 0; i < risk.length; i++) risk[i] *= shares[i];
}

/** Mean mass of a window query, over heads and queries, on the tokens named (quirk Q2). */
function beta({ mean, window, length, shape: { kvHeads } }: Observation, from: string): number {
  if (from === "none") return 0;
  const prefix = length - window;
  const first = from === "window" ? 0 : Math.max(0, prefix - window);
  let sum = 0;
  for (let head = 0; head < kvHeads; head++) {
    for (let i = first; i < prefix; i++) sum += mean![head * prefix + i];
  }
  return from === "window" ? 1 - sum / kvHeads : sum / kvHeads;
}

/** The most entries of one head that stage 1 may force: what the prefix keeps, less the window. */
function stageOneCap({ fraction, window, sinks }: Budget, prefix: number, mode: PolicyMode, forced: string): number {
  const cap = prefix * fraction - window;
  if (mode === "reference") return Math.trunc(cap);
  return Math.max(0, Math.floor(cap + 1e-9 - (forced === "protect" ? sinks : 0)));
}
