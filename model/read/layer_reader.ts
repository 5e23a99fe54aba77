/**
 * The forward half of layer-major prefill: the whole context through one layer after the other, with what policies want to
 * know of its queries on the way.
 *
 * From the first layer on whose rows others look at, too (`ModelShape.sources`), the rest is read together: chunk by chunk
 * through all those layers, so that readers find the rows that each of their tokens may see, and window layers among them
 * let go as ever.
 */
import type { Tensor, Tensors } from "../../core/backend/tensor.ts";
import { ColumnReductions } from "../../core/backend/columns.ts";
import type { AttentionOutputs } from "../../core/backend/interface.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import {
  type PairStatisticsResult,
  queriesToCome,
  QueryStatistics,
  type QueryStatisticsResult,
} from "../../core/measure/query_statistics.ts";
import type { Needs } from "../../core/policy/policy.ts";
import { type AttentionShape, layerShape, readersOf, sourceOf, windowOf } from "../../core/shape.ts";
import type { Rope } from "../config.ts";
import { type AtAttention, CHUNK, layerAttention, type LayerInput, layerStep, stepBytes } from "../decode/layer.ts";
import type { Dense } from "../dense/dense.ts";
import { growthAt } from "../dense/rope.ts";
import type { Device } from "../device.ts";
import type { Statistics } from "../statistics/file.ts";
import { isCalibrated, layerMeans } from "../statistics/needed.ts";
import type { Behind } from "./behind.ts";
import { type Chunk, HiddenStates, LayerInputs } from "./hidden_states.ts";
import type { PolicyInputs } from "./layers.ts";
import { moveBehind, unmaskedMaxima } from "./moved_queries.ts";
import { together } from "./overlap.ts";
import type { ReadOptions } from "./reading.ts";
import { Reconstruction, type Repeated } from "./reconstruct.ts";
import { type LayerReferences, referencesOf, SampledQueries } from "./references.ts";
import { type Fitted, Replay } from "./replay.ts";
import { Probe } from "./soft_tokens.ts";

/** What the forward pass leaves behind for the policy. */
export interface LayerSeen extends Partial<QueryStatisticsResult & PairStatisticsResult> {
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
  /** What was seen at the other layers that look at this one's rows, in order. */
  readonly readers?: readonly { readonly layer: number; readonly seen: LayerSeen }[];
}

/** A layer on the way: what is gathered of its queries, chunk by chunk. */
interface LayerWork extends Disposable {
  readonly layer: number;
  readonly isGlobal: boolean;
  readonly seen: SeenQueries;
  readonly gate?: Float32Array;
  readonly moved?: SampledQueries;
  readonly references?: SampledQueries;
  readonly inputs: LayerInputs;
  readonly asked: Promise<void>[];
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
  /** Called with the queries of each global layer before RoPE, `[count, heads, headDim]`, tokens from `first` on. */
  readonly onQueries?: (layer: number, queries: Float32Array, first: number, count: number) => void;
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
  /** The first layer of those that are read together; Infinity: none are. */
  readonly #together: number;
  /** What was seen at those, until it is asked for. */
  #seen?: Map<number, LayerSeen>;
  activationBytes = 0;

  private constructor(device: Device, cache: RaggedCache, length: number, options: SeenOptions, parts: ReaderParts) {
    this.#dense = device.dense;
    this.#cache = cache;
    this.#length = length;
    this.#options = options;
    this.#parts = parts;
    const { shape } = cache, { length: layers } = shape.sources ?? [];
    const first = Array.from({ length: layers }, (_, layer) => layer).findIndex((layer) =>
      readersOf(shape, layer).length > 1
    );
    this.#together = first < 0 ? Infinity : first;
  }

  /**
   * Embeds `ids`, and what goes beside them. `cache` is empty, and the device's.
   * @throws RangeError when `needs` ask for a source that isn't there.
   */
  static async open(device: Device, cache: RaggedCache, ids: ArrayLike<number>, options: SeenOptions) {
    const { needs, prompts, pieces, gate, fitting, softTokens, statistics, signal, behind } = options;
    if (isCalibrated(needs) && !statistics) {
      throw new RangeError("Cannot read for a policy that needs calibrated statistics without");
    }
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
      const { referenceTokens } = options, forRefit = referenceTokens && !needs.reconstruction;
      if (pieces && (needs.selfGate || forRefit)) {
        const replay = { signal, referenceTokens, ...(needs.selfGate && { fitting }) };
        parts.replay = await Replay.open(device, cache, ids.length, pieces, replay);
      }
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
  release({ windowQueries, readers = [] }: LayerSeen): void {
    if (this.#given.delete(windowQueries)) this.#cache.backend.tensors.free(windowQueries);
    for (const { seen } of readers) this.release(seen);
  }

  [Symbol.dispose](): void {
    for (const windowQueries of this.#given) this.#cache.backend.tensors.free(windowQueries);
    this.#given.clear();
    const { hidden, probe, reconstruction, replay } = this.#parts;
    for (const part of [hidden, probe, reconstruction, replay]) part?.[Symbol.dispose]();
  }

  /** What is asked for is measured in global layers; a window layer leaves nothing behind but its last entries. */
  async layer(layer: number): Promise<LayerSeen> {
    if (layer >= this.#together) return await this.#readTogether(layer);
    using work = this.#begin(layer);
    for (const chunk of this.#parts.hidden.chunks()) await this.#chunk(work, chunk);
    return await this.#end(work);
  }

  /** All layers from the first on whose rows others look at; then what was seen at `layer`. */
  async #readTogether(layer: number): Promise<LayerSeen> {
    this.#seen ??= await this.#readTail();
    const seen = this.#seen.get(layer)!;
    this.#seen.delete(layer);
    return seen;
  }

  async #readTail(): Promise<Map<number, LayerSeen>> {
    const { layers } = this.#dense.config, { shape } = this.#cache, seen = new Map<number, LayerSeen>();
    const tail = Array.from({ length: layers - this.#together }, (_, i) => this.#begin(this.#together + i));
    try {
      await this.#chunksOf(tail);
      const { reconstruction } = this.#parts;
      const repeated = await reconstruction?.together(tail.map(({ layer }) => layer));
      for (const work of tail) {
        const found = await this.#end(work, repeated?.get(work.layer)), source = sourceOf(shape, work.layer);
        if (source === work.layer) seen.set(work.layer, found);
        else {
          const of = seen.get(source)!;
          seen.set(source, { ...of, readers: [...of.readers ?? [], { layer: work.layer, seen: found }] });
          seen.set(work.layer, { windowQueries: this.#nothing() });
        }
      }
      return seen;
    } finally {
      for (const work of tail) work[Symbol.dispose]();
    }
  }

  /** The whole context through layers of which some look at others' rows. */
  async #chunksOf(tail: readonly LayerWork[]): Promise<void> {
    const { shape } = this.#cache, isOwn = ({ layer }: LayerWork) => sourceOf(shape, layer) === layer;
    const lastOwn = tail.findLastIndex(isOwn);
    for (const { index } of this.#parts.hidden.chunks()) {
      for (const [i, work] of tail.entries()) {
        const chunk = this.#parts.hidden.chunk(index);
        // Readers add nothing to any rows: behind them only what is asked of the chunk, and the last token, counts.
        if (i > lastOwn && !this.#isAsked(chunk)) break;
        await this.#chunk(work, chunk);
      }
      for (const { layer } of tail.filter(isOwn)) this.#cache.release(layer);
    }
  }

  /** Whether queries of a chunk count for what is asked of readers. */
  #isAsked({ first, count }: Chunk): boolean {
    const { needs, window, onInput, onQueries } = this.#options;
    const { columnSum, columnMax, queryStatistics, pairStatistics } = needs;
    const all = onInput || onQueries || columnSum || columnMax || queryStatistics || pairStatistics;
    return !!all || first + count > this.#length - Math.max(1, window);
  }

  #begin(layer: number): LayerWork {
    const { referenceTokens } = this.#options, { reconstruction, replay } = this.#parts, { shape } = this.#cache;
    const source = sourceOf(shape, layer), isGlobal = this.#cache.globals.includes(source);
    const { needs, window } = isGlobal ? this.#options : { needs: {} as Needs, window: 0 };
    const { heads, headDim, kvHeads } = layerShape(shape, layer);
    // Room for all that will be there at once, so that rows don't move while they are appended.
    if (source === layer) {
      this.#cache.rows(layer, Math.min(this.#length, windowOf(shape, layer) + (this.#dense.chunk ?? CHUNK)));
    }
    const windowQueries = this.#cache.backend.tensors.zeros(window * heads * headDim);
    this.#given.add(windowQueries);
    const own = source === layer;
    const moved = own && needs.moved ? this.#sampled(needs.moved.every) : undefined;
    const references = own && referenceTokens && !reconstruction && !replay && isGlobal
      ? this.#sampled(Math.ceil(this.#length / referenceTokens))
      : undefined;
    const inputs = new LayerInputs(this.#cache.backend.tensors);
    return {
      layer,
      isGlobal,
      seen: new SeenQueries(
        {
          tensors: this.#cache.backend.tensors,
          shape: layerShape(shape, layer),
          rope: this.#dense.config.ropes[layer],
          layer,
          statistics: this.#options.statistics,
          onQueries: isGlobal ? this.#options.onQueries : undefined,
        },
        this.#length,
        windowQueries,
        needs,
      ),
      gate: own && needs.gate ? new Float32Array(kvHeads * this.#length) : undefined,
      moved,
      references,
      inputs,
      asked: [],
      [Symbol.dispose]() {
        for (const each of [moved, references, inputs]) each?.[Symbol.dispose]();
      },
    };
  }

  async #chunk({ layer, isGlobal, seen, gate, moved, references, inputs, asked }: LayerWork, chunk: Chunk) {
    const { signal, onInput, late } = this.#options;
    signal?.throwIfAborted();
    await onInput?.(layer, chunk.hidden, chunk.first, chunk.count);
    // The gate looks at the layer's input, before the step puts the next layer's in its place.
    if (gate) asked.push(quiet(this.#predict(gate, layer, chunk)));
    if (!late) await together(undefined, ...asked.splice(0));
    await this.#step(layer, chunk, seen, [moved, references], isGlobal ? inputs : undefined);
  }

  /** What asks the whole layer comes after its last chunk: its own queries, kvzip's prompts, then the soft tokens. */
  async #end({ layer, seen, gate, moved, references, inputs, asked }: LayerWork, given?: Repeated): Promise<LayerSeen> {
    const { referenceTokens } = this.#options, { probe, reconstruction, replay } = this.#parts;
    const { tensors } = this.#cache.backend, rope = this.#dense.config.ropes[layer];
    const source = sourceOf(this.#cache.shape, layer), rows = this.#cache.rows(source);
    for (const each of [moved, references]) {
      if (each) await moveBehind(each, this.#dense.config, this.#length, rope, this.#cache.position);
    }
    if (gate && this.#options.gate!.keyed) {
      const predicted = together(undefined, ...asked.splice(0));
      asked.push(quiet(predicted.then(() => this.#options.gate!.addTerms(layer, gate, { rows, rope }))));
      if (!this.#options.late) await together(undefined, ...asked.splice(0));
    }
    const replayed = await replay?.layer(layer, inputs.chunks, rows);
    const repeated = given ??
      (layer < this.#together ? await reconstruction?.layer(layer, referenceTokens) : undefined);
    const softTokens = await probe?.layer(layer, this.#options.needs.softTokens!.reduction);
    const measured = {
      ...seen.result(this.#cache.position),
      reconstruction: repeated?.importance,
      gate,
      asked: asked.length > 0 ? quiet(together(undefined, ...asked)) : undefined,
      selfGate: replayed?.scores,
      softTokens,
      moved: moved && await unmaskedMaxima(tensors, rows, moved),
      references: repeated?.references ?? replayed?.references ??
        (references && await referencesOf(tensors, rows, references)),
    };
    if (source === layer) this.#cache.release(layer);
    this.#options.behind?.end(layer);
    return measured;
  }

  /** No queries, to be released as any. */
  #nothing(): Tensor {
    const none = this.#cache.backend.tensors.zeros(0);
    this.#given.add(none);
    return none;
  }

  /** One chunk. The last layer's hidden states are only read at the last token, so its other chunks end at attention. */
  async #step(
    layer: number,
    chunk: Chunk,
    seen: SeenQueries,
    sampled: readonly (SampledQueries | undefined)[],
    inputs?: LayerInputs,
  ) {
    const { hidden, count, first, ids } = chunk, { config } = this.#dense, { hidden: states, replay } = this.#parts;
    const input = { layer, hidden, count, ids, first: this.#cache.position + first, unrotated: seen.unrotated };
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
      (this.#parts.probe?.hiddenBytes ?? 0) + (replay?.hiddenBytes ?? 0) + (replay?.scores ? states.byteLength : 0);
    this.activationBytes = Math.max(this.activationBytes, states.byteLength + waiting + stepBytes(config, count));
    // No layer follows, and only the chunk with the last token gives logits.
    if (layer === config.layers - 1 && first + count < this.#length) {
      await layerAttention(this.#dense, this.#cache, input, attend);
      inputs?.add(chunk);
      return;
    }
    const next = await layerStep(this.#dense, this.#cache, input, attend);
    if (replay?.scores && inputs) inputs.take(chunk, states.exchange(chunk, next));
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

/** The layer whose queries are seen. */
interface SeenLayer {
  readonly tensors: Tensors;
  readonly shape: AttentionShape;
  readonly rope: Rope;
  readonly layer: number;
  readonly statistics?: Statistics;
  readonly onQueries?: SeenOptions["onQueries"];
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
  readonly #pairs?: QueryStatistics;
  readonly #of: SeenLayer;
  readonly #needs: Needs;

  constructor(of: SeenLayer, length: number, window: Tensor, needs: Needs) {
    const { shape, tensors, rope } = of, { queryStatistics, pairStatistics } = needs;
    this.#tensors = tensors;
    this.#of = of;
    this.#needs = needs;
    this.#row = shape.heads * shape.headDim;
    this.#length = length;
    this.#window = window;
    this.#columnReductions = new ColumnReductions(needs, shape.heads, length);
    this.want = this.#columnReductions.want;
    if (queryStatistics && !queryStatistics.calibrated) {
      this.#statistics = new QueryStatistics(shape, length, queryStatistics.sinks);
    }
    if (pairStatistics && !pairStatistics.calibrated) {
      this.#pairs = new QueryStatistics(shape, length, pairStatistics.sinks, rope);
    }
  }

  /** Whether queries before RoPE are wanted. */
  get unrotated(): boolean {
    return !!(this.#statistics || this.#pairs || this.#of.onQueries);
  }

  /** Takes the chunk of `count` tokens from `first` on. */
  async add({ queries, unrotated }: AtAttention, columns: AttentionOutputs, first: number, count: number) {
    if (this.unrotated) {
      const rows = await this.#tensors.read(unrotated!);
      for (const each of [this.#statistics, this.#pairs]) each?.add(rows, first, count, this.#row);
      this.#of.onQueries?.(this.#of.layer, rows, first, count);
    }
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
  result(start: number): LayerSeen {
    const { rope, shape, statistics, layer } = this.#of, { queryStatistics, pairStatistics } = this.#needs;
    const next = start + this.#length, seen = { next, magnitude: rope.magnitude * growthAt(rope, next) };
    const given = statistics && layerMeans(statistics, layer);
    const whole = queryStatistics?.calibrated ? given?.whole : this.#statistics?.means();
    const pairs = pairStatistics?.calibrated ? given?.pairs : this.#pairs?.means();
    return {
      windowQueries: this.#window,
      ...this.#columnReductions.result(),
      ...(whole && queriesToCome(whole, shape, rope, { ...seen, ...queryStatistics! })),
      ...(pairs && queriesToCome(pairs, shape, rope, { ...seen, ...pairStatistics! })),
    };
  }
}
