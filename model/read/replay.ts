/**
 * A gate that is fitted on the text at hand while it is read (policy `self-gate`).
 *
 * Some *pieces* of the context, spread evenly over it, are repeated by the model as KVzip has the whole repeated
 * (`reconstruct.ts`): in each layer, once the context's rows are there, each piece's prompt sees the sinks, its piece and
 * itself so far. So it stands right behind its piece, and a prompt costs dense layers for its tokens and next to no
 * attention. importance[g, i] = the largest attention on entry i over the group and the prompt. The layer's gate is then
 * fitted on the pieces, from their hidden states after the attention norm to ln(importance + floor), begun with what is
 * known of the model (`model/gate/fit/towards.ts`), and scores all the rest.
 *
 * A refit goes by queries of the prompts, moved from behind their pieces to behind the context's end. For a policy that
 * has nothing repeated, a few short pieces are repeated for the refit alone.
 *
 * Memory: hidden states of the context twice while a layer is read, those of the prompts, one layer's rows of the pieces.
 */
import { readPart, Temporaries, type Tensor } from "../../core/backend/tensor.ts";
import { multiplyAddsOf } from "../../core/dense/operations.ts";
import { scoreByGate } from "../../core/backend/gate.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { concatenate } from "../../core/concatenate.ts";
import type { LayerRows } from "../../core/backend/interface.ts";
import type { Needs, SelfGateNeed } from "../../core/policy/policy.ts";
import type { Refit } from "../../core/refit/refit.ts";
import type { LinearGate } from "../../core/measure/gate_scores.ts";
import { layerShape, windowOf } from "../../core/shape.ts";
import { inputsOf } from "../architecture.ts";
import type { ModelConfig } from "../config.ts";
import { type AtAttention, layerAttention, layerStep } from "../decode/layer.ts";
import type { Device } from "../device.ts";
import { algebraOf } from "../gate/fit/algebra.ts";
import { designMatrix, FLOOR, type LayerText, SKIPPED, targetsOf } from "../gate/fit/layer.ts";
import { fitTowards, type Known } from "../gate/fit/towards.ts";
import { addTerms, keyTerms, ScaledTerms, termScale, termsOf } from "../gate/key_terms.ts";
import type { GateWeights } from "../gate/scorer.ts";
import { type ChatFrame, frameTokens } from "../text/prompt.ts";
import type { TextTokenizer } from "../text/tokenizer.ts";
import { type Chunk, HiddenStates } from "./hidden_states.ts";
import { moveBehind } from "./moved_queries.ts";
import { type LayerReferences, referencesOf, SampledQueries } from "./references.ts";
import { checkReplayRoom } from "./room.ts";

/** First tokens that every prompt sees, as KVzip's. */
const SINKS = 4;

/**
 * What is only predicted may be more important than that, and least squares says less of what stands out. So it counts as
 * higher by this part of the residuals' deviation, beside what was measured. Measured: bench/results/self-gate.md.
 */
const LIFT = 0.75;

/** Most tokens that a gate is fitted on: in a long text one in two, in three, … of those repeated, so that sums stay small. */
const MOST_ROWS = 2048;

/** A run of the context, and what makes the model repeat it. */
export interface Piece {
  /** Context positions `first … end − 1`. */
  readonly first: number;
  readonly end: number;
  /** Instruction, the template's way to the reply, the piece's tokens. */
  readonly ids: readonly number[];
}

/**
 * What is repeated where no policy asks for it but a refit needs queries: two pieces, whose prompts have about as many
 * tokens as a refit goes by. Measured: bench/results/refit.md.
 */
const FOR_REFIT: SelfGateNeed = { tokens: 320, chunk: 160 };

type ReplayModel = { readonly frame: ChatFrame; readonly tokenizer: TextTokenizer; readonly config: ModelConfig };

/**
 * What a reading has the model repeat beside kvzip's prompts: for `self-gate`, else for a refit that would have no queries
 * to go by; there nothing where nothing has room.
 * @throws PalisadeError as {@link replayPieces}, for `self-gate`.
 */
export function piecesOf(
  model: ReplayModel,
  ids: readonly number[],
  { needs: { reconstruction, selfGate }, refit = "none" }: { readonly needs: Needs; readonly refit?: Refit },
  beyondTrained?: boolean,
  from?: number,
): Piece[] | undefined {
  if (selfGate) return replayPieces(model, ids, selfGate, beyondTrained, from);
  if (reconstruction || refit === "none") return undefined;
  const pieces = spreadPieces(model, ids, FOR_REFIT, beyondTrained, from);
  return pieces.length > 0 ? pieces : undefined;
}

/**
 * The pieces of the context `ids`: all of it where it has no more than about `tokens`, else as many whole chunks as make
 * them up, or more where `work` pays for more, evenly spread, neither the first nor a shorter last one among them where there are enough others. `from`: the
 * position of the first of `ids`, where they are read on behind others.
 * @throws PalisadeError `context.too-long` when no piece has room behind it in the trained length, unless `beyondTrained`.
 */
export function replayPieces(
  model: ReplayModel,
  ids: readonly number[],
  need: SelfGateNeed,
  beyondTrained = false,
  from = 0,
): Piece[] {
  const pieces = spreadPieces(model, ids, need, beyondTrained, from);
  if (pieces.length === 0) {
    const [first] = allPieces(model, ids, need, from);
    checkReplayRoom(model.config, from + first.end + first.ids.length, need.chunk);
  }
  return pieces;
}

/** The context in chunks. */
function allPieces(model: ReplayModel, ids: readonly number[], { chunk }: SelfGateNeed, from: number): Piece[] {
  const { frame, tokenizer } = model, start = from > 0 ? 0 : frameTokens(model, ids);
  const instruction = tokenizer.encodeParts([
    { text: "\n\nRepeat the text above exactly.", special: false },
    ...frame.suffix,
  ]);
  return Array.from({ length: Math.ceil(ids.length / chunk) }, (_, i) => {
    const first = i * chunk, end = Math.min(ids.length, first + chunk);
    return { first, end, ids: [...instruction, ...ids.slice(Math.max(start, first), end)] };
  }).filter(({ end }) => end > start);
}

/** Those of them that have room, if more than wanted, as {@link replayPieces} chooses. */
function spreadPieces(
  model: ReplayModel,
  ids: readonly number[],
  need: SelfGateNeed,
  beyondTrained = false,
  from = 0,
): Piece[] {
  const { chunk } = need, { contextLength } = model.config;
  const fits = allPieces(model, ids, need, from)
    .filter((piece) => beyondTrained || from + piece.end + piece.ids.length <= contextLength);
  const wanted = chunksWanted(need, model.config, ids.length, from);
  if (fits.length <= wanted) return fits;
  const inner = fits.filter(({ first, end }) => first > 0 && end - first === chunk);
  return spread(inner.length >= wanted ? inner : fits, wanted);
}

/** How many chunks of a context of `length` tokens behind `from` others are repeated. */
function chunksWanted(
  { tokens, chunk, work = 0 }: SelfGateNeed,
  config: ModelConfig,
  length: number,
  from: number,
): number {
  // A query of the context looks back over half of it, one of a prompt over its piece and half of itself.
  const reading = length * tokenWork(config, from + length / 2), repeating = chunk * tokenWork(config, 1.5 * chunk);
  return Math.max(Math.ceil(tokens / chunk), Math.floor(work * reading / repeating));
}

/** Multiply-adds of a token's way through the layers, with `rows` to look at. */
function tokenWork(config: ModelConfig, rows: number): number {
  const { decoder: { layers, perLayer } } = config;
  return layers.reduce((sum, { project, finish }, layer) => {
    const inputs = inputsOf(config, layer, perLayer), { heads, headDim } = layerShape(config, layer);
    const attention = 2 * heads * headDim * Math.min(rows, windowOf(config, layer));
    return sum + multiplyAddsOf(project, inputs) + multiplyAddsOf(finish, inputs) + attention;
  }, 0);
}

/** `count` of a list, the middle ones of as many parts. */
function spread<T>(list: readonly T[], count: number): T[] {
  return Array.from({ length: count }, (_, i) => list[Math.floor((i + 0.5) * list.length / count)]);
}

/** What a gate is fitted with. */
export interface Fitting {
  /** The attention norms' weights, `[layers, width]`. */
  readonly gains: Float32Array;
  /** A gate to begin with, and the tokens that it was fitted on. */
  readonly known?: GateWeights & { readonly tokens: number };
  /** The gate is wanted even where every token is repeated. */
  readonly learn?: boolean;
}

/** What a reading fitted. */
export interface Fitted {
  /** Tokens of this text that the gate was fitted on; 0 where all of it was repeated, so that nothing was to be predicted. */
  readonly tokens: number;
  /** Those behind what it began with. */
  readonly known: number;
  /** Tokens that the model repeated, of how many. */
  readonly repeated: number;
  readonly of: number;
  /** Absent where none was fitted. */
  readonly gate?: GateWeights;
}

/** A piece on its way through the layers. */
interface Run {
  readonly piece: Piece;
  /** The piece's rows, then its prompt's: one layer at a time. */
  readonly cache: RaggedCache;
  readonly hidden: HiddenStates;
  /** Sinks in front of its rows, for a piece that doesn't begin with them. */
  readonly sinks: number;
}

/** What a replay finds of a layer. */
export interface Replayed {
  /** Of the context's entries, `[kvHeads, length]`, natural logarithms, where a gate is fitted. */
  readonly scores?: Float32Array;
  readonly references?: LayerReferences;
}

/** Beyond the pieces. */
export interface ReplayOptions {
  /** For the scores of `self-gate`; without it the prompts give references alone. */
  readonly fitting?: Fitting;
  readonly signal?: AbortSignal;
  /** Of about so many tokens of the prompts, the queries are kept, and what they get from all of the context. */
  readonly referenceTokens?: number;
}

/** The pieces' way through the layers beside the context's; see the head of the file. */
export class Replay implements Disposable {
  readonly #device: Device;
  readonly #length: number;
  /** Position of the context's first token. */
  readonly #start: number;
  readonly #fitting?: Fitting;
  readonly #runs: readonly Run[];
  readonly #options: ReplayOptions;
  readonly #weights: Float32Array;
  readonly #bias: Float32Array;
  /** `[layers, kvHeads, terms]`. */
  readonly #terms: Float32Array;
  /** Whether a gate is needed at all. */
  readonly #fits: boolean;

  private constructor(
    device: Device,
    { length, start }: { readonly length: number; readonly start: number },
    runs: readonly Run[],
    options: ReplayOptions,
  ) {
    const { fitting } = options, { layers, kvHeads, width } = device.dense.config;
    this.#device = device;
    this.#length = length;
    this.#start = start;
    this.#fitting = fitting;
    this.#runs = runs;
    this.#options = options;
    this.#weights = new Float32Array(layers * kvHeads * width);
    this.#bias = new Float32Array(layers * kvHeads);
    this.#terms = new Float32Array(layers * kvHeads * termsOf(device.dense.config));
    this.#fits = fitting !== undefined && (fitting.learn || repeatedOf(runs) < length);
  }

  /** For a context of `length` tokens, in rows of the type of `cache`. */
  static async open(
    device: Device,
    cache: RaggedCache,
    length: number,
    pieces: readonly Piece[],
    options: ReplayOptions,
  ): Promise<Replay> {
    const runs: Run[] = [], at = { length, start: cache.position };
    const opened = new Replay(device, at, runs, options);
    try {
      for (const piece of pieces) {
        const hidden = await HiddenStates.embed(device, piece.ids);
        const sinks = Math.min(SINKS, piece.first);
        runs.push({ piece, hidden, sinks, cache: new RaggedCache(device.backend, device.dense.config, cache.type) });
      }
      return new Replay(device, at, runs, options);
    } catch (error) {
      opened[Symbol.dispose]();
      throw error;
    }
  }

  /** Of the prompts. */
  get hiddenBytes(): number {
    return this.#runs.reduce((sum, { hidden }) => sum + hidden.byteLength, 0);
  }

  /** Whether {@link layer} wants the layer's inputs. */
  get scores(): boolean {
    return this.#fitting !== undefined;
  }

  /** Takes what a chunk of the context adds to the pieces' rows, tokens from `first` on. */
  add(layer: number, { keys, values }: Pick<AtAttention, "keys" | "values">, first: number, count: number): void {
    const { kvHeads, headDim } = layerShape(this.#device.dense.config, layer), row = kvHeads * headDim;
    const isGlobal = this.#isGlobal(layer), chunk = { keys, values, first, count };
    for (const { piece, cache, sinks } of this.#runs) {
      // A window layer looks back by rows: what is not next to the piece would stand where it is not.
      if (isGlobal && first < sinks) appendPart(cache, layer, chunk, row, 0, sinks);
      appendPart(cache, layer, chunk, row, piece.first, piece.end);
      cache.release(layer);
    }
  }

  /**
   * Once the context is through the layer: what its rows, the layer's inputs (all of the context's chunks in order) and
   * the prompts tell. Nothing for a window layer, which the prompts only pass through.
   */
  async layer(layer: number, inputs: readonly Chunk[], rows: LayerRows): Promise<Replayed | undefined> {
    const importance: Float32Array[] = [], references: LayerReferences[] = [];
    for (const run of this.#runs) {
      using sampled = this.#sampled(layer, run);
      importance.push(await this.#repeat(layer, run, sampled));
      if (sampled) references.push(await this.#ask(layer, run, sampled, rows));
    }
    if (!this.#isGlobal(layer)) return undefined;
    const asked = references.length > 0 ? { references: allReferences(references) } : {};
    if (!this.#fitting) return asked;
    const scores = new Float32Array(this.#device.dense.config.kvHeads * this.#length);
    if (this.#fits) {
      const terms = await keyTerms({ rows, rope: this.#device.dense.config.ropes[layer] }, this.#length);
      const { gate, weights } = await this.#fit(layer, inputs, importance, terms);
      await this.#predict(scores, gate, inputs);
      addTerms(scores, weights, terms, this.#length);
    }
    this.#runs.forEach(({ piece }, i) => putMeasured(scores, this.#length, piece, importance[i]));
    return { scores, ...asked };
  }

  /** Room for a prompt's share of the wanted queries. */
  #sampled(layer: number, { piece: { ids } }: Run): SampledQueries | undefined {
    const { referenceTokens } = this.#options, { backend: { tensors }, dense: { config } } = this.#device;
    if (!referenceTokens || !this.#isGlobal(layer)) return undefined;
    const total = this.#runs.reduce((sum, { piece }) => sum + piece.ids.length, 0);
    return new SampledQueries(tensors, config, ids.length, Math.ceil(total / referenceTokens));
  }

  /** Asks a prompt's queries from behind the context's end. */
  async #ask(
    layer: number,
    { piece: { end } }: Run,
    sampled: SampledQueries,
    rows: LayerRows,
  ): Promise<LayerReferences> {
    const { backend: { tensors }, dense: { config } } = this.#device;
    await moveBehind(sampled, config, this.#length - end, config.ropes[layer], this.#start + end);
    return await referencesOf(tensors, rows, sampled);
  }

  /** What was fitted, once all layers are read. */
  fitted(): Fitted | undefined {
    if (!this.#fitting) return undefined;
    const tokens = this.#fits ? trainingRows(this.#runs).tokens : 0, known = this.#fitting.known?.tokens ?? 0;
    const figures = { tokens, known, repeated: repeatedOf(this.#runs), of: this.#length };
    if (tokens === 0) return figures;
    const keyed = { weights: this.#weights, bias: this.#bias, terms: this.#terms };
    return { ...figures, gate: { weights: keyed.weights, bias: keyed.bias, keyed } };
  }

  [Symbol.dispose](): void {
    for (const { hidden, cache } of this.#runs) for (const part of [hidden, cache]) part[Symbol.dispose]();
  }

  #isGlobal(layer: number): boolean {
    return windowOf(this.#device.dense.config, layer) === Infinity;
  }

  /** The prompt's pass through the layer; importance of the piece's entries, `[kvHeads, end − first]`. */
  async #repeat(
    layer: number,
    { piece, cache, hidden, sinks }: Run,
    sampled: SampledQueries | undefined,
  ): Promise<Float32Array> {
    const { dense } = this.#device, { config } = dense, isGlobal = this.#isGlobal(layer);
    const importance = new Float32Array(config.kvHeads * (piece.end - piece.first));
    const attend = async (at: AtAttention, { first, count }: Chunk) => {
      const { output, columnMax } = await at.rows.prefillAttention(at.queries, count, { columnMax: isGlobal });
      at.made.add(output);
      sampled?.add(at.queries, first, count);
      if (columnMax) raise(importance, columnMax, config, sinks);
      return output;
    };
    for (const chunk of hidden.chunks()) {
      this.#options.signal?.throwIfAborted();
      const input = { layer, hidden: chunk.hidden, count: chunk.count, first: this.#start + piece.end + chunk.first };
      // After the last layer's attention nobody reads a prompt's hidden states.
      if (layer === config.layers - 1) await layerAttention(dense, cache, input, (at) => attend(at, chunk));
      else hidden.replace(chunk, await layerStep(dense, cache, input, (at) => attend(at, chunk)));
    }
    cache.clear(layer);
    return importance;
  }

  /** Fits the layer's gate; the norm's gains are folded into what comes back, and the lift is in its bias. */
  async #fit(layer: number, inputs: readonly Chunk[], importance: readonly Float32Array[], terms: Float32Array) {
    const { backend, dense: { config } } = this.#device, { kvHeads, width } = config, count = termsOf(config);
    const rows = await this.#training(inputs, importance, terms);
    const gains = this.#fitting!.gains.subarray(layer * width, (layer + 1) * width);
    const scaled = new ScaledTerms(terms, this.#length, termScale(gains));
    const x = designMatrix(rows, gains, config, { skipped: 0, scaled: scaled.of }), y = targetsOf(rows, kvHeads, 0);
    const part = (all: Float32Array, each: number) =>
      all.subarray(layer * kvHeads * each, (layer + 1) * kvHeads * each);
    const weights = part(this.#weights, width), bias = part(this.#bias, 1), ofTerms = part(this.#terms, count);
    const fitted = fitTowards(x, y, this.#known(layer, scaled), algebraOf(backend));
    fitted.weights.forEach((each, head) => {
      const plain = scaled.leave(each.subarray(width, width + count), each[width + count]);
      weights.set(each.subarray(0, width), head * width);
      ofTerms.set(plain.weights, head * count);
      bias[head] = plain.constant;
    });
    const gate: LinearGate = {
      weights: weights.map((w, i) => w * gains[i % width]),
      bias: bias.map((b, head) => b + LIFT * fitted.deviations[head]),
      epsilon: config.normEpsilon,
    };
    return { gate, weights: ofTerms };
  }

  /** What the layer's gate makes of every token. */
  async #predict(scores: Float32Array, gate: LinearGate, inputs: readonly Chunk[]): Promise<void> {
    const { kvHeads } = this.#device.dense.config;
    for (const { hidden, first, count } of inputs) {
      const predicted = await scoreByGate(this.#device.backend, gate, hidden, count);
      for (let head = 0; head < kvHeads; head++) {
        for (let t = 0; t < count; t++) scores[head * this.#length + first + t] = predicted[t * kvHeads + head];
      }
    }
  }

  /** Hidden states, importance and terms of the pieces' tokens, one piece after another. */
  async #training(
    inputs: readonly Chunk[],
    importance: readonly Float32Array[],
    terms: Float32Array,
  ): Promise<LayerText> {
    const { backend: { tensors }, dense: { config: { kvHeads, width } } } = this.#device;
    const { tokens, every } = trainingRows(this.#runs), hidden = new Float32Array(tokens * width);
    const all = new Float32Array(kvHeads * tokens), count = terms.length / this.#length;
    const some = new Float32Array(count * tokens);
    let at = 0;
    for (const [i, { piece: { first, end } }] of this.#runs.entries()) {
      const from = Math.max(first, SKIPPED), length = end - first;
      for (const chunk of inputs) {
        const [a, b] = [Math.max(from, chunk.first), Math.min(end, chunk.first + chunk.count)];
        if (a >= b) continue;
        const numbers = await readPart(tensors, chunk.hidden, (a - chunk.first) * width, (b - a) * width);
        for (let t = nextOf(at + a - from, every); t < at + b - from; t += every) {
          const row = (t - at + from - a) * width;
          hidden.set(numbers.subarray(row, row + width), t / every * width);
        }
      }
      for (let t = nextOf(at, every); t < at + end - from; t += every) {
        for (let head = 0; head < kvHeads; head++) {
          all[head * tokens + t / every] = importance[i][head * length + t - at + from - first];
        }
        for (let j = 0; j < count; j++) some[j * tokens + t / every] = terms[j * this.#length + t - at + from];
      }
      at += Math.max(0, end - from);
    }
    return { hidden, importance: all, tokens, terms: some };
  }

  /** A gate that looks at no keys begins with nothing said of them. */
  #known(layer: number, scaled: ScaledTerms): Known | undefined {
    const { config } = this.#device.dense, { kvHeads, width } = config, count = termsOf(config);
    const { known } = this.#fitting!;
    if (!known) return undefined;
    const { weights: all, bias } = known.keyed ?? known, none = new Float32Array(count);
    const weights = Array.from({ length: kvHeads }, (_, head) => {
      const from = layer * kvHeads + head, each = new Float64Array(width + count + 1);
      each.set(all.subarray(from * width, (from + 1) * width));
      const terms = known.keyed?.terms.subarray(from * count, (from + 1) * count) ?? none;
      const entered = scaled.enter(terms, bias[from]);
      each.set(entered.weights, width);
      each[width + count] = entered.constant;
      return each;
    });
    return { weights, rows: known.tokens };
  }
}

/** Those of all prompts, one after another. */
function allReferences(parts: readonly LayerReferences[]): LayerReferences {
  const all = (name: "queries" | "outputs" | "logSumExp") => concatenate(parts.map((part) => part[name]), Float32Array);
  const tokens = parts.reduce((sum, part) => sum + part.tokens, 0);
  return { tokens, queries: all("queries"), outputs: all("outputs"), logSumExp: all("logSumExp") };
}

function repeatedOf(runs: readonly Pick<Run, "piece">[]): number {
  return runs.reduce((sum, { piece: { first, end } }) => sum + end - first, 0);
}

/**
 * Of the repeated tokens those that a gate learns from: each, or one in `every`, the first of a text, which are unlike all
 * others, left out.
 */
function trainingRows(runs: readonly Pick<Run, "piece">[]): { readonly tokens: number; readonly every: number } {
  const all = runs.reduce((sum, { piece: { first, end } }) => sum + Math.max(0, end - Math.max(first, SKIPPED)), 0);
  const every = Math.ceil(all / MOST_ROWS) || 1;
  return { tokens: Math.ceil(all / every), every };
}

/** The first multiple of `every` from `t` on. */
function nextOf(t: number, every: number): number {
  return Math.ceil(t / every) * every;
}

/** Keys and values of tokens `first … first + count − 1`, `[count, row]`. */
interface ChunkRows {
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly first: number;
  readonly count: number;
}

/** Appends those of a chunk's rows that are of positions `from … to − 1`. */
function appendPart(cache: RaggedCache, layer: number, chunk: ChunkRows, row: number, from: number, to: number): void {
  const { first, count } = chunk, a = Math.max(from, first), b = Math.min(to, first + count);
  if (a >= b) return;
  if (b - a === count) return cache.append(layer, chunk.keys, chunk.values, count, a);
  const { tensors } = cache.backend;
  using parts = new Temporaries(tensors);
  const [keys, values] = [chunk.keys, chunk.values].map((all) => {
    const part = parts.add(tensors.zeros((b - a) * row));
    tensors.copy(all, (a - first) * row, (b - a) * row, part, 0);
    return part;
  });
  cache.append(layer, keys, values, b - a, a);
}

/** importance[g, i] = max(itself, columnMax[h, sinks + i]) over the heads h of the group; `columnMax`: `[heads, rows]`. */
function raise(
  importance: Float32Array,
  columnMax: Float32Array,
  { heads, kvHeads }: Pick<ModelConfig, "heads" | "kvHeads">,
  sinks: number,
): void {
  const rows = columnMax.length / heads, length = importance.length / kvHeads, group = heads / kvHeads;
  for (let h = 0; h < heads; h++) {
    const to = Math.floor(h / group) * length;
    for (let i = 0; i < length; i++) importance[to + i] = Math.max(importance[to + i], columnMax[h * rows + sinks + i]);
  }
}

/** What was measured takes the place of what was predicted; the first tokens of a text are as important as can be. */
function putMeasured(scores: Float32Array, length: number, { first, end }: Piece, importance: Float32Array): void {
  const kvHeads = scores.length / length, count = end - first;
  for (let head = 0; head < kvHeads; head++) {
    for (let i = 0; i < count; i++) {
      const value = first + i < SINKS ? 1 : importance[head * count + i];
      scores[head * length + first + i] = Math.log(value + FLOOR);
    }
  }
}
