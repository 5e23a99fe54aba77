/** Rows of float32 on their way into a layer's buffers: rounded to its type, all heads of a block in one stage. */
import type { GpuBuffer } from "../device.ts";
import type { Turning } from "../turning.ts";
import { STORE } from "./shaders.ts";
import { kindOf, MOST_GROUPS } from "./stages.ts";
import type { StoredOptions } from "./stored_heads.ts";

/** Numbers, `[rows, heads, headDim]`, and the buffer that they go to. */
export type Stored = readonly [source: GpuBuffer, to: GpuBuffer];

export interface StoreCall {
  /** Keys, values, or both: these lie alike. */
  readonly parts: readonly [Stored, Stored?];
  /** Rows of the source: those before `count` are stored, from `first` on (default 0). */
  readonly count: number;
  readonly first?: number;
  /** Heads of the source, and the first that is stored. */
  readonly heads: number;
  readonly firstHead: number;
  /** Who is told of a number that the type can't hold (`GpuDevice.listen`). */
  readonly owner: number;
  /** Where row 0 of each head of the source goes, in words; below 0 where it isn't stored (`Block.words`). */
  readonly words: readonly number[];
}

export function storeRows({ gpu, shape: { headDim }, type }: StoredOptions, call: StoreCall): void {
  const { parts: [one, second], first = 0, count, heads, firstHead, owner, words } = call;
  const stage = gpu.stage(STORE, { constants: { D: headDim, KIND: kindOf(type) } });
  // A stage must be given all buffers it knows, and none twice to write to.
  const unused = second ? undefined : gpu.borrow(4), [source, to] = second ?? [one[0], unused!];
  for (let row = first; row < count; row += MOST_GROUPS) {
    gpu.run(stage, {
      params: [count, heads, firstHead, owner, row, ...words],
      buffers: [...one, gpu.faults, source, to],
      groups: [words.length, Math.min(MOST_GROUPS, count - row), second ? 2 : 1],
    });
  }
  if (unused) gpu.giveBack(unused);
}

/** Numbers of a row that the stage which turns has at hand. */
const MOST_TURNED = 256;

export interface StoreTurnedCall extends Omit<StoreCall, "parts" | "count" | "first" | "heads" | "firstHead"> {
  readonly turning: Turning;
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
}

/**
 * The same with few rows that wait to be turned, which gives the queries too; whether it could be done.
 * All heads go to one pair of buffers.
 */
export function storeTurned({ gpu, shape: { headDim }, type }: StoredOptions, call: StoreTurnedCall): boolean {
  const { turning, keys, values, owner, words } = call, { untouched: queries, inputs } = turning;
  if (!queries || headDim > MOST_TURNED) return false;
  const { qkv, table, count, turn: { heads, kvHeads, rotated, interleaved } } = inputs;
  const shape = { D: headDim, KIND: kindOf(type), HEADS: heads, KV_HEADS: kvHeads };
  const constants = { ...shape, ROTATED: rotated, INTERLEAVED: Number(interleaved), TURNED: 1 };
  gpu.run(gpu.stage(STORE, { entry: "turned", constants }), {
    params: [count, 0, 0, owner, 0, ...words],
    buffers: [qkv, keys, gpu.faults, qkv, values, table, queries],
    groups: [Math.max(heads, kvHeads), count, 3],
  });
  turning.stored();
  return true;
}
