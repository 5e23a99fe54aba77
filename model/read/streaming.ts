/**
 * Reading in one pass of bounded memory: chunk by chunk through all layers, evicting after every chunk. For scores that
 * are known when the key is made (`gate`); later chunks attend over the survivors alone.
 *
 * The budget is fixed before the first chunk. After each chunk the sinks and the most recent `window` tokens stay in
 * every head, and of all others seen so far the best, as many as the budget has room for besides sinks and window. So an
 * entry competes once it leaves the recent window, and what loses could not have been in the final set: entries seen
 * later only add rivals. The kept set equals one selection over all scores that were produced. Never more entries than
 * the budget and one chunk are held, counted over all global layers and heads.
 */
import { readPart, Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { ScoreLists } from "../../core/cache/score_lists.ts";
import type { Budget, Policy } from "../../core/policy/policy.ts";
import type { SelectionInput } from "../../core/select/select.ts";
import { globalShape } from "../../core/shape.ts";
import { forward } from "../decode/extend.ts";
import { CHUNK, stepBytes } from "../decode/layer.ts";
import type { Dense } from "../dense/dense.ts";
import type { Device } from "../device.ts";
import type { GateScorer } from "../gate/scorer.ts";
import type { ReadOptions, ReadResult, StreamingReading } from "./reading.ts";
import { roomBelow } from "./room.ts";

/** Of the policy only scope, sinks and window count; the scores are the gate's, which must be there. */
export interface StreamOptions extends Omit<StreamingReading, "way">, Omit<ReadOptions, "outputWeights"> {
  /** Called with the scores of every chunk and global layer, `[count, kvHeads]`, tokens from `first` on. */
  readonly onScores?: (layer: number, scores: Float32Array, first: number) => void;
}

/**
 * Reads `ids` (at least one) into a new cache, evicting on the way. The caller owns the cache.
 * PalisadeError (input) `context.too-long` when `realign` finds no room, because one head holds a whole trained context.
 */
export async function readStreaming(
  { dense, backend }: Device,
  ids: ArrayLike<number>,
  options: StreamOptions,
): Promise<ReadResult> {
  const { config } = dense, { width } = config, { budget, gate, signal, now = () => performance.now() } = options;
  if (!gate) throw new RangeError("Cannot read in a stream without a gate");
  const cache = new RaggedCache(backend, config, options.cacheType);
  const ms = { prefill: 0, evict: 0 };
  let lastHidden = new Float32Array(0) as Float32Array, activationBytes = 0;
  try {
    const scores = new ScoreLists(globalShape(config));
    for (let start = 0, count = 0; start < ids.length; start += count) {
      signal?.throwIfAborted();
      const room = options.realign ? roomBelow(config, cache.position) : CHUNK, began = now();
      count = Math.min(CHUNK, room, ids.length - start);
      const some = Array.from({ length: count }, (_, i) => ids[start + i]);
      using temporaries = new Temporaries(backend.tensors);
      const hidden = temporaries.add(await readChunk(dense, cache, some, scores, { ...options, gate }));
      if (start + count === ids.length) {
        lastHidden = await readPart(backend.tensors, hidden, (count - 1) * width, width);
      }
      const read = now();
      if (options.policy.allocate.kind !== "all" && budget.perHead < budget.length) {
        await evict(cache, scores, options);
        if (options.realign) await cache.realign(config.ropes);
      }
      ms.prefill += read - began;
      ms.evict += now() - read;
      activationBytes = Math.max(activationBytes, stepBytes(config, count));
      options.onLayer?.(Math.floor((start + count) / ids.length * config.layers), config.layers);
    }
    cache.releaseAll();
    cache.setScoreBytes(0);
    return { cache, lastHidden, activationBytes, ms, predicted: scores.lists };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

/** All layers over one chunk, scored by the way; the hidden states are the caller's. */
async function readChunk(
  dense: Dense,
  cache: RaggedCache,
  ids: readonly number[],
  scores: ScoreLists,
  { gate, onScores }: { readonly gate: GateScorer } & Pick<StreamOptions, "onScores">,
): Promise<Tensor> {
  const count = ids.length, token = cache.seen;
  const onInput = async (layer: number, hidden: Tensor) => {
    const index = cache.globals.indexOf(layer);
    if (index < 0) return;
    const chunkScores = await gate.score(layer, hidden, count);
    scores.append(index, chunkScores, count);
    cache.setScoreBytes(scores.byteLength);
    onScores?.(layer, chunkScores, token);
  };
  return await forward(dense, cache, ids, { onInput });
}

/** Keeps what may still be in the final set. */
async function evict(cache: RaggedCache, scores: ScoreLists, { policy, budget }: StreamOptions): Promise<void> {
  const { globals, seen, shape: { kvHeads } } = cache;
  const recent = Math.max(budget.sinks, seen - budget.window);
  const segments = scores.lists.map((list, index) => {
    const positions = cache.positions(globals[Math.floor(index / kvHeads)], index % kvHeads);
    return {
      scores: list,
      protectedEntries: Uint8Array.from(positions, (p) => Number(p < budget.sinks || p >= recent)),
    };
  });
  const kept: Int32Array[] = [];
  for (const { size, count } of pools(policy, budget)) {
    const pool = segments.slice(kept.length, kept.length + size);
    const entries = pool.reduce((sum, { scores }) => sum + scores.length, 0);
    const input: SelectionInput = { segments: pool, count: Math.min(count, entries) };
    kept.push(...await cache.backend.select(input));
  }
  for (const [index, layer] of globals.entries()) {
    const rows = kept.slice(index * kvHeads, (index + 1) * kvHeads);
    cache.compact(layer, rows);
    scores.compact(index, rows);
  }
  cache.setScoreBytes(scores.byteLength);
}

/** Who competes: runs of `size` (layer, head) segments for `count` entries each. */
function pools({ allocate }: Pick<Policy, "allocate">, { model, total, perLayer, perHead }: Budget) {
  const { layers, kvHeads } = model;
  const repeated = (times: number, size: number, count: number) =>
    Array.from({ length: times }, () => ({ size, count }));
  switch (allocate.kind) {
    case "model":
      return repeated(1, layers * kvHeads, total);
    case "layer":
      return repeated(layers, kvHeads, perLayer);
    case "head":
      return repeated(layers * kvHeads, 1, perHead);
    case "cascade":
    case "all":
      throw new RangeError(`Can't evict early where ${allocate.kind} is the allocation`);
    default:
      throw new TypeError(`Unknown allocation ${allocate satisfies never}`);
  }
}
