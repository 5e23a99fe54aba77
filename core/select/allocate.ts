/** Who competes with whom: from one layer's scores to the selections that decide it. */
import type { Budget, LayerScores, Policy } from "../policy/policy.ts";
import { type Segment, type SelectionInput, selectTop } from "./select.ts";

/**
 * Views of one layer's scores, one segment per KV head.
 * @throws RangeError when an array is not `[kvHeads, length]`.
 */
export function segmentsOf(layer: LayerScores, kvHeads: number, length: number): Segment[] {
  const { scores, second, protectedEntries } = layer;
  for (const [name, array] of Object.entries({ scores, second, protectedEntries })) {
    if (array && array.length !== kvHeads * length) {
      throw new RangeError(`Layer ${name} has ${array.length} entries: want ${kvHeads} heads × ${length}`);
    }
  }
  return Array.from({ length: kvHeads }, (_, head) => {
    const start = head * length, end = start + length;
    return {
      scores: scores.subarray(start, end),
      second: second?.subarray(start, end),
      protectedEntries: protectedEntries?.subarray(start, end),
    };
  });
}

/**
 * The selections that decide one layer on its own, for any backend's `select`: one per KV head ({@link Allocation}
 * `head`) or one over all heads (`layer`). Their results, one after the other, are the kept positions of the heads in order.
 * What is decided over layers (`model`, `cascade`) goes through `crossLayerSelection`.
 */
export function layerSelections(
  policy: Pick<Policy, "allocate">,
  budget: Budget,
  layer: LayerScores,
): SelectionInput[] {
  const segments = segmentsOf(layer, budget.model.kvHeads, budget.length);
  switch (policy.allocate.kind) {
    case "all":
    case "head":
      return segments.map((segment, head) => ({ segments: [segment], count: layer.counts?.[head] ?? budget.perHead }));
    case "layer":
      return [{ segments, count: layer.counts?.reduce((sum, count) => sum + count, 0) ?? budget.perLayer }];
    case "model":
    case "cascade":
      throw new RangeError("A layer can't be decided alone where layers share a budget");
    default:
      throw new TypeError(`Unknown allocation ${policy.allocate satisfies never}`);
  }
}

/** Kept positions of one layer, per KV head, for `head` and `layer`. */
export function selectLayer(policy: Pick<Policy, "allocate">, budget: Budget, layer: LayerScores): Int32Array[] {
  return layerSelections(policy, budget, layer).flatMap(selectTop);
}
