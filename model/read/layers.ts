/**
 * Layer-major prefill: the whole context passes through layer 0, then layer 1, … Only the hidden states and ONE
 * layer's full keys and values exist at a time; what the policy evicts is freed before the next layer starts.
 *
 * For policies whose layers compete or share, an entry that a later layer can only push further down is dropped at
 * once, and the streaming selection stays exact (`core/select/joint.ts`, `core/select/cascade.ts`).
 */
import { RaggedCache } from "../../core/cache/ragged.ts";
import { ScoreLists } from "../../core/cache/score_lists.ts";
import type { AttentionOutputs, LayerRows } from "../../core/backend/interface.ts";
import type { LayerChange } from "../../core/select/candidates.ts";
import type { Budget, Needs, Observation } from "../../core/policy/policy.ts";
import { QueryStatistics, type QueryStatisticsResult } from "../../core/measure/query_statistics.ts";
import { Eviction, keepsAll } from "../../core/select/eviction.ts";
import { type AtAttention, CHUNK, layerAttention, type LayerInput, layerStep, stepBytes } from "../decode/layer.ts";
import { hold } from "../../runtime/breathe.ts";
import type { ModelConfig } from "../config.ts";
import type { DenseEngine } from "../dense/interface.ts";
import type { Device } from "../device.ts";
import { Explainer } from "./explain.ts";
import type { LayersReading, Reader, ReadOptions, ReadResult, ScoreFiles, ThresholdReading } from "./reading.ts";
import { Probe } from "./soft_tokens.ts";
import { Reconstruction, type RepeatPrompt } from "./reconstruct.ts";

/** What the layers alone don't know, for policies whose `needs` ask for it. */
export interface ScoreSources extends ScoreFiles {
  /** For `needs.reconstruction`: `repeatPrompts` of the same context. */
  readonly prompts?: readonly RepeatPrompt[];
}

export interface LayersOptions extends Omit<LayersReading, "way">, ReadOptions {
  /** Evicts only what scores below this, whatever the budget; for policies whose scores are importances. */
  readonly threshold?: number;
}

/** Reads `ids` (at least one) into a new cache and evicts by `policy`. The caller owns the cache. */
export async function readContext(
  device: Device,
  ids: ArrayLike<number>,
  options: LayersOptions,
): Promise<ReadResult> {
  const { dense, backend } = device, { config } = dense;
  const now = options.now ?? (() => performance.now());
  const cache = new RaggedCache(backend, config, options.cacheType);
  try {
    const wanted = keepsAll(options) ? {} : options.policy.needs;
    const needs = options.foretell ? { ...wanted, gate: true } : wanted;
    const explainer = options.explain ? new Explainer(cache, options) : undefined;
    const window = Math.max(needs.window ? options.budget.window : 0, explainer?.window ?? 0);
    const { signal, prompts, gate, softTokens } = options;
    const reader = new LayerReader(dense, cache, ids, { needs, window, signal, prompts, gate, softTokens });
    const eviction = new LayerEviction(cache, options, explainer);
    let prefill = 0, evict = 0;
    for (let layer = 0; layer < config.layers; layer++) {
      const start = now();
      const seen = await reader.layer(layer);
      const middle = now();
      await explainer?.add(layer, seen.windowQueries);
      await eviction.layer(layer, seen);
      prefill += middle - start;
      evict += now() - middle;
      options.onLayer?.(layer + 1, config.layers);
    }
    cache.advance(ids.length);
    return {
      cache,
      lastHidden: reader.lastHidden(),
      activationBytes: reader.activationBytes,
      ms: { prefill, evict },
      certificates: await explainer?.certificates(),
      foretold: eviction.foretold?.lists,
    };
  } catch (error) {
    cache[Symbol.dispose]();
    throw error;
  }
}

/** Reads `ids` and evicts what scores below the limit, or, where scores are foretold, below what its margins make of it. */
export const readThreshold: Reader<ThresholdReading> = async (device, ids, options) => {
  const threshold = options.worstCase?.threshold ?? options.limit;
  const read = await readContext(device, ids, { ...options, threshold });
  return { ...read, budget: budgetKept(options.budget, read.cache.entries()) };
};

/** The budget that a threshold came to: per head and layer on average, rounded down. */
function budgetKept(whole: Budget, entries: number): Budget {
  const { length, model: { layers, kvHeads } } = whole;
  return {
    ...whole,
    fraction: entries / (length * layers * kvHeads),
    perHead: Math.floor(entries / (layers * kvHeads)),
    perLayer: Math.floor(entries / layers),
    total: entries,
  };
}

/** What the forward pass leaves behind for the policy. */
export interface LayerSeen extends Partial<QueryStatisticsResult> {
  /** Queries of the window, `[window, heads, headDim]`, after RoPE. */
  readonly windowQueries: Float32Array;
  readonly columnSum?: Float32Array;
  readonly columnMax?: Float32Array;
  readonly reconstruction?: Float32Array;
  readonly gate?: Float32Array;
  readonly softTokens?: Float32Array;
}

/** What a {@link LayerReader} is to leave behind. */
export interface SeenOptions extends ScoreSources {
  readonly needs: Needs;
  /** Queries to keep, from the end. */
  readonly window: number;
  /** Called with the input of each layer before its norm, `[count, width]`, tokens from `first` on. Not to be changed. */
  readonly onInput?: (layer: number, hidden: Float32Array, first: number, count: number) => void;
  /** Checked between chunks. */
  readonly signal?: AbortSignal;
}

/** Tokens from which on looking up their embeddings takes more than a tenth of a second. */
const MANY_TOKENS = 10_000;

/**
 * The forward half: hidden states of the whole context, one layer at a time, each layer once and in order. Appends to
 * `cache` and evicts nothing.
 */
export class LayerReader {
  readonly #dense: DenseEngine;
  readonly #cache: RaggedCache;
  readonly #length: number;
  readonly #window: number;
  readonly #needs: Needs;
  readonly #options: SeenOptions;
  readonly #reconstruction?: Reconstruction;
  readonly #probe?: Probe;
  /** `[length, width]`, overwritten layer by layer. */
  readonly #hidden: Float32Array;
  activationBytes = 0;

  constructor(dense: DenseEngine, cache: RaggedCache, ids: ArrayLike<number>, options: SeenOptions) {
    this.#dense = dense;
    this.#cache = cache;
    this.#length = ids.length;
    this.#needs = options.needs;
    this.#window = options.window;
    this.#options = options;
    this.#hidden = ids.length < MANY_TOKENS ? dense.embed(ids) : hold(() => dense.embed(ids));
    const { needs, prompts, gate, softTokens, signal } = options;
    if (needs.gate && !gate) throw new RangeError("Cannot read for a policy that needs a gate without one");
    if (needs.softTokens && !softTokens) {
      throw new RangeError("Cannot read for a policy that needs soft tokens without");
    }
    if (needs.softTokens) this.#probe = new Probe(dense, cache, ids.length, softTokens!);
    if (!needs.reconstruction) return;
    if (!prompts) throw new RangeError("Cannot read for a policy that needs reconstruction without prompts");
    this.#reconstruction = new Reconstruction(dense, cache, ids.length, prompts, signal);
  }

  /** Everything that goes from one layer to the next: hidden states of the context, then of each prompt. */
  states(): Float32Array[] {
    return [this.#hidden, ...this.#reconstruction?.hidden ?? []];
  }

  lastHidden(): Float32Array {
    const { width } = this.#dense.config;
    return this.#hidden.slice((this.#length - 1) * width);
  }

  async layer(layer: number): Promise<LayerSeen> {
    const { config } = this.#dense;
    this.#cache.rows(layer, this.#length);
    const seen = new SeenQueries(config, this.#length, this.#window, this.#needs);
    const gate = this.#needs.gate ? new Float32Array(config.kvHeads * this.#length) : undefined;
    for (let start = 0; start < this.#length; start += CHUNK) {
      this.#options.signal?.throwIfAborted();
      const count = Math.min(CHUNK, this.#length - start);
      const hidden = this.#hidden.subarray(start * config.width, (start + count) * config.width);
      this.#options.onInput?.(layer, hidden, start, count);
      if (gate) await this.#foretell(gate, layer, hidden, start, count);
      await this.#step({ layer, hidden, count, first: start }, seen);
    }
    const reconstruction = await this.#reconstruction?.layer(layer);
    const softTokens = await this.#probe?.layer(layer, this.#needs.softTokens!.reduction);
    return { ...seen.result(), reconstruction, gate, softTokens };
  }

  /** One chunk. The last layer's hidden states are only read at the last token, so its other chunks end at attention. */
  async #step(input: LayerInput, seen: SeenQueries): Promise<void> {
    const { layer, hidden, count, first } = input, { config } = this.#dense;
    const attend = async (at: AtAttention) => {
      const attended = await at.rows.prefillAttention(at.queries, count, seen.want);
      seen.add(at, attended, first, count);
      return attended.output;
    };
    const waiting = (this.#reconstruction?.hiddenBytes ?? 0) + (this.#probe?.hiddenBytes ?? 0);
    const bytes = this.#hidden.byteLength + waiting + stepBytes(config, count);
    this.activationBytes = Math.max(this.activationBytes, bytes);
    if (layer === config.layers - 1 && first + count < this.#length) {
      await layerAttention(this.#dense, this.#cache, input, attend);
    } else hidden.set(await layerStep(this.#dense, this.#cache, input, attend));
  }

  /** Fills `gate`, `[kvHeads, length]`, for the tokens from `start` on. */
  async #foretell(gate: Float32Array, layer: number, hidden: Float32Array, start: number, count: number) {
    const { kvHeads } = this.#dense.config;
    const scores = await this.#options.gate!.score(layer, hidden, count);
    for (let head = 0; head < kvHeads; head++) {
      const to = head * this.#length + start;
      for (let t = 0; t < count; t++) gate[to + t] = scores[t * kvHeads + head];
    }
  }
}

/** What the queries of one layer tell: those of the window, their columns, their statistics. */
class SeenQueries {
  readonly want: { columnSum?: boolean; columnMax?: boolean };
  readonly #config: ModelConfig;
  readonly #length: number;
  /** `[window, heads, headDim]`. */
  readonly #window: Float32Array;
  readonly #columns: Columns;
  readonly #statistics?: QueryStatistics;

  constructor(config: ModelConfig, length: number, window: number, needs: Needs) {
    const { heads, headDim } = config, { queryStatistics } = needs;
    this.#config = config;
    this.#length = length;
    this.#window = new Float32Array(window * heads * headDim);
    this.#columns = new Columns(needs, heads, length);
    this.want = this.#columns.want;
    if (queryStatistics) this.#statistics = new QueryStatistics(config, length, queryStatistics);
  }

  /** Takes the chunk of `count` tokens from `first` on. */
  add({ qkv, queries }: AtAttention, columns: AttentionOutputs, first: number, count: number): void {
    this.#statistics?.add(qkv, first, count, qkv.length / count);
    this.#columns.add(columns, first + count);
    const { heads, headDim } = this.#config, row = heads * headDim;
    const start = this.#length - this.#window.length / row, from = Math.max(start, first);
    if (from < first + count) this.#window.set(queries.subarray((from - first) * row), (from - start) * row);
  }

  result(): LayerSeen {
    const { rope } = this.#config;
    const foreseen = this.#statistics?.result(rope, rope.magnitude);
    return { windowQueries: this.#window, ...this.#columns.result(), ...foreseen };
  }
}

/** Column sums and maxima of the softmax, merged over the chunks of one layer, `[heads, length]`. */
class Columns {
  readonly want: { columnSum?: boolean; columnMax?: boolean };
  readonly #heads: number;
  readonly #length: number;
  readonly #sum?: Float64Array;
  readonly #max?: Float32Array;

  constructor(needs: Needs, heads: number, length: number) {
    this.want = { columnSum: needs.columnSum, columnMax: needs.columnMax };
    this.#heads = heads;
    this.#length = length;
    if (needs.columnSum) this.#sum = new Float64Array(heads * length);
    if (needs.columnMax) this.#max = new Float32Array(heads * length);
  }

  add(chunk: { columnSum?: Float32Array; columnMax?: Float32Array }, rows: number): void {
    for (let h = 0; h < this.#heads; h++) {
      for (let i = 0; i < rows; i++) {
        const to = h * this.#length + i, from = h * rows + i;
        if (this.#sum) this.#sum[to] += chunk.columnSum![from];
        if (this.#max) this.#max[to] = Math.max(this.#max[to], chunk.columnMax![from]);
      }
    }
  }

  result(): { columnSum?: Float32Array; columnMax?: Float32Array } {
    return { columnSum: this.#sum && Float32Array.from(this.#sum), columnMax: this.#max };
  }
}

/** What `policy` needs to know of a layer whose rows are all there. */
export async function observeLayer(
  rows: LayerRows,
  layer: number,
  seen: LayerSeen,
  { policy: { needs }, budget, outputWeights }: Pick<LayersOptions, "policy" | "budget" | "outputWeights">,
): Promise<Observation> {
  const { model: shape, length, window } = budget;
  const measured = needs.window || needs.rows ? await rows.observe(seen.windowQueries, window, needs) : {};
  const wo = needs.valueNorms && await outputWeights(layer);
  return {
    layer,
    shape,
    length,
    window,
    columnSum: seen.columnSum,
    columnMax: seen.columnMax,
    queryMean: seen.queryMean,
    queryCovariance: seen.queryCovariance,
    reconstruction: seen.reconstruction,
    gate: seen.gate,
    softTokens: seen.softTokens,
    valueNorms: wo && await rows.valueNorms(wo, wo.length / (shape.heads * shape.headDim), needs.valueNorms),
    ...measured,
  };
}

/** The evicting half: observe, score and select (`core/select/eviction.ts`), compact. */
class LayerEviction {
  readonly #cache: RaggedCache;
  readonly #options: LayersOptions;
  readonly #explainer?: Explainer;
  readonly #eviction?: Eviction;
  readonly foretold?: ScoreLists;

  constructor(cache: RaggedCache, options: LayersOptions, explainer?: Explainer) {
    this.#cache = cache;
    this.#options = options;
    this.#explainer = explainer;
    if (!keepsAll(options)) this.#eviction = new Eviction(options, cache.backend);
    if (options.foretell) this.foretold = new ScoreLists(cache.shape);
  }

  async layer(layer: number, seen: LayerSeen): Promise<void> {
    this.foretold?.fill(layer, seen.gate!);
    const eviction = this.#eviction;
    if (!eviction) return;
    const observation = await observeLayer(this.#cache.rows(layer), layer, seen, this.#options);
    for (const change of await eviction.add(observation)) this.#compact(change);
    if (!eviction.overLayers) return;
    const last = layer === this.#cache.shape.layers - 1;
    if (last) this.#cache.settle();
    this.#cache.setScoreBytes((last ? 0 : eviction.scoreBytes) + (this.foretold?.byteLength ?? 0));
  }

  #compact({ layer, kept }: LayerChange): void {
    this.#cache.compact(layer, kept);
    this.foretold?.compact(layer, kept);
    this.#explainer?.compact(layer, kept);
  }
}
