/**
 * Keys and values of one layer in the device's memory: each KV head's rows lie together, in pages of rows, and as many
 * heads share a buffer as a stage can see at once; a larger head has several (`blocks.ts`). What is freed is really freed:
 * rows move to smaller buffers.
 */
import type { RowMeter } from "../../core/backend/row_meter.ts";
import { concatenate } from "../../core/concatenate.ts";
import { ROW_PAGE } from "../../core/backend/interface.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { GpuBuffer, GpuDevice } from "../device.ts";
import { Biases } from "./biases.ts";
import { type Block, blocksOf, byBlocks, layOut, type Move, movesOf, originOf, partRows } from "./blocks.ts";
import type { Constants } from "./constants.ts";
import { ROWS } from "./shaders.ts";
import { kindOf, spread } from "./stages.ts";

/** Words of a stored row. */
export function rowWords(headDim: number, type: CacheType): number {
  return [headDim, Math.ceil(headDim / 2), Math.ceil(headDim / 4) + 1][kindOf(type)];
}

/** Whole pages for so many rows. */
function paged(rows: number): number {
  return Math.ceil(rows / ROW_PAGE) * ROW_PAGE;
}

export interface StoredOptions {
  readonly gpu: GpuDevice;
  readonly meter: RowMeter;
  readonly shape: AttentionShape;
  readonly type: CacheType;
  /** Bytes that a stage can see of one buffer. */
  readonly maxBinding: number;
  /** What stays on the device, by its array. */
  readonly constants: Constants;
  /** Floats of attention at hand at once; default `SCRATCH` of `attention.ts`, or what a stage can see. */
  readonly scratch?: number;
  /** Attention by the short stage alone (`GpuBackendOptions`). */
  readonly short: boolean;
}

export class StoredHeads {
  readonly options: StoredOptions;
  /** Words of a row. */
  readonly stride: number;
  /** Rows of each KV head. */
  readonly lengths: number[];
  readonly biases: Biases;
  #capacities: number[];
  #blocks: Block[] = [];

  /** Empty, with room for `reserve` rows per head. @throws PalisadeError `gpu.limit`. */
  constructor(options: StoredOptions, reserve: number) {
    const { kvHeads, headDim } = options.shape;
    this.options = options;
    this.stride = rowWords(headDim, options.type);
    this.lengths = Array(kvHeads).fill(0);
    this.biases = new Biases(options.gpu, kvHeads);
    this.#capacities = Array(kvHeads).fill(paged(reserve));
    this.#blocks = this.#allocate(this.#capacities);
    options.meter.change(this.allocatedBytes);
  }

  /** Heads that have room for a row at least. */
  get blocks(): readonly Block[] {
    return this.#blocks;
  }

  get allocatedBytes(): number {
    return this.#bytes(this.#capacities) + this.biases.byteLength;
  }

  get longest(): number {
    return Math.max(...this.lengths);
  }

  /** Rows of the parts of a head, but for its last one, where some head has several. */
  get part(): number | undefined {
    return this.#blocks.some(({ from }) => from > 0) ? partRows(this.stride, this.options.maxBinding) : undefined;
  }

  /** The blocks of a head, in the order of its rows. */
  blocksOf(head: number): Block[] {
    return blocksOf(this.#blocks, head);
  }

  /** A head's rows in pieces of at most `most` that lie in one block each; by default a stage sees their floats whole. */
  *pieces(head: number, most: number = this.mostFloats): Generator<Piece> {
    for (const block of this.blocksOf(head)) {
      const end = Math.min(block.to, this.lengths[head]);
      for (let first = block.from; first < end; first += most) {
        yield { block, origin: originOf(block, head), first, count: Math.min(most, end - first) };
      }
    }
  }

  /** Rows whose floats a stage can see at once. */
  get mostFloats(): number {
    return Math.max(1, Math.floor(this.options.maxBinding / (4 * this.options.shape.headDim)));
  }

  /**
   * Makes room for `rows` more in every head. Where some head must move all do, and get what makes the next move come a
   * page later for all of them.
   */
  grow(rows: number): void {
    const needed = this.lengths.map((length) => length + rows);
    if (needed.every((length, head) => length <= this.#capacities[head])) return;
    const room = (length: number, head: number) => this.lengths[head] === 0 ? paged(length) : length + ROW_PAGE - 1;
    this.#resize(needed.map((length, head) => Math.max(room(length, head), this.#spared(head, length))));
  }

  /** Drops rows from the end; gives spare rows back when there are more than a page. */
  truncate(lengths: ArrayLike<number>): void {
    this.#withBiases(() => this.biases.truncate(lengths));
    for (let head = 0; head < this.lengths.length; head++) this.lengths[head] = lengths[head];
    const capacities = this.lengths.map((length, head) => this.#spared(head, length));
    if (capacities.some((rows, head) => rows !== this.#capacities[head])) this.#resize(capacities);
  }

  /** Keeps these rows of each head, ascending. */
  keep(kept: readonly Int32Array[]): void {
    if (kept.every((rows, head) => rows.length === this.lengths[head])) return this.truncate(this.lengths);
    this.#withBiases(() => this.biases.keep(kept));
    const { gpu } = this.options;
    const total = kept.reduce((sum, { length }) => sum + length, 0);
    const list = gpu.borrowIdle(4 * total);
    gpu.write(list, 0, concatenate(kept, Int32Array));
    const before = (head: number, row: number) => countBelow(kept[head], row);
    this.#move(kept.map(({ length }) => paged(length)), before, (moves) => this.#gather(moves, kept, list));
    gpu.giveBack(list);
    kept.forEach(({ length }, head) => this.lengths[head] = length);
  }

  /** Moves the rows that stay, `list` one head after the other: keys and values of all heads of two blocks together. */
  #gather(moves: readonly Move[], kept: readonly Int32Array[], list: GpuBuffer): void {
    const { gpu, shape, type } = this.options;
    const stage = gpu.stage(ROWS, { entry: "gather", constants: { D: shape.headDim, KIND: kindOf(type) } });
    const starts = kept.map((_, head) => kept.slice(0, head).reduce((sum, { length }) => sum + length, 0));
    for (const together of byBlocks(moves)) {
      const [{ from, to }] = together, longest = Math.max(...together.map(({ count }) => count));
      gpu.run(stage, {
        params: together.flatMap(({ head, first, count }) => [
          ...[count, originOf(from, head), starts[head] + first],
          originOf(to, head) + first * this.stride,
        ]),
        buffers: [...[from.keys, list, to.keys, undefined, undefined], ...[from.values, to.values]],
        groups: [...spread(longest * this.stride), together.length],
      });
    }
  }

  /** Takes over what other heads of the same shape and type hold; these must be empty. */
  copyFrom(other: StoredHeads): void {
    const blocks = this.#allocate(other.lengths.map(paged));
    this.#replace(blocks, other.lengths.map(paged), () => {
      const before = (head: number, row: number) => Math.min(row, other.lengths[head]);
      this.#copyRows(this.#moves(other.#blocks, blocks, before));
    });
    other.lengths.forEach((length, head) => this.lengths[head] = length);
    this.#withBiases(() => this.biases.copyFrom(other.biases));
  }

  /** Gives the rows of a head biases; their values are the caller's to store. */
  setBias(head: number, bias: Float32Array): void {
    this.#withBiases(() => this.biases.set(head, bias));
  }

  free(): void {
    this.options.meter.change(-this.allocatedBytes);
    this.biases.free();
    this.#destroy(this.#blocks);
    this.#blocks = [];
    this.#capacities.fill(0);
    this.lengths.fill(0);
  }

  #withBiases(change: () => void): void {
    const before = this.biases.byteLength;
    change();
    this.options.meter.change(this.biases.byteLength - before);
  }

  /** Rows to have room for: what there is, or whole pages where more than a page would be spare. */
  #spared(head: number, length: number): number {
    return this.#capacities[head] - length > ROW_PAGE ? paged(length) : this.#capacities[head];
  }

  #resize(capacities: number[]): void {
    const before = (head: number, row: number) => Math.min(row, this.lengths[head]);
    this.#move(capacities, before, (moves) => this.#copyRows(moves));
  }

  #copyRows(moves: readonly Move[]): void {
    const { gpu } = this.options, { stride } = this;
    for (const { head, from, to, first, count } of moves) {
      const [start, at] = [from, to].map((block) => 4 * (originOf(block, head) + first * stride));
      for (const part of ["keys", "values"] as const) gpu.copy(from[part], start, to[part], at, 4 * count * stride);
    }
  }

  /** Makes a new place for every head, has it filled from the old one where there are both, and frees the old one. */
  #move(capacities: number[], before: RowsBefore, fill: (moves: readonly Move[]) => void): void {
    const blocks = this.#allocate(capacities);
    this.#replace(blocks, capacities, () => fill(this.#moves(this.#blocks, blocks, before)));
  }

  #moves(from: readonly Block[], to: readonly Block[], before: RowsBefore): Move[] {
    return this.lengths.flatMap((_, head) => movesOf(from, to, head, (row) => before(head, row)));
  }

  /** Takes new blocks once they are filled. */
  #replace(blocks: Block[], capacities: number[], fill: () => void): void {
    const { meter } = this.options;
    meter.change(this.#bytes(capacities));
    fill();
    meter.change(-this.#bytes(this.#capacities));
    this.#destroy(this.#blocks);
    this.#blocks = blocks;
    this.#capacities = capacities;
  }

  #bytes(capacities: readonly number[]): number {
    return 2 * 4 * this.stride * capacities.reduce((sum, rows) => sum + rows, 0);
  }

  /** Buffers for so many rows of each head. @throws PalisadeError `gpu.limit`, as `layOut`. */
  #allocate(capacities: readonly number[]): Block[] {
    const { gpu, maxBinding } = this.options;
    return layOut(capacities, this.stride, maxBinding)
      .map(({ bytes, ...layout }) => ({ ...layout, keys: gpu.own(bytes), values: gpu.own(bytes) }));
  }

  #destroy(blocks: readonly Block[]): void {
    for (const { keys, values } of blocks) {
      this.options.gpu.destroy(keys);
      this.options.gpu.destroy(values);
    }
  }
}

/** Rows of a head that lie in one block. */
export interface Piece {
  readonly block: Block;
  /** Where the head's row 0 would lie in it: see {@link Block}. */
  readonly origin: number;
  readonly first: number;
  readonly count: number;
}

/** How many of a head's rows before `row`, which may be infinite, stay. */
type RowsBefore = (head: number, row: number) => number;

/** How many of some ascending numbers are below `limit`. */
function countBelow(ascending: Int32Array, limit: number): number {
  let low = 0, high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}
