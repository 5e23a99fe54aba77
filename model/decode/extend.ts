/** Token-major forward pass: new tokens (a question, or one generated token) over a cache that may be evicted. */
import { Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import type { CacheLimit } from "../../core/cache/limit.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { Dense } from "../dense/dense.ts";
import { CHUNK, layerStep } from "./layer.ts";

/**
 * Runs `ids` through all layers, appends one entry per token to every head, and returns the logits of the last `rows`
 * tokens, `[rows, vocabulary]`; 1 ≤ rows ≤ ids. Each token sees what the cache kept plus the tokens before it.
 * With a `limit` the cache never exceeds it: room is made before each chunk, and a chunk is as short as its rule wants.
 */
export async function extend(
  dense: Dense,
  cache: RaggedCache,
  ids: ArrayLike<number>,
  options: { signal?: AbortSignal; rows?: number; limit?: CacheLimit } = {},
): Promise<Float32Array> {
  const { config: { width } } = dense, { tensors } = cache.backend;
  const rows = options.rows ?? 1;
  if (ids.length === 0) throw new RangeError("extend() needs at least one token");
  if (rows < 1 || rows > ids.length) throw new RangeError(`extend() can't give ${rows} rows of ${ids.length} tokens`);
  using temporaries = new Temporaries(tensors);
  const wanted = temporaries.add(tensors.zeros(rows * width));
  const { limit } = options;
  for (let start = 0, count = 0; start < ids.length; start += count) {
    options.signal?.throwIfAborted();
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
  return await tensors.read(temporaries.add(await dense.logits(wanted, rows)));
}

/**
 * All layers over one chunk: `[count, width]` hidden states before the final norm, which are the caller's. `onInput` is
 * called with what goes into each layer, `[count, width]`, not to be changed.
 */
export async function forward(
  dense: Dense,
  cache: RaggedCache,
  ids: readonly number[],
  { limit, onInput }: { limit?: CacheLimit; onInput?: (layer: number, hidden: Tensor) => Promise<void> | void } = {},
): Promise<Tensor> {
  const { config } = dense, { tensors } = cache.backend, count = ids.length;
  let hidden = await dense.embed(ids);
  try {
    for (let layer = 0; layer < config.layers; layer++) {
      await onInput?.(layer, hidden);
      const input = { layer, hidden, count, first: cache.position };
      const next = await layerStep(dense, cache, input, async ({ rows, queries, made }) => {
        const want = { probabilities: limit?.wantsProbabilitiesOf(layer) };
        const { output, probabilities } = await rows.decodeAttention(queries, count, want);
        if (probabilities) limit?.observe(layer, probabilities);
        return made.add(output);
      });
      tensors.free(hidden);
      hidden = next;
    }
  } catch (error) {
    tensors.free(hidden);
    throw error;
  }
  cache.advance(count);
  return hidden;
}
