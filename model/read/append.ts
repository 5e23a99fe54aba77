/**
 * Reading on behind a context that was evicted before: what was kept of it stays, and only what is new is read and
 * judged. Layer by layer, as `layers.ts` reads a whole context: the new tokens attend over the kept entries and over each
 * other; then the policy scores the new entries as if they were a context of their own, and the budget's rest of them
 * stays.
 */
import type { LayerRows } from "../../core/backend/interface.ts";
import { Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { ScoreLists } from "../../core/cache/score_lists.ts";
import type { Budget, Needs, Policy } from "../../core/policy/policy.ts";
import type { LayerChange } from "../../core/select/candidates.ts";
import { Eviction, keepsAll } from "../../core/select/eviction.ts";
import { type AtAttention, layerStep, stepBytes } from "../decode/layer.ts";
import type { ModelConfig } from "../config.ts";
import type { Device } from "../device.ts";
import { type Chunk, HiddenStates } from "./hidden_states.ts";
import type { LayerSeen } from "./layers.ts";
import { observeLayer } from "./observe_layer.ts";
import type { ReadOptions, ReadResult } from "./reading.ts";

export interface AppendOptions extends Omit<ReadOptions, "softTokens" | "worstCase"> {
  readonly policy: Policy;
  /** What may stay of the new entries: {@link budgetBehind}. */
  readonly budget: Budget;
  /** The gate's scores of the entries that are there, where they are to be gone on with. */
  readonly predicted?: readonly Float32Array[];
}

export type AppendResult = Pick<ReadResult, "activationBytes" | "ms" | "predicted">;

/** What of a policy's needs can be measured of new entries alone. */
const MEASURED: ReadonlySet<string> = new Set<keyof Needs>(["window", "kernel", "gate", "rows", "valueNorms", "file"]);

/** Why a context can't be gone on with by this policy; undefined when it can. */
export function cannotGoOn({ name, needs }: Policy, { windows }: Pick<ModelConfig, "windows">): string | undefined {
  const whole = Object.entries(needs).some(([need, wanted]) => wanted && !MEASURED.has(need));
  if (whole) return `${name} judges an entry by what all of the context makes of it`;
  return windows.some((window) => window > 0) ? "the model has layers that look back a limited way" : undefined;
}

/**
 * What may stay of `count` new tokens, so that `cache` holds no more than `whole` allows when they are in it. Where heads
 * or layers have budgets of their own, the fullest decides.
 */
export function budgetBehind(whole: Budget, { allocate }: Policy, cache: RaggedCache, count: number): Budget {
  const { layers, kvHeads } = whole.model, heads = layers * kvHeads, entries = cache.entries();
  const lengths = lengthsOf(cache), even = !("uneven" in allocate && allocate.uneven);
  const fullestHead = Math.max(...lengths.flatMap((each) => [...each]));
  const fullestLayer = Math.max(...lengths.map((_, layer) => cache.layerEntries(layer)));
  const held = {
    head: even && allocate.kind === "head" ? fullestHead : entries / heads,
    layer: even && allocate.kind === "layer" ? fullestLayer : entries / layers,
  };
  const left = (allowed: number, taken: number, times: number) =>
    Math.min(count * times, Math.max(times, Math.floor(allowed - taken + 1e-9)));
  const perHead = left(whole.perHead, held.head, 1);
  return {
    ...whole,
    length: count,
    fraction: perHead / count,
    perHead,
    perLayer: left(whole.perLayer, held.layer, kvHeads),
    total: left(whole.total, entries, heads),
    sinks: 0,
    window: Math.min(whole.window, perHead),
  };
}

/** Entries of each layer and head. */
function lengthsOf(cache: RaggedCache): Int32Array[] {
  const { layers, kvHeads } = cache.shape;
  return Array.from({ length: layers }, (_, layer) => {
    return Int32Array.from({ length: kvHeads }, (_, head) => cache.length(layer, head));
  });
}

/**
 * Reads `ids` (at least one) into `cache` behind what it holds, and evicts of them. When it fails the cache is to be
 * disposed of.
 */
export async function readOn(
  device: Device,
  cache: RaggedCache,
  ids: readonly number[],
  options: AppendOptions,
): Promise<AppendResult> {
  const { layers } = device.dense.config, now = options.now ?? (() => performance.now());
  using hidden = await HiddenStates.embed(device, ids);
  const reader = new Appender(device, cache, hidden, ids.length, options);
  let prefill = 0, evict = 0;
  for (let layer = 0; layer < layers; layer++) {
    const start = now();
    using temporaries = new Temporaries(cache.backend.tensors);
    const { tail, seen } = await reader.read(layer, temporaries);
    const middle = now();
    try {
      await reader.evict(layer, tail, seen);
    } finally {
      tail.free();
    }
    prefill += middle - start;
    evict += now() - middle;
    options.onLayer?.(layer + 1, layers);
  }
  cache.settle();
  cache.advance(ids.length);
  cache.setScoreBytes(0);
  return { activationBytes: reader.activationBytes, ms: { prefill, evict }, predicted: reader.predicted };
}

class Appender {
  readonly #device: Device;
  readonly #cache: RaggedCache;
  readonly #hidden: HiddenStates;
  readonly #length: number;
  readonly #options: AppendOptions;
  readonly #eviction?: Eviction;
  /** Rows that were there before, per layer and head. */
  readonly #before: Int32Array[];
  readonly #scores?: ScoreLists;
  activationBytes = 0;

  constructor(device: Device, cache: RaggedCache, hidden: HiddenStates, length: number, options: AppendOptions) {
    this.#device = device;
    this.#cache = cache;
    this.#hidden = hidden;
    this.#length = length;
    this.#options = options;
    this.#before = lengthsOf(cache);
    if (!keepsAll(options)) this.#eviction = new Eviction(options, cache.backend);
    if (options.predicted) {
      this.#scores = new ScoreLists(cache.shape);
      options.predicted.forEach((list, i) => this.#scores!.lists[i] = list);
    }
  }

  get predicted(): readonly Float32Array[] | undefined {
    return this.#scores?.lists;
  }

  /** One layer over the new tokens. `tail`: their rows alone, the caller's; what is seen ends with `temporaries`. */
  async read(layer: number, temporaries: Temporaries): Promise<{ tail: LayerRows; seen: LayerSeen }> {
    const { backend } = this.#cache, { dense: { config } } = this.#device, { policy: { needs } } = this.#options;
    const { window } = this.#options.budget, wantsGate = this.#scores || (this.#eviction && needs.gate);
    const windowQueries = temporaries.add(backend.tensors.zeros(window * config.heads * config.headDim));
    const gate = wantsGate ? new Float32Array(config.kvHeads * this.#length) : undefined;
    const { nullLogits } = this.#cache.rows(layer).shape, shape = { ...config, nullLogits };
    const tail = backend.createRows(shape, this.#eviction ? this.#length : 0, this.#cache.type);
    try {
      for (const chunk of this.#hidden.chunks()) {
        this.#options.signal?.throwIfAborted();
        if (gate) await this.#predict(gate, layer, chunk);
        await this.#step(layer, chunk, tail, windowQueries);
      }
      return { tail, seen: { windowQueries, gate } };
    } catch (error) {
      tail.free();
      throw error;
    }
  }

  async #step(layer: number, chunk: Chunk, tail: LayerRows, windowQueries: Tensor): Promise<void> {
    const { dense } = this.#device, { hidden, count, first } = chunk, cache = this.#cache;
    const attend = async ({ rows, queries, keys, values, made }: AtAttention) => {
      if (this.#eviction) tail.append(keys, values, count);
      this.#copyWindow(queries, windowQueries, first, count);
      return made.add((await rows.decodeAttention(queries, count)).output);
    };
    this.activationBytes = Math.max(this.activationBytes, this.#hidden.byteLength + stepBytes(dense.config, count));
    const input = { layer, hidden, count, first: cache.position + first };
    this.#hidden.replace(chunk, await layerStep(dense, cache, input, attend));
  }

  /** Copies those of a chunk's queries that belong to the window, the last of all. */
  #copyWindow(queries: Tensor, windowQueries: Tensor, first: number, count: number): void {
    const { heads, headDim } = this.#cache.shape, row = heads * headDim;
    const start = this.#length - windowQueries.length / row, from = Math.max(start, first), end = first + count;
    if (from >= end) return;
    const { tensors } = this.#cache.backend;
    tensors.copy(queries, (from - first) * row, (end - from) * row, windowQueries, (from - start) * row);
  }

  /** Fills `gate`, `[kvHeads, new tokens]`, for a chunk's tokens. */
  async #predict(gate: Float32Array, layer: number, { hidden, first, count }: Chunk): Promise<void> {
    const { kvHeads } = this.#cache.shape, scores = await this.#options.gate!.score(layer, hidden, count);
    this.#scores?.append(layer, scores, count);
    for (let head = 0; head < kvHeads; head++) {
      for (let t = 0; t < count; t++) gate[head * this.#length + first + t] = scores[t * kvHeads + head];
    }
  }

  async evict(layer: number, tail: LayerRows, seen: LayerSeen): Promise<void> {
    const eviction = this.#eviction;
    if (!eviction) return;
    const observation = await observeLayer(
      { rows: tail, tensors: this.#cache.backend.tensors },
      { layer, index: layer },
      seen,
      this.#options,
    );
    for (const change of await eviction.add(observation)) this.#compact(change);
    if (eviction.crossLayer) this.#cache.setScoreBytes(eviction.scoreBytes);
  }

  /** Rows of the new part that stay, behind all of the old. */
  #compact({ layer, kept }: LayerChange): void {
    const all = kept.map((rows, head) => {
      const before = this.#before[layer][head], list = new Int32Array(before + rows.length);
      for (let i = 0; i < before; i++) list[i] = i;
      rows.forEach((row, i) => list[before + i] = before + row);
      return list;
    });
    this.#cache.compact(layer, all);
    this.#scores?.compact(layer, all);
  }
}
