/**
 * Layer-major prefill: the whole context passes through layer 0, then layer 1, … Only the hidden states and ONE
 * layer's full keys and values exist at a time; what the policy evicts is freed before the next layer starts.
 *
 * Window layers let go on the way of what no later token sees; policies decide over the others (`core/shape.ts`).
 *
 * For policies whose layers compete or share, an entry that a later layer can only push further down is dropped at
 * once, and the streaming selection stays exact (`core/select/joint.ts`, `core/select/cascade.ts`).
 */
import type { Tensor, Tensors } from "../../core/backend/tensor.ts";
import { ColumnReductions } from "../../core/backend/columns.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { ScoreLists } from "../../core/cache/score_lists.ts";
import type { AttentionOutputs } from "../../core/backend/interface.ts";
import type { LayerChange } from "../../core/select/candidates.ts";
import type { Budget, Needs } from "../../core/policy/policy.ts";
import type { Stages } from "../../core/policy/stages.ts";
import { QueryStatistics, type QueryStatisticsResult } from "../../core/measure/query_statistics.ts";
import { Eviction, keepsAll } from "../../core/select/eviction.ts";
import { globalShape, windowOf } from "../../core/shape.ts";
import { type AtAttention, CHUNK, layerAttention, type LayerInput, layerStep, stepBytes } from "../decode/layer.ts";
import type { Rope } from "../config.ts";
import { growthAt } from "../dense/rope.ts";
import type { Dense } from "../dense/dense.ts";
import type { Device } from "../device.ts";
import type { Behind } from "./behind.ts";
import { Explainer } from "./explain.ts";
import { type Chunk, HiddenStates, LayerInputs } from "./hidden_states.ts";
import type { LayersReading, Reader, ReadOptions, ReadResult, ScoreFiles, ThresholdReading } from "./reading.ts";
import { type HeldWeights, observeLayer } from "./observe_layer.ts";
import { Evictions, together, waitingLayers } from "./overlap.ts";
import { moveBehind, unmaskedMaxima } from "./moved_queries.ts";
import { foreseeBy } from "../foresight/foresee.ts";
import { KeyChannelStage } from "./key_channels.ts";
import { MergeStage, mergeWindow } from "./merge.ts";
import { type LayerReferences, referencesOf, SampledQueries } from "./references.ts";
import { REFERENCE_TOKENS, RefitStage } from "./refit.ts";
import { Probe } from "./soft_tokens.ts";
import { Reconstruction, type RepeatPrompt } from "./reconstruct.ts";
import { type Fitted, type Piece, Replay } from "./replay.ts";

/** What the layers alone don't know, for policies whose `needs` ask for it. */
export interface PolicyInputs extends ScoreFiles {
  /** For `needs.reconstruction`: `repeatPrompts` of the same context. */
  readonly prompts?: readonly RepeatPrompt[];
  /** For `needs.selfGate`: `replayPieces` of the same context. */
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
    const { signal, prompts, pieces, gate, fitting, softTokens } = options;
    const refit = options.refit && options.refit !== "none" && !keepsAll(options)
      ? new RefitStage(cache, { refit: options.refit })
      : undefined;
    const referenceTokens = refit && REFERENCE_TOKENS;
    const { outputWeights } = options;
    const alone = !behind && !options.explain && !refit && !merge && !keyChannels && !fitting;
    const waiting = alone ? waitingLayers(device.dense, ids.length) : 0;
    const seeing = {
      late: waiting > 0,
      needs,
      window,
      signal,
      prompts,
      pieces,
      gate,
      fitting,
      softTokens,
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
        await explainer?.add(layer, seen.windowQueries);
        await eviction.layer(layer, seen, before);
        if (seen.references) refit?.add(layer, seen.references);
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

/** What the forward pass leaves behind for the policy. */
export interface LayerSeen extends Partial<QueryStatisticsResult> {
  /** Queries of the window, `[window, heads, headDim]`, after RoPE; until they are released. */
  readonly windowQueries: Tensor;
  readonly columnSum?: Float32Array;
  readonly columnMax?: Float32Array;
  readonly reconstruction?: Float32Array;
  readonly gate?: Float32Array;
  /** Done when `gate` is filled, where that comes late. */
  readonly asked?: Promise<unknown>;
  readonly selfGate?: Float32Array;
  readonly softTokens?: Float32Array;
  readonly moved?: Float32Array;
  readonly references?: LayerReferences;
}

/** What a {@link LayerReader} is to leave behind. */
export interface SeenOptions extends PolicyInputs {
  readonly needs: Needs;
  /** Queries to keep, from the end. */
  readonly window: number;
  /** For `needs.reconstruction.contribution`. */
  readonly outputWeights?: ReadOptions["outputWeights"];
  /** Whether a layer's gate scores may come after the layer ({@link LayerSeen.asked}). */
  readonly late?: boolean;
  /** Tokens, about, whose queries a refit is to go by. */
  readonly referenceTokens?: number;
  /** What the context is read on behind; `cache` is its {@link Behind.tail} then. */
  readonly behind?: Behind;
  /** Called with the input of each layer before its norm, `[count, width]`, tokens from `first` on. Not to be changed. */
  readonly onInput?: (layer: number, hidden: Tensor, first: number, count: number) => Promise<void> | void;
  /** Checked between chunks. */
  readonly signal?: AbortSignal;
}

/**
 * The forward half: hidden states of the whole context, one layer at a time, each layer once and in order. Appends to
 * `cache` and evicts nothing.
 */
export class LayerReader implements Disposable {
  readonly #dense: Dense;
  readonly #cache: RaggedCache;
  readonly #length: number;
  readonly #options: SeenOptions;
  readonly #parts: ReaderParts;
  /** Queries that were given out and not released. */
  readonly #given = new Set<Tensor>();
  activationBytes = 0;

  private constructor(device: Device, cache: RaggedCache, length: number, options: SeenOptions, parts: ReaderParts) {
    this.#dense = device.dense;
    this.#cache = cache;
    this.#length = length;
    this.#options = options;
    this.#parts = parts;
  }

  /**
   * Embeds `ids`, and what goes beside them. `cache` is empty, and the device's.
   * @throws RangeError when `needs` ask for a source that isn't there.
   */
  static async open(device: Device, cache: RaggedCache, ids: ArrayLike<number>, options: SeenOptions) {
    const { needs, prompts, pieces, gate, fitting, softTokens, signal, behind } = options;
    if (needs.gate && !gate) throw new RangeError("Cannot read for a policy that needs a gate without one");
    if (needs.softTokens && !softTokens) {
      throw new RangeError("Cannot read for a policy that needs soft tokens without");
    }
    if (needs.reconstruction && !prompts) {
      throw new RangeError("Cannot read for a policy that needs reconstruction without prompts");
    }
    if (needs.reconstruction?.contribution && !options.outputWeights) {
      throw new RangeError("Cannot read for a policy that weighs contributions without output weights");
    }
    if (needs.selfGate && !(pieces && fitting)) {
      throw new RangeError("Cannot read for a policy that fits a gate without pieces to fit it on");
    }
    const parts: ReaderParts = { hidden: await HiddenStates.embed(device, ids) };
    const reader = new LayerReader(device, cache, ids.length, options, parts);
    try {
      if (needs.softTokens) parts.probe = new Probe(device, cache, ids.length, softTokens!, behind);
      if (needs.reconstruction) {
        parts.reconstruction = await Reconstruction.open(device, cache, ids.length, prompts!, {
          signal,
          behind,
          contribution: needs.reconstruction.contribution ? options.outputWeights : undefined,
        });
      }
      if (needs.selfGate) parts.replay = await Replay.open(device, cache, ids.length, pieces!, fitting!, signal);
      return reader;
    } catch (error) {
      reader[Symbol.dispose]();
      throw error;
    }
  }

  /** Everything that goes from one layer to the next: hidden states of the context, then of each prompt. */
  states(): HiddenStates[] {
    return [this.#parts.hidden, ...this.#parts.reconstruction?.hidden ?? []];
  }

  /** What a gate was fitted on, where one was, once all layers are read. */
  fitted(): Fitted | undefined {
    return this.#parts.replay?.fitted();
  }

  /** `[width]`. */
  lastHidden(): Promise<Float32Array> {
    return this.#parts.hidden.last();
  }

  /** Gives a layer's window queries back. */
  release({ windowQueries }: LayerSeen): void {
    if (this.#given.delete(windowQueries)) this.#cache.backend.tensors.free(windowQueries);
  }

  [Symbol.dispose](): void {
    for (const windowQueries of this.#given) this.#cache.backend.tensors.free(windowQueries);
    this.#given.clear();
    const { hidden, probe, reconstruction, replay } = this.#parts;
    for (const part of [hidden, probe, reconstruction, replay]) part?.[Symbol.dispose]();
  }

  /** What is asked for is measured in global layers; a window layer leaves nothing behind but its last entries. */
  async layer(layer: number): Promise<LayerSeen> {
    const { signal, onInput, referenceTokens, late } = this.#options;
    const { hidden, probe, reconstruction, replay } = this.#parts;
    const { kvHeads, heads, headDim } = this.#dense.config;
    const isGlobal = this.#cache.globals.includes(layer);
    const { needs, window } = isGlobal ? this.#options : { needs: {} as Needs, window: 0 };
    // Room for all that will be there at once, so that rows don't move while they are appended.
    this.#cache.rows(layer, Math.min(this.#length, windowOf(this.#cache.shape, layer) + (this.#dense.chunk ?? CHUNK)));
    const windowQueries = this.#cache.backend.tensors.zeros(window * heads * headDim);
    this.#given.add(windowQueries);
    const seen = new SeenQueries(this.#cache, this.#length, windowQueries, needs);
    const gate = needs.gate ? new Float32Array(kvHeads * this.#length) : undefined;
    using moved = needs.moved && this.#sampled(needs.moved.every);
    using references = referenceTokens && !reconstruction && isGlobal
      ? this.#sampled(Math.ceil(this.#length / referenceTokens))
      : undefined;
    using inputs = new LayerInputs(this.#cache.backend.tensors);
    const asked: Promise<void>[] = [];
    for (const chunk of hidden.chunks()) {
      signal?.throwIfAborted();
      await onInput?.(layer, chunk.hidden, chunk.first, chunk.count);
      // The gate looks at the layer's input, before the step puts the next layer's in its place.
      if (gate) asked.push(quiet(this.#predict(gate, layer, chunk)));
      if (!late) await together(undefined, ...asked.splice(0));
      await this.#step(layer, chunk, seen, [moved, references], isGlobal ? inputs : undefined);
    }
    // What asks the whole layer comes after its last chunk: its own queries, kvzip's prompts, then the soft tokens.
    const rows = this.#cache.rows(layer), { tensors } = this.#cache.backend, rope = this.#dense.config.ropes[layer];
    for (const each of [moved, references]) {
      if (each) await moveBehind(each, this.#dense.config, this.#length, rope, this.#cache.position);
    }
    const selfGate = await replay?.layer(layer, inputs.chunks);
    const repeated = await reconstruction?.layer(layer, referenceTokens);
    const softTokens = await probe?.layer(layer, this.#options.needs.softTokens!.reduction);
    const measured = {
      ...seen.result(rope, this.#cache.position),
      reconstruction: repeated?.importance,
      gate,
      asked: asked.length > 0 ? quiet(together(undefined, ...asked)) : undefined,
      selfGate,
      softTokens,
      moved: moved && await unmaskedMaxima(tensors, rows, moved),
      references: repeated?.references ?? (references && await referencesOf(tensors, rows, references)),
    };
    this.#cache.release(layer);
    this.#options.behind?.end(layer);
    return measured;
  }

  /** One chunk. The last layer's hidden states are only read at the last token, so its other chunks end at attention. */
  async #step(
    layer: number,
    chunk: Chunk,
    seen: SeenQueries,
    sampled: readonly (SampledQueries | undefined)[],
    inputs?: LayerInputs,
  ) {
    const { hidden, count, first } = chunk, { config } = this.#dense, { hidden: states, replay } = this.#parts;
    const input = { layer, hidden, count, first: this.#cache.position + first, unrotated: seen.unrotated };
    const attend = async (at: AtAttention) => {
      // Causal attention of the chunk over all rows so far, with the column sums that the policy needs.
      const attended = await this.#attention(at, input, seen.want);
      at.made.add(attended.output);
      // Queries of the window are copied, statistics summed: nothing else of the chunk is kept.
      await seen.add(at, attended, first, count);
      for (const each of sampled) each?.add(at.queries, first, count);
      replay?.add(layer, at, first, count);
      return attended.output;
    };
    const taken = sampled.reduce((sum, each) => sum + (each?.queries.byteLength ?? 0), 0);
    const waiting = taken + (this.#parts.reconstruction?.hiddenBytes ?? 0) +
      (this.#parts.probe?.hiddenBytes ?? 0) + (replay ? replay.hiddenBytes + states.byteLength : 0);
    this.activationBytes = Math.max(this.activationBytes, states.byteLength + waiting + stepBytes(config, count));
    // No layer follows, and only the chunk with the last token gives logits.
    if (layer === config.layers - 1 && first + count < this.#length) {
      await layerAttention(this.#dense, this.#cache, input, attend);
      inputs?.add(chunk);
      return;
    }
    const next = await layerStep(this.#dense, this.#cache, input, attend);
    if (replay && inputs) inputs.take(chunk, states.exchange(chunk, next));
    else states.replace(chunk, next);
  }

  /** Over all that is there; columns are those of the context's own rows. */
  async #attention(at: AtAttention, { layer, count, first }: LayerInput, want: SeenQueries["want"]) {
    const { behind } = this.#options, isAsked = want.columnSum || want.columnMax;
    const own = behind && !isAsked ? undefined : await at.rows.prefillAttention(at.queries, count, want);
    if (!behind) return own!;
    if (own) at.made.add(own.output);
    return { ...own, output: await behind.attend(layer, at, count, first) };
  }

  /** The queries of one token in `every`, to be collected. */
  #sampled(every: number): SampledQueries {
    return new SampledQueries(this.#cache.backend.tensors, this.#dense.config, this.#length, every);
  }

  /** Fills `gate`, `[kvHeads, length]`, for a chunk's tokens. */
  async #predict(gate: Float32Array, layer: number, { hidden, first, count }: Chunk) {
    const { kvHeads } = this.#dense.config;
    const scores = await this.#options.gate!.score(layer, hidden, count);
    for (let head = 0; head < kvHeads; head++) {
      const to = head * this.#length + first;
      for (let t = 0; t < count; t++) gate[to + t] = scores[t * kvHeads + head];
    }
  }
}

/** A promise that is looked at later. */
function quiet<R>(promise: Promise<R>): Promise<R> {
  promise.catch(() => {});
  return promise;
}

/** What goes from layer to layer. */
interface ReaderParts {
  readonly hidden: HiddenStates;
  probe?: Probe;
  reconstruction?: Reconstruction;
  replay?: Replay;
}

/** What the queries of one layer tell: those of the window, their columns, their statistics. */
class SeenQueries {
  readonly want: { columnSum?: boolean; columnMax?: boolean };
  readonly #tensors: Tensors;
  /** Numbers of a token's queries. */
  readonly #row: number;
  readonly #length: number;
  /** `[window, heads, headDim]`. */
  readonly #window: Tensor;
  readonly #columnReductions: ColumnReductions;
  readonly #statistics?: QueryStatistics;

  constructor({ backend, shape }: RaggedCache, length: number, window: Tensor, needs: Needs) {
    const { heads, headDim } = shape, { queryStatistics } = needs;
    this.#tensors = backend.tensors;
    this.#row = heads * headDim;
    this.#length = length;
    this.#window = window;
    this.#columnReductions = new ColumnReductions(needs, heads, length);
    this.want = this.#columnReductions.want;
    if (queryStatistics) this.#statistics = new QueryStatistics(shape, length, queryStatistics);
  }

  /** Whether queries before RoPE are wanted. */
  get unrotated(): boolean {
    return this.#statistics !== undefined;
  }

  /** Takes the chunk of `count` tokens from `first` on. */
  async add({ queries, unrotated }: AtAttention, columns: AttentionOutputs, first: number, count: number) {
    this.#statistics?.add(await this.#tensors.read(unrotated!), first, count, this.#row);
    this.#columnReductions.add(columns, first + count);
    const start = this.#length - this.#window.length / this.#row, from = Math.max(start, first), end = first + count;
    if (from >= end) return;
    this.#tensors.copy(
      queries,
      (from - first) * this.#row,
      (end - from) * this.#row,
      this.#window,
      (from - start) * this.#row,
    );
  }

  /** `start`: position of the first token. */
  result(rope: Rope, start: number): LayerSeen {
    const next = start + this.#length;
    const foreseen = this.#statistics?.result(rope, rope.magnitude * growthAt(rope, next), next);
    return { windowQueries: this.#window, ...this.#columnReductions.result(), ...foreseen };
  }
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
  readonly #eviction?: Eviction;
  readonly predicted?: ScoreLists;

  constructor(cache: RaggedCache, dense: Dense, options: LayersOptions, followers: Followers) {
    this.#cache = cache;
    this.#held = { dense, tensors: cache.backend.tensors };
    this.#options = options;
    this.#followers = followers;
    if (!keepsAll(options)) this.#eviction = new Eviction(options, cache.backend);
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
