/**
 * Tensor types: one entry each, with everything the project knows of it. A new type is an entry here, and a kernel where
 * it is to be multiplied as it stands in the file.
 */
import * as blocks from "./block_weights.ts";
import type { BlockFormat } from "./block_weights.ts";
import * as decode from "./gguf/dequantise.ts";
import type { Decode } from "./gguf/dequantise.ts";
import * as grids from "./gguf/dequantise_grids.ts";

/** How a tensor type is stored, `bytes` bytes for each block of `block` elements of a row, and what we do with it. */
export interface TensorType {
  /** As in ggml without its prefix: `Q4_K`. */
  readonly name: string;
  /** Number in the file, and of the kernels that multiply it. */
  readonly id: number;
  /** Elements per block, ≥ 1. */
  readonly block: number;
  /** Bytes per block, ≥ 1. */
  readonly bytes: number;
  /** Whole blocks as float32; absent for types whose size alone is known. */
  readonly decode?: Decode;
  /** As blocks for onnxruntime's 4- and 8-bit product; absent for types it gets in float32. */
  readonly blocks?: BlockFormat;
  /** Whether our own kernels multiply rows of it as they stand; they get the others in float32, or as {@link held}. */
  readonly kernel?: true;
  /** The type that our kernels hold it as instead, each weight off by at most 2⁻¹¹ of itself. */
  readonly held?: "F16";
}

/**
 * Every type a file may name, also those we can't read: their size is needed to check the tensor table, and an error can
 * call them by name. Numbers 4, 5, 31–33 and 36–38 were given to types since removed.
 * Source: `GGML_QUANT_SIZES` in PyPI gguf 0.19.0; Q8_1 has two float16 since 2024 (ggml, `block_q8_1`).
 */
const ENTRIES: readonly TensorType[] = [
  { id: 0, name: "F32", block: 1, bytes: 4, decode: decode.copyFloat32, kernel: true },
  { id: 1, name: "F16", block: 1, bytes: 2, decode: decode.expandFloat16, kernel: true },
  { id: 2, name: "Q4_0", block: 32, bytes: 18, decode: decode.expandQ4_0, blocks: blocks.Q4_0, kernel: true },
  { id: 3, name: "Q4_1", block: 32, bytes: 20, decode: decode.expandQ4_1, blocks: blocks.Q4_1, kernel: true },
  { id: 6, name: "Q5_0", block: 32, bytes: 22, decode: decode.expandQ5_0, blocks: blocks.Q5_0, kernel: true },
  { id: 7, name: "Q5_1", block: 32, bytes: 24, decode: decode.expandQ5_1, kernel: true },
  { id: 8, name: "Q8_0", block: 32, bytes: 34, decode: decode.expandQ8_0, blocks: blocks.Q8_0, kernel: true },
  { id: 9, name: "Q8_1", block: 32, bytes: 36 },
  { id: 10, name: "Q2_K", block: 256, bytes: 84, decode: decode.expandQ2_K, kernel: true },
  { id: 11, name: "Q3_K", block: 256, bytes: 110, decode: decode.expandQ3_K, kernel: true },
  { id: 12, name: "Q4_K", block: 256, bytes: 144, decode: decode.expandQ4_K, blocks: blocks.Q4_K, kernel: true },
  { id: 13, name: "Q5_K", block: 256, bytes: 176, decode: decode.expandQ5_K, kernel: true },
  { id: 14, name: "Q6_K", block: 256, bytes: 210, decode: decode.expandQ6_K, blocks: blocks.Q6_K, kernel: true },
  { id: 15, name: "Q8_K", block: 256, bytes: 292 },
  { id: 16, name: "IQ2_XXS", block: 256, bytes: 66, decode: grids.expandIQ2_XXS, held: "F16" },
  { id: 17, name: "IQ2_XS", block: 256, bytes: 74, decode: grids.expandIQ2_XS, held: "F16" },
  { id: 18, name: "IQ3_XXS", block: 256, bytes: 98, decode: grids.expandIQ3_XXS, held: "F16" },
  { id: 19, name: "IQ1_S", block: 256, bytes: 50, decode: grids.expandIQ1_S, held: "F16" },
  { id: 20, name: "IQ4_NL", block: 32, bytes: 18, decode: decode.expandIQ4_NL, kernel: true },
  { id: 21, name: "IQ3_S", block: 256, bytes: 110, decode: grids.expandIQ3_S, held: "F16" },
  { id: 22, name: "IQ2_S", block: 256, bytes: 82, decode: grids.expandIQ2_S, held: "F16" },
  { id: 23, name: "IQ4_XS", block: 256, bytes: 136, decode: decode.expandIQ4_XS, kernel: true },
  { id: 24, name: "I8", block: 1, bytes: 1 },
  { id: 25, name: "I16", block: 1, bytes: 2 },
  { id: 26, name: "I32", block: 1, bytes: 4 },
  { id: 27, name: "I64", block: 1, bytes: 8 },
  { id: 28, name: "F64", block: 1, bytes: 8 },
  { id: 29, name: "IQ1_M", block: 256, bytes: 56, decode: grids.expandIQ1_M, held: "F16" },
  { id: 30, name: "BF16", block: 1, bytes: 2, decode: decode.expandBfloat16, kernel: true },
  { id: 34, name: "TQ1_0", block: 256, bytes: 54, decode: grids.expandTQ1_0, held: "F16" },
  { id: 35, name: "TQ2_0", block: 256, bytes: 66, decode: grids.expandTQ2_0, held: "F16" },
  { id: 39, name: "MXFP4", block: 32, bytes: 17, decode: decode.expandMXFP4, kernel: true },
  { id: 40, name: "NVFP4", block: 64, bytes: 36 },
  { id: 41, name: "Q1_0", block: 128, bytes: 18 },
];

/** Tensor types by their number in the file. A program may add to them. */
export const TENSOR_TYPES: Map<number, TensorType> = new Map(ENTRIES.map((type) => [type.id, type]));

/** The type of a name; RangeError where there is none. */
export function typeNamed(name: string): TensorType {
  for (const type of TENSOR_TYPES.values()) if (type.name === name) return type;
  throw new RangeError(`There is no tensor type ${name}`);
}

/** Names of the types whose numbers we can read. */
export function readableTypes(): string[] {
  return [...TENSOR_TYPES.values()].filter(({ decode }) => decode !== undefined).map(({ name }) => name);
}

/** Bytes of a row of `elements`, which are whole blocks. */
export function rowBytesOf({ block, bytes }: TensorType, elements: number): number {
  return elements / block * bytes;
}

/**
 * Turns whole blocks of a tensor into float32.
 *
 * @param bytes whole blocks of `type`
 * @param out filled; its length is the number of elements in `bytes`
 * @throws RangeError when they don't fit each other, TypeError for a type without `decode`.
 */
export function dequantise(type: TensorType, bytes: Uint8Array, out: Float32Array): void {
  if (type.decode === undefined) throw new TypeError(`dequantise() can't read ${type.name}`);
  if (bytes.length * type.block !== out.length * type.bytes || out.length % type.block !== 0) {
    throw new RangeError(`dequantise() of ${bytes.length} bytes of ${type.name} doesn't fill ${out.length} elements`);
  }
  type.decode(bytes, out);
}

/** Rows stored one after another as blocks for onnxruntime; RangeError for a type without them or for other bytes. */
export function toBlocks(type: TensorType, raw: Uint8Array): blocks.BlockWeights {
  if (type.blocks === undefined) throw new RangeError(`toBlocks() wants a type with blocks, not ${type.name}`);
  return blocks.unpackBlocks(type.blocks, type.bytes, raw);
}
