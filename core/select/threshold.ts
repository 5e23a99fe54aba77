/** Eviction without a budget: everything whose score is below a threshold goes. Decided entry by entry, so it streams. */
import { segmentsOf } from "./allocate.ts";
import type { LayerScores, Policy } from "../policy/policy.ts";

/** Where what stays begins: as asked for, or the policy's own. */
export function thresholdOf(
  { policy, threshold }: { readonly policy: Pick<Policy, "threshold">; readonly threshold?: number },
): number | undefined {
  return threshold ?? policy.threshold;
}

/**
 * Kept positions of one layer, per KV head, ascending: protected entries, and those whose score is not below
 * `threshold`. NaN is not below anything: what is unknown stays.
 * @throws RangeError when an array is not `[kvHeads, length]`.
 */
export function keepAbove(layer: LayerScores, kvHeads: number, length: number, threshold: number): Int32Array[] {
  return segmentsOf(layer, kvHeads, length).map(({ scores, protectedEntries }) => {
    return Int32Array.from(scores.keys()).filter((i) => protectedEntries?.[i] || !(scores[i] < threshold));
  });
}
