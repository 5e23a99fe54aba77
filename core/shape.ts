/** Shapes shared by every room. Buffers are row-major; the order in a comment is the order in memory. */

/** Attention geometry of one layer. Query head `h` reads KV head `floor(h / (heads / kvHeads))`. */
export interface AttentionShape {
  /** Query heads, a multiple of `kvHeads`. */
  readonly heads: number;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Width of one head's key and of its value. */
  readonly headDim: number;
  /** Rows that a query looks back, its own among them, ≥ 1: it sees the last so many up to its own. Absent: all. */
  readonly reach?: number;
}

/** The first row that a query sees which sees no row from `end` on. */
export function firstSeen({ reach = Infinity }: Pick<AttentionShape, "reach">, end: number): number {
  return Math.max(0, end - reach);
}

/** What a policy must know of the whole model to turn a budget into counts. */
export interface ModelShape extends AttentionShape {
  readonly layers: number;
}
