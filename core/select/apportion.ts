/** Splitting a whole number of seats by weights so that more claimants never mean more seats for one. */
import { selectTop } from "./select.ts";

/**
 * `total` seats over claimants of `weights`, at most `rooms[i]` each; `total` ≤ Σ rooms. Returns the seats.
 *
 * Webster's divisor method with limits: seat j of claimant i is worth weight / (j + ½), and the `total` most valuable
 * seats are given (equal: lower claimant first). That rounds to the nearest where no limit bites, and, because it is a
 * top n, a claimant who joins later can only take seats away: the property that lets layers be cut while they arrive.
 * Weights that are not above 0 come last, one seat each in turn. O(Σ rooms).
 */
export function apportion(weights: ArrayLike<number>, rooms: ArrayLike<number>, total: number): Int32Array {
  const segments = Array.from(weights, (weight, i) => ({
    scores: Float32Array.from({ length: rooms[i] }, (_, j) => weight > 0 ? weight / (j + 0.5) : -(j + 0.5)),
  }));
  return Int32Array.from(selectTop({ segments, count: total }), (seats) => seats.length);
}
