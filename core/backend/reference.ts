/**
 * The plain TypeScript backend: slow, obvious, the oracle of every kernel. Sums in doubles, one attention row at a
 * time, the same bits in every runtime.
 */
import { RowMeter } from "./row_meter.ts";
import { concatenate } from "../concatenate.ts";
import { softmaxRow } from "../measure/attention.ts";
import { type CacheType, partsOf } from "../cache/entry_type.ts";
import { packedAfter, type PackedHead } from "../cache/packed.ts";
import { ln } from "../measure/exp.ts";
import { observeWindow } from "../measure/observe.ts";
import type { Needs, NormKind, Observation } from "../policy/policy.ts";
import { type KeyRotation, rotateRows } from "../measure/rotation.ts";
import { type SelectionInput, selectTop } from "../select/select.ts";
import { type AttentionShape, firstSeen } from "../shape.ts";
import { valueNorms } from "../measure/value_norms.ts";
import { checkedRows } from "./checked_rows.ts";
import {
  type AttentionOutputs,
  type AttentionWants,
  type Backend,
  type CopiedRows,
  type DecodeOutputs,
  type Foresight,
  type RefittedRows,
  ROW_PAGE,
  type ThinKeys,
  type TrustingRows,
} from "./interface.ts";
import { StoredRows } from "./stored_rows.ts";
import { ThinRows } from "./thin_rows.ts";
import { chosenRows } from "../measure/foresight.ts";
import { HOST_TENSORS } from "./tensor.ts";

/** A backend without kernels. */
export function createReferenceBackend(): Backend<Float32Array> {
  const meter = new RowMeter();
  return {
    name: "ts",
    detail: "plain TypeScript, double sums, one thread",
    memory: () => meter.memory(),
    refits: true,
    reduces: true,
    packs: true,
    tensors: HOST_TENSORS,
    createRows: (shape, reserve, type = "f32") =>
      checkedRows(shape, reserve, type, (checked) => new ReferenceRows(checked, reserve, type, meter)),
    // deno-lint-ignore require-await -- a bad input must reject, not throw
    select: async (input: SelectionInput) => selectTop(input),
    [Symbol.dispose]: () => {},
  };
}

/** Keys and values of one KV head, `[capacity, headDim]` each. */
class HeadRows {
  readonly #meter: RowMeter;
  readonly #keys: ThinRows;
  readonly #values: StoredRows;
  /** What single queries read. */
  foresight?: Foresight;
  /** Of the first rows; those behind have none. */
  bias = new Float32Array(0);
  length = 0;

  constructor(headDim: number, reserve: number, type: CacheType, meter: RowMeter) {
    this.#meter = meter;
    const types = partsOf(type);
    this.#keys = new ThinRows(headDim, types.keys);
    this.#values = new StoredRows(headDim, types.values, "values");
    this.#resize(reserve);
  }

  get allocatedBytes(): number {
    const foreseen = 4 * this.#keys.capacity * (this.foresight?.channels.length ?? 0);
    return this.#keys.byteLength + this.#values.byteLength + this.bias.byteLength + foreseen;
  }

  /** As stored, `[length, headDim]`; may be the store itself. */
  get keys(): Float32Array {
    return this.#keys.floats(this.length);
  }

  get values(): Float32Array {
    return this.#values.floats(this.length);
  }

  /** Appends one row; `grow` has made room. */
  push(key: Float32Array, value: Float32Array): void {
    this.#keys.set(this.length, key);
    this.#values.set(this.length, value);
    this.length++;
  }

  setKeys(keys: Float32Array): void {
    this.#change(() => this.#loosen(0));
    this.#keys.set(0, keys);
  }

  thin({ channels, recent }: ThinKeys): void {
    this.#metered(() => this.#keys.thin(channels, this.length - recent, this.length));
  }

  foresee(foresight: Foresight): void {
    this.#metered(() => this.foresight = foresight);
  }

  #metered(change: () => void): void {
    const before = this.allocatedBytes;
    change();
    this.#meter.change(this.allocatedBytes);
    this.#meter.change(-before);
  }

  refit({ values, bias }: RefittedRows): void {
    this.#values.set(0, values);
    this.#setBias(bias.slice());
  }

  #setBias(bias: Float32Array<ArrayBuffer>): void {
    const before = this.bias.byteLength;
    this.bias = bias;
    this.#meter.change(bias.byteLength);
    this.#meter.change(-before);
  }

  pack(given?: PackedHead): void {
    this.#change(() => {
      for (const [part, rows] of [["keys", this.#keys], ["values", this.#values]] as const) {
        rows.pack(this.length, given && { rows: given.rows, part: given[part] });
      }
    });
  }

  get packed(): PackedHead | undefined {
    const rows = Math.max(this.#keys.packedRows, this.#values.packedRows);
    if (rows === 0) return undefined;
    const { packed: keys } = this.#keys, { packed: values } = this.#values;
    return { rows, ...(keys && { keys }), ...(values && { values }) };
  }

  #loosen(from: number): void {
    for (const part of [this.#keys, this.#values]) part.loosen(from, this.length);
  }

  /** Tells the meter what `work` makes of the bytes. */
  #change(work: () => void): void {
    const before = this.allocatedBytes;
    work();
    this.#meter.change(this.allocatedBytes);
    this.#meter.change(-before);
  }

  get #capacity(): number {
    return Math.min(this.#keys.capacity, this.#values.capacity);
  }

  grow(rows: number): void {
    if (this.length + rows > Math.min(this.#keys.capacity, this.#values.capacity)) this.#resize(this.length + rows);
  }

  /** Keeps these rows, ascending. */
  keep(rows: Int32Array): void {
    const packed = Math.max(this.#keys.packedRows, this.#values.packedRows), stays = packedAfter(rows, packed);
    if (stays < packed && stays < rows.length) this.#change(() => this.#loosen(stays));
    this.#metered(() => this.#keys.keep(rows));
    rows.forEach((row, to) => this.#values.move(row, to));
    if (this.bias.length > 0) {
      this.#setBias(Float32Array.from(rows.filter((row) => row < this.bias.length), (row) => this.bias[row]));
    }
    this.truncate(rows.length);
  }

  /** Drops rows from the end; gives spare rows back when there are more than a page. */
  truncate(length: number): void {
    this.#metered(() => this.#keys.truncate(length));
    this.length = length;
    if (this.bias.length > length) this.#setBias(this.bias.slice(0, length));
    this.#change(() => this.#values.truncate(length));
    if (Math.max(this.#keys.capacity, this.#values.capacity) - length > ROW_PAGE) this.#resize(length);
  }

  copyFrom(other: HeadRows): void {
    this.#resize(other.length);
    this.#metered(() => {
      this.#keys.copyFrom(other.#keys, other.length);
      this.#values.copyFrom(other.#values, other.length);
      this.foresight = other.foresight;
    });
    this.#setBias(other.bias.slice());
    this.length = other.length;
  }

  free(): void {
    this.length = 0;
    this.#setBias(new Float32Array(0));
    this.#metered(() => this.#keys.forget());
    this.#resize(0);
  }

  /** Moves the rows to a block of the smallest number of whole pages that holds `rows`. */
  #resize(rows: number): void {
    const capacity = Math.ceil(rows / ROW_PAGE) * ROW_PAGE, before = this.allocatedBytes;
    if (capacity === this.#values.capacity && capacity === this.#keys.capacity) return;
    this.#keys.resize(capacity, this.length);
    this.#values.resize(capacity, this.length);
    this.#meter.change(this.allocatedBytes);
    this.#meter.change(-before);
  }
}

class ReferenceRows implements TrustingRows<Float32Array> {
  readonly #shape: AttentionShape;
  readonly #type: CacheType;
  readonly #heads: HeadRows[];
  readonly #meter: RowMeter;

  constructor(shape: AttentionShape, reserve: number, type: CacheType, meter: RowMeter) {
    this.#shape = shape;
    this.#type = type;
    this.#meter = meter;
    this.#heads = Array.from({ length: shape.kvHeads }, () => new HeadRows(shape.headDim, reserve, type, meter));
  }

  get allocatedBytes(): number {
    return this.#heads.reduce((sum, head) => sum + head.allocatedBytes, 0);
  }

  append(keys: Float32Array, values: Float32Array, count: number): void {
    const { kvHeads, headDim } = this.#shape;
    this.#heads.forEach((head, h) => {
      head.grow(count);
      for (let t = 0; t < count; t++) {
        const from = (t * kvHeads + h) * headDim, end = from + headDim;
        head.push(keys.subarray(from, end), values.subarray(from, end));
      }
    });
  }

  // deno-lint-ignore require-await -- a device would answer later
  async prefillAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<Float32Array>> {
    return this.#attend(queries, count, want, true);
  }

  // deno-lint-ignore require-await -- a device would answer later
  async unmaskedAttention(
    queries: Float32Array,
    count: number,
    want: AttentionWants = {},
  ): Promise<AttentionOutputs<Float32Array>> {
    return this.#attend(queries, count, want, false);
  }

  #attend(queries: Float32Array, count: number, want: AttentionWants, masked: boolean): AttentionOutputs<Float32Array> {
    const { heads } = this.#shape, rows = this.#heads[0].length;
    const sums = want.columnSum && new Float64Array(heads * rows);
    const columnMax = want.columnMax ? new Float32Array(heads * rows) : undefined;
    const logSumExp = want.logSumExp ? new Float32Array(count * heads) : undefined;
    const output = this.#attention(queries, count, masked, ({ head, t, row, visible, logSum }) => {
      const weight = want.rowWeights?.[t] ?? 1;
      if (logSumExp) logSumExp[t * heads + head] = logSum;
      if (sums) { for (let i = 0; i < visible; i++) sums[head * rows + i] += weight * row[i]; }
      if (columnMax) {
        for (let i = 0; i < visible; i++) {
          const value = weight * row[i];
          if (!(value <= columnMax[head * rows + i])) columnMax[head * rows + i] = value;
        }
      }
    });
    return { output, columnSum: sums ? Float32Array.from(sums) : undefined, columnMax, logSumExp };
  }

  // deno-lint-ignore require-await -- a device would answer later
  async decodeAttention(
    queries: Float32Array,
    count: number,
    want: { probabilities?: boolean } = {},
  ): Promise<DecodeOutputs<Float32Array>> {
    const probabilities: Float32Array[] = [];
    if (count === 1 && !want.probabilities && this.#heads.some(({ foresight }) => foresight)) {
      return { output: this.#attendChosen(queries) };
    }
    const output = this.#attention(queries, count, true, ({ head, t, row, visible }) => {
      if (want.probabilities && t === count - 1) probabilities[head] = Float32Array.from(row.subarray(0, visible));
    });
    return want.probabilities ? { output, probabilities } : { output };
  }

  // deno-lint-ignore require-await -- a device would answer later
  async observe(queries: Float32Array, window: number, needs: Needs): Promise<Partial<Observation>> {
    const keys = this.#heads.map((head) => head.keys);
    const measured = needs.window?.length
      ? observeWindow({
        shape: this.#shape,
        queries,
        window,
        keys,
        length: this.#heads[0].length,
        bias: this.#heads.map(({ bias }) => bias),
      }, needs)
      : {};
    if (!needs.rows) return measured;
    return {
      ...measured,
      keys: concatenate(keys, Float32Array),
      values: concatenate(this.#heads.map((head) => head.values), Float32Array),
    };
  }

  // deno-lint-ignore require-await -- a device would answer later
  async valueNorms(wo: Float32Array, _width: number, kind: NormKind = "l1"): Promise<Float32Array> {
    return concatenate(valueNorms(this.#heads.map((head) => head.values), wo, this.#shape, kind), Float32Array);
  }

  refit(kvHead: number, rows: RefittedRows): void {
    this.#heads[kvHead].refit(rows);
  }

  thin(kvHead: number, keys: ThinKeys): void {
    this.#heads[kvHead].thin(keys);
  }

  foresee(kvHead: number, foresight: Foresight): void {
    this.#heads[kvHead].foresee(foresight);
  }

  pack(given?: readonly (PackedHead | undefined)[]): void {
    this.#heads.forEach((head, h) => {
      if (!given) head.pack();
      else if (given[h]) head.pack(given[h]);
    });
  }

  compact(kept: readonly Int32Array[]): void {
    this.#heads.forEach((head, h) => head.keep(kept[h]));
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#heads.forEach((head, h) => head.truncate(lengths[h]));
  }

  // deno-lint-ignore require-await -- a device would answer later
  async rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    this.#heads.forEach((head, h) => {
      const { keys } = head;
      rotateRows(keys, this.#shape.headDim, moves[h], rotation);
      head.setKeys(keys);
    });
  }

  // deno-lint-ignore require-await -- as above
  async clone(): Promise<TrustingRows<Float32Array>> {
    const copy = new ReferenceRows(this.#shape, 0, this.#type, this.#meter);
    copy.#heads.forEach((head, h) => head.copyFrom(this.#heads[h]));
    return copy;
  }

  // deno-lint-ignore require-await -- as above
  async copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    const { keys, values, bias, length } = this.#heads[kvHead];
    const biased = bias.length > 0 && { bias: padded(bias, wanted ?? length) };
    const { packed } = this.#heads[kvHead];
    if (!wanted) return { keys: keys.slice(), values: values.slice(), ...biased, ...(packed && { packed }) };
    const { headDim } = this.#shape;
    return { keys: picked(keys, wanted, headDim), values: picked(values, wanted, headDim), ...biased };
  }

  free(): void {
    for (const head of this.#heads) head.free();
  }

  /** One query of each head over the rows that its KV head's channels choose; over all where they choose nothing. */
  #attendChosen(queries: Float32Array): Float32Array {
    const { heads, kvHeads, headDim } = this.#shape, group = heads / kvHeads;
    const output = new Float32Array(heads * headDim);
    this.#heads.forEach(({ keys, values, length, bias, foresight }, kv) => {
      const from = kv * group * headDim, asked = queries.subarray(from, from + group * headDim);
      const wanted = foresight ? chosenRows({ queries: asked, keys, length, headDim }, foresight) : upTo(length);
      const some = { keys: picked(keys, wanted, headDim), values: picked(values, wanted, headDim) };
      const row = new Float64Array(wanted.length), added = padded(bias, wanted);
      for (let at = 0; at < asked.length; at += headDim) {
        const nothing = this.#shape.nullLogits?.[kv * group + at / headDim];
        softmaxRow({ vector: asked, offset: at }, some.keys, headDim, wanted.length, row, 0, added, nothing);
        weightedSum(row, some.values, wanted.length, output.subarray(from + at, from + at + headDim));
      }
    });
    return output;
  }

  /** Unmasked, every query sees every row. Else query `t` of `count` sees the rows of its head up to length − count + t that it reaches. Calls `visit` with each softmax row. */
  #attention(queries: Float32Array, count: number, masked: boolean, visit: (seen: SeenRow) => void): Float32Array {
    const { heads, kvHeads, headDim } = this.#shape;
    const output = new Float32Array(count * heads * headDim);
    const row = new Float64Array(Math.max(...this.#heads.map(({ length }) => length)));
    const all = this.#heads.map(({ keys, values, length, bias }) => ({ keys, values, length, bias }));
    for (let head = 0; head < heads; head++) {
      const { keys, values, length, bias } = all[Math.floor(head / (heads / kvHeads))];
      for (let t = 0; t < count; t++) {
        const at = (t * heads + head) * headDim, visible = masked ? length - count + t + 1 : length;
        const first = masked ? firstSeen(this.#shape, visible) : 0;
        const query = { vector: queries, offset: at }, nothing = this.#shape.nullLogits?.[head];
        const { maximum, sum } = softmaxRow(query, keys, headDim, visible, row, first, bias, nothing);
        weightedSum(row, values, visible, output.subarray(at, at + headDim));
        visit({ head, t, row, visible, logSum: maximum + ln(sum) });
      }
    }
    return output;
  }
}

interface SeenRow {
  readonly head: number;
  readonly t: number;
  /** Softmax over the first `visible` rows; reused, copy what must stay. */
  readonly row: Float64Array;
  readonly visible: number;
  readonly logSum: number;
}

/** Σ row[i] · values[i], `values`: `[rows, headDim]`, into `to`, `[headDim]`. */
function weightedSum(row: Float64Array, values: Float32Array, visible: number, to: Float32Array): void {
  for (let j = 0; j < to.length; j++) {
    let sum = 0;
    for (let i = 0; i < visible; i++) sum += row[i] * values[i * to.length + j];
    to[j] = sum;
  }
}

function upTo(length: number): Int32Array {
  return Int32Array.from({ length }, (_, i) => i);
}

/** The rows `wanted` of `[rows, headDim]`. */
function picked(rows: Float32Array, wanted: Int32Array, headDim: number): Float32Array {
  const some = new Float32Array(wanted.length * headDim);
  wanted.forEach((row, i) => some.set(rows.subarray(row * headDim, (row + 1) * headDim), i * headDim));
  return some;
}

/** The bias of rows, or of the first so many, 0 where there is none. */
function padded(bias: Float32Array, rows: Int32Array | number): Float32Array {
  const numbers = typeof rows === "number" ? upTo(rows) : rows;
  return Float32Array.from(numbers, (row) => bias[row] ?? 0);
}
