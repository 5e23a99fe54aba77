/**
 * Layer-major prefill: the whole context passes through layer 0, then layer 1, … Only the hidden states and ONE
 * layer's full keys and values exist at a time; what the policy evicts is freed before the next layer starts.
 *
 * Window layers let go on the way of what no later token sees; policies decide over the others (`core/shape.ts`).
 *
 * For policies whose layers compete or share, an entry that a later layer can only push further down is dropped at
 * once, and the streaming selection stays exact (`core/select/joint.ts`, `core/select/cascade.ts`).
 */
import { RaggedCache } from "../../core/cache/ragged.ts";
import { ScoreLists } from "../../core/cache/score_lists.ts";
import type { LayerChange } from "../../core/select/candidates.ts";
import type { Budget } from "../../core/policy/policy.ts";
import type { Stages } from "../../core/policy/stages.ts";
import { Eviction, keepsAll } from "../../core/select/eviction.ts";
import { WideEviction } from "../../core/select/wide.ts";
import { globalShape } from "../../core/shape.ts";
import type { Dense } from "../dense/dense.ts";
import type { Device } from "../device.ts";
import type { Behind } from "./behind.ts";
import { Explainer } from "./explain.ts";
import type { LayersReading, Reader, ReadOptions, ReadResult, ScoreFiles, ThresholdReading } from "./reading.ts";
import { type HeldWeights, observeLayer } from "./observe_layer.ts";
import { Evictions, together, waitingLayers } from "./overlap.ts";
import { foreseeBy } from "../foresight/foresee.ts";
import { LayerReader, type LayerSeen } from "./layer_reader.ts";
import { KeyChannelStage } from "./key_channels.ts";
import { MergeStage, mergeWindow } from "./merge.ts";
import { REFERENCE_TOKENS, RefitStage } from "./refit.ts";
import type { RepeatPrompt } from "./reconstruct.ts";
import type { Piece } from "./replay.ts";

/** What the layers alone don't know, for policies whose `needs` ask for it. */
export interface PolicyInputs extends ScoreFiles {
  /** For `needs.reconstruction`: `repeatPrompts` of the same context. */
  readonly prompts?: readonly RepeatPrompt[];
  /** For `needs.selfGate`, and for a refit: `piecesOf` the same context. */
  readonly pieces?: readonly Piece[];
}

export interface LayersOptions extends Omit<LayersReading, "way">, ReadOptions {
  /** Evicts only what scores below this, whatever the budget; for policies whose scores are importances. */
  readonly threshold?: number;
  /** What the context is read on behind: its cache takes over what stays, and is what comes back. */
  readonly behind?: Behind;
}

/**
 * Reads `ids` (at least one) into a new cache, or `behind` another, and evicts by `policy`. The caller owns the cache; one
 * that was read on behind is to be disposed of when this fails.
 */
export async function readContext(
  device: Device,
  ids: ArrayLike<number>,
  options: LayersOptions,
): Promise<ReadResult> {
  const { backend, dense: { config } } = device;
  const now = options.now ?? (() => performance.now());
  const { cacheType, policy: { stages }, behind } = options;
  const cache = behind?.tail(cacheType) ?? new RaggedCache(backend, config, stages?.rows ?? cacheType, cacheType);
  try {
    const wanted = keepsAll(options) ? {} : options.policy.needs;
    const needs = options.predict ? { ...wanted, gate: true } : wanted;
    const explainer = options.explain ? new Explainer(cache, options) : undefined;
    const { keyChannels, merge } = stagesNow(options);
    const window = Math.max(needs.window ? options.budget.window : 0, explainer?.window ?? 0) ||
      (merge || keyChannels ? mergeWindow(ids.length) : 0);
    const { signal, prompts, pieces, gate, fitting, softTokens, statistics } = options;
    const refit = options.refit && options.refit !== "none" && !keepsAll(options)
      ? new RefitStage(cache, { refit: options.refit })
      : undefined;
    const referenceTokens = refit && REFERENCE_TOKENS;
    const { outputWeights } = options;
    const alone = !behind && !options.explain && !refit && !merge && !keyChannels && !fitting;
    const waiting = alone ? waitingLayers(device.dense, ids.length) : 0;
    const seeing = {
      late: alone && device.dense.waitingRows !== undefined,
      needs,
      window,
      signal,
      prompts,
      pieces,
      gate,
      fitting,
      softTokens,
      statistics,
      referenceTokens,
      outputWeights,
      behind,
    };
    using reader = await LayerReader.open(device, cache, ids, seeing);
    const merging = merge && new MergeStage(cache, merge, window);
    const thinning = keyChannels ? new KeyChannelStage(cache, keyChannels, window) : undefined;
    const eviction = new LayerEviction(cache, device.dense, options, { explainer, merging });
    let prefill = 0, evict = 0;
    const evictLayer = async (layer: number, seen: LayerSeen, before: Promise<void> | undefined) => {
      if (!cache.globals.includes(layer)) await before;
      else {
        await explainer?.add(layer, seen);
        await eviction.layer(layer, seen, before);
        if (seen.references) refit?.add(layer, seen.references);
        if (refit && !eviction.crossLayer) await eviction.pursue(layer, refit);
        await thinning?.add(layer, seen.windowQueries);
        if (!eviction.crossLayer) {
          await cache.pack(layer);
          await refit?.run(ids.length, options);
          if (thinning) await explainer?.settle(layer);
          await thinning?.run();
        }
      }
      reader.release(seen);
      options.onLayer?.(layer + 1, config.layers);
    };
    const evictions = new Evictions(waiting);
    for (let layer = 0; layer < config.layers; layer++) {
      const start = now();
      const seen = await evictions.beside(reader.layer(layer));
      const middle = now();
      await evictions.add((before) => evictLayer(layer, seen, before));
      prefill += middle - start;
      evict += now() - middle;
    }
    const read = now();
    await evictions.end();
    evict += now() - read;
    cache.advance(ids.length);
    if (refit && eviction.crossLayer) { for (const layer of cache.globals) await eviction.pursue(layer, refit); }
    const certificates = await explainer?.certificates(), refitBytes = refit?.waitingBytes ?? 0;
    await cache.packAll();
    await refit?.run(ids.length, options);
    await thinning?.run();
    const { foresight } = options.policy.needs;
    if (foresight && options.chunks) foreseeBy(cache, config, options.chunks, foresight);
    if (behind) {
      await behind.join(cache, ids.length);
      cache[Symbol.dispose]();
    }
    return {
      cache: behind?.cache ?? cache,
      lastHidden: await reader.lastHidden(),
      activationBytes: reader.activationBytes + refitBytes + (merging?.copyBytes ?? 0),
      ms: { prefill, evict },
      certificates,
      refit: refit?.figures(),
      merge: merging?.figures(),
      fitted: reader.fitted(),
      keyChannels: thinning?.figures(),
      predicted: eviction.predicted?.lists,
    };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

/** The stages of this reading: nothing is merged where nothing goes. */
function stagesNow(options: LayersOptions): Stages {
  const { merge, ...stages } = options.policy.stages ?? {};
  return keepsAll(options) ? stages : { ...stages, merge };
}

/** Reads `ids` and evicts what scores below the limit, or, where scores are predicted, below what its margins make of it. */
export const readThreshold: Reader<ThresholdReading> = async (device, ids, options) => {
  const threshold = options.worstCase?.threshold ?? options.limit;
  const read = await readContext(device, ids, { ...options, threshold });
  return { ...read, budget: budgetKept(options.budget, read.cache.globalEntries()) };
};

/** The budget that a threshold came to: per head and layer on average, rounded down. */
export function budgetKept(whole: Budget, entries: number): Budget {
  const { length, model: { layers, kvHeads } } = whole;
  return {
    ...whole,
    fraction: entries / (length * layers * kvHeads),
    perHead: Math.floor(entries / (layers * kvHeads)),
    perLayer: Math.floor(entries / layers),
    total: entries,
  };
}

/** What else wants to know of an eviction. */
interface Followers {
  readonly explainer?: Explainer;
  readonly merging?: MergeStage;
}

/** The evicting half: observe, score and select (`core/select/eviction.ts`), compact. */
class LayerEviction {
  readonly #cache: RaggedCache;
  readonly #options: LayersOptions;
  readonly #followers: Followers;
  readonly #held: HeldWeights;
  readonly #eviction?: Eviction | WideEviction;
  readonly predicted?: ScoreLists;

  constructor(cache: RaggedCache, dense: Dense, options: LayersOptions, followers: Followers) {
    this.#cache = cache;
    this.#held = { dense, tensors: cache.backend.tensors };
    this.#options = options;
    this.#followers = followers;
    if (!keepsAll(options)) {
      const kind = options.refit === "pursuit" ? WideEviction : Eviction;
      this.#eviction = new kind(options, cache.backend);
    }
    if (options.predict) this.predicted = new ScoreLists(globalShape(cache.shape));
  }

  /** Whether entries may still go when their layer has been decided. */
  get crossLayer(): boolean {
    return this.#eviction?.crossLayer ?? false;
  }

  /** Takes a global layer, once the layer `before` has been. */
  async layer(layer: number, seen: LayerSeen, before?: Promise<void>): Promise<void> {
    const { globals } = this.#cache, index = globals.indexOf(layer), eviction = this.#eviction;
    const from = { rows: this.#cache.rows(layer), tensors: this.#cache.backend.tensors };
    // Asked for at once, answered when earlier layers have been decided.
    const observing = eviction && observeLayer(from, { layer, index }, seen, this.#options, this.#held);
    const observation = await together(observing, before, seen.asked);
    const { merging } = this.#followers;
    this.predicted?.fill(index, seen.gate!);
    if (!eviction || !observation) return;
    await merging?.add(layer, seen.windowQueries);
    for (const change of await eviction.add(observation)) await this.#compact(change);
    const waiting = merging?.byteLength ?? 0;
    if (!eviction.crossLayer) {
      merging?.forget(layer);
      return;
    }
    const last = index === globals.length - 1;
    if (last) this.#cache.settle();
    this.#cache.setScoreBytes((last ? 0 : eviction.scoreBytes + waiting) + (this.predicted?.byteLength ?? 0));
  }

  /** Of the candidates for a refit in `layer` those that it needs stay, where it chooses. */
  async pursue(layer: number, refit: RefitStage): Promise<void> {
    if (!(this.#eviction instanceof WideEviction)) return;
    const index = this.#cache.globals.indexOf(layer), heads = this.#eviction.heads(index);
    const kept = await refit.pursue(layer, this.#cache.rows(layer), heads, () => undefined, this.#options);
    await this.#compact({ layer: index, kept });
    this.#cache.settle();
  }

  /** Evictions count global layers. */
  async #compact({ layer: index, kept }: LayerChange): Promise<void> {
    const layer = this.#cache.globals[index], { explainer, merging } = this.#followers;
    this.predicted?.compact(index, kept);
    explainer?.compact(layer, kept);
    if (!merging) return this.#cache.compact(layer, kept);
    // What is proved is proved of the keys as they were.
    await merging.compact(layer, kept, explainer && (() => explainer.settle(layer)));
  }
}
