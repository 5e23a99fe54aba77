/** Quantised weights as onnxruntime's MatMulNBits takes them, and two exact changes of form. */

import type { BlockWeights } from "../../file/block_weights.ts";

export type { BlockWeights } from "../../file/block_weights.ts";

/**
 * Offsets folded into zero points `zero − offset / scale`. A block of scale 0 is constant: its scale becomes the
 * offset, its q 0, its zero point −1.
 */
export function withZeroPoints(weights: BlockWeights): BlockWeights & { readonly zeroPoints?: Float32Array } {
  const { offsets, bits } = weights;
  if (!offsets) return weights;
  const quants = weights.quants.slice();
  const scales = weights.scales.slice();
  const packed = weights.block * bits / 8;
  const zero = 2 ** (bits - 1);
  const zeroPoints = scales.map((scale, i) => scale === 0 ? -1 : zero - offsets[i] / scale);
  for (let i = 0; i < scales.length; i++) {
    if (scales[i] !== 0) continue;
    scales[i] = offsets[i];
    quants.fill(0, i * packed, (i + 1) * packed);
  }
  return { ...weights, quants, scales, zeroPoints };
}

/**
 * 8-bit weights `[outputs, inputs]` as 4-bit ones `[outputs, 2·inputs]`, to be multiplied with the input twice over:
 * `scale·(q − 128) = 16·scale·(high − 8) + scale·(low − 8) + 8·scale`. `offsets` stay `[outputs, inputs / block]`.
 */
export function inHalves(weights: BlockWeights, outputs: number): BlockWeights & { readonly offsets: Float32Array } {
  const { block, quants, scales, offsets } = weights;
  const blocks = scales.length / outputs;
  const packed = block / 2;
  const halves = new Uint8Array(quants.length);
  const halfScales = new Float32Array(2 * scales.length);
  for (let i = 0; i < scales.length; i++) {
    const high = Math.floor(i / blocks) * 2 * blocks + i % blocks;
    const low = high + blocks;
    halfScales[high] = 16 * scales[i];
    halfScales[low] = scales[i];
    for (let j = 0; j < packed; j++) {
      const first = quants[i * block + 2 * j];
      const second = quants[i * block + 2 * j + 1];
      halves[high * packed + j] = (first >> 4) | (second & 0xf0);
      halves[low * packed + j] = (first & 15) | ((second & 15) << 4);
    }
  }
  const shifted = scales.map((scale, i) => 8 * scale + (offsets ? offsets[i] : 0));
  return { kind: "blocks", bits: 4, block, quants: halves, scales: halfScales, offsets: shifted };
}
