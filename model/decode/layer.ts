/** One layer of the decoder over a chunk of tokens: the step that every way of reading, and answering, takes. */
import { ROW_PAGE } from "../../core/backend/interface.ts";
import { Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { layerShape, readersOf, sourceOf } from "../../core/shape.ts";
import { breathe } from "../../runtime/breathe.ts";
import type { ModelConfig } from "../config.ts";
import { ConvolvedRows, type StepRows } from "./convolution.ts";
import type { Dense, Projected } from "../dense/dense.ts";

/** Tokens per dense call: large enough for the matrix kernels, small enough to bound activations. */
export const CHUNK = 256;

/** A chunk on its way through a layer. */
export interface LayerInput {
  readonly layer: number;
  /** What goes into the layer, `[count, width]`; left as it is, and still the caller's. */
  readonly hidden: Tensor;
  readonly count: number;
  /** Ids of the tokens, `[count]`: layers may have embeddings of their own. */
  readonly ids?: ArrayLike<number>;
  /** Logical position of the chunk's first token. */
  readonly first: number;
  /** Queries before RoPE are wanted. */
  readonly unrotated?: boolean;
}

/**
 * A chunk at the layer's attention: its keys and values, or those of the layer whose rows it looks at, are the last rows of
 * every head. Its tensors end with it.
 */
export interface AtAttention extends Projected {
  readonly rows: StepRows;
  /** What attention makes goes in here, and ends with the step. */
  readonly made: Temporaries;
}

/** Gives the attention of the chunk's queries, `[count, heads, headDim]`. */
export type Attend = (at: AtAttention) => Promise<Tensor>;

/**
 * Norm, projections, RoPE; the new entries go to the cache; `attend` gives the attention output; output projection and
 * feed-forward make of it the next layer's input, `[count, width]`, which is the caller's.
 */
export async function layerStep(dense: Dense, cache: RaggedCache, input: LayerInput, attend: Attend): Promise<Tensor> {
  using made = new Temporaries(cache.backend.tensors);
  const output = await attended(dense, cache, input, made, attend);
  await breathe();
  // Output projection and residual, then norm, feed-forward and residual.
  return await dense.finish(input.layer, input.hidden, output, input.count, input.ids);
}

/** The first half of {@link layerStep}, for chunks whose hidden states nobody reads after this layer's attention. */
export async function layerAttention(dense: Dense, cache: RaggedCache, input: LayerInput, attend: Attend) {
  using made = new Temporaries(cache.backend.tensors);
  await attended(dense, cache, input, made, attend);
}

async function attended(
  dense: Dense,
  cache: RaggedCache,
  { layer, hidden, count, first, unrotated }: LayerInput,
  made: Temporaries,
  attend: Attend,
): Promise<Tensor> {
  using held = new Temporaries(cache.backend.tensors);
  await breathe();
  // Norm and projections, norms per head where there are any, and RoPE at positions `first`, `first + 1`, …
  const projected = await dense.project(layer, hidden, count, first, { unrotated });
  for (const tensor of Object.values<Tensor | undefined>({ ...projected })) if (tensor) held.add(tensor);
  // Keys are stored rotated; the chunk's own rows are there before its queries look.
  const source = sourceOf(cache.shape, layer);
  if (source === layer) cache.append(layer, projected.keys, projected.values, count, first);
  const rows = cache.rows(source), taps = dense.config.convolutions?.[layer];
  const asked = taps ? new ConvolvedRows(rows, cache.backend.tensors, taps) : rows;
  const output = await attend({ ...projected, rows: asked, made });
  // A window layer lets go of what no later token sees; token by token once a page comes free by it.
  if (readersOf(cache.shape, source).at(-1) === layer) cache.release(source, count === 1 ? ROW_PAGE : 1);
  return output;
}

/** Bytes of a chunk's activations while it is in a layer: hidden states and projections twice, attention output. */
export function stepBytes(config: ModelConfig, count: number): number {
  const { width, layers, convolutions } = config;
  let projected = convolutions ? 2 * width : 0, attended = 0;
  for (let layer = 0; layer < layers; layer++) {
    const { heads, kvHeads, headDim } = convolutions?.[layer] ? config : layerShape(config, layer);
    projected = Math.max(projected, (heads + 2 * kvHeads) * headDim);
    attended = Math.max(attended, heads * headDim);
  }
  return 4 * count * (2 * width + 2 * projected + attended);
}
