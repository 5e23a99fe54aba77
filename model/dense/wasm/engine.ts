/**
 * Dense engine on the project's own kernels: the weights are held once, as they stand in the GGUF, and multiplied there,
 * over the threads of a pool where there is one. Types that the kernels don't multiply become float32.
 */
import type { ThreadPool } from "../../../wasm/threads/pool.ts";
import { OwnWorkspace, type Workspace } from "../../../wasm/threads/barrier.ts";
import { DENSE } from "../../../wasm/dense/service.ts";
import {
  DensePart,
  type DensePlan,
  type Inputs,
  type MatrixPlan,
  type PlanOperation,
  STEP,
  type Step,
  type Work,
  workOf,
  worthSharing,
} from "../../../wasm/dense/part.ts";
import { HOST_TENSORS, type Tensors } from "../../../core/backend/tensor.ts";
import { Kernels, type WasmOptions } from "../../../wasm/module.ts";
import { breathe } from "../../../runtime/breathe.ts";
import { inputsOf } from "../../architecture.ts";
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import { type PerLayerEmbeddings, readPerLayer, scaled } from "../embedding.ts";
import type { DenseEngine } from "../interface.ts";
import { type PerThread, WeightLoader, WeightMemory } from "./weights.ts";

export interface WasmDenseOptions {
  /**
   * `float32`: float32 arithmetic, logits as near to the file's weights as the other engines'. `quantised`: inputs of
   * each product in groups of int16, off by at most 2⁻¹⁶ of the group's largest, or, for the types of
   * `BYTE_INPUT_TYPES` with relaxed SIMD, of int8, off by 2⁻⁸ as in llama.cpp; several times as fast. Default
   * `quantised`.
   */
  readonly precision?: "float32" | "quantised";
  /** Called after each layer is held, and after the head. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between layers. */
  readonly signal?: AbortSignal;
  /** Which build of the kernels, how much memory; with a pool, of its threads. */
  readonly kernels?: WasmOptions;
  /**
   * Threads that own some rows of every matrix. Results have the bits of one thread's. Steps that are too small to be
   * shared out (`worthSharing`) run on this thread, which then holds all their rows.
   */
  readonly pool?: ThreadPool;
  /** Where results come from, the caller's to free: the backend's beside it. Default: new arrays. */
  readonly tensors?: Tensors<Float32Array>;
  /** For tests: another threshold than `WORK_PER_WAIT`. */
  readonly workPerWait?: number;
}

/** Rows that pass through the kernels together: enough to reuse unpacked weights, few enough to bound the buffers. */
const ROWS = 128;
/** Embeddings asked of another thread at a time. */
const EMBEDDINGS = 4096;

/**
 * Makes the engine from a GGUF whose configuration was checked (`configOf`). PalisadeErrors: `wasm.start`,
 * `wasm.memory` when the weights don't fit, `gguf.*` for tensors that can't be read, `threads.ended` (later calls, too);
 * `signal.reason` when stopped.
 */
export async function createWasmEngine(
  file: GgufFile,
  config: ModelConfig,
  options: WasmDenseOptions = {},
): Promise<DenseEngine> {
  const { pool, signal, onProgress, workPerWait } = options;
  const memory = new WeightMemory(await Kernels.start(options.kernels ?? pool?.kernels), pool);
  const id = memory.newId();
  try {
    const { decoder, width, vocabulary, normEpsilon } = config, { perLayer } = decoder;
    const loader = new WeightLoader(memory, file, (list, inputs) => {
      return worthSharing(workOf(list, inputs), 1, workPerWait) ? "shared" : "alone";
    }, options.precision === "float32");
    const layers: { inputs: Inputs; project: PerThread<PlanOperation[]>; finish: PerThread<PlanOperation[]> }[] = [];
    for (const [index, { project, finish }] of decoder.layers.slice(0, config.layers).entries()) {
      await breathe(signal);
      const inputs = inputsOf(config, index, perLayer);
      const own = await loader.operations(project, inputs);
      layers.push({ inputs, project: own, finish: await loader.operations(finish, inputs) });
      onProgress?.(index + 1, config.layers + 1);
    }
    const inputs = inputsOf(config), head = await loader.operations(decoder.head, inputs);
    const embedding = await loader.embedding("token_embd", vocabulary, width);
    const exact = options.precision === "float32";
    const plans = head.map((own, part): DensePlan => ({
      inputs,
      normEpsilon,
      exact,
      alone: part === memory.threads || memory.threads === 1,
      first: part === 0 || part === memory.threads,
      layers: layers.map(({ inputs, project, finish }) => {
        return { inputs, project: project[part], finish: finish[part] };
      }),
      head: own,
    }));
    await memory.finish(id, plans);
    const table = perLayer && await readPerLayer(file, config, perLayer);
    onProgress?.(config.layers + 1, config.layers + 1);
    return new WasmEngine(memory, id, config, plans, embedding, options, table);
  } catch (error) {
    memory.free(id);
    throw error;
  }
}

class WasmEngine implements DenseEngine {
  readonly name = "wasm";
  readonly detail: string;
  readonly config: ModelConfig;
  readonly weightBytes: number;
  readonly #id: number;
  readonly #plan: DensePlan;
  /** For steps that this thread takes alone. */
  readonly #workspace: Workspace = new OwnWorkspace();
  readonly #workPerWait?: number;
  readonly #tensors: Tensors<Float32Array>;
  /** Each thread's rows of the embeddings. */
  readonly #embedding: readonly MatrixPlan[];
  #memory: WeightMemory | undefined;
  #alone: DensePart | undefined;
  /** With a pool only. */
  #part: DensePart | undefined;
  /** What each list costs. */
  readonly #work = new Map<unknown, Work>();
  /** Ends when the calls so far have: they share the workspace. */
  #last: Promise<unknown> = Promise.resolve();

  /** Embeddings of each layer's own. */
  readonly #perLayer?: PerLayerEmbeddings;

  /** `plans`, `embedding`: each thread's, and what this one takes alone. */
  constructor(
    memory: WeightMemory,
    id: number,
    config: ModelConfig,
    plans: readonly DensePlan[],
    embedding: readonly MatrixPlan[],
    { workPerWait, tensors = HOST_TENSORS }: Pick<WasmDenseOptions, "workPerWait" | "tensors">,
    perLayer?: PerLayerEmbeddings,
  ) {
    this.#perLayer = perLayer;
    const { kernels, pool, threads, stored } = memory, plan = plans[0];
    const simd = kernels.relaxed ? "relaxed SIMD" : "SIMD", count = `${threads} thread${threads > 1 ? "s" : ""}`;
    const inputs = plan.exact ? "float32 arithmetic" : memory.hasByteInputs ? "8-bit inputs" : "16-bit inputs";
    this.detail = `own WebAssembly kernels, ${simd}, ${count}, weights as in the file, ${inputs}`;
    this.config = config;
    this.weightBytes = memory.bytes + (perLayer?.byteLength ?? 0);
    this.#id = id;
    this.#plan = plan;
    this.#workPerWait = workPerWait;
    this.#tensors = tensors;
    const here = embedding[threads];
    this.#embedding = here.outputs === config.vocabulary ? [here] : embedding.slice(0, threads);
    this.#memory = memory;
    this.#alone = new DensePart(kernels, this.#workspace, plans[threads], stored);
    this.#part = pool && new DensePart(kernels, pool.barrier, plan, stored);
  }

  embed(ids: ArrayLike<number>): Float32Array {
    const memory = this.#alive("embed()"), { width, vocabulary } = this.config;
    const out = this.#tensors.room(ids.length * width);
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (!Number.isInteger(id) || id < 0 || id >= vocabulary) {
        throw new RangeError(`embed() wants token ids from 0 to ${vocabulary - 1}, not ${id}`);
      }
    }
    const places = Array.from(ids, (id, place) => ({ id, place }));
    this.#embedding.forEach((matrix, rank) => {
      const { column, outputs } = matrix;
      const mine = places.filter(({ id }) => id >= column && id < column + outputs);
      for (let first = 0; first < mine.length; first += EMBEDDINGS) {
        const some = mine.slice(first, first + EMBEDDINGS);
        const rows = memory.rows(rank, matrix, some.map(({ id }) => id - column));
        some.forEach(({ place }, i) => out.set(rows.subarray(i * width, (i + 1) * width), place * width));
      }
    });
    return scaled(out, this.config.decoder.embeddingScale);
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async qkv(layer: number, hidden: Float32Array, count: number): Promise<Float32Array> {
    this.#checkLayer("qkv()", layer);
    checkRows("qkv() hidden", hidden, count, this.config.width);
    return this.#inChunks(STEP.qkv, layer, count, { hidden });
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async finish(
    layer: number,
    hidden: Float32Array,
    attention: Float32Array,
    count: number,
    ids?: ArrayLike<number>,
  ): Promise<Float32Array> {
    this.#checkLayer("finish()", layer);
    checkRows("finish() hidden", hidden, count, this.config.width);
    checkRows("finish() attention", attention, count, this.#plan.layers[layer].inputs.attention);
    return this.#inChunks(STEP.finish, layer, count, { hidden, attention, ...this.#ofTokens(layer, ids, count) });
  }

  /** What a layer gets of its tokens alone. */
  #ofTokens(layer: number, ids: ArrayLike<number> | undefined, count: number) {
    if (!this.#perLayer) return undefined;
    if (ids?.length !== count) {
      throw new RangeError(`finish() wants the ids of ${count} tokens, not ${ids?.length ?? 0}`);
    }
    return { embedded: this.embed(ids), perLayer: this.#perLayer.rows(layer, ids) };
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async logits(hidden: Float32Array, count: number): Promise<Float32Array> {
    this.#alive("logits()");
    checkRows("logits() hidden", hidden, count, this.config.width);
    return this.#inChunks(STEP.logits, 0, count, { hidden });
  }

  [Symbol.asyncDispose](): Promise<void> {
    // This thread's memory goes with the instance.
    this.#memory?.free(this.#id);
    this.#memory = this.#part = this.#alone = undefined;
    return Promise.resolve();
  }

  #alive(what: string): WeightMemory {
    if (!this.#memory) throw new Error(`The dense engine is disposed; ${what} can't run`);
    return this.#memory;
  }

  #checkLayer(what: string, index: number): void {
    this.#alive(what);
    const { layers } = this.config;
    if (!(Number.isInteger(index) && index >= 0 && index < layers)) {
      throw new RangeError(`${what} wants a layer from 0 to ${layers - 1}, not ${index}`);
    }
  }

  /** Runs a step over chunks of the rows. */
  async #inChunks(
    step: Step,
    layer: number,
    count: number,
    inputs: Readonly<Record<string, Float32Array>>,
  ): Promise<Float32Array> {
    const { widths, result } = this.#alone!.schedule(step, layer),
      out = this.#tensors.room(count * widths.get(result)!);
    const entries = Object.entries(inputs);
    for (let first = 0; first < count; first += ROWS) {
      if (first > 0) await breathe();
      const rows = Math.min(ROWS, count - first), part = (all: Float32Array) => chunk(all, first, rows, count);
      const some = rows === count ? entries : entries.map(([name, input]) => [name, part(input)] as const);
      const turn = this.#last.then(() => this.#step(step, layer, rows, some, part(out)));
      this.#last = turn.catch(() => {});
      await turn;
    }
    return out;
  }

  async #step(
    step: Step,
    layer: number,
    count: number,
    inputs: readonly (readonly [name: string, Float32Array])[],
    out: Float32Array,
  ) {
    const memory = this.#alive("a step");
    const pool = memory.pool && this.#isWorthSharing(step, layer, count) ? memory.pool : undefined;
    const workspace = pool?.barrier ?? this.#workspace, part = (pool ? this.#part : this.#alone)!;
    const { places, size, result } = part.schedule(step, layer);
    workspace.reserve(count * size);
    for (const [name, input] of inputs) {
      const at = places.get(name);
      if (at !== undefined) workspace.floats(count * at, input.length).set(input);
    }
    const asks = [];
    for (let rank = 1; rank < (pool?.size ?? 1); rank++) {
      asks.push(pool!.ask(rank, DENSE.step, { id: this.#id, step, layer, count }));
    }
    const running = part.start(step, layer, count);
    try {
      while (!running.next()) await pool?.meet();
    } finally {
      running.stop();
      // Failed or not: until all have answered, they may write to the workspace.
      for (const [i, ask] of asks.entries()) await pool!.answer(i + 1, ask);
    }
    out.set(workspace.floats(count * places.get(result)!, out.length));
  }

  #isWorthSharing(step: Step, layer: number, count: number): boolean {
    const { layers, head } = this.config.decoder;
    const list = [layers[layer].project, layers[layer].finish, head][step];
    let work = this.#work.get(list);
    if (!work) {
      this.#work.set(
        list,
        work = workOf(list, step === STEP.logits ? this.#plan.inputs : this.#plan.layers[layer].inputs),
      );
    }
    return worthSharing(work, count, this.#workPerWait);
  }
}

/** Rows `first … first + rows − 1` of `count`. */
function chunk(all: Float32Array, first: number, rows: number, count: number): Float32Array {
  if (rows === count) return all;
  const width = all.length / count;
  return all.subarray(first * width, (first + rows) * width);
}

function checkRows(what: string, floats: Float32Array, count: number, width: number): void {
  if (!Number.isInteger(count) || count < 1) throw new RangeError(`${what} wants at least one row, not ${count}`);
  if (floats.length !== count * width) {
    throw new RangeError(`${what} wants [${count}, ${width}], not ${floats.length} numbers`);
  }
}
