/** One layer of the decoder over a chunk of tokens: the step that every way of reading, and answering, takes. */
import type { LayerRows } from "../../core/backend/interface.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { breathe } from "../../runtime/breathe.ts";
import type { ModelConfig } from "../config.ts";
import type { DenseEngine } from "../dense/interface.ts";
import { project, type Projected } from "../dense/project.ts";

/** Tokens per dense call: large enough for the matrix kernels, small enough to bound activations. */
export const CHUNK = 256;

/** A chunk on its way through a layer. */
export interface LayerInput {
  readonly layer: number;
  /** What goes into the layer, `[count, width]`; left as it is. */
  readonly hidden: Float32Array;
  readonly count: number;
  /** Logical position of the chunk's first token. */
  readonly first: number;
}

/** A chunk at the layer's attention: its keys and values are the last rows of every head. */
export interface AtAttention extends Projected {
  readonly rows: LayerRows;
  /** Projections before RoPE, `[count, (heads + 2·kvHeads)·headDim]`, each row q then k then v. */
  readonly qkv: Float32Array;
}

/**
 * Norm, projections, RoPE; the new entries go to the cache; `attend` gives the attention output, `[count, heads, headDim]`;
 * output projection and feed-forward make of it the next layer's input, `[count, width]`.
 */
export async function layerStep(
  dense: DenseEngine,
  cache: RaggedCache,
  { layer, hidden, count, first }: LayerInput,
  attend: (at: AtAttention) => Promise<Float32Array>,
): Promise<Float32Array> {
  const output = await layerAttention(dense, cache, { layer, hidden, count, first }, attend);
  await breathe();
  return await dense.finish(layer, hidden, output, count);
}

/** The first half of {@link layerStep}, for chunks whose hidden states nobody reads after this layer's attention. */
export async function layerAttention(
  dense: DenseEngine,
  cache: RaggedCache,
  { layer, hidden, count, first }: LayerInput,
  attend: (at: AtAttention) => Promise<Float32Array>,
): Promise<Float32Array> {
  await breathe();
  const qkv = await dense.qkv(layer, hidden, count);
  const projected = project(dense.config, qkv, count, first);
  cache.append(layer, projected.keys, projected.values, count, first);
  return await attend({ ...projected, rows: cache.rows(layer), qkv });
}

/** Bytes of a chunk's activations while it is in a layer: hidden states and projections twice, attention output. */
export function stepBytes({ width, heads, kvHeads, headDim }: ModelConfig, count: number): number {
  const projected = (heads + 2 * kvHeads) * headDim;
  return 4 * count * (2 * width + 2 * projected + heads * headDim);
}
