/**
 * ‖v·Wo_h‖₁ of every query head on its own. A backend's `valueNorms` gives the mean over the group. With the columns of
 * the other members at 0, their norms are 0, and the mean times the size of the group is the member's own norm.
 */
import type { AttentionShape } from "../shape.ts";

/**
 * The output projection with only the columns of each group's `member`-th query head, times the group.
 * `wo`: `[width, heads · headDim]`, y = x·woᵀ; so is the result.
 */
export function memberProjection(wo: Float32Array, shape: AttentionShape, member: number): Float32Array {
  const { heads, kvHeads, headDim } = shape;
  const group = heads / kvHeads;
  return wo.map((weight, i) => Math.floor(i / headDim) % group === member ? weight * group : 0);
}

/** Norms of each member, `[kvHeads, L]` each, by query head: `[heads, L]`. */
export function byQueryHead(members: readonly Float32Array[], kvHeads: number): Float32Array {
  const group = members.length, length = members[0].length / kvHeads;
  const all = new Float32Array(group * members[0].length);
  members.forEach((norms, member) => {
    for (let head = 0; head < kvHeads; head++) {
      all.set(norms.subarray(head * length, (head + 1) * length), (head * group + member) * length);
    }
  });
  return all;
}
