/**
 * Split conformal bounds (Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, chapter 2; Lei et al.
 * 2018, arXiv 1604.04173): from n exchangeable held-out scores, a number that a new score exceeds with probability at
 * most 1 − coverage, whatever their distribution.
 */

/**
 * The ⌈(n + 1) · coverage⌉-th smallest of `scores`, 0 < coverage < 1; Infinity when n is too small to promise it.
 * @throws RangeError for another coverage.
 */
export function conformalQuantile(scores: ArrayLike<number>, coverage: number): number {
  if (!(coverage > 0 && coverage < 1)) throw new RangeError(`Coverage ${coverage}: want more than 0 and less than 1`);
  const sorted = Array.from(scores).sort((a, b) => a - b);
  const rank = Math.ceil((sorted.length + 1) * coverage - 1e-9);
  return rank > sorted.length ? Infinity : sorted[rank - 1];
}

/**
 * The gate score below which an entry may go when nothing of importance `threshold` or more may be lost: ln t − q, where
 * with probability ≥ the coverage of `margin` = q every unprotected entry of a new text has ln importance ≤ score + q.
 * So the share (evicted and important) / all entries is 0 with that probability. `threshold`: 0 < t ≤ 1.
 * @throws RangeError for another threshold.
 */
export function evictBelow(threshold: number, margin: number): number {
  if (!(threshold > 0 && threshold <= 1)) {
    throw new RangeError(`Importance ${threshold}: want more than 0 and at most 1`);
  }
  return Math.log(threshold) - margin;
}
