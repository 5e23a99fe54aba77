/**
 * Rules that evict while tokens are generated: what each entry is remembered by, and what that is worth.
 *
 * Words: a *step* is one query of one layer: its softmax row over the entries of a KV head, for each of the query heads
 * that share it (the *group*). A rule keeps a few numbers per entry (*statistics*), changes them at every step, and turns
 * them into scores when the cache is full. Statistics begin with the first token after the context.
 */

/** A line of the step registry. Everything in it is pure. */
export interface StepRule {
  readonly name: string;
  /** One line, no full stop. */
  readonly summary: string;
  /** `Author et al. YEAR, arXiv NUMBER`, or `baseline`. */
  readonly paper: string;
  /** What ours does otherwise than the paper or its code. */
  readonly difference: string;
  /** How the query heads of a group become one probability; `none`: the rule looks at no attention. */
  readonly headReduction: "mean" | "max" | "none";
  /** The rule goes by scores that are known when a key is made: they are its first statistic, no head is reduced. */
  readonly predicted?: true;
  /** Numbers remembered per entry. */
  readonly statistics: number;
  /**
   * Takes one step in: `probabilities[i]`, 0 … 1, is what entry `i` got, `[entries]`. `statistics`: at least as long; an
   * entry that is new at this step is all 0.
   */
  update(statistics: readonly Float64Array[], probabilities: Float64Array): void;
  /**
   * `[entries]`, higher = keep, never NaN. Entries are in ascending position. `began`: those the head held when answering
   * began.
   */
  scores(statistics: readonly Float64Array[], entries: number, began: number): Float32Array;
}

/** `sums[i] / counts[i]`; 0 for an entry that no query has seen. */
export function average(sums: Float64Array, counts: Float64Array, i: number): number {
  return counts[i] > 0 ? sums[i] / counts[i] : 0;
}
