/** Entries of one KV head that are still in the race while layers arrive. */
import { segmentsOf } from "./allocate.ts";
import type { Budget, LayerScores } from "../policy/policy.ts";
import type { Segment } from "./select.ts";

/** What the selector needs of them, and their first row numbers. */
export interface Candidates extends Segment {
  /** Positions in the context, ascending. */
  readonly positions: Int32Array;
}

/** A layer that loses entries. */
export interface LayerChange {
  readonly layer: number;
  /** The rows of each KV head that stay, ascending: indices into the rows the layer held before this change. */
  readonly kept: Int32Array[];
}

/** All entries of a layer, one element per KV head; views of `scores`. */
export function allEntries(scores: LayerScores, { model, length }: Budget): Candidates[] {
  const positions = Int32Array.from({ length }, (_, i) => i);
  return segmentsOf(scores, model.kvHeads, length).map((head) => ({ ...head, positions }));
}

/** The candidates in the given rows, as copies. */
export function pick({ scores, second, protectedEntries, positions }: Candidates, rows: Int32Array): Candidates {
  const count = rows.length;
  return {
    scores: gather(scores, rows, new Float32Array(count)),
    second: second && gather(second, rows, new Float32Array(count)),
    protectedEntries: protectedEntries && gather(protectedEntries, rows, new Uint8Array(count)),
    positions: gather(positions, rows, new Int32Array(count)),
  };
}

/** A plain loop: called for every candidate and layer, where `TypedArray.from` with a function takes ten times as long. */
function gather<T extends Float32Array | Uint8Array | Int32Array>(from: T, rows: Int32Array, to: T): T {
  for (let i = 0; i < rows.length; i++) to[i] = from[rows[i]];
  return to;
}

/** Bytes of scores, keys and positions. */
export function bytesOf(heads: readonly Candidates[]): number {
  return heads.reduce((sum, { scores, second, protectedEntries, positions }) => {
    const keys = (second?.byteLength ?? 0) + (protectedEntries?.byteLength ?? 0);
    return sum + scores.byteLength + keys + positions.byteLength;
  }, 0);
}
