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
  /**
   * One logit for each query head that takes its share of every softmax and has no key or value, `[heads]`: what a query
   * gives to *nothing* (gpt-oss). Probabilities then add up to less than 1. Absent: none.
   */
  readonly nullLogits?: Float32Array;
}

/** The first row that a query sees which sees no row from `end` on. */
export function firstSeen({ reach = Infinity }: Pick<AttentionShape, "reach">, end: number): number {
  return Math.max(0, end - reach);
}

/** What a policy must know of the whole model to turn a budget into counts. */
export interface ModelShape extends AttentionShape {
  readonly layers: number;
  /**
   * Tokens that each layer looks back, itself among them, `[layers]`; 0, or absent: all. A *window layer* holds what it
   * can still look back to, whatever the budget; policies and budgets speak of the others, the *global* layers.
   */
  readonly windows?: readonly number[];
  /**
   * Layers that convolve instead of attending, `[layers]`: the width of a KV head's key and of its value there, 0 for one
   * that attends. Such a layer is a window layer. Its rows, of which it needs the last ones whole, hold what is convolved:
   * key and value of KV head `g` are what query heads `2g` and `2g + 1` weigh (`model/decode/convolution.ts`).
   */
  readonly convolved?: readonly number[];
  /** KV heads of window layers, and their width, where they are others than those of global layers. */
  readonly windowHeads?: { readonly kvHeads: number; readonly headDim: number };
  /**
   * The layer whose keys and values each layer looks at, `[layers]`; absent: its own. A *reader* looks at those of an
   * earlier layer of its window and has none itself: the rows are the *source's*, and so are budgets, scores, certificates.
   */
  readonly sources?: readonly number[];
  /** The null logits of each layer, `[layers][heads]`; absent: none. */
  readonly nulls?: readonly Float32Array[];
}

/** The window of a layer; Infinity for a global one. */
export function windowOf({ windows }: Pick<ModelShape, "windows">, layer: number): number {
  return windows?.[layer] || Infinity;
}

/** The shape of one layer's rows. */
export function layerShape(shape: ModelShape, layer: number): AttentionShape {
  const { heads, kvHeads, headDim, nulls, convolved, windowHeads } = shape,
    reach = windowOf(shape, layer),
    width = convolved?.[layer];
  return {
    heads,
    kvHeads,
    headDim,
    ...(reach !== Infinity && windowHeads),
    ...(width && { heads: 2 * kvHeads, headDim: width }),
    ...(reach !== Infinity && { reach }),
    ...(nulls && { nullLogits: nulls[layer] }),
  };
}

/** The layer whose rows a layer looks at: itself, unless it is a reader. */
export function sourceOf({ sources }: Pick<ModelShape, "sources">, layer: number): number {
  return sources?.[layer] ?? layer;
}

/** The layers that look at the rows of `source`, ascending, itself first. */
export function readersOf({ sources }: Pick<ModelShape, "sources">, source: number): number[] {
  return sources ? [...sources.keys()].filter((layer) => sources[layer] === source) : [source];
}

/** The shape of one layer's rows, with the query heads of all layers that look at them. */
export function observedShape(shape: ModelShape, layer: number): AttentionShape {
  const own = layerShape(shape, layer);
  return { ...own, heads: own.heads * readersOf(shape, layer).length };
}

/** The layers that look at everything and have rows of their own, ascending. */
export function globalLayers(shape: Pick<ModelShape, "layers" | "windows" | "sources">): number[] {
  return Array.from({ length: shape.layers }, (_, layer) => layer).filter((layer) =>
    windowOf(shape, layer) === Infinity && sourceOf(shape, layer) === layer
  );
}

/** The model as policies and budgets know it: its global layers alone, counted from 0. */
export function globalShape(model: ModelShape): ModelShape {
  const { heads, kvHeads, headDim } = model, layers = globalLayers(model).length;
  return layers === model.layers ? model : { heads, kvHeads, headDim, layers };
}

/** Entries of the first `tokens` tokens that later ones can still look back to where nothing is evicted: all heads. */
export function reachableEntries(model: ModelShape, tokens: number): number {
  let entries = 0;
  for (let layer = 0; layer < model.layers; layer++) entries += layerEntries(model, layer, tokens);
  return entries;
}

/** The same of one layer; a reader has none. */
export function layerEntries(model: ModelShape, layer: number, tokens: number): number {
  if (sourceOf(model, layer) !== layer) return 0;
  return Math.min(tokens, windowOf(model, layer) - 1) * layerShape(model, layer).kvHeads;
}
