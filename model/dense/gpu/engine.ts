/**
 * Dense part of a WebGPU device: the weights are held once, as they stand in the GGUF, and multiplied there. Hidden states,
 * queries, keys and values stay on the device; of an answer's token its number comes back (`choose`).
 */
import { Temporaries } from "../../../core/backend/tensor.ts";
import { layerShape, sourceOf } from "../../../core/shape.ts";
import { breathe } from "../../../runtime/breathe.ts";
import type { GpuBuffer, GpuDevice } from "../../../gpu/device.ts";
import { type DeviceList, type DeviceOperation, listOf } from "../../../gpu/dense/lists.ts";
import { DenseStages, FEW_ROWS } from "../../../gpu/dense/stages.ts";
import { DeviceWeights, type MatrixPart } from "../../../gpu/dense/weights.ts";
import type { GpuTensor, GpuTensors } from "../../../gpu/tensors.ts";
import { Turning, type TurningInputs } from "../../../gpu/turning.ts";
import { type DenseOperation, inputsOf } from "../../architecture.ts";
import { CHUNK } from "../../decode/layer.ts";
import type { ModelConfig } from "../../config.ts";
import type { GgufFile } from "../../file/gguf/reader.ts";
import type { Choice, Choices, Dense, Projected } from "../dense.ts";
import { type PerLayerEmbeddings, readPerLayer } from "../embedding.ts";
import { RopeTables } from "./tables.ts";
import { GpuWeightLoader } from "./weights.ts";

export interface GpuDenseOptions {
  /** `float32`: no 16-bit arithmetic, also where the device has it. Default `auto`. */
  readonly precision?: "auto" | "float32" | "quantised";
  /** Called after each layer is held, and after the head. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between layers. */
  readonly signal?: AbortSignal;
  /** For tests: bytes of a buffer of weights at most. Default: what a stage of the device can see. */
  readonly largest?: number;
  /** For tests: results of a thread in each direction (`StagesOptions`). */
  readonly tile?: 1 | 4 | 8;
  /** For tests: tokens at a time while reading. */
  readonly chunk?: number;
  /** For tests: rows of a head that may wait for their eviction. */
  readonly waitingRows?: number;
}

/** Rows of a head that wait at most, over all layers: beyond that they would be much beside the weights. */
const WAITING_ROWS = 32768;
/** Tokens at a time on a real device: fewer give too few workgroups. */
const DEVICE_CHUNK = 1024;

interface Layer {
  readonly project: DeviceList;
  readonly finish: DeviceList;
  /** The output projection, where its weights are the file's. */
  readonly output?: readonly MatrixPart[];
}

/** What multiplies the attention, unless it was rounded while it was read. */
function outputOf(
  file: GgufFile,
  finish: readonly DenseOperation[],
  held: readonly DeviceOperation[],
): readonly MatrixPart[] | undefined {
  const at = finish.findIndex((each) => each.op === "multiply" && each.from === "attention");
  const [asked, made] = [finish[at], held[at]];
  if (asked?.op !== "multiply" || made?.op !== "multiply" || asked.weights.length !== 1) return undefined;
  const { type } = file.tensors.get(`${asked.weights[0].tensor}.weight`)!;
  return made.weights.every(({ kind }) => kind === type.id) ? made.weights : undefined;
}

/**
 * Makes the dense part from a GGUF whose configuration was checked (`configOf`). The device and its tensors stay the
 * caller's. PalisadeErrors: `gpu.*`, `gpu.memory` by the tensor that there was no room for, `gguf.*` for tensors that
 * can't be read; `signal.reason` when stopped. Nothing is kept on failure.
 */
export async function createGpuDense(
  file: GgufFile,
  config: ModelConfig,
  gpu: GpuDevice,
  tensors: GpuTensors,
  options: GpuDenseOptions = {},
): Promise<Dense<GpuTensor>> {
  const { signal, onProgress, largest = gpu.info.maxBinding } = options, { decoder, vocabulary } = config;
  const weights = new DeviceWeights(gpu), total = config.layers + 1;
  try {
    // A buffer ends with one word more.
    const exact = options.precision === "float32";
    const loader = new GpuWeightLoader(weights, file, { largest: largest - 4, exact });
    const layers: Layer[] = [];
    for (const [layer, { project, finish }] of decoder.layers.slice(0, config.layers).entries()) {
      await breathe(signal);
      const after = await loader.operations(finish), inputs = inputsOf(config, layer, decoder.perLayer);
      layers.push({
        project: listOf(await loader.operations(project), inputs),
        finish: listOf(after, inputs),
        output: outputOf(file, finish, after),
      });
      onProgress?.(layers.length, total);
    }
    const head = listOf(await loader.operations(decoder.head), { hidden: config.width });
    const embedding = await loader.whole("token_embd", vocabulary);
    await weights.settle("token_embd.weight");
    const perLayer = decoder.perLayer && await readPerLayer(file, config, decoder.perLayer);
    onProgress?.(total, total);
    return new GpuDense(config, weights, tensors, { layers, head, embedding, perLayer }, options);
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
}

interface Held {
  readonly layers: readonly Layer[];
  readonly head: DeviceList;
  readonly embedding: readonly MatrixPart[];
  /** On this side, since their table may be larger than all else. */
  readonly perLayer?: PerLayerEmbeddings;
}

class GpuDense implements Dense<GpuTensor> {
  readonly name = "webgpu";
  readonly detail: string;
  readonly config: ModelConfig;
  readonly weightBytes: number;
  readonly chunk: number;
  readonly waitingRows: number;
  /** None where layers want the tokens' ids, which are known here too late. */
  readonly choices?: (most: number) => Choices<GpuTensor>;
  readonly #gpu: GpuDevice;
  readonly #tensors: GpuTensors;
  readonly #stages: DenseStages;
  readonly #tables: RopeTables;
  readonly #weights: DeviceWeights;
  #held: Held | undefined;
  /** What the last few rows are turned by, maybe later. */
  #turning: Turning | undefined;

  constructor(config: ModelConfig, weights: DeviceWeights, tensors: GpuTensors, held: Held, options: GpuDenseOptions) {
    const { gpu } = weights, { features, description } = gpu.info;
    const f16 = features.f16 && options.precision !== "float32";
    const sums = features.subgroups ? ", subgroups" : "", inputs = f16 ? "16-bit products of many rows" : "float32";
    this.detail = `own WebGPU stages on ${description}, weights as in the file, ${inputs}${sums}`;
    this.config = config;
    this.weightBytes = weights.bytes + (held.perLayer?.byteLength ?? 0);
    if (!held.perLayer) this.choices = (most) => this.#choices(most);
    this.chunk = options.chunk ?? (gpu.info.emulated ? CHUNK : DEVICE_CHUNK);
    this.waitingRows = options.waitingRows ?? WAITING_ROWS;
    this.#gpu = gpu;
    this.#tensors = tensors;
    this.#weights = weights;
    this.#stages = new DenseStages(gpu, { normEpsilon: config.normEpsilon, f16, tile: options.tile });
    this.#tables = new RopeTables(gpu, config.ropes);
    this.#held = held;
  }

  // deno-lint-ignore require-await -- a bad id must reject, not throw
  async embed(ids: ArrayLike<number>): Promise<GpuTensor> {
    const { embedding } = this.#alive("embed()"), { width, vocabulary, decoder } = this.config;
    const numbers = Uint32Array.from(ids);
    for (let i = 0; i < ids.length; i++) {
      if (numbers[i] === ids[i] && ids[i] < vocabulary) continue;
      throw new RangeError(`embed() wants token ids from 0 to ${vocabulary - 1}, not ${ids[i]}`);
    }
    return this.#made(ids.length * width, (out) =>
      this.#withNumbers(numbers, (words) => {
        this.#stages.embed(embedding, words, ids.length, decoder.embeddingScale, out);
      }));
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async project(
    layer: number,
    hidden: GpuTensor,
    count: number,
    first: number,
    want: { readonly unrotated?: boolean } = {},
  ): Promise<Projected<GpuTensor>> {
    const { project } = this.#layer("project()", layer), { width, ropes } = this.config;
    const { heads, headDim, ...shape } = layerShape(this.config, layer),
      isReader = sourceOf(this.config, layer) !== layer;
    const kvHeads = isReader ? 0 : shape.kvHeads;
    checkRows("project() hidden", hidden, count, width);
    const rope = ropes[layer], { rotated } = rope, interleaved = rope.pairs === "interleaved";
    const turn = { heads, kvHeads, headDim, rotated, interleaved };
    // What is turned late is turned now: its table may be written anew.
    this.#turning?.settle();
    this.#turning = undefined;
    const inputs = { turn, count, table: this.#tables.table(rope, first, count) };
    if (count <= FEW_ROWS && !want.unrotated && !isReader) return this.#turnedLate(project, hidden, inputs);
    return this.#turned(project, hidden, inputs, want.unrotated ?? false);
  }

  #turned(
    project: DeviceList,
    hidden: GpuTensor,
    { turn, count, table }: Omit<TurningInputs, "qkv">,
    wantsUnrotated: boolean,
  ): Projected<GpuTensor> {
    const { heads, kvHeads, headDim } = turn, q = count * heads * headDim, kv = count * kvHeads * headDim;
    return this.#allOrNone((make) => {
      const queries = make(q), keys = make(kv), values = make(kv);
      const unrotated = wantsUnrotated ? { unrotated: make(q) } : {};
      this.#with(4 * (q + 2 * kv), (qkv) => {
        this.#run(project, { hidden }, count, qkv);
        this.#stages.rotate(turn, [qkv, table], count, {
          queries: queries.buffer,
          keys: keys.buffer,
          values: values.buffer,
          unrotated: unrotated.unrotated?.buffer,
        });
      });
      return { queries, keys, values, ...unrotated };
    });
  }

  /** Of few rows, to be turned when they are stored or looked at. */
  #turnedLate(
    project: DeviceList,
    hidden: GpuTensor,
    inputs: Omit<TurningInputs, "qkv">,
  ): Projected<GpuTensor> {
    const { turn: { heads, kvHeads, headDim }, count } = inputs, q = count * heads * headDim;
    const kv = count * kvHeads * headDim, qkv = this.#gpu.borrow(4 * (q + 2 * kv));
    const turning = new Turning(this.#gpu, { ...inputs, qkv }, ({ turn, table }, out) => {
      this.#stages.rotate(turn, [qkv, table], count, out);
    });
    try {
      return this.#allOrNone((make) => {
        const queries = make(q, { turning, part: "queries" });
        const keys = make(kv, { turning, part: "keys" }), values = make(kv, { turning, part: "values" });
        this.#run(project, { hidden }, count, qkv);
        this.#turning = turning;
        return { queries, keys, values };
      });
    } catch (error) {
      turning.end();
      throw error;
    }
  }

  /** What `work` makes of tensors; they are freed when it fails. */
  #allOrNone<R>(work: (make: GpuTensors["make"]) => R): R {
    const made: GpuTensor[] = [];
    try {
      return work((length, lazy) => {
        const tensor = this.#tensors.make(length, lazy);
        made.push(tensor);
        return tensor;
      });
    } catch (error) {
      for (const tensor of made) this.#tensors.free(tensor);
      throw error;
    }
  }

  async finish(
    layer: number,
    hidden: GpuTensor,
    attention: GpuTensor,
    count: number,
    ids?: ArrayLike<number>,
  ): Promise<GpuTensor> {
    const { finish } = this.#layer("finish()", layer), { width } = this.config;
    const { heads, headDim } = layerShape(this.config, layer);
    checkRows("finish() hidden", hidden, count, width);
    checkRows("finish() attention", attention, count, heads * headDim);
    using own = new Temporaries(this.#tensors);
    const inputs = { hidden, attention, ...await this.#ofTokens(layer, ids, count, own) };
    return this.#made(count * width, (out) => this.#run(finish, inputs, count, out));
  }

  /** What a layer makes of the tokens alone, where it does. */
  async #ofTokens(layer: number, ids: ArrayLike<number> | undefined, count: number, own: Temporaries) {
    const { perLayer } = this.#alive("finish()");
    if (!perLayer) return undefined;
    if (ids?.length !== count) throw new RangeError(`finish() wants the ids of ${count} tokens, not of ${ids?.length}`);
    const embedded = await this.embed(ids), rows = this.#tensors.upload(perLayer.rows(layer, ids));
    for (const tensor of [embedded, rows]) own.add(tensor);
    return { embedded, perLayer: rows };
  }

  // deno-lint-ignore require-await -- a bad layer must reject, not throw
  async outputWeights(layer: number): Promise<GpuTensor | undefined> {
    const { output } = this.#layer("outputWeights()", layer), { width } = this.config;
    const { heads, headDim } = layerShape(this.config, layer), inner = heads * headDim;
    if (!output || 4 * width * inner > this.#gpu.info.maxBinding || width > 65535) return undefined;
    return this.#made(
      width * inner,
      (out) =>
        this.#withNumbers(Uint32Array.from({ length: width }, (_, i) => i), (rows) => {
          this.#stages.embed(output, rows, width, 1, out);
        }),
    );
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async logits(hidden: GpuTensor, count: number): Promise<GpuTensor> {
    const { head } = this.#alive("logits()"), { vocabulary, width } = this.config;
    checkRows("logits() hidden", hidden, count, width);
    return this.#made(count * vocabulary, (out) => this.#run(head, { hidden }, count, out));
  }

  async choose(hidden: GpuTensor): Promise<Choice> {
    const { head } = this.#alive("choose()"), { vocabulary, width } = this.config;
    checkRows("choose() hidden", hidden, 1, width);
    const words = this.#gpu.borrow(8);
    try {
      this.#with(4 * vocabulary, (logits) => {
        this.#run(head, { hidden }, 1, logits);
        this.#stages.choose(logits, vocabulary, words);
      });
      const read = await this.#gpu.read(words, 0, 8);
      return { token: new Uint32Array(read)[0], logit: new Float32Array(read)[1] };
    } finally {
      this.#gpu.giveBack(words);
    }
  }

  #choices(most: number): Choices<GpuTensor> {
    const words = this.#gpu.borrow(8 * most);
    let made = 0;
    return {
      next: (hidden) => {
        const { head, embedding } = this.#alive("choices()"), { vocabulary, width, decoder } = this.config;
        if (made === most) throw new RangeError(`choices() was asked for ${most}, not for one more`);
        checkRows("choices() hidden", hidden, 1, width);
        return this.#made(width, (out) =>
          this.#with(8, (choice) => {
            this.#with(4 * vocabulary, (logits) => {
              this.#run(head, { hidden }, 1, logits);
              this.#stages.choose(logits, vocabulary, choice);
            });
            this.#stages.embed(embedding, choice, 1, decoder.embeddingScale, out);
            this.#gpu.copy(choice, 0, words, 8 * made++, 8);
            // Each token's commands begin a batch, so that those of the next are bound as these were.
            this.#gpu.flush();
          }));
      },
      read: async () => {
        const bytes = await this.#gpu.read(words, 0, 8 * made);
        const tokens = new Uint32Array(bytes), logits = new Float32Array(bytes);
        return Array.from({ length: made }, (_, i) => ({ token: tokens[2 * i], logit: logits[2 * i + 1] }));
      },
      [Symbol.dispose]: () => this.#gpu.giveBack(words),
    };
  }

  [Symbol.asyncDispose](): Promise<void> {
    if (this.#held) {
      this.#tables[Symbol.dispose]();
      this.#weights[Symbol.dispose]();
    }
    this.#held = undefined;
    return Promise.resolve();
  }

  #alive(what: string): Held {
    if (!this.#held) throw new Error(`The dense engine is disposed; ${what} can't run`);
    return this.#held;
  }

  #layer(what: string, index: number): Layer {
    const { layers } = this.#alive(what);
    if (layers[index] === undefined) {
      throw new RangeError(`${what} wants a layer from 0 to ${layers.length - 1}, not ${index}`);
    }
    return layers[index];
  }

  /** A tensor that `write` fills; freed when that fails. */
  #made(length: number, write: (out: GpuBuffer) => void): GpuTensor {
    const tensor = this.#tensors.make(length);
    try {
      write(tensor.buffer);
      return tensor;
    } catch (error) {
      this.#tensors.free(tensor);
      throw error;
    }
  }

  /** A buffer for as long as `work` records commands. */
  #with(bytes: number, work: (buffer: GpuBuffer) => void): void {
    this.#until(this.#gpu.borrow(bytes), work);
  }

  /** The same with numbers of this side in it. */
  #withNumbers(numbers: Uint32Array<ArrayBuffer>, work: (buffer: GpuBuffer) => void): void {
    this.#until(this.#gpu.borrowIdle(numbers.byteLength), (buffer) => {
      this.#gpu.write(buffer, 0, numbers);
      work(buffer);
    });
  }

  #until(buffer: GpuBuffer, work: (buffer: GpuBuffer) => void): void {
    try {
      work(buffer);
    } finally {
      this.#gpu.giveBack(buffer);
    }
  }

  /** A list over all rows, in chunks where a stage could not see all of them. */
  #run(list: DeviceList, inputs: Readonly<Record<string, GpuTensor>>, count: number, out: GpuBuffer): void {
    const most = this.#stages.rowsAtOnce(list), names = Object.keys(inputs);
    if (count <= most) {
      const buffers = Object.fromEntries(names.map((name) => [name, inputs[name].buffer]));
      return this.#stages.run(list, buffers, count, out);
    }
    for (let first = 0; first < count; first += most) {
      this.#chunk(list, inputs, first, Math.min(most, count - first), out);
    }
  }

  /** Rows `first … first + rows − 1` of it, copied out of the inputs and into `out`. */
  #chunk(
    list: DeviceList,
    inputs: Readonly<Record<string, GpuTensor>>,
    first: number,
    rows: number,
    out: GpuBuffer,
  ): void {
    const borrowed: Record<string, GpuBuffer> = {};
    try {
      for (const [name, { buffer }] of Object.entries(inputs)) {
        const rowBytes = 4 * list.widths.get(name)!;
        borrowed[name] = this.#gpu.borrow(rows * rowBytes);
        this.#gpu.copy(buffer, first * rowBytes, borrowed[name], 0, rows * rowBytes);
      }
      const rowBytes = 4 * list.widths.get(list.result)!;
      this.#with(rows * rowBytes, (part) => {
        this.#stages.run(list, borrowed, rows, part);
        this.#gpu.copy(part, 0, out, first * rowBytes, rows * rowBytes);
      });
    } finally {
      for (const buffer of Object.values(borrowed)) this.#gpu.giveBack(buffer);
    }
  }
}

function checkRows(what: string, { length }: GpuTensor, count: number, width: number): void {
  if (!Number.isInteger(count) || count < 1) throw new RangeError(`${what} wants at least one row, not ${count}`);
  if (length !== count * width) throw new RangeError(`${what} wants [${count}, ${width}], not ${length} numbers`);
}
