/** Rows of a tensor type that no file needs to hold. */
import { rowBytesOf, type TensorType } from "../../model/file/tensor_types.ts";

/** Where a block has its float16s. */
export const HALVES: Readonly<Record<string, readonly number[]>> = {
  ...{ F16: [0], BF16: [0], Q4_0: [0], Q4_1: [0, 2], Q5_0: [0], Q5_1: [0, 2], Q8_0: [0], Q2_K: [80, 82], Q3_K: [108] },
  ...{ Q4_K: [0, 2], Q5_K: [0, 2], Q6_K: [208], IQ4_NL: [0], IQ4_XS: [0] },
};

/** Rows of random bytes whose scales are below 2 and of either sign; `next`: uniform in 0 … 1. */
export function randomRows(type: TensorType, elements: number, next: () => number): Uint8Array<ArrayBuffer> {
  if (type.name === "F32") return new Uint8Array(Float32Array.from({ length: elements }, () => 2 * next() - 1).buffer);
  const bytes = Uint8Array.from({ length: rowBytesOf(type, elements) }, () => next() * 256);
  for (let at = 0; at < bytes.length; at += type.bytes) {
    for (const half of HALVES[type.name] ?? []) bytes[at + half + 1] &= 0xbf;
    if (type.name === "MXFP4") bytes[at] = 115 + bytes[at] % 16;
  }
  return bytes;
}
