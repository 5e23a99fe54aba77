/**
 * Repacks quantised GGUF rows as the blocks onnxruntime multiplies with (`BlockWeights`). Nothing is rounded but an
 * offset (`m + zero·d` in float32). Layouts: ggml-org/ggml `src/ggml-common.h` (`block_q4_0` …), where the low halves of
 * a 4-bit block's bytes hold its first 16 weights; onnxruntime wants neighbours in one byte.
 */
import { float16Table } from "../gguf/float16.ts";
import type { BlockWeights } from "./blocks.ts";

/** How one GGUF type becomes blocks. */
interface BlockFormat {
  readonly bits: 4 | 8;
  /** Weights per block. */
  readonly block: number;
  /** Bytes of a block in the file. */
  readonly bytes: number;
  readonly hasOffsets: boolean;
  /** Repacks block `index`, which starts at byte `at`. */
  unpack(source: DataView, at: number, target: BlockWeights, index: number): void;
}

const FORMATS: Readonly<Record<string, BlockFormat>> = {
  Q4_0: { bits: 4, block: 32, bytes: 18, hasOffsets: false, unpack: unpackQ4_0 },
  Q4_1: { bits: 4, block: 32, bytes: 20, hasOffsets: true, unpack: unpackQ4_1 },
  Q8_0: { bits: 8, block: 32, bytes: 34, hasOffsets: false, unpack: unpackQ8_0 },
};

/** Whether rows of this GGUF type (`Q4_0`, …) can be kept as blocks. */
export function hasBlocks(type: string): boolean {
  return Object.hasOwn(FORMATS, type);
}

/**
 * `rows` of `columns` weights, stored one after another as GGUF type `type`, as blocks. RangeError for a type without
 * blocks (see `hasBlocks`) or bytes that are not exactly those rows.
 */
export function toBlocks(type: string, raw: Uint8Array, rows: number, columns: number): BlockWeights {
  if (!hasBlocks(type)) throw new RangeError(`toBlocks() wants a type with blocks, not ${type}`);
  const format = FORMATS[type];
  const count = rows * columns / format.block;
  if (columns % format.block !== 0 || raw.length !== count * format.bytes) {
    throw new RangeError(`toBlocks() wants ${count * format.bytes} bytes of ${type}, not ${raw.length}`);
  }
  const target: BlockWeights = {
    kind: "blocks",
    bits: format.bits,
    block: format.block,
    quants: new Uint8Array(count * format.block * format.bits / 8),
    scales: new Float32Array(count),
    ...(format.hasOffsets ? { offsets: new Float32Array(count) } : {}),
  };
  const source = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  for (let i = 0; i < count; i++) format.unpack(source, i * format.bytes, target, i);
  return target;
}

/** d, 16 bytes: w = d·(q − 8). */
function unpackQ4_0(source: DataView, at: number, target: BlockWeights, index: number): void {
  target.scales[index] = float16(source, at);
  unpackNibbles(source, at + 2, target.quants, index * 16);
}

/** d, m, 16 bytes: w = d·q + m. */
function unpackQ4_1(source: DataView, at: number, target: BlockWeights, index: number): void {
  const scale = float16(source, at);
  target.scales[index] = scale;
  target.offsets![index] = float16(source, at + 2) + 8 * scale;
  unpackNibbles(source, at + 4, target.quants, index * 16);
}

/** d, 32 signed bytes: w = d·q. */
function unpackQ8_0(source: DataView, at: number, target: BlockWeights, index: number): void {
  target.scales[index] = float16(source, at);
  for (let j = 0; j < 32; j++) target.quants[index * 32 + j] = source.getUint8(at + 2 + j) ^ 0x80;
}

/** 16 bytes (low half: weight j, high half: weight j + 16) to pairs of neighbours. */
function unpackNibbles(source: DataView, at: number, quants: Uint8Array, to: number): void {
  for (let j = 0; j < 8; j++) {
    const first = source.getUint8(at + 2 * j);
    const second = source.getUint8(at + 2 * j + 1);
    quants[to + j] = (first & 15) | ((second & 15) << 4);
    quants[to + 8 + j] = (first >> 4) | (second & 0xf0);
  }
}

function float16(source: DataView, at: number): number {
  return float16Table()[source.getUint16(at, true)];
}
