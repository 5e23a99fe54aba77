/**
 * Reading a context longer than the trained one: chunk by chunk through all layers, evicting after each chunk, and
 * closing the gaps (`RaggedCache.realign`), so that no position ever reaches the trained context. What StreamingLLM
 * (arXiv 2309.17453) does with recency; KeyDiff (2504.15364) and others in blocks.
 *
 * For early policies: the score of a key is known when the key is made. Tokens see what was kept so far, not the whole
 * context; a policy scores the rows it kept and the new ones, as if they were a context.
 */
import { readPart, Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { ScoreLists } from "../../core/cache/score_lists.ts";
import { Eviction } from "../../core/select/eviction.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import type { Needs, Policy } from "../../core/policy/policy.ts";
import { globalShape } from "../../core/shape.ts";
import type { Device } from "../device.ts";
import { forward } from "../decode/extend.ts";
import { CHUNK, stepBytes } from "../decode/layer.ts";
import type { ReadOptions, ReadResult, RollingReading } from "./reading.ts";

/** Whether a policy can be read with in this way: it looks at keys and values alone, and decides head by head. */
export function rolls(policy: Pick<Policy, "needs" | "allocate">): boolean {
  const measured = Object.keys(policy.needs).filter((name) => policy.needs[name as keyof Needs]);
  const { kind } = policy.allocate;
  return (kind === "head" || kind === "all") && measured.every((name) => name === "rows");
}

/**
 * Reads `ids` (at least one) into a new cache of `budget.perHead` entries per head, which must be fewer than the trained
 * context. The caller owns the cache. `options.onLayer` is told layers' worth of tokens.
 */
export async function readRolling(
  { dense, backend }: Device,
  ids: readonly number[],
  options: Omit<RollingReading, "way"> & Omit<ReadOptions, "outputWeights">,
): Promise<ReadResult> {
  const { config } = dense,
    { width } = config,
    { policy, budget, signal, gate, now = () => performance.now() } = options;
  const cache = new RaggedCache(backend, config, options.cacheType);
  const scores = options.predict ? new ScoreLists(globalShape(config)) : undefined;
  const ms = { prefill: 0, evict: 0 };
  let lastHidden = new Float32Array(0) as Float32Array, activationBytes = 0;
  try {
    for (let start = 0, count = 0; start < ids.length; start += count) {
      signal?.throwIfAborted();
      count = Math.min(CHUNK, ids.length - start, config.contextLength - cache.position);
      const began = now();
      using temporaries = new Temporaries(backend.tensors);
      const onInput = async (layer: number, input: Tensor) => {
        const index = cache.globals.indexOf(layer);
        if (index >= 0) scores?.append(index, await gate!.score(layer, input, count), count);
      };
      const hidden = temporaries.add(await forward(dense, cache, ids.slice(start, start + count), { onInput }));
      if (start + count === ids.length) {
        lastHidden = await readPart(backend.tensors, hidden, (count - 1) * width, width);
      }
      const read = now();
      // Where no layer looks at everything, positions close up all the same.
      const [first] = cache.globals, held = first === undefined ? Infinity : cache.length(first, 0);
      if (held > budget.perHead) {
        await evict(cache, policy, budget.perHead, scores);
        cache.releaseAll();
        await cache.realign(config.ropes);
      }
      ms.prefill += read - began;
      ms.evict += now() - read;
      activationBytes = Math.max(activationBytes, stepBytes(config, count));
      options.onLayer?.(Math.floor((start + count) / ids.length * config.layers), config.layers);
    }
    cache.releaseAll();
    return { cache, lastHidden, activationBytes, ms, predicted: scores?.lists };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

/** Down to `perHead` entries in every head of every global layer. */
async function evict(cache: RaggedCache, policy: Policy, perHead: number, predicted?: ScoreLists): Promise<void> {
  const { backend, shape, globals } = cache;
  if (globals.length === 0) return;
  const length = cache.length(globals[0], 0);
  const budget = resolveBudget(policy, { tokens: perHead }, length, shape);
  const eviction = new Eviction({ policy, budget }, backend);
  using temporaries = new Temporaries(backend.tensors);
  const noQueries = temporaries.add(backend.tensors.zeros(0));
  for (const [index, layer] of globals.entries()) {
    const rows = await cache.rows(layer).observe(noQueries, budget.window, policy.needs);
    const [{ kept }] = await eviction.add({ layer: index, shape, length, window: budget.window, ...rows });
    cache.compact(layer, kept);
    predicted?.compact(index, kept);
  }
}
