/**
 * How a layer's rows lie in buffers, each of which a stage can see whole: a block has some heads, or, of a head that is
 * larger than that, a part of its rows. A head's rows lie together in each block.
 */
import { ROW_PAGE } from "../../core/backend/interface.ts";
import type { GpuBuffer } from "../device.ts";
import { tooLarge } from "../errors.ts";

/** Where some rows lie. */
export interface Layout {
  /** First KV head. */
  readonly first: number;
  /**
   * The word where row 0 of each head would lie; below 0 where the block begins with a later row. Stages count words
   * modulo 2^32, so that any row of the block is found from it.
   */
  readonly words: readonly number[];
  /** The first row that it has. */
  readonly from: number;
  /** The row behind the last: that of the next block, else infinite. */
  readonly to: number;
}

/** Some heads of a layer, or a part of one; keys and values lie alike. */
export interface Block extends Layout {
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
}

/** Parts that a head may have: merge.wgsl brings so many together. */
export const MOST_PARTS = 256;

/**
 * Places for so many rows of each head, and their bytes. A head is cut only where it must be: into as many rows as the
 * largest power of two that fits.
 * @throws PalisadeError `gpu.limit` for a page of rows that no stage could see whole, and more than `MOST_PARTS` parts.
 */
export function layOut(
  capacities: readonly number[],
  stride: number,
  maxBinding: number,
): (Layout & { readonly bytes: number })[] {
  const blocks: (Layout & { readonly bytes: number })[] = [];
  for (let first = 0; first < capacities.length;) {
    const words: number[] = [];
    let used = 0, next = first;
    for (; next < capacities.length && 4 * (used + capacities[next] * stride) <= maxBinding; next++) {
      words.push(used);
      used += capacities[next] * stride;
    }
    if (used > 0) blocks.push({ first, words, from: 0, to: Infinity, bytes: 4 * used });
    else if (next === first) blocks.push(...partsOf(next++, capacities[first], stride, maxBinding));
    first = next;
  }
  return blocks;
}

function* partsOf(first: number, capacity: number, stride: number, maxBinding: number) {
  const each = partRows(stride, maxBinding), most = MOST_PARTS * each;
  if (capacity > most) throw tooLarge("A head's keys", 4 * capacity * stride, 4 * most * stride);
  for (let from = 0; from < capacity; from += each) {
    const rows = Math.min(each, capacity - from), to = from + rows < capacity ? from + rows : Infinity;
    yield { first, words: [0 - from * stride], from, to, bytes: 4 * rows * stride };
  }
}

/** Rows of a part of a head. @throws PalisadeError `gpu.limit`. */
export function partRows(stride: number, maxBinding: number): number {
  const page = 4 * ROW_PAGE * stride;
  if (page > maxBinding) throw tooLarge("A page of a head's keys", page, maxBinding);
  let pages = 1;
  while (2 * pages * page <= maxBinding) pages *= 2;
  return pages * ROW_PAGE;
}

/** The blocks of a head, in the order of its rows; none where it has no room. */
export function blocksOf<B extends Layout>(blocks: readonly B[], head: number): B[] {
  return blocks.filter(({ first, words }) => head >= first && head < first + words.length);
}

/** Blocks by the heads that they have: those of a head's parts together. */
export function byHeads(blocks: readonly Block[]): Block[][] {
  return runsOf(blocks, (a, b) => a.first === b.first);
}

/** Rows of a head that go from a block to another. */
export interface Move {
  readonly head: number;
  readonly from: Block;
  readonly to: Block;
  /** The first, as the head counts them afterwards, and how many. */
  readonly first: number;
  readonly count: number;
}

/** All moves of a head. `before(row)`: how many of its rows before `row`, which may be infinite, stay. */
export function movesOf(
  from: readonly Block[],
  to: readonly Block[],
  head: number,
  before: (row: number) => number,
): Move[] {
  return blocksOf(from, head).flatMap((old) => {
    const start = before(old.from), end = before(old.to);
    return blocksOf(to, head).flatMap((block) => {
      const first = Math.max(start, block.from), count = Math.min(end, block.to) - first;
      return count > 0 ? [{ head, from: old, to: block, first, count }] : [];
    });
  });
}

/** Moves that are between the same two blocks. */
export function byBlocks(moves: readonly Move[]): Move[][] {
  return runsOf(moves, (a, b) => a.from === b.from && a.to === b.to);
}

/** The word of a row 0 of a head in one of its blocks. */
export function originOf({ first, words }: Layout, head: number): number {
  return words[head - first];
}

/** Neighbours that are alike. */
function runsOf<T>(all: readonly T[], alike: (a: T, b: T) => boolean): T[][] {
  const runs: T[][] = [];
  for (const each of all) {
    const last = runs.at(-1);
    if (last && alike(last[0], each)) last.push(each);
    else runs.push([each]);
  }
  return runs;
}
