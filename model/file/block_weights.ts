/**
 * Repacks quantised GGUF rows as `BlockWeights`. Nothing is rounded but scales and offsets, to float32. The layouts are
 * those of `model/file/gguf/dequantise.ts`; there the low halves of a block's bytes hold its first weights, while
 * onnxruntime wants neighbours in one byte.
 */
import { float16Table } from "./gguf/float16.ts";

/** Weights in blocks along the input: `w = scale·(q − zero) + offset`, where zero is 8 (4 bits) or 128 (8 bits). */
export interface BlockWeights {
  readonly kind: "blocks";
  readonly bits: 4 | 8;
  /** Weights per block. */
  readonly block: number;
  /** `[outputs, inputs / block, block·bits / 8]`; of two 4-bit values the earlier one is in the low half. */
  readonly quants: Uint8Array;
  /** `[outputs, inputs / block]`. */
  readonly scales: Float32Array;
  /** `[outputs, inputs / block]`; absent when all are 0. */
  readonly offsets?: Float32Array;
}

/** How one tensor type becomes such blocks. */
export interface BlockFormat {
  readonly bits: 4 | 8;
  /** Weights per block of ours. */
  readonly block: number;
  /** Blocks of ours in one block of the file. */
  readonly blocks: number;
  readonly hasOffsets: boolean;
  /** Repacks the file's block at byte `at` into our blocks `to`, `to + 1`, …  */
  unpack(source: Uint8Array, at: number, target: BlockWeights, to: number): void;
}

export const Q4_0: BlockFormat = { bits: 4, block: 32, blocks: 1, hasOffsets: false, unpack: unpackQ4_0 };
export const Q4_1: BlockFormat = { bits: 4, block: 32, blocks: 1, hasOffsets: true, unpack: unpackQ4_1 };
export const Q5_0: BlockFormat = { bits: 8, block: 32, blocks: 1, hasOffsets: false, unpack: unpackQ5_0 };
export const Q8_0: BlockFormat = { bits: 8, block: 32, blocks: 1, hasOffsets: false, unpack: unpackQ8_0 };
export const Q4_K: BlockFormat = { bits: 4, block: 32, blocks: 8, hasOffsets: true, unpack: unpackQ4_K };
export const Q6_K: BlockFormat = { bits: 8, block: 16, blocks: 16, hasOffsets: false, unpack: unpackQ6_K };

/** Rows of a type stored one after another, `raw`, in blocks of `bytes` bytes of the file. RangeError for other bytes. */
export function unpackBlocks(format: BlockFormat, bytes: number, raw: Uint8Array): BlockWeights {
  const { bits, block, blocks, hasOffsets, unpack } = format;
  if (raw.length % bytes !== 0) throw new RangeError(`${raw.length} bytes are not whole blocks of ${bytes}`);
  const count = raw.length / bytes * blocks;
  const target: BlockWeights = {
    kind: "blocks",
    bits,
    block,
    quants: new Uint8Array(count * block * bits / 8),
    scales: new Float32Array(count),
    ...(hasOffsets ? { offsets: new Float32Array(count) } : {}),
  };
  for (let at = 0, to = 0; at < raw.length; at += bytes, to += blocks) unpack(raw, at, target, to);
  return target;
}

/** w = d·(q − 8). */
function unpackQ4_0(source: Uint8Array, at: number, target: BlockWeights, to: number): void {
  target.scales[to] = float16(source, at);
  for (let j = 0; j < 32; j++) setNibble(target, to * 32 + j, source[at + 2 + (j & 15)] >> (j & 16) / 4);
}

/** w = d·q + m. */
function unpackQ4_1(source: Uint8Array, at: number, target: BlockWeights, to: number): void {
  const scale = float16(source, at);
  target.scales[to] = scale;
  target.offsets![to] = float16(source, at + 2) + 8 * scale;
  for (let j = 0; j < 32; j++) setNibble(target, to * 32 + j, source[at + 4 + (j & 15)] >> (j & 16) / 4);
}

/** w = d·(q − 16) with 5-bit q. */
function unpackQ5_0(source: Uint8Array, at: number, target: BlockWeights, to: number): void {
  target.scales[to] = float16(source, at);
  for (let j = 0; j < 32; j++) {
    const low = source[at + 6 + (j & 15)] >> (j & 16) / 4 & 15;
    const fifth = source[at + 2 + (j >> 3)] >> (j & 7) & 1;
    target.quants[to * 32 + j] = (low | fifth << 4) - 16 + 128;
  }
}

/** w = d·q with signed q. */
function unpackQ8_0(source: Uint8Array, at: number, target: BlockWeights, to: number): void {
  target.scales[to] = float16(source, at);
  for (let j = 0; j < 32; j++) target.quants[to * 32 + j] = source[at + 2 + j] ^ 0x80;
}

/** w = d·s·q − dmin·m, with 6-bit s and m for each group of 32. */
function unpackQ4_K(source: Uint8Array, at: number, target: BlockWeights, to: number): void {
  const packed = source.subarray(at + 4, at + 16);
  for (let group = 0; group < 8; group++) {
    const [s, m] = scaleAndMinimum(packed, group);
    const scale = float16(source, at) * s;
    target.scales[to + group] = scale;
    target.offsets![to + group] = 8 * scale - float16(source, at + 2) * m;
    const from = at + 16 + (group >> 1) * 32;
    for (let j = 0; j < 32; j++) setNibble(target, (to + group) * 32 + j, source[from + j] >> (group & 1) * 4);
  }
}

/** Groups 0–3 have their 6 bits together; the upper two bits of 4–7 are the upper bits of 0–3. */
function scaleAndMinimum(packed: Uint8Array, group: number): [number, number] {
  if (group < 4) return [packed[group] & 63, packed[group + 4] & 63];
  const low = packed[group + 4];
  return [low & 15 | packed[group - 4] >> 2 & 48, low >> 4 | packed[group] >> 2 & 48];
}

/** w = d·s·(q − 32) with 6-bit q, and a signed s for each group of 16. */
function unpackQ6_K(source: Uint8Array, at: number, target: BlockWeights, to: number): void {
  const d = float16(source, at + 208);
  for (let group = 0; group < 16; group++) target.scales[to + group] = d * (source[at + 192 + group] << 24 >> 24);
  for (let i = 0; i < 256; i++) {
    const half = i >> 7;
    const low = source[at + half * 64 + (i & 63)] >> (i >> 6 & 1) * 4 & 15;
    const high = source[at + 128 + half * 32 + (i & 31)] >> (i >> 5 & 3) * 2 & 3;
    target.quants[to * 16 + i] = (low | high << 4) - 32 + 128;
  }
}

/** Weight `index` of 4-bit quants that are still 0; only the low half of `value` counts. */
function setNibble({ quants }: BlockWeights, index: number, value: number): void {
  quants[index >> 1] |= (value & 15) << (index & 1) * 4;
}

function float16(source: Uint8Array, at: number): number {
  return float16Table()[source[at] | source[at + 1] << 8];
}
