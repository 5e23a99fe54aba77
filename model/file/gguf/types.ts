/**
 * The vocabulary of a GGUF file.
 *
 * `where` in an error is the path of a field: `header.tensorCount`, `metadata[3].key` while the key is not known yet,
 * `metadata["llama.block_count"].value` after it, `tensor[5].offset` in the tensor table.
 *
 * Source: the GGUF specification in ggml-org/ggml, `docs/gguf.md`.
 */
import type { Notice } from "../notice.ts";
import type { TensorType } from "../tensor_types.ts";

/** An array in the metadata. 64-bit integers keep their typed array; an array of arrays is a plain array. */
export type GgufArray =
  | string[]
  | boolean[]
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array
  | GgufArray[];

/** A metadata value. A 64-bit integer is a number where a number holds it exactly, otherwise a bigint. */
export type GgufValue = number | bigint | string | boolean | GgufArray;

/** One entry of the tensor table, checked against the file. */
export interface GgufTensor {
  readonly name: string;
  readonly type: TensorType;
  /** As stored, innermost first: `[K, N, …]`, K being the length of a row. 1 to 4 dimensions, each ≥ 1. */
  readonly shape: readonly number[];
  /** Where the first byte is, from the start of the file. */
  readonly offset: number;
  /** Bytes of the whole tensor. */
  readonly byteLength: number;
  /** Product of `shape`. */
  readonly elements: number;
}

/** Bytes of a tensor. */
export interface RawRange {
  readonly offset?: number;
  readonly length?: number;
  /** What they are read into, to be used again. */
  readonly into?: Uint8Array<ArrayBuffer>;
}

/** An open GGUF file whose header, metadata and tensor table have been read and checked. */
export interface GgufFile extends AsyncDisposable {
  /** The source's name, for messages. */
  readonly name: string;
  /** Bytes of the file. */
  readonly size: number;
  /** 2 or 3. */
  readonly version: number;
  /** `general.alignment`, or 32. */
  readonly alignment: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** By name, in the order of the file. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /** What is odd in the file and changes no answer. */
  readonly notices: readonly Notice[];
  /**
   * Bytes of a tensor as they are in the file; by default all of them. Read in slices of at most 16 MiB into one
   * buffer of the length asked for, or into the front of `into`. PalisadeError `gguf.missing` for an unknown name, RangeError for a range that is
   * not inside the tensor, or not inside `into`.
   */
  readRaw(name: string, range?: RawRange): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Rows of a tensor as float32, `[rows, K]`; by default all of them (a tensor of 3 or 4 dimensions counts as
   * elements / K rows). PalisadeErrors `gguf.missing`, and `gguf.dtype` for a type we don't dequantise; RangeError for
   * rows that are not there.
   */
  readFloat32(name: string, rows?: { readonly firstRow?: number; readonly rows?: number }): Promise<Float32Array>;
  /** Closes the file's source. */
  close(): Promise<void>;
}
