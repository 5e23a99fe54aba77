/** Token-major forward pass: new tokens (a question, or one generated token) over a cache that may be evicted. */
import type { RaggedCache } from "../cache/ragged.ts";
import { project } from "./attend.ts";
import type { ModelConfig } from "./config.ts";
import type { DenseEngine } from "./dense/interface.ts";

/** Tokens per dense call; bounds the activations of a long question. */
const CHUNK = 256;

/**
 * Runs `ids` through all layers, appends one entry per token to every head, and returns the logits of the last `rows`
 * tokens, `[rows, vocabulary]`; 1 ≤ rows ≤ ids. Each token sees what the cache kept plus the tokens before it.
 */
export async function extend(
  dense: DenseEngine,
  cache: RaggedCache,
  ids: ArrayLike<number>,
  options: { signal?: AbortSignal; rows?: number } = {},
): Promise<Float32Array> {
  const { config } = dense;
  const rows = options.rows ?? 1;
  if (ids.length === 0) throw new RangeError("extend() needs at least one token");
  if (rows < 1 || rows > ids.length) throw new RangeError(`extend() can't give ${rows} rows of ${ids.length} tokens`);
  const wanted = new Float32Array(rows * config.width);
  for (let start = 0; start < ids.length; start += CHUNK) {
    options.signal?.throwIfAborted();
    const count = Math.min(CHUNK, ids.length - start);
    const hidden = await forward(dense, config, cache, Array.from(ids).slice(start, start + count));
    const first = start - (ids.length - rows);
    wanted.set(hidden.subarray(Math.max(0, -first) * config.width), Math.max(0, first) * config.width);
  }
  return await dense.logits(wanted, rows);
}

/** All layers over one chunk: `[count, width]` hidden states before the final norm. */
async function forward(
  dense: DenseEngine,
  config: ModelConfig,
  cache: RaggedCache,
  ids: readonly number[],
): Promise<Float32Array<ArrayBuffer>> {
  const count = ids.length;
  let hidden = dense.embed(ids) as Float32Array<ArrayBuffer>;
  for (let layer = 0; layer < config.layers; layer++) {
    const qkv = await dense.qkv(layer, hidden, count);
    const { queries, keys, values } = project(config, qkv, count, cache.position);
    cache.append(layer, keys, values, count, cache.position);
    const { output } = await cache.rows(layer).decodeAttention(queries, count);
    hidden = await dense.finish(layer, hidden, output, count) as Float32Array<ArrayBuffer>;
  }
  cache.advance(count);
  return hidden;
}
