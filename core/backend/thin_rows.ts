/** Keys of one head of which the first may have lost channels: whole ones behind packed ones, each in the cache's type. */
import type { RowType } from "../cache/entry_type.ts";
import type { PackedPart } from "../cache/packed.ts";
import { ROW_PAGE } from "./interface.ts";
import { StoredRows } from "./stored_rows.ts";

/** `[capacity, width]`, as if all were whole: a channel that is gone reads 0. */
export class ThinRows {
  readonly #width: number;
  readonly #type: RowType;
  #whole: StoredRows;
  /** The first rows, `[rows, channels]`. */
  #thin?: { readonly rows: StoredRows; readonly channels: Int32Array; length: number };

  constructor(width: number, type: RowType) {
    this.#width = width;
    this.#type = type;
    this.#whole = new StoredRows(width, type, "keys");
  }

  /** Of whole and thin rows together. */
  get capacity(): number {
    return this.#whole.capacity + this.#thinned;
  }

  get byteLength(): number {
    return this.#whole.byteLength + (this.#thin?.rows.byteLength ?? 0);
  }

  get #thinned(): number {
    return this.#thin?.length ?? 0;
  }

  /** Room for `capacity` rows; the first `used` stay. */
  resize(capacity: number, used: number): void {
    this.#whole.resize(Math.max(0, capacity - this.#thinned), Math.max(0, used - this.#thinned));
  }

  /** Stores `floats`, whole rows, from row `first` on, which is no thin one. */
  set(first: number, floats: Float32Array): void {
    this.#whole.set(first - this.#thinned, floats);
  }

  /** Packs the first `rows` of `used`; the others stay whole. */
  thin(channels: Int32Array, rows: number, used: number): void {
    const all = this.floats(used), width = this.#width;
    const packed = new Float32Array(rows * channels.length);
    for (let row = 0, to = 0; row < rows; row++) for (const j of channels) packed[to++] = all[row * width + j];
    const thin = new StoredRows(channels.length, this.#type, "keys"), whole = new StoredRows(width, this.#type, "keys");
    thin.resize(pages(rows), 0);
    thin.set(0, packed);
    whole.resize(pages(used - rows), 0);
    whole.set(0, all.slice(rows * width, used * width));
    this.#thin = { rows: thin, channels: channels.slice(), length: rows };
    this.#whole = whole;
  }

  /** As `StoredRows`; keys of a type that is packed never lose channels. */
  pack(used: number, given?: { readonly rows: number; readonly part?: PackedPart }): void {
    this.#whole.pack(used, given);
  }

  loosen(from: number, used: number): void {
    this.#whole.loosen(from, used);
  }

  get packedRows(): number {
    return this.#whole.packedRows;
  }

  get packed(): PackedPart | undefined {
    return this.#whole.packed;
  }

  /** Keeps these rows, ascending. */
  keep(rows: Int32Array): void {
    const thinned = this.#thinned, thin = rows.filter((row) => row < thinned);
    thin.forEach((row, to) => this.#thin!.rows.move(row, to));
    rows.subarray(thin.length).forEach((row, to) => this.#whole.move(row - thinned, to));
    this.#shorten(thin.length);
  }

  /** Drops rows from the end. */
  truncate(length: number): void {
    this.#whole.truncate(Math.max(0, length - this.#thinned));
    if (length < this.#thinned) this.#shorten(length);
  }

  #shorten(length: number): void {
    if (!this.#thin) return;
    this.#thin.length = length;
    if (pages(length) < this.#thin.rows.capacity) this.#thin.rows.resize(pages(length), length);
  }

  /** The first `used` rows of other keys of the same kind, for which there is room. */
  copyFrom(other: ThinRows, used: number): void {
    const { rows, channels, length } = other.#thin ?? {};
    if (rows) {
      const copy = new StoredRows(channels!.length, this.#type, "keys");
      copy.resize(pages(length!), 0);
      copy.copyFrom(rows, length!);
      this.#thin = { rows: copy, channels: channels!, length: length! };
      this.#whole.resize(pages(used - length!), 0);
    }
    this.#whole.copyFrom(other.#whole, used - this.#thinned);
  }

  /** Drops the thin rows, and that there were any. */
  forget(): void {
    this.#thin = undefined;
  }

  /** The first `used` rows as float32; where all are whole ones of `f32` not a copy. */
  floats(used: number): Float32Array {
    if (!this.#thin) return this.#whole.floats(used);
    const { rows, channels, length } = this.#thin, all = new Float32Array(used * this.#width);
    const thin = rows.floats(Math.min(used, length));
    for (let row = 0, from = 0; from < thin.length; row++) {
      for (const j of channels) all[row * this.#width + j] = thin[from++];
    }
    if (used > length) all.set(this.#whole.floats(used - length), length * this.#width);
    return all;
  }
}

function pages(rows: number): number {
  return Math.ceil(rows / ROW_PAGE) * ROW_PAGE;
}
