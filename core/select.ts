/**
 * The selector: the exact top n of one pool of entries.
 *
 * Order, best first: protected entries; higher score; higher second key; lower segment; lower index. Scores are
 * float32; −0 counts as +0, NaN as −∞. The order is total, so every backend returns the same set.
 */

/** One (layer, KV head): its entries in ascending position. */
export interface Segment {
  /** `[entries]`, higher = keep. */
  readonly scores: Float32Array;
  /** Second key for equal scores, `[entries]`, higher = keep. */
  readonly second?: Float32Array;
  /** 1 = kept before any score is looked at, `[entries]`. */
  readonly protectedEntries?: Uint8Array;
}

export interface SelectionInput {
  /** In order of layer, then KV head. */
  readonly segments: readonly Segment[];
  /** How many entries of the whole pool stay, 0 ≤ count ≤ Σ entries. */
  readonly count: number;
}
