/** Rows of float32 on their way into a layer's buffers: rounded to its type, all heads of a block in one stage. */
import type { GpuBuffer } from "../device.ts";
import { STORE } from "./shaders.ts";
import { kindOf, MOST_GROUPS } from "./stages.ts";
import type { StoredOptions } from "./stored_heads.ts";

/** Numbers, `[rows, heads, headDim]`, and the buffer that they go to. */
export type Stored = readonly [source: GpuBuffer, to: GpuBuffer];

export interface StoreCall {
  /** Keys, values, or both: these lie alike. */
  readonly parts: readonly [Stored, Stored?];
  /** Rows of the source. */
  readonly count: number;
  /** Heads of the source, and the first that is stored. */
  readonly heads: number;
  readonly firstHead: number;
  /** Who is told of a number that the type can't hold (`GpuDevice.listen`). */
  readonly owner: number;
  /** Where each head's first row goes, in words. */
  readonly words: readonly number[];
}

export function storeRows({ gpu, shape: { headDim }, type }: StoredOptions, call: StoreCall): void {
  const { parts: [first, second], count, heads, firstHead, owner, words } = call;
  const stage = gpu.stage(STORE, { constants: { D: headDim, KIND: kindOf(type) } });
  // A stage must be given all buffers it knows, and none twice to write to.
  const unused = second ? undefined : gpu.borrow(4), [source, to] = second ?? [first[0], unused!];
  for (let row = 0; row < count; row += MOST_GROUPS) {
    gpu.run(stage, {
      params: [count, heads, firstHead, owner, row, ...words],
      buffers: [...first, gpu.faults, source, to],
      groups: [words.length, Math.min(MOST_GROUPS, count - row), second ? 2 : 1],
    });
  }
  if (unused) gpu.giveBack(unused);
}
