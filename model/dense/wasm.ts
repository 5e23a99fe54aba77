/**
 * Dense engine on the project's own kernels: the file's 4-bit and 8-bit blocks are held once, as they stand in the GGUF,
 * and multiplied there. Q5_0 becomes Q8_0, without loss; the other types become float32.
 */
import { inputError } from "../../core/errors.ts";
import {
  isKernelType,
  type KernelType,
  matrixBytes,
  multiply,
  Stored,
  type StoredMatrix,
  type Target,
} from "../../wasm/dense.ts";
import { type Buffers, Kernels, type WasmOptions } from "../../wasm/module.ts";
import type { ModelConfig } from "../config.ts";
import { dequantise } from "../gguf/dequantise.ts";
import type { GgufFile } from "../gguf/reader.ts";
import type { SupportedTypeName } from "../gguf/tensor_types.ts";
import type { DenseEngine } from "./interface.ts";

export interface WasmDenseOptions {
  /**
   * `float32`: float32 arithmetic, logits as near to the file's weights as the other engines'. `quantised`: inputs of
   * each product in blocks of int16, off by at most 2⁻¹⁶ of the block's largest; several times as fast. Default
   * `quantised`.
   */
  readonly precision?: "float32" | "quantised";
  /** Called after each layer is held, and after the head. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between layers. */
  readonly signal?: AbortSignal;
  /** Which build of the kernels, how much memory. */
  readonly kernels?: WasmOptions;
}

/** Rows that pass through the kernels together: enough to reuse unpacked weights, few enough to bound the buffers. */
const ROWS = 64;
/** Bytes read from the file at a time. */
const SLICE_BYTES = 1 << 22;

interface Layer {
  readonly attentionNorm: Stored;
  /** Query, key, value; one matrix where they have one type. */
  readonly projections: readonly StoredMatrix[];
  readonly output: StoredMatrix;
  readonly feedForwardNorm: Stored;
  /** Gate, up; one matrix where they have one type. */
  readonly gateUp: readonly StoredMatrix[];
  readonly down: StoredMatrix;
}

/**
 * Makes the engine from a GGUF whose configuration was checked (`configOf`). PalisadeErrors: `wasm.start`,
 * `wasm.memory` when the weights don't fit, `gguf.*` for tensors that can't be read; `signal.reason` when stopped.
 */
export async function createWasmEngine(
  file: GgufFile,
  config: ModelConfig,
  options: WasmDenseOptions = {},
): Promise<DenseEngine> {
  const kernels = await Kernels.start(options.kernels);
  const loader = new Loader(kernels, file);
  const layers: Layer[] = [];
  for (let index = 0; index < config.layers; index++) {
    options.signal?.throwIfAborted();
    layers.push(await loader.layer(config, index));
    options.onProgress?.(index + 1, config.layers + 1);
  }
  const norm = await loader.floats("output_norm.weight");
  const embedding = await loader.matrix(["token_embd"], config.vocabulary, config.width);
  const head = config.tiedHead ? embedding : await loader.matrix(["output"], config.vocabulary, config.width);
  options.onProgress?.(config.layers + 1, config.layers + 1);
  const exact = options.precision === "float32";
  return new WasmEngine(kernels, config, { layers, norm, embedding, head, bytes: loader.bytes }, exact);
}

interface Weights {
  readonly layers: readonly Layer[];
  readonly norm: Stored;
  readonly embedding: StoredMatrix;
  readonly head: StoredMatrix;
  readonly bytes: number;
}

class WasmEngine implements DenseEngine {
  readonly name = "wasm";
  readonly detail: string;
  readonly config: ModelConfig;
  readonly weightBytes: number;
  readonly #kernels: Kernels;
  readonly #exact: boolean;
  #weights: Weights | undefined;

  constructor(kernels: Kernels, config: ModelConfig, weights: Weights, exact: boolean) {
    const simd = kernels.relaxed ? "relaxed SIMD" : "SIMD";
    const inputs = exact ? "float32 arithmetic" : "16-bit inputs";
    this.detail = `own WebAssembly kernels, ${simd}, 1 thread, weights as in the file, ${inputs}`;
    this.config = config;
    this.weightBytes = weights.bytes;
    this.#kernels = kernels;
    this.#exact = exact;
    this.#weights = weights;
  }

  embed(ids: ArrayLike<number>): Float32Array {
    const { embedding } = this.#alive("embed()"), { width, vocabulary } = this.config;
    const out = new Float32Array(ids.length * width);
    const rowBytes = embedding.weights.byteLength / vocabulary;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (!Number.isInteger(id) || id < 0 || id >= vocabulary) {
        throw new RangeError(`embed() wants token ids from 0 to ${vocabulary - 1}, not ${id}`);
      }
      const row = embedding.weights.view(id * rowBytes, rowBytes);
      dequantise(embedding.type, row, out.subarray(i * width, (i + 1) * width));
    }
    return out;
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async qkv(layer: number, hidden: Float32Array, count: number): Promise<Float32Array> {
    const { width, heads, kvHeads, headDim } = this.config;
    const { attentionNorm, projections } = this.#layer("qkv()", layer);
    checkRows("qkv() hidden", hidden, count, width);
    const stride = (heads + 2 * kvHeads) * headDim;
    return this.#inChunks(count, stride, (buffers, rows, out) => {
      const x = buffers.from(part(hidden, rows, width));
      const target = buffers.zeros(rows.count * stride * 4);
      this.#sideBySide(projections, this.#normed(buffers, x, attentionNorm, rows.count), rows.count, target, stride);
      buffers.read(target, out);
    });
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async finish(layer: number, hidden: Float32Array, attention: Float32Array, count: number): Promise<Float32Array> {
    const { width, heads, headDim, feedForward } = this.config;
    const { output, feedForwardNorm, gateUp, down } = this.#layer("finish()", layer);
    checkRows("finish() hidden", hidden, count, width);
    checkRows("finish() attention", attention, count, heads * headDim);
    return this.#inChunks(count, width, (buffers, rows, out) => {
      const x = buffers.from(part(hidden, rows, width));
      const residual: Target = { buffer: x, stride: width, add: true };
      this.#multiply(output, buffers.from(part(attention, rows, heads * headDim)), rows.count, residual);
      const both = buffers.zeros(rows.count * 2 * feedForward * 4);
      const normed = this.#normed(buffers, x, feedForwardNorm, rows.count);
      this.#sideBySide(gateUp, normed, rows.count, both, 2 * feedForward);
      const gated = buffers.zeros(rows.count * feedForward * 4);
      this.#kernels.check(this.#kernels.call.dense_swiglu(both, feedForward, rows.count, gated), "gate");
      this.#multiply(down, gated, rows.count, residual);
      buffers.read(x, out);
    });
  }

  // deno-lint-ignore require-await -- a bad shape must reject, not throw
  async logits(hidden: Float32Array, count: number): Promise<Float32Array> {
    const { width, vocabulary } = this.config, { norm, head } = this.#alive("logits()");
    checkRows("logits() hidden", hidden, count, width);
    return this.#inChunks(count, vocabulary, (buffers, rows, out) => {
      const x = buffers.from(part(hidden, rows, width));
      const target = { buffer: buffers.zeros(rows.count * vocabulary * 4), stride: vocabulary };
      this.#multiply(head, this.#normed(buffers, x, norm, rows.count), rows.count, target);
      buffers.read(target.buffer, out);
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    // The whole memory goes with the instance.
    this.#weights = undefined;
    return Promise.resolve();
  }

  #alive(what: string): Weights {
    if (!this.#weights) throw new Error(`The dense engine is disposed; ${what} can't run`);
    return this.#weights;
  }

  #layer(what: string, index: number): Layer {
    const { layers } = this.#alive(what), layer = layers[index];
    if (!layer) throw new RangeError(`${what} wants a layer from 0 to ${layers.length - 1}, not ${index}`);
    return layer;
  }

  #normed(buffers: Buffers, x: number, gains: Stored, count: number): number {
    const { width, normEpsilon } = this.config, out = buffers.zeros(count * width * 4);
    this.#kernels.check(this.#kernels.call.dense_norm(x, gains.handle, width, count, normEpsilon, out), "norm");
    return out;
  }

  #multiply(matrix: StoredMatrix, inputs: number, count: number, target: Target): void {
    multiply(this.#kernels, matrix, inputs, count, target, this.#exact);
  }

  /** Products of matrices over one input, one beside the other. */
  #sideBySide(
    matrices: readonly StoredMatrix[],
    inputs: number,
    count: number,
    buffer: number,
    stride: number,
  ): void {
    let offset = 0;
    for (const matrix of matrices) {
      this.#multiply(matrix, inputs, count, { buffer, stride, offset });
      offset += matrix.outputs;
    }
  }

  /** Runs `body` over chunks of the rows; each writes its `[rows, width]` of the result. */
  #inChunks(
    count: number,
    width: number,
    body: (buffers: Buffers, rows: Rows, out: Float32Array) => void,
  ): Float32Array {
    const out = new Float32Array(count * width);
    for (let first = 0; first < count; first += ROWS) {
      const rows = { first, count: Math.min(ROWS, count - first) };
      this.#kernels.withBuffers((buffers) => body(buffers, rows, part(out, rows, width)));
    }
    return out;
  }
}

interface Rows {
  readonly first: number;
  readonly count: number;
}

function part(all: Float32Array, { first, count }: Rows, width: number): Float32Array {
  return all.subarray(first * width, (first + count) * width);
}

function checkRows(what: string, floats: Float32Array, count: number, width: number): void {
  if (!Number.isInteger(count) || count < 1) throw new RangeError(`${what} wants at least one row, not ${count}`);
  if (floats.length !== count * width) {
    throw new RangeError(`${what} wants [${count}, ${width}], not ${floats.length} numbers`);
  }
}

/** Copies tensors from the file into the kernels' memory, slice by slice. */
class Loader {
  /** Bytes held so far. */
  bytes = 0;
  readonly #kernels: Kernels;
  readonly #file: GgufFile;

  constructor(kernels: Kernels, file: GgufFile) {
    this.#kernels = kernels;
    this.#file = file;
  }

  async layer(config: ModelConfig, index: number): Promise<Layer> {
    const { width, heads, kvHeads, headDim, feedForward, qkvBias } = config;
    const name = (tensor: string) => `blk.${index}.${tensor}`;
    const sizes = [heads * headDim, kvHeads * headDim, kvHeads * headDim];
    return {
      attentionNorm: await this.floats(name("attn_norm.weight")),
      projections: await this.#matrices(["attn_q", "attn_k", "attn_v"].map(name), sizes, width, qkvBias),
      output: await this.matrix([name("attn_output")], width, heads * headDim),
      feedForwardNorm: await this.floats(name("ffn_norm.weight")),
      gateUp: await this.#matrices(["ffn_gate", "ffn_up"].map(name), [feedForward, feedForward], width),
      down: await this.matrix([name("ffn_down")], width, feedForward),
    };
  }

  /** Whole tensors as float32, one after another. */
  async floats(...names: string[]): Promise<Stored> {
    const parts: Float32Array[] = [];
    for (const name of names) parts.push(await this.#file.readFloat32(name));
    const stored = this.#store(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
    let at = 0;
    for (const { buffer, byteOffset, byteLength } of parts) {
      stored.view(at, byteLength).set(new Uint8Array(buffer, byteOffset, byteLength));
      at += byteLength;
    }
    return stored;
  }

  /** One matrix of the rows of all tensors `names`, which have one type. */
  async matrix(names: readonly string[], outputs: number, inputs: number, hasBias = false): Promise<StoredMatrix> {
    const source = this.#typeOf(names[0]), type = heldAs(source, inputs);
    const weights = this.#store(matrixBytes(type, outputs, inputs));
    let at = 0;
    for (const name of names) at += await this.#copy(`${name}.weight`, source, type, weights, at);
    if (at !== weights.byteLength) {
      throw inputError(
        "gguf.shape",
        `${names.join(", ")}: ${at} bytes of weights, want ${weights.byteLength}`,
        names[0],
      );
    }
    return {
      type,
      outputs,
      inputs,
      weights,
      bias: hasBias ? await this.floats(...names.map((n) => `${n}.bias`)) : undefined,
    };
  }

  /** Matrices over one input: one of all rows where the types are alike, else one each. */
  async #matrices(
    names: readonly string[],
    outputs: readonly number[],
    inputs: number,
    hasBias = false,
  ): Promise<StoredMatrix[]> {
    if (new Set(names.map((name) => this.#typeOf(name))).size === 1) {
      return [await this.matrix(names, outputs.reduce((a, b) => a + b), inputs, hasBias)];
    }
    const matrices = [];
    for (const [i, name] of names.entries()) matrices.push(await this.matrix([name], outputs[i], inputs, hasBias));
    return matrices;
  }

  /** Copies a tensor to `at`; returns its bytes as held. */
  async #copy(name: string, source: string, type: KernelType, to: Stored, at: number): Promise<number> {
    if (type === source) return await this.#copyRaw(name, to, at, 1, 1, (bytes) => bytes);
    if (source === "Q5_0") return await this.#copyRaw(name, to, at, 22, 34, q5ToQ8);
    const tensor = this.#file.tensors.get(name)!;
    const width = tensor.shape[0], rows = tensor.shape.slice(1).reduce((a, b) => a * b, 1);
    const step = Math.max(1, Math.floor(SLICE_BYTES / 4 / width));
    for (let firstRow = 0; firstRow < rows; firstRow += step) {
      const floats = await this.#file.readFloat32(name, { firstRow, rows: Math.min(step, rows - firstRow) });
      const bytes = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
      to.view(at + firstRow * width * 4, bytes.length).set(bytes);
    }
    return rows * width * 4;
  }

  /** Copies a tensor's own bytes, `from` of them becoming `into`. */
  async #copyRaw(
    name: string,
    to: Stored,
    at: number,
    from: number,
    into: number,
    convert: (bytes: Uint8Array) => Uint8Array,
  ): Promise<number> {
    const { byteLength } = this.#file.tensors.get(name)!;
    const slice = Math.floor(SLICE_BYTES / from) * from;
    for (let offset = 0; offset < byteLength; offset += slice) {
      const bytes = convert(await this.#file.readRaw(name, { offset, length: Math.min(slice, byteLength - offset) }));
      to.view(at + offset / from * into, bytes.length).set(bytes);
    }
    return byteLength / from * into;
  }

  #typeOf(name: string): string {
    return this.#file.tensors.get(`${name}.weight`)!.type.name;
  }

  #store(bytes: number): Stored {
    this.bytes += bytes;
    return new Stored(this.#kernels, bytes);
  }
}

function heldAs(type: string, inputs: number): KernelType {
  if (isKernelType(type, inputs)) return type;
  return type === ("Q5_0" satisfies SupportedTypeName) ? "Q8_0" : "F32";
}

/** Q5_0 blocks (d, 32 fifth bits, 16 bytes) as Q8_0 blocks (d, 32 int8): d · (q − 16) either way. */
function q5ToQ8(bytes: Uint8Array): Uint8Array {
  const out = new Uint8Array(bytes.length / 22 * 34);
  for (let from = 0, to = 0; from < bytes.length; from += 22, to += 34) {
    out[to] = bytes[from];
    out[to + 1] = bytes[from + 1];
    for (let j = 0; j < 32; j++) {
      const low = bytes[from + 6 + (j & 15)] >> (j & 16) / 4 & 15;
      const fifth = bytes[from + 2 + (j >> 3)] >> (j & 7) & 1;
      out[to + 2 + j] = (low | fifth << 4) - 16;
    }
  }
  return out;
}
