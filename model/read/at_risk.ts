/**
 * `risk` ε: reading with the smallest budget whose risk is at most ε (`core/worst_case/risk_budget.ts`), in whole tokens per head,
 * so that `keep` with the N found keeps the same.
 *
 * The kept set of a budget is known when all layers are scored, and its risk when the attention of the window is set
 * against it. So layers wait: all of them, keys and values, if they fit into `maxCacheBytes`, and what the budget found
 * does not cover is evicted in place. If they don't fit, every round of the search reads the context anew (two or three
 * rounds, one more before for policies whose layers compete or share), holding one layer at a time, and so does the last
 * reading, with the budget found.
 *
 * The observed rows must not change with the budget: budgets below sinks + window, which shrink the window, are not tried.
 */
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { observationFor } from "../../core/measure/window.ts";
import type { Budget, Observation } from "../../core/policy/policy.ts";
import { largestMasses, smallestBudget } from "../../core/worst_case/risk_budget.ts";
import { KeptSets } from "../../core/select/kept_sets.ts";
import { Eviction, type EvictionSettings, keptOfAll } from "../../core/select/eviction.ts";
import { entryBytes } from "../../core/cache/entry_type.ts";
import { crossLayerSelection } from "../../core/select/cross_layer.ts";
import { globalLayers, layerEntries, layerShape, observedShape, sourceOf } from "../../core/shape.ts";
import { joinQueries } from "../joined.ts";
import type { ModelConfig } from "../config.ts";
import type { Device } from "../device.ts";
import { Explainer } from "./explain.ts";
import { LayerReader, type LayerSeen } from "./layer_reader.ts";
import { readContext } from "./layers.ts";
import { observeLayer } from "./observe_layer.ts";
import type { ReadOptions, ReadResult, RiskReading } from "./reading.ts";

/** The budget is what the search is for. */
export interface RiskOptions extends Omit<RiskReading, "way" | "budget">, ReadOptions {}

/** What the search did. */
export interface RiskFigures {
  readonly asked: number;
  /** The risk at the budget found, ≤ asked. */
  readonly reached: number;
  /** Times the context was read. */
  readonly passes: number;
  /** The most bytes held at once over all passes: keys, values, observations and candidate sets. */
  readonly peakBytes: number;
}

export interface RiskResult extends ReadResult {
  readonly budget: Budget;
  readonly figures: RiskFigures;
}

/** Reads `ids` (at least one) into a new cache at the smallest budget that holds the risk. The caller owns the cache. */
export async function readAtRisk(
  device: Device,
  ids: ArrayLike<number>,
  options: RiskOptions,
): Promise<RiskResult> {
  using search = new RiskSearch(device, ids, options);
  return await search.run();
}

/** A global layer in the search: everything is still there. */
interface Visit {
  readonly layer: number;
  /** Which of the global layers it is. */
  readonly index: number;
  readonly seen: LayerSeen;
}

class RiskSearch implements Disposable {
  readonly #device: Device;
  readonly #config: ModelConfig;
  readonly #ids: ArrayLike<number>;
  readonly #options: RiskOptions;
  readonly #window: number;
  readonly #waits: boolean;
  /** Of the pass that runs, or that waits; a cache that is handed out is no longer here. */
  #cache?: RaggedCache;
  #reader?: LayerReader;
  /** Set while layers wait. */
  #seen?: LayerSeen[];
  readonly #observations: Observation[] = [];
  #passes = 0;
  #peak = 0;
  #activationBytes = 0;
  #ms = { prefill: 0, evict: 0 };
  readonly #now: () => number;

  constructor(device: Device, ids: ArrayLike<number>, options: RiskOptions) {
    const { config } = device.dense;
    this.#device = device;
    this.#config = config;
    this.#ids = ids;
    this.#options = options;
    this.#window = observationFor(options.policy, this.#budget(ids.length)).window;
    let waiting = 0;
    for (let layer = 0; layer < config.layers; layer++) {
      const { headDim } = layerShape(config, layer), type = options.cacheType ?? "f32";
      waiting += layerEntries(config, layer, ids.length) * entryBytes(headDim, type);
    }
    this.#waits = waiting <= options.maxCacheBytes;
    this.#now = options.now ?? (() => performance.now());
  }

  [Symbol.dispose](): void {
    this.#reader?.[Symbol.dispose]();
    this.#cache?.[Symbol.dispose]();
    this.#reader = this.#cache = undefined;
  }

  async run(): Promise<RiskResult> {
    const { policy, limit } = this.#options;
    const most = this.#ids.length, least = Math.min(most, Math.max(1, policy.sinks + policy.window));
    const crossLayer = crossLayerSelection(policy, this.#budget(least)) !== undefined;
    if (crossLayer && least < most) await this.#each((each) => this.#remember(each));
    const found = policy.allocate.kind === "all" ? { tokens: most, risk: 0 } : await smallestBudget(
      { least, most },
      limit,
      (tokens) => this.#risks(tokens.map((n) => this.#budget(n)), crossLayer),
    );
    const budget = this.#budget(found.tokens);
    const read = this.#seen ? await this.#evictInPlace(budget, crossLayer) : await this.#readAgain(budget);
    const peakBytes = Math.max(this.#peak, read.cache.bytes().peak);
    return { ...read, budget, figures: { asked: limit, reached: found.risk, passes: this.#passes, peakBytes } };
  }

  #budget(tokens: number): Budget {
    return resolveBudget(this.#options.policy, { tokens }, this.#ids.length, this.#config);
  }

  async #remember(each: Visit): Promise<void> {
    this.#observations[each.index] = await this.#observe(each);
    this.#countBytes(0);
  }

  #observe({ layer, index, seen }: Visit): Promise<Observation> {
    const { policy, outputWeights } = this.#options, budget = this.#budget(this.#ids.length);
    const from = { rows: this.#cache!.rows(layer), tensors: this.#cache!.backend.tensors };
    return observeLayer(from, { layer, index }, seen, { policy, budget, outputWeights });
  }

  /** The risk of each budget, in one round over the layers. */
  async #risks(budgets: readonly Budget[], crossLayer: boolean): Promise<Float64Array> {
    const { policy } = this.#options, globals = globalLayers(this.#config);
    const heads = globals.reduce((sum, layer) => sum + observedShape(this.#config, layer).heads, 0);
    const sums = new Float64Array(budgets.length);
    const chosen = crossLayer ? new KeptSets(this.#budget(this.#ids.length)) : undefined;
    if (chosen) {
      for (const [c, budget] of budgets.entries()) {
        chosen.add(c, await this.#keptOfAll({ policy, budget }));
      }
    }
    this.#countBytes(chosen?.byteLength ?? 0);
    await this.#each(async (each) => {
      const { layer, index, seen } = each;
      const candidates = chosen
        ? budgets.map((_, c) => chosen.of(c, index))
        : await this.#keptAlone(await this.#observe(each), budgets);
      const from = this.#cache!.rows(layer);
      const queries: Float32Array[] = [], { tensors } = this.#device.backend;
      for (const one of [seen, ...(seen.readers ?? []).map(({ seen }) => seen)]) {
        queries.push(await tensors.read(one.windowQueries));
      }
      const masses = largestMasses({
        shape: observedShape(this.#config, layer),
        length: this.#ids.length,
        window: this.#window,
        queries: joinQueries(queries, this.#window, from.shape.kvHeads),
        keys: (await copyHeads(from)).map(({ keys }) => keys),
      }, candidates);
      masses.forEach((mass, c) => sums[c] += mass / heads);
    });
    return sums;
  }

  /** What each budget keeps of a layer that is decided alone. */
  async #keptAlone(observation: Observation, budgets: readonly Budget[]): Promise<Int32Array[][]> {
    const { policy } = this.#options, candidates: Int32Array[][] = [];
    for (const budget of budgets) {
      const [{ kept }] = await new Eviction({ policy, budget }, this.#device.backend).add(observation);
      candidates.push(kept);
    }
    return candidates;
  }

  /** What a budget keeps where layers compete; all have been remembered. */
  #keptOfAll(settings: EvictionSettings): Promise<Int32Array[][]> {
    return keptOfAll(settings, this.#observations, this.#device.backend);
  }

  /** One visit to every global layer, whole: read for the first time, waiting since then, or read anew. */
  async #each(visit: (each: Visit) => Promise<void>): Promise<void> {
    const { onLayer } = this.#options, { layers } = this.#config;
    const seen = this.#seen ?? [], reader = this.#seen ? this.#reader! : await this.#newReader();
    for (let layer = 0; layer < layers; layer++) {
      const start = this.#now();
      seen[layer] ??= await reader.layer(layer);
      const middle = this.#now();
      const index = this.#cache!.globals.indexOf(layer);
      if (index >= 0) await visit({ layer, index, seen: seen[layer] });
      this.#ms.prefill += middle - start;
      this.#ms.evict += this.#now() - middle;
      this.#peak = Math.max(this.#peak, this.#cache!.bytes().peak);
      if (this.#waits) continue;
      reader.release(seen[layer]);
      delete seen[layer];
      // Nothing waits: what was read of a layer goes, once nobody looks at it any more.
      if (sourceOf(this.#config, layer) === layer) this.#cache!.clear(layer);
      onLayer?.(layer + 1, layers);
    }
    this.#activationBytes = Math.max(this.#activationBytes, reader.activationBytes);
    if (this.#waits) this.#seen = seen;
  }

  /** Starts the context from its first layer, in a cache of its own. */
  async #newReader(): Promise<LayerReader> {
    const { policy: { needs }, signal, prompts, pieces, gate, fitting, softTokens, outputWeights } = this.#options;
    this[Symbol.dispose]();
    const cache = this.#cache = new RaggedCache(this.#device.backend, this.#config, this.#options.cacheType);
    this.#passes++;
    const seen = { needs, window: this.#window, signal, prompts, pieces, gate, fitting, softTokens, outputWeights };
    return this.#reader = await LayerReader.open(this.#device, cache, this.#ids, seen);
  }

  async #evictInPlace(budget: Budget, crossLayer: boolean): Promise<ReadResult> {
    const { policy, outputWeights, explain } = this.#options;
    const cache = this.#cache!, reader = this.#reader!;
    const explainer = explain ? new Explainer(cache, { policy, budget, outputWeights }) : undefined;
    const start = this.#now();
    const chosen = crossLayer ? await this.#keptOfAll({ policy, budget }) : undefined;
    for (const [index, layer] of cache.globals.entries()) {
      const seen = this.#seen![layer];
      await explainer?.add(layer, seen);
      const kept = chosen?.[index] ??
        (await this.#keptAlone(await this.#observe({ layer, index, seen }), [budget]))[0];
      cache.compact(layer, kept);
      explainer?.compact(layer, kept);
    }
    this.#ms.evict += this.#now() - start;
    cache.setScoreBytes(0);
    cache.advance(this.#ids.length);
    const [lastHidden, certificates] = [await reader.lastHidden(), await explainer?.certificates()];
    this.#cache = undefined;
    const fitted = reader.fitted();
    return { cache, lastHidden, activationBytes: this.#activationBytes, ms: this.#ms, certificates, fitted };
  }

  /** Nothing waits: one more reading, with the budget. */
  async #readAgain(budget: Budget): Promise<ReadResult> {
    this[Symbol.dispose]();
    this.#observations.length = 0;
    this.#passes++;
    const read = await readContext(this.#device, this.#ids, { ...this.#options, budget });
    const ms = { prefill: this.#ms.prefill + read.ms.prefill, evict: this.#ms.evict + read.ms.evict };
    return { ...read, ms, activationBytes: Math.max(read.activationBytes, this.#activationBytes) };
  }

  /** Observations and candidate sets count as candidate scores in the cache's peak. */
  #countBytes(candidates: number): void {
    let bytes = candidates;
    for (const observation of this.#observations) {
      for (const field of Object.values(observation ?? {})) if (ArrayBuffer.isView(field)) bytes += field.byteLength;
    }
    this.#cache?.setScoreBytes(bytes);
  }
}
