/** The short convolution of a layer that convolves, over its rows (`model/decode/convolution.ts`). */
import type { GpuBuffer } from "../device.ts";
import type { GpuTensor } from "../tensors.ts";
import { CONVOLVE } from "./shaders.ts";
import { MOST_GROUPS } from "./stages.ts";
import type { StoredHeads } from "./stored_heads.ts";

/** Of the last `count` rows, let through by `queries`, `[count, heads, headDim]`, to `out`. `taps`: `[channels, taps]`. */
export function convolve(
  stored: StoredHeads,
  queries: GpuTensor,
  count: number,
  taps: { readonly buffer: GpuBuffer; readonly each: number },
  out: GpuBuffer,
): void {
  const { gpu, shape: { heads, headDim } } = stored.options;
  const stage = gpu.stage(CONVOLVE, { constants: { D: headDim, TAPS: taps.each, CHANNELS: heads * headDim } });
  for (const { first, words, from, to, keys, values } of stored.blocks) {
    if (from >= stored.longest) continue;
    const table = words.flatMap((word, i) => [word, stored.lengths[first + i]]);
    for (let query = 0; query < count; query += MOST_GROUPS) {
      gpu.run(stage, {
        params: [count, query, first, words.length, from, Math.min(to, stored.longest), ...table],
        buffers: [queries.buffer, keys, values, taps.buffer, out],
        groups: [Math.ceil(2 * words.length * headDim / 64), Math.min(MOST_GROUPS, count - query)],
      });
    }
  }
}
