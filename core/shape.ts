/** Shapes shared by every room. Buffers are row-major; the order in a comment is the order in memory. */

/** Attention geometry of one layer. Query head `h` reads KV head `floor(h / (heads / kvHeads))`. */
export interface AttentionShape {
  /** Query heads, a multiple of `kvHeads`. */
  readonly heads: number;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Width of one head's key and of its value. */
  readonly headDim: number;
}

/** What a policy must know of the whole model to turn a budget into counts. */
export interface ModelShape extends AttentionShape {
  readonly layers: number;
}
