/**
 * The reconstruction pass of KVzip (Kim et al. 2025, arXiv 2505.23416; NVIDIA/kvpress 8bb29b9,
 * kvpress/presses/kvzip_press.py), layer by layer beside the context.
 *
 * Behind the context the model is told to repeat it, chunk by chunk, and is given the chunk as its own reply: one
 * *prompt* per chunk. A prompt's tokens see the whole context and the prompt so far, as in any forward pass. What they
 * look at most is what they need to repeat: importance[g, i] = the largest attention on entry i over the group and the
 * prompt, the softmax taken over [sinks, the chunk's entries, the prompt so far] alone. While all that is left out is
 * nothing (one chunk), the forward pass itself gives the column maxima; else a second set of rows holds the subset.
 * The attention matrix is never stored.
 *
 * Layer-major: the prompts' hidden states wait beside the context's, so that a layer's keys and values exist once.
 * Memory: about twice the hidden states, one prompt's rows behind the context's, and for several chunks a copy of the
 * layer's rows. Time: a prompt costs what its tokens cost behind a full context, so 1.1 to 1.5 prefills more.
 *
 * KVzip+ weighs attention by what it moves: importance[g, i] = the largest of a · ‖Wo_h·v_i‖ / ‖h_j‖ over the group's
 * heads h and the prompt's tokens j, h_j what the layer is given for j, before its norm.
 *
 * Ours differs: chunks are equally long (no short rest), the template's beginning belongs to the first chunk but is not
 * repeated, and prompts stand at the positions after the context, each for itself.
 */
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { CopiedRows, LayerRows } from "../../core/backend/interface.ts";
import { Temporaries, type Tensor, type Tensors } from "../../core/backend/tensor.ts";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import type { Reconstruction as ReconstructionNeeds } from "../../core/policy/policy.ts";
import { type AttentionShape, sourceOf } from "../../core/shape.ts";
import { type AtAttention, layerAttention, layerStep } from "../decode/layer.ts";
import type { ModelConfig } from "../config.ts";
import type { Dense } from "../dense/dense.ts";
import type { Device } from "../device.ts";
import { type ChatFrame, frameTokens } from "../text/prompt.ts";
import type { TextTokenizer } from "../text/tokenizer.ts";
import type { Behind, SinkKeys } from "./behind.ts";
import { type Chunk, HiddenStates } from "./hidden_states.ts";
import { type LayerReferences, referencesOf, SampledQueries } from "./references.ts";
import { checkRepeatRoom } from "./room.ts";

/** First tokens that every subset holds, as the published code's. */
const SINKS = 4;

/** What makes the model repeat one chunk. */
export interface RepeatPrompt {
  /** Instruction, the template's way to the reply, the chunk's tokens. */
  readonly ids: readonly number[];
  /** The chunk: context positions `first … end − 1`. */
  readonly first: number;
  readonly end: number;
}

/**
 * The prompts that repeat the context `ids`: as few chunks of at most `needs.chunk` tokens as there can be, equally long
 * up to one token. With `from` those that repeat what is read on behind its first `from` tokens; chunks count from there.
 * @throws PalisadeError `context.too-long` when a prompt ends beyond the trained length, unless `beyondTrained`.
 */
export function repeatPrompts(
  model: { readonly frame: ChatFrame; readonly tokenizer: TextTokenizer; readonly config: ModelConfig },
  ids: readonly number[],
  { chunk, postfix }: ReconstructionNeeds,
  beyondTrained = false,
  from = 0,
): RepeatPrompt[] {
  const { frame, tokenizer, config } = model, text = frameTokens(model, ids), start = Math.max(text, from);
  const chunks = Math.max(1, Math.ceil((ids.length - start) / chunk));
  const at = (i: number) => start + Math.floor((ids.length - start) * i / chunks);
  const reply = (instruction: string) =>
    tokenizer.encodeParts([{ text: instruction, special: false }, ...frame.suffix]);
  const prompts = Array.from({ length: chunks }, (_, i) => {
    const first = at(i), end = at(i + 1);
    const cited = tokenizer.decode([...ids.slice(Math.max(text, first - postfix), first)]);
    const instruction = first === text
      ? "\n\nRepeat the text above exactly."
      : `\n\nRepeat the text above exactly from here on:${cited}`;
    const begins = i === 0 ? 0 : first - from;
    return { ids: [...reply(instruction), ...ids.slice(first, end)], first: begins, end: end - from };
  });
  const last = ids.length + Math.max(...prompts.map((prompt) => prompt.ids.length));
  if (!beyondTrained) checkRepeatRoom(config, last, chunk);
  return prompts;
}

/** What the prompts tell of a layer. */
export interface Repeated {
  readonly importance?: Float32Array;
  readonly references?: LayerReferences;
}

/** What one prompt fills on its way through a layer. */
interface PromptRun {
  readonly subset?: Subset;
  readonly importance?: Float32Array;
  /** ‖Wo_h·v‖ of the context's entries, `[heads, length]`; then queries count by 1 / ‖h‖. */
  readonly norms?: Float32Array;
  readonly sampled?: SampledQueries;
  /** Tokens of the prompts before it. */
  readonly before: number;
}

/** Beyond the prompts. */
export interface ReconstructionOptions {
  /** For KVzip+: output weights of a layer, `[width, heads · headDim]`. */
  readonly contribution?: (layer: number) => Promise<Float32Array>;
  readonly signal?: AbortSignal;
  /** What the context is read on behind, if it is. */
  readonly behind?: Behind;
}

/** The prompts' way through the layers. Call `layer` for each layer in turn, when the context's rows are complete. */
export class Reconstruction implements Disposable {
  readonly #dense: Dense;
  readonly #cache: RaggedCache;
  readonly #length: number;
  readonly #prompts: readonly RepeatPrompt[];
  readonly #options: ReconstructionOptions;
  /** Of each prompt. */
  readonly hidden: readonly HiddenStates[];

  private constructor(
    { dense }: Device,
    cache: RaggedCache,
    length: number,
    prompts: readonly RepeatPrompt[],
    hidden: readonly HiddenStates[],
    options: ReconstructionOptions,
  ) {
    this.#dense = dense;
    this.#cache = cache;
    this.#length = length;
    this.#prompts = prompts;
    this.#options = options;
    this.hidden = hidden;
  }

  /** `cache` holds the context of `length` tokens, layer by layer complete before {@link layer} is called. */
  static async open(
    device: Device,
    cache: RaggedCache,
    length: number,
    prompts: readonly RepeatPrompt[],
    options: ReconstructionOptions = {},
  ): Promise<Reconstruction> {
    const hidden: HiddenStates[] = [];
    const opened = new Reconstruction(device, cache, length, prompts, hidden, options);
    try {
      for (const { ids } of prompts) hidden.push(await HiddenStates.embed(device, ids));
      return opened;
    } catch (error) {
      opened[Symbol.dispose]();
      throw error;
    }
  }

  /** Bytes of the prompts' hidden states. */
  get hiddenBytes(): number {
    return this.hidden.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  [Symbol.dispose](): void {
    for (const states of this.hidden) states[Symbol.dispose]();
  }

  /**
   * Importance of the context's entries in this layer, `[kvHeads, length]`, 0 … 1; the sinks have 1. With
   * `referenceTokens` also what about so many of the prompts' queries get from the context's rows. Nothing for a window
   * layer, which the prompts only pass through.
   */
  async layer(layer: number, referenceTokens?: number): Promise<Repeated> {
    const { backend: { tensors }, shape } = this.#cache, { kvHeads } = shape;
    const isGlobal = this.#cache.globals.includes(layer);
    const importance = isGlobal ? new Float32Array(kvHeads * this.#length) : undefined;
    const total = this.#prompts.reduce((sum, { ids }) => sum + ids.length, 0);
    using sampled = referenceTokens && isGlobal
      ? new SampledQueries(tensors, shape, total, Math.ceil(total / referenceTokens))
      : undefined;
    const { behind } = this.#options, isWhole = this.#prompts.length === 1 && !behind;
    const whole = isWhole || !isGlobal
      ? undefined
      : await SubsetRows.copy(this.#cache, layer, this.#length, await behind?.sinks(layer, SINKS));
    const norms = importance && await this.#norms(layer);
    let before = 0;
    for (const [i, prompt] of this.#prompts.entries()) {
      const mark = this.#cache.mark(), lengths = behind?.lengths(layer);
      using subset = whole?.of(prompt);
      await this.#prompt(layer, i, { subset, importance, norms, sampled, before });
      this.#cache.trim(mark);
      if (lengths) behind!.back(layer, lengths);
      before += prompt.ids.length;
    }
    if (!importance) return {};
    for (let g = 0; g < kvHeads && !behind; g++) {
      importance.fill(1, g * this.#length, g * this.#length + Math.min(SINKS, this.#length));
    }
    // The prompts' rows are gone: only the context is asked.
    const references = sampled && await referencesOf(tensors, this.#cache.rows(layer), sampled);
    return { importance, references };
  }

  /**
   * The same of layers that are read together: every prompt goes through all of them, chunk by chunk. What readers of a
   * layer's rows look at counts as what the layer itself does. No references, and no contributions.
   */
  async together(layers: readonly number[]): Promise<Map<number, Repeated>> {
    const { shape, globals } = this.#cache, { kvHeads } = shape, found = new Map<number, Repeated>();
    const wholes = new Map<number, SubsetRows>();
    for (const layer of globals.filter((layer) => layers.includes(layer))) {
      found.set(layer, { importance: new Float32Array(kvHeads * this.#length) });
      if (this.#prompts.length > 1) wholes.set(layer, await SubsetRows.copy(this.#cache, layer, this.#length));
    }
    for (const [i, prompt] of this.#prompts.entries()) {
      const mark = this.#cache.mark(), subsets = new Map<number, Subset>();
      try {
        for (const [layer, whole] of wholes) subsets.set(layer, whole.of(prompt));
        for (const { index } of this.hidden[i].chunks()) {
          for (const layer of layers) {
            const source = sourceOf(shape, layer), { importance } = found.get(source) ?? {};
            const run = { subset: subsets.get(source), importance, before: 0 };
            await this.#promptChunk(layer, i, this.hidden[i].chunk(index), run);
          }
        }
      } finally {
        for (const subset of subsets.values()) subset[Symbol.dispose]();
      }
      this.#cache.trim(mark);
    }
    for (const { importance } of found.values()) {
      for (let g = 0; g < kvHeads; g++) {
        importance!.fill(1, g * this.#length, g * this.#length + Math.min(SINKS, this.#length));
      }
    }
    return found;
  }

  /**
   * ‖Wo_h·v_i‖ of the context's entries, `[heads, length]`. Backends give the mean over a group: so each member is asked
   * for with the others' weights at zero.
   */
  async #norms(layer: number): Promise<Float32Array | undefined> {
    const wo = await this.#options.contribution?.(layer);
    if (!wo) return undefined;
    const { shape: { heads, kvHeads, headDim } } = this.#cache, group = heads / kvHeads, row = heads * headDim;
    const norms = new Float32Array(heads * this.#length);
    for (let member = 0; member < group; member++) {
      const alone = wo.map((weight, at) => Math.floor(at % row / headDim) % group === member ? weight * group : 0);
      const means = await this.#cache.rows(layer).valueNorms(alone, wo.length / row, "l2");
      for (let g = 0; g < kvHeads; g++) {
        norms.set(means.subarray(g * this.#length, (g + 1) * this.#length), (g * group + member) * this.#length);
      }
    }
    return norms;
  }

  /** Runs one prompt through the layer; its rows stay behind the context's until the caller trims them. */
  async #prompt(layer: number, index: number, run: PromptRun) {
    for (const chunk of this.hidden[index].chunks()) await this.#promptChunk(layer, index, chunk, run);
  }

  async #promptChunk(layer: number, index: number, chunk: Chunk, run: PromptRun) {
    const { subset, importance, norms, sampled, before } = run;
    const { config } = this.#dense, states = this.hidden[index], { tensors } = this.#cache.backend;
    const { behind } = this.#options, start = this.#cache.position + this.#length;
    this.#options.signal?.throwIfAborted();
    const { hidden, count, ids } = chunk, first = start + chunk.first, input = { layer, hidden, count, ids, first };
    const attend = async (at: AtAttention) => {
      const rowWeights = norms && reciprocalNorms(await tensors.read(hidden), count);
      const want = { columnMax: importance !== undefined && !subset, rowWeights };
      const { output, columnMax } = behind
        ? { output: await behind.attend(layer, at, count, first), columnMax: undefined }
        : await at.rows.prefillAttention(at.queries, count, want);
      at.made.add(output);
      if (!importance) return output;
      sampled?.add(at.queries, before + chunk.first, count);
      // A reader makes no keys: those of its source are there.
      if (subset) await subset.add(at, count, { importance, norms, rowWeights });
      else {
        const span = { at: 0, from: 0, count: this.#length, length: this.#length };
        raise(importance, columnMax!, config, span, norms);
      }
      return output;
    };
    // After the last layer's attention nobody reads a prompt's hidden states.
    if (layer === config.layers - 1) await layerAttention(this.#dense, this.#cache, input, attend);
    else states.replace(chunk, await layerStep(this.#dense, this.#cache, input, attend));
  }
}

/** 1 / ‖row‖ of `[count, width]`; 0 where a row is zero. */
function reciprocalNorms(rows: Float32Array, count: number): Float32Array {
  const width = rows.length / count;
  return Float32Array.from({ length: count }, (_, t) => {
    let sum = 0;
    for (let j = t * width; j < (t + 1) * width; j++) sum += rows[j] * rows[j];
    return sum > 0 ? 1 / Math.sqrt(sum) : 0;
  });
}

/** One layer's context, copied once, from which every chunk's subset is made. */
class SubsetRows {
  readonly #cache: RaggedCache;
  readonly #shape: AttentionShape;
  readonly #length: number;
  readonly #heads: readonly CopiedRows[];
  readonly #sinks?: SinkKeys;

  private constructor(
    cache: RaggedCache,
    shape: AttentionShape,
    length: number,
    { heads, sinks }: { readonly heads: readonly CopiedRows[]; readonly sinks?: SinkKeys },
  ) {
    this.#cache = cache;
    this.#shape = shape;
    this.#length = length;
    this.#heads = heads;
    this.#sinks = sinks;
  }

  /** `sinks`: those of the context that this one is read on behind. */
  static async copy(cache: RaggedCache, layer: number, length: number, sinks?: SinkKeys): Promise<SubsetRows> {
    const rows = cache.rows(layer);
    return new SubsetRows(cache, rows.shape, length, { heads: await copyHeads(rows), sinks });
  }

  of({ first, end, ids }: RepeatPrompt): Subset {
    const { backend, type } = this.#cache, shape = this.#shape;
    const before = this.#sinks, sinks = before ? before.count : Math.min(SINKS, first), count = sinks + end - first;
    const rows = backend.createRows(shape, count + ids.length, type);
    const { kvHeads, headDim } = shape;
    const keys = new Float32Array(count * kvHeads * headDim);
    for (let i = 0; i < count; i++) {
      const position = i < sinks ? i : first + i - sinks;
      for (let g = 0; g < kvHeads; g++) {
        const from = i < sinks && before ? before.keys[g] : this.#heads[g].keys;
        const row = from.subarray(position * headDim, (position + 1) * headDim);
        keys.set(row, (i * kvHeads + g) * headDim);
      }
    }
    const subset = new Subset(rows, backend.tensors, { sinks, first, count: end - first, length: this.#length });
    using temporaries = new Temporaries(backend.tensors);
    subset.append(temporaries.add(backend.tensors.upload(keys)), count);
    return subset;
  }
}

/** Sinks, one chunk and the prompt so far: keys only, values are zero. */
class Subset implements Disposable {
  readonly #rows: LayerRows;
  readonly #tensors: Tensors;
  readonly #span: { sinks: number; first: number; count: number; length: number };

  constructor(
    rows: LayerRows,
    tensors: Tensors,
    span: { sinks: number; first: number; count: number; length: number },
  ) {
    this.#rows = rows;
    this.#tensors = tensors;
    this.#span = span;
  }

  /** Appends keys, `[count, kvHeads, headDim]`. */
  append(keys: Tensor, count: number): void {
    using temporaries = new Temporaries(this.#tensors);
    this.#rows.append(keys, temporaries.add(this.#tensors.zeros(keys.length)), count);
  }

  /** Appends the prompt's next tokens and raises the chunk's importance by what they look at. */
  async add(
    { queries, keys }: Pick<AtAttention, "queries" | "keys">,
    count: number,
    { importance, norms, rowWeights }: {
      readonly importance: Float32Array;
      readonly norms?: Float32Array;
      readonly rowWeights?: Float32Array;
    },
  ): Promise<void> {
    if (keys.length > 0) this.append(keys, count);
    const { output, columnMax } = await this.#rows.prefillAttention(queries, count, { columnMax: true, rowWeights });
    this.#tensors.free(output);
    const { sinks, first, count: entries, length } = this.#span;
    raise(importance, columnMax!, this.#rows.shape, { at: first, from: sinks, count: entries, length }, norms);
  }

  [Symbol.dispose](): void {
    this.#rows.free();
  }
}

/**
 * importance[g, at + i] = max(itself, columnMax[h, from + i] of every head h of the group).
 * `columnMax`: `[heads, rows]`, `importance`: `[kvHeads, length]`; `norms`, `[heads, length]`: what each is multiplied by.
 */
function raise(
  importance: Float32Array,
  columnMax: Float32Array,
  { heads, kvHeads }: { heads: number; kvHeads: number },
  { at, from, count, length }: { at: number; from: number; count: number; length: number },
  norms?: Float32Array,
): void {
  const rows = columnMax.length / heads, group = heads / kvHeads;
  for (let h = 0; h < heads; h++) {
    const to = Math.floor(h / group) * length + at;
    for (let i = 0; i < count; i++) {
      const value = columnMax[h * rows + from + i] * (norms ? norms[h * length + at + i] : 1);
      if (value > importance[to + i]) importance[to + i] = value;
    }
  }
}
