/**
 * Writes a GGUF with random weights in the shape of a well-known model and in Q4_K_M's mix of types, for measuring speed
 * and memory where the weights can't be had. The bytes depend on shape and seed alone. Tensors are written one after
 * another, so that a file of any size takes little memory.
 *
 *     deno run -A tools/make_random_model.ts SHAPE FILE.gguf [SEED]
 */
import { closeSync, openSync, writeSync } from "node:fs";
import process from "node:process";
import { rowBytesOf, type TensorType, typeNamed } from "../model/file/tensor_types.ts";

interface Shape {
  readonly architecture: "llama" | "qwen2" | "qwen3";
  /** `tokenizer.ggml.pre` */
  readonly pre: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly vocabulary: number;
  readonly context: number;
  readonly ropeBase: number;
  readonly epsilon: number;
}

/** From the models' own config.json, all with a head tied to the embeddings; and one small enough to be tested. */
const SHAPES: Readonly<Record<string, Shape>> = {
  tiny: {
    ...{ architecture: "llama", pre: "smollm", layers: 8, width: 256, heads: 4, kvHeads: 2, headDim: 64 },
    ...{ feedForward: 96, vocabulary: 300, context: 2048, ropeBase: 10000, epsilon: 1e-5 },
  },
  "smollm2-135m": {
    ...{ architecture: "llama", pre: "smollm", layers: 30, width: 576, heads: 9, kvHeads: 3, headDim: 64 },
    ...{ feedForward: 1536, vocabulary: 49152, context: 8192, ropeBase: 100000, epsilon: 1e-5 },
  },
  "llama-3.2-1b": {
    ...{ architecture: "llama", pre: "llama-bpe", layers: 16, width: 2048, heads: 32, kvHeads: 8, headDim: 64 },
    ...{ feedForward: 8192, vocabulary: 128256, context: 131072, ropeBase: 500000, epsilon: 1e-5 },
  },
  "qwen3-0.6b": {
    ...{ architecture: "qwen3", pre: "qwen2", layers: 28, width: 1024, heads: 16, kvHeads: 8, headDim: 128 },
    ...{ feedForward: 3072, vocabulary: 151936, context: 40960, ropeBase: 1000000, epsilon: 1e-6 },
  },
  "qwen2.5-0.5b": {
    ...{ architecture: "qwen2", pre: "qwen2", layers: 24, width: 896, heads: 14, kvHeads: 2, headDim: 64 },
    ...{ feedForward: 4864, vocabulary: 151936, context: 32768, ropeBase: 1000000, epsilon: 1e-6 },
  },
  "qwen3-4b": {
    ...{ architecture: "qwen3", pre: "qwen2", layers: 36, width: 2560, heads: 32, kvHeads: 8, headDim: 128 },
    ...{ feedForward: 9728, vocabulary: 151936, context: 40960, ropeBase: 1000000, epsilon: 1e-6 },
  },
};

const ALIGNMENT = 32;
/** Bytes made and written at a time; whole blocks of every type. */
const SLICE_BYTES = 1 << 22;

interface Tensor {
  readonly name: string;
  /** Innermost first. */
  readonly shape: readonly number[];
  readonly type: TensorType;
}

/** Tensors in llama.cpp's Q4_K_M: half of the value and down projections, and the head, have more bits. */
function tensorsOf(shape: Shape): Tensor[] {
  const { architecture, layers, width, heads, kvHeads, headDim, feedForward, vocabulary } = shape;
  const matrix = (name: string, inputs: number, outputs: number, more = false): Tensor => {
    return { name: `${name}.weight`, shape: [inputs, outputs], type: typeNamed(mixed(inputs, more)) };
  };
  const vector = (name: string, length: number): Tensor => ({ name, shape: [length], type: typeNamed("F32") });
  const gains = (name: string, length: number) => vector(`${name}.weight`, length);
  const bias = (name: string, length: number) => vector(`${name}.bias`, length);
  const tensors = [matrix("token_embd", width, vocabulary, true), gains("output_norm", width)];
  for (let i = 0; i < layers; i++) {
    const of = (name: string) => `blk.${i}.${name}`, more = hasMoreBits(i, layers);
    tensors.push(gains(of("attn_norm"), width), matrix(of("attn_q"), width, heads * headDim));
    tensors.push(matrix(of("attn_k"), width, kvHeads * headDim), matrix(of("attn_v"), width, kvHeads * headDim, more));
    if (architecture === "qwen2") {
      tensors.push(bias(of("attn_q"), heads * headDim));
      tensors.push(bias(of("attn_k"), kvHeads * headDim), bias(of("attn_v"), kvHeads * headDim));
    }
    if (architecture === "qwen3") tensors.push(gains(of("attn_q_norm"), headDim), gains(of("attn_k_norm"), headDim));
    tensors.push(matrix(of("attn_output"), heads * headDim, width), gains(of("ffn_norm"), width));
    tensors.push(matrix(of("ffn_gate"), width, feedForward), matrix(of("ffn_up"), width, feedForward));
    tensors.push(matrix(of("ffn_down"), feedForward, width, more));
  }
  return tensors;
}

/** `use_more_bits` of llama.cpp's quantisation. */
function hasMoreBits(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor(7 * layers / 8) || (layer - eighth) % 3 === 2;
}

/** Rows that are no whole blocks of 256 get the next larger type in blocks of 32. */
function mixed(inputs: number, more: boolean): string {
  if (inputs % 256 === 0) return more ? "Q6_K" : "Q4_K";
  return more ? "Q8_0" : "Q5_0";
}

type Value = string | { readonly u32: number } | { readonly f32: number } | readonly string[] | Int32Array;

function metadataOf(name: string, shape: Shape): [string, Value][] {
  const { architecture, pre, vocabulary } = shape, of = (key: string) => `${architecture}.${key}`;
  const tokens = tokensOf(vocabulary), end = vocabulary - 1;
  const types = new Int32Array(vocabulary).fill(1);
  // 3: control
  types[end] = 3;
  return [
    ["general.architecture", architecture],
    ["general.name", `${name}, random weights`],
    ["general.alignment", { u32: ALIGNMENT }],
    [of("block_count"), { u32: shape.layers }],
    [of("context_length"), { u32: shape.context }],
    [of("embedding_length"), { u32: shape.width }],
    [of("feed_forward_length"), { u32: shape.feedForward }],
    [of("attention.head_count"), { u32: shape.heads }],
    [of("attention.head_count_kv"), { u32: shape.kvHeads }],
    [of("attention.key_length"), { u32: shape.headDim }],
    [of("attention.value_length"), { u32: shape.headDim }],
    [of("attention.layer_norm_rms_epsilon"), { f32: shape.epsilon }],
    [of("rope.freq_base"), { f32: shape.ropeBase }],
    [of("rope.dimension_count"), { u32: shape.headDim }],
    [of("vocab_size"), { u32: vocabulary }],
    ["tokenizer.ggml.model", "gpt2"],
    ["tokenizer.ggml.pre", pre],
    ["tokenizer.ggml.tokens", tokens],
    ["tokenizer.ggml.token_type", types],
    ["tokenizer.ggml.merges", ["t h"]],
    ["tokenizer.ggml.bos_token_id", { u32: end }],
    ["tokenizer.ggml.eos_token_id", { u32: end }],
  ];
}

/** The 256 bytes as byte-level BPE writes them, one merge, tokens that no text gives, and one that ends it. */
function tokensOf(count: number): string[] {
  const printable = (byte: number) => byte > 32 && byte < 127 || byte > 160 && byte !== 173;
  let other = 256;
  const bytes = Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : other++));
  const filler = Array.from({ length: count - 258 }, (_, i) => `<filler ${i}>`);
  return [...bytes, "th", ...filler, "<|end|>"];
}

/** Little-endian bytes of the file's beginning. */
class Header {
  readonly #parts: Uint8Array[] = [];
  length = 0;

  put(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.length += bytes.length;
  }

  u32(value: number): void {
    this.put(new Uint8Array(Uint32Array.of(value).buffer));
  }

  u64(value: number): void {
    this.put(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }

  text(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    this.put(bytes);
  }

  /** Type numbers of the GGUF specification: 4 uint32, 5 int32, 6 float32, 8 string, 9 array. */
  value(value: Value): void {
    if (typeof value === "string") {
      this.u32(8);
      this.text(value);
    } else if (value instanceof Int32Array) {
      this.#array(5, value.length);
      this.put(new Uint8Array(value.buffer));
    } else if ("u32" in value) {
      this.u32(4);
      this.u32(value.u32);
    } else if ("f32" in value) {
      this.u32(6);
      this.put(new Uint8Array(Float32Array.of(value.f32).buffer));
    } else {
      this.#array(8, value.length);
      for (const text of value) this.text(text);
    }
  }

  #array(type: number, length: number): void {
    this.u32(9);
    this.u32(type);
    this.u64(length);
  }

  /** All of it, with zeros up to a multiple of the alignment. */
  bytes(): Uint8Array {
    const out = new Uint8Array(aligned(this.length));
    let at = 0;
    for (const part of this.#parts) {
      out.set(part, at);
      at += part.length;
    }
    return out;
  }
}

function aligned(length: number): number {
  return Math.ceil(length / ALIGNMENT) * ALIGNMENT;
}

function bytesOf({ shape, type }: Tensor): number {
  return shape.slice(1).reduce((a, b) => a * b, 1) * rowBytesOf(type, shape[0]);
}

function headerOf(name: string, shape: Shape, tensors: readonly Tensor[]): Uint8Array {
  const header = new Header(), metadata = metadataOf(name, shape);
  header.put(new TextEncoder().encode("GGUF"));
  header.u32(3);
  header.u64(tensors.length);
  header.u64(metadata.length);
  for (const [key, value] of metadata) {
    header.text(key);
    header.value(value);
  }
  let offset = 0;
  for (const tensor of tensors) {
    header.text(tensor.name);
    header.u32(tensor.shape.length);
    for (const size of tensor.shape) header.u64(size);
    header.u32(tensor.type.id);
    header.u64(offset);
    offset = aligned(offset + bytesOf(tensor));
  }
  return header.bytes();
}

/** Where a block has float16s, and what they are for weights of a standard deviation of 1. */
const SCALES: Readonly<Record<string, readonly (readonly [at: number, scale: number])[]>> = {
  Q5_0: [[0, 1 / 9.2]],
  Q8_0: [[0, 1 / 74]],
  // Scales and minima are at 31 of 63 on average; minima lie half of the range below.
  Q4_K: [[0, 1 / 270], [2, 7.5 / 270]],
  Q6_K: [[208, 1 / (18.5 * 74)]],
};

/** Marsaglia's xorshift32, fast enough for gigabytes. */
class Noise {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0 || 1;
  }

  fill(words: Uint32Array): void {
    let state = this.#state;
    for (let i = 0; i < words.length; i++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      words[i] = state;
    }
    this.#state = state >>> 0;
  }
}

/** Blocks of random bits, scaled so that products keep the size of their inputs. */
function randomBlocks(tensor: Tensor, bytes: Uint8Array<ArrayBuffer>, noise: Noise): void {
  const { type, shape: [inputs] } = tensor;
  noise.fill(new Uint32Array(bytes.buffer, 0, Math.floor(bytes.length / 4)));
  for (const [at, scale] of SCALES[type.name]) {
    const bits = float16(scale / Math.sqrt(inputs));
    for (let block = at; block < bytes.length; block += type.bytes) {
      bytes[block] = bits & 255;
      bytes[block + 1] = bits >> 8;
    }
  }
}

/** Bits of a positive number in float16's normal or subnormal range, cut off. */
function float16(x: number): number {
  const exponent = Math.max(-14, Math.floor(Math.log2(x)));
  const steps = Math.floor(x / 2 ** (exponent - 10));
  return steps + (exponent + 14) * 1024;
}

function writeTensor(file: number, tensor: Tensor, noise: Noise): void {
  const total = bytesOf(tensor);
  if (tensor.type.name === "F32") {
    // Gains of norms, and biases.
    const value = tensor.name.endsWith(".bias") ? 0 : 1;
    writeAll(file, new Uint8Array(new Float32Array(total / 4).fill(value).buffer));
  } else {
    const slice = Math.floor(SLICE_BYTES / tensor.type.bytes / 4) * tensor.type.bytes * 4;
    const buffer = new Uint8Array(Math.min(slice, total));
    for (let at = 0; at < total; at += slice) {
      const bytes = at + slice <= total ? buffer : new Uint8Array(total - at);
      randomBlocks(tensor, bytes, noise);
      writeAll(file, bytes);
    }
  }
  writeAll(file, new Uint8Array(aligned(total) - total));
}

function writeAll(file: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at);
}

/** Writes the model; RangeError for a shape there is none of. */
export function makeRandomModel(name: string, path: string, seed = 1): void {
  const shape = SHAPES[name];
  if (shape === undefined) throw new RangeError(`No shape ${name}: want one of ${Object.keys(SHAPES).join(", ")}`);
  const tensors = tensorsOf(shape), noise = new Noise(seed), file = openSync(path, "w");
  try {
    writeAll(file, headerOf(name, shape, tensors));
    for (const tensor of tensors) writeTensor(file, tensor, noise);
  } finally {
    closeSync(file);
  }
}

if (import.meta.main) {
  const [name, path, seed] = process.argv.slice(2);
  if (path === undefined) {
    console.error(`usage: make_random_model.ts ${Object.keys(SHAPES).join("|")} FILE.gguf [SEED]`);
    process.exit(2);
  }
  makeRandomModel(name, path, seed === undefined ? 1 : Number(seed));
}
