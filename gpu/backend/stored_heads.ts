/**
 * Keys and values of one layer in the device's memory: each KV head's rows lie together, in pages of rows, and as many
 * heads share a buffer as a stage can see at once. What is freed is really freed: rows move to smaller buffers.
 */
import type { RowMeter } from "../../core/backend/row_meter.ts";
import { concatenate } from "../../core/concatenate.ts";
import { ROW_PAGE } from "../../core/backend/interface.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { GpuBuffer, GpuDevice } from "../device.ts";
import { tooLarge } from "../errors.ts";
import { Biases } from "./biases.ts";
import type { Constants } from "./constants.ts";
import { ROWS } from "./shaders.ts";
import { kindOf, spread } from "./stages.ts";

/** Some heads of a layer; keys and values lie alike. */
export interface Block {
  /** First KV head. */
  readonly first: number;
  /** First word of each head's rows. */
  readonly words: readonly number[];
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
}

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
  /** Floats of attention at hand at once; default `SCRATCH` of `attention.ts`. */
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

  /** The block of a head, and the first word of the head's rows; the head must have rows. */
  place(head: number): HeadPlace {
    return placeIn(this.#blocks, head);
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
    this.#move(kept.map(({ length }) => paged(length)), (moves) => this.#gather(moves, kept, list));
    gpu.giveBack(list);
    kept.forEach(({ length }, head) => this.lengths[head] = length);
  }

  /** Moves the rows that stay, `list` one head after the other: keys and values of all heads of two blocks together. */
  #gather(moves: readonly HeadMove[], kept: readonly Int32Array[], list: GpuBuffer): void {
    const { gpu, shape, type } = this.options;
    const stage = gpu.stage(ROWS, { entry: "gather", constants: { D: shape.headDim, KIND: kindOf(type) } });
    const starts = kept.map((_, head) => kept.slice(0, head).reduce((sum, { length }) => sum + length, 0));
    for (const together of byBlocks(moves.filter(({ head }) => kept[head].length > 0))) {
      const [{ from, to }] = together, longest = Math.max(...together.map(({ head }) => kept[head].length));
      gpu.run(stage, {
        params: together.flatMap(({ head, from, to }) => [kept[head].length, from.word, starts[head], to.word]),
        buffers: [
          ...[from.block.keys, list, to.block.keys, undefined, undefined],
          ...[from.block.values, to.block.values],
        ],
        groups: [...spread(longest * this.stride), together.length],
      });
    }
  }

  /** Takes over what other heads of the same shape and type hold; these must be empty. */
  copyFrom(other: StoredHeads): void {
    const blocks = this.#allocate(other.lengths.map(paged));
    this.#replace(blocks, other.lengths.map(paged), () => {
      other.lengths.forEach((length, head) => {
        if (length > 0) this.#copyRows(other.place(head), placeIn(blocks, head), length);
      });
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
    this.#move(capacities, (moves) => {
      for (const { head, from, to } of moves) this.#copyRows(from, to, this.lengths[head]);
    });
  }

  #copyRows(from: HeadPlace, to: HeadPlace, rows: number): void {
    const { gpu } = this.options, bytes = 4 * rows * this.stride;
    for (const part of ["keys", "values"] as const) {
      gpu.copy(from.block[part], 4 * from.word, to.block[part], 4 * to.word, bytes);
    }
  }

  /** Makes a new place for every head, has it filled from the old one where there are both, and frees the old one. */
  #move(capacities: number[], fill: (moves: readonly HeadMove[]) => void): void {
    const blocks = this.#allocate(capacities);
    this.#replace(blocks, capacities, () => {
      const both = capacities.flatMap((rows, head) => rows > 0 && this.#capacities[head] > 0 ? [head] : []);
      fill(both.map((head) => ({ head, from: this.place(head), to: placeIn(blocks, head) })));
    });
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

  /** Buffers for so many rows of each head. @throws PalisadeError `gpu.limit` for a head that no stage could see whole. */
  #allocate(capacities: readonly number[]): Block[] {
    const { maxBinding } = this.options, blocks: Block[] = [];
    for (let first = 0; first < capacities.length;) {
      const words: number[] = [];
      let used = 0, next = first;
      for (; next < capacities.length; next++) {
        const bytes = 4 * (used + capacities[next] * this.stride);
        if (bytes > maxBinding && next > first) break;
        if (bytes > maxBinding) throw tooLarge(`A head's keys`, bytes, maxBinding);
        words.push(used);
        used = bytes / 4;
      }
      if (used > 0) blocks.push(this.#block(first, words, 4 * used));
      first = next;
    }
    return blocks;
  }

  #block(first: number, words: number[], bytes: number): Block {
    const { gpu } = this.options;
    return { first, words, keys: gpu.own(bytes), values: gpu.own(bytes) };
  }

  #destroy(blocks: readonly Block[]): void {
    for (const { keys, values } of blocks) {
      this.options.gpu.destroy(keys);
      this.options.gpu.destroy(values);
    }
  }
}

interface HeadPlace {
  readonly block: Block;
  readonly word: number;
}

/** Where a head's rows are, and where they go. */
interface HeadMove {
  readonly head: number;
  readonly from: HeadPlace;
  readonly to: HeadPlace;
}

/** The block of a head that has room, and the first word of the head's rows. */
function placeIn(blocks: readonly Block[], head: number): HeadPlace {
  const block = blocks.find(({ first, words }) => head >= first && head < first + words.length)!;
  return { block, word: block.words[head - block.first] };
}

/** Moves that are between the same two blocks. */
function byBlocks(moves: readonly HeadMove[]): HeadMove[][] {
  const groups: HeadMove[][] = [];
  for (const move of moves) {
    const last = groups.at(-1);
    if (last && last[0].from.block === move.from.block && last[0].to.block === move.to.block) last.push(move);
    else groups.push([move]);
  }
  return groups;
}
