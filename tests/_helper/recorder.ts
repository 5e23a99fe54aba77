/** Scores of several policies from one prefill that keeps everything. */
import { resolveBudget } from "../../core/select/budget.ts";
import type { Budget, LayerScores, Needs, Policy } from "../../core/policy/policy.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { selectLayer } from "../../core/select/allocate.ts";
import type { ModelShape } from "../../core/shape.ts";

export interface Recorded {
  readonly policy: Policy;
  readonly ratio: number;
  readonly budget: Budget;
  /** One per layer, in order. */
  readonly layers: LayerScores[];
  /** Kept positions, `[layers][kvHeads]`; for policies that decide each layer alone. */
  kept(): Int32Array[][];
}

/** `policy` is to be read with at any budget below everything; all of `names` must observe the same window. */
export function recorder(names: readonly string[], ratios: readonly number[], length: number, model: ModelShape) {
  const recorded = names.flatMap((name) =>
    ratios.map((ratio) => recordedFor(resolvePolicy(name), ratio, length, model))
  );
  const policies = recorded.map(({ policy }) => policy);
  const needs = Object.assign({}, ...policies.map(({ needs }) => needs)) as Needs;
  const policy: Policy = {
    name: "recorder",
    parameters: {},
    needs: { ...needs, window: [...new Set(policies.flatMap(({ needs }) => needs.window ?? []))] },
    allocate: { kind: "head" },
    meaning: { kind: "order" },
    evicts: "late",
    arithmetic: "floor",
    sinks: 0,
    window: Math.max(...policies.map(({ window }) => window)),
    score(observation, { model: { kvHeads }, length }) {
      for (const each of recorded) each.layers.push(each.policy.score(observation, each.budget));
      return { scores: new Float32Array(kvHeads * length), counts: new Int32Array(kvHeads).fill(length) };
    },
  };
  return { policy, recorded };
}

function recordedFor(policy: Policy, ratio: number, length: number, model: ModelShape): Recorded {
  const budget = resolveBudget(policy, { ratio }, length, model), layers: LayerScores[] = [];
  return { policy, ratio, budget, layers, kept: () => layers.map((scores) => selectLayer(policy, budget, scores)) };
}
