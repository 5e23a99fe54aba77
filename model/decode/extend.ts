/** Token-major forward pass: new tokens (a question, or one generated token) over a cache that may be evicted. */
import { Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import type { CacheLimit } from "../../core/cache/limit.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { layerShape, readersOf, sourceOf } from "../../core/shape.ts";
import { joinRows } from "../joined.ts";
import type { Dense } from "../dense/dense.ts";
import { CHUNK, layerStep } from "./layer.ts";
import { chosen, type Sampler } from "./sampler.ts";

export interface ExtendOptions {
  readonly signal?: AbortSignal;
  /** Room is made before each chunk, so that the cache never exceeds it; a chunk is as short as its rule wants. */
  readonly limit?: CacheLimit;
}

/**
 * Runs `ids` through all layers, appends one entry per token to every head, and returns the logits of the last `rows`
 * tokens, `[rows, vocabulary]`; 1 ≤ rows ≤ ids. Each token sees what the cache kept plus the tokens before it.
 */
export async function extend(
  dense: Dense,
  cache: RaggedCache,
  ids: ArrayLike<number>,
  options: ExtendOptions & { readonly rows?: number } = {},
): Promise<Float32Array> {
  const { tensors } = cache.backend, { rows = 1 } = options;
  using temporaries = new Temporaries(tensors);
  const wanted = temporaries.add(await lastRows(dense, cache, ids, rows, options));
  return await tensors.read(temporaries.add(await dense.logits(wanted, rows)));
}

/**
 * The same, and the token that follows. A greedy choice is made where the logits are, if that place can: then a number
 * comes back instead of them.
 */
export async function extendByOne(
  dense: Dense,
  cache: RaggedCache,
  ids: ArrayLike<number>,
  sampler: Sampler,
  options: ExtendOptions = {},
): Promise<number> {
  const { tensors } = cache.backend;
  using temporaries = new Temporaries(tensors);
  const last = temporaries.add(await lastRows(dense, cache, ids, 1, options));
  if (sampler.greedy && dense.choose) return chosen(await dense.choose(last));
  const logits = temporaries.add(await dense.logits(last, 1));
  // What is here needs no reading, after which the array would be nobody's to use again: one a token, as large as the vocabulary.
  return sampler.next(logits instanceof Float32Array ? logits : await tensors.read(logits));
}

/** Hidden states of the last `rows` tokens, `[rows, width]`, which are the caller's. */
async function lastRows(
  dense: Dense,
  cache: RaggedCache,
  ids: ArrayLike<number>,
  rows: number,
  { limit, signal }: ExtendOptions,
): Promise<Tensor> {
  const { config: { width } } = dense, { tensors } = cache.backend;
  if (ids.length === 0) throw new RangeError("extend() needs at least one token");
  if (rows < 1 || rows > ids.length) throw new RangeError(`extend() can't give ${rows} rows of ${ids.length} tokens`);
  const wanted = tensors.zeros(rows * width);
  try {
    for (let start = 0, count = 0; start < ids.length; start += count) {
      signal?.throwIfAborted();
      count = Math.min(limit?.chunk ?? CHUNK, CHUNK, ids.length - start);
      await limit?.makeRoom(count);
      const hidden = await forward(dense, cache, Array.from(ids).slice(start, start + count), {
        onInput: (layer, input) => limit?.predict(layer, input, count),
        limit,
      });
      const first = start - (ids.length - rows), from = Math.max(0, -first);
      if (from < count) tensors.copy(hidden, from * width, (count - from) * width, wanted, Math.max(0, first) * width);
      tensors.free(hidden);
    }
    return wanted;
  } catch (error) {
    tensors.free(wanted);
    throw error;
  }
}

interface ForwardOptions {
  /** Ids of the tokens, where they are known. */
  readonly ids?: ArrayLike<number>;
  readonly limit?: CacheLimit;
  /** Called with what goes into each layer, `[count, width]`, not to be changed. */
  readonly onInput?: (layer: number, hidden: Tensor) => Promise<void> | void;
}

/** All layers over one chunk: `[count, width]` hidden states before the final norm, which are the caller's. */
export async function forward(
  dense: Dense,
  cache: RaggedCache,
  ids: readonly number[],
  { limit, onInput }: ForwardOptions = {},
): Promise<Tensor> {
  return await forwardFrom(dense, cache, await dense.embed(ids), ids.length, { limit, onInput, ids });
}

/** The same from what goes into the first layer, `[count, width]`, which is taken over. */
export async function forwardFrom(
  dense: Dense,
  cache: RaggedCache,
  embedded: Tensor,
  count: number,
  { limit, onInput, ids }: ForwardOptions = {},
): Promise<Tensor> {
  const { config } = dense, { tensors } = cache.backend;
  let hidden = embedded;
  const looked = new Map<number, (readonly Float32Array[])[]>();
  try {
    for (let layer = 0; layer < config.layers; layer++) {
      await onInput?.(layer, hidden);
      const input = { layer, hidden, count, ids, first: cache.position }, source = sourceOf(cache.shape, layer);
      const next = await layerStep(dense, cache, input, async ({ rows, queries, made }) => {
        const want = { probabilities: limit?.wantsProbabilitiesOf(source) };
        const { output, probabilities } = await rows.decodeAttention(queries, count, want);
        if (probabilities) looked.set(source, [...looked.get(source) ?? [], probabilities]);
        return made.add(output);
      });
      tensors.free(hidden);
      hidden = next;
      const all = looked.get(source);
      // All that look at the rows of a layer count, as one layer with so many more heads.
      if (!all || readersOf(cache.shape, source).at(-1) !== layer) continue;
      limit?.observe(source, joinRows(all, layerShape(cache.shape, source).kvHeads));
      looked.delete(source);
    }
  } catch (error) {
    tensors.free(hidden);
    throw error;
  }
  cache.advance(count);
  return hidden;
}
