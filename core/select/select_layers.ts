/** Everything a policy keeps of a context whose layers have all been scored. */
import { selectLayer } from "./allocate.ts";
import type { Budget, LayerScores, Policy } from "../policy/policy.ts";
import { crossLayerSelection } from "./cross_layer.ts";
import { keepAbove } from "./threshold.ts";

/** Kept positions, ascending: `[layer][kvHead]`. */
export function selectAll(policy: Policy, budget: Budget, layers: readonly LayerScores[]): Int32Array[][] {
  const { threshold } = policy, { length, model: { kvHeads } } = budget;
  if (threshold !== undefined) return layers.map((scores) => keepAbove(scores, kvHeads, length, threshold));
  const selection = crossLayerSelection(policy, budget);
  if (!selection) return layers.map((scores) => selectLayer(policy, budget, scores));
  layers.forEach((scores, layer) => selection.add(layer, scores));
  return layers.map((_, layer) => selection.kept(layer));
}
