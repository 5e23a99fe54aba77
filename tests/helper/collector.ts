/** Many policies over one prefill: the collector asks for everything they need and evicts nothing itself. */
import { selectLayer } from "../../core/allocate.ts";
import { type Keep, resolveBudget } from "../../core/budget.ts";
import { JointSelection } from "../../core/joint.ts";
import type { Budget, LayerScores, Needs, Observation, Policy, Reduction } from "../../core/policy.ts";
import type { ModelShape } from "../../core/shape.ts";

export interface Collected {
  readonly policy: Policy;
  readonly keep: Keep;
  readonly budget: Budget;
  /** Scores per layer, `[kvHeads, L]`. */
  readonly scores: LayerScores[];
  /** Kept positions, `[layers][kvHeads]`. */
  kept(): Int32Array[][];
}

/** A policy that keeps everything and notes what each of `cases` would have kept. All must observe the same window. */
export function collector(
  cases: readonly { policy: Policy; keep: Keep }[],
  length: number,
  model: ModelShape,
): { policy: Policy; collected: Collected[] } {
  const collected = cases.map(({ policy, keep }) => collect(policy, keep, resolveBudget(policy, keep, length, model)));
  const windows = new Set(collected.filter((each) => each.policy.needs.window).map((each) => each.budget.window));
  if (windows.size > 1) throw new RangeError(`Can't observe windows ${[...windows]} in one prefill`);
  const window = new Set<Reduction>(cases.flatMap(({ policy }) => policy.needs.window ?? []));
  const needs: Needs = {
    window: [...window],
    valueNorms: cases.some(({ policy }) => policy.needs.valueNorms) ? "l1" : undefined,
    columnSum: cases.some(({ policy }) => policy.needs.columnSum),
    columnMax: cases.some(({ policy }) => policy.needs.columnMax),
    rows: cases.some(({ policy }) => policy.needs.rows),
  };
  const policy: Policy = {
    name: "collector",
    parameters: {},
    needs,
    scope: "head",
    arithmetic: "floor",
    sinks: 0,
    window: [...windows][0] ?? 1,
    score(observation: Observation, budget: Budget): LayerScores {
      for (const each of collected) each.scores.push(each.policy.score(observation, each.budget));
      const counts = new Int32Array(budget.model.kvHeads).fill(budget.length);
      return { scores: new Float32Array(budget.model.kvHeads * budget.length), counts };
    },
  };
  return { policy, collected };
}

function collect(policy: Policy, keep: Keep, budget: Budget): Collected {
  const scores: LayerScores[] = [];
  return {
    policy,
    keep,
    budget,
    scores,
    kept() {
      if (policy.scope !== "model") return scores.map((layer) => selectLayer(policy, budget, layer));
      const joint = new JointSelection(budget);
      scores.forEach((layer, i) => joint.add(i, layer));
      return scores.map((_, i) => joint.kept(i));
    },
  };
}
