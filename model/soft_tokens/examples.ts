/**
 * What soft tokens are trained on: contexts as constants, each layer's rows, and what the answer looked at there.
 *
 * The paper's answers are the model's own to 50,000 prompts. Ours is the context itself, told to be repeated, as KVzip's
 * prompts are (`model/read/reconstruct.ts`): no question is known when a context is compressed, and nothing need be
 * generated.
 */
import type { ContextRows } from "../../core/dense/soft_attention.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import type { Model } from "../model.ts";
import { LayerReader } from "../read/layer_reader.ts";
import { repeatPrompts } from "../read/reconstruct.ts";

/** One layer of an example. */
export interface ExampleLayer {
  /** A window layer's are those that it still sees. */
  readonly context: ContextRows;
  /** Mean attention of the answer's tokens and the group, `[kvHeads, length]`; absent in a window layer. */
  readonly target?: Float32Array;
}

export interface Example {
  /** Tokens of the context. */
  readonly length: number;
  readonly layers: readonly ExampleLayer[];
}

/** What may be said of an example. */
export interface ExampleOptions {
  /** Tokens of the answer. Default: KVzip's prompt, which repeats the context. */
  readonly answer?: readonly number[];
  readonly signal?: AbortSignal;
}

/**
 * Reads a context and its answer.
 * @throws PalisadeError as `repeatPrompts` and what engines throw; `signal.reason` once it is aborted.
 */
export async function readExample(
  model: Model,
  ids: readonly number[],
  { answer, signal }: ExampleOptions = {},
): Promise<Example> {
  const { backend, config, dense } = model;
  const spoken = answer ?? repeatPrompts(model, ids, { chunk: ids.length, postfix: 0 })[0].ids;
  const embedded = await dense.embed(spoken), softTokens = (await backend.tensors.read(embedded)).slice();
  backend.tensors.free(embedded);
  using cache = new RaggedCache(backend, config);
  const needs = { softTokens: { reduction: "mean" } } as const;
  using reader = await LayerReader.open(model, cache, ids, { needs, window: 0, softTokens, signal });
  const layers: ExampleLayer[] = [];
  for (let layer = 0; layer < config.layers; layer++) {
    signal?.throwIfAborted();
    const seen = await reader.layer(layer);
    layers.push({ context: await copied(cache, layer), target: seen.softTokens?.slice() });
    reader.release(seen);
    cache.clear(layer);
  }
  return { length: ids.length, layers };
}

/** A layer's rows, head after head. */
async function copied(cache: RaggedCache, layer: number): Promise<ContextRows> {
  const { kvHeads, headDim } = cache.shape, rows = cache.rows(layer), length = cache.length(layer, 0);
  const keys = new Float32Array(kvHeads * length * headDim), values = new Float32Array(keys.length);
  for (let head = 0; head < kvHeads; head++) {
    const copy = await rows.copyRows(head);
    keys.set(copy.keys, head * length * headDim);
    values.set(copy.values, head * length * headDim);
  }
  return { length, keys, values };
}
