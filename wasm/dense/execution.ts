/** One run of a list of operations by one thread: where its values are, and the kernels that make them. */
import { concatenate } from "../../core/concatenate.ts";
import {
  type Activation,
  type Add,
  type Choose,
  chosenOf,
  type Couple,
  type Gate,
  type GateBy,
  type HeadNorm,
  type Norm,
  type Operation,
  type Scale,
} from "../../core/dense/operations.ts";
import type { Buffers, Kernels } from "../module.ts";
import type { Workspace } from "../threads/barrier.ts";
import { multiply, type Stored, type StoredMatrix } from "./products.ts";
import type { Phase, Schedule } from "./schedule.ts";

/** A thread's rows of a matrix; `column`: where their products stand in the whole result. */
export type HeldMatrix = StoredMatrix & { readonly column: number };
/** Matrices over one input, with a thread's columns of their products. */
export interface HeldMatrices {
  readonly matrices: readonly HeldMatrix[];
  readonly ranges: readonly Range[];
  readonly total: number;
}
export type HeldOperation = Operation<Stored, HeldMatrices>;
type HeldMultiply = Extract<HeldOperation, { op: "multiply" }>;
type HeldExpand = Extract<HeldOperation, { op: "expand" }>;
type HeldCollect = Extract<HeldOperation, { op: "collect" }>;

/** A token that goes to an expert, as the `slot`-th of its own. */
interface Turn {
  readonly token: number;
  readonly slot: number;
  readonly share: number;
}

/** Columns `[column, column + columns)`. */
interface Range {
  readonly column: number;
  readonly columns: number;
}

/** This thread's columns of a value, `[count, total]`, its ranges side by side. */
interface Own {
  readonly buffer: number;
  readonly ranges: readonly Range[];
  readonly total: number;
}

/** Whole rows `[count, width]` in a buffer, or in the workspace from `at` on, or else this thread's columns alone. */
interface Value {
  readonly width: number;
  readonly at?: number;
  readonly buffer?: number;
  readonly own?: Own;
}

interface How {
  readonly normEpsilon: number;
  readonly exact: boolean;
  readonly alone: boolean;
  readonly first: boolean;
}

/** The numbers that `dense_gate` knows activations by. */
const ACTIVATIONS: Readonly<Record<Activation, number>> = { silu: 0, gelu: 1, limited: 2 };

export class Execution {
  readonly #kernels: Kernels;
  readonly #buffers: Buffers;
  readonly #workspace: Workspace;
  readonly #how: How;
  readonly #schedule: Schedule<HeldOperation>;
  readonly #count: number;
  readonly #values = new Map<string, Value>();

  /** Over `count` tokens, whose inputs are in the workspace. The caller gives the buffers back. */
  constructor(
    kernels: Kernels,
    buffers: Buffers,
    workspace: Workspace,
    how: How,
    schedule: Schedule<HeldOperation>,
    count: number,
  ) {
    this.#kernels = kernels;
    this.#buffers = buffers;
    this.#workspace = workspace;
    this.#how = how;
    this.#schedule = schedule;
    this.#count = count;
    for (const { name, at, width } of schedule.given) this.#values.set(name, { width, at });
  }

  /** All operations up to the next meeting of the threads. */
  phase({ steps, publishes }: Phase<HeldOperation>): void {
    for (let i = 0; i < steps.length; i++) {
      const { index, operation } = steps[i], next = steps[i + 1]?.operation;
      // A product and the sum that alone wants it are one step: the kernel adds as it multiplies.
      if (operation.op === "multiply" && next?.op === "add" && this.#isAddedTo(operation, next, index + 1)) {
        this.#multiply(operation, { add: next, index: index + 1 });
        i++;
      } else this.#step(operation);
    }
    this.#publish(publishes);
  }

  #step(operation: HeldOperation): void {
    switch (operation.op) {
      case "norm":
        return this.#norm(operation);
      case "headNorm":
        return this.#headNorm(operation);
      case "unitNorm":
        throw new TypeError("Norms without gains are held with gains of 1");
      case "multiply":
        return this.#multiply(operation);
      case "gate":
        return this.#gate(operation);
      case "gateBy":
        return this.#gateBy(operation);
      case "add":
        return this.#add(operation);
      case "scale":
        return this.#map(operation, scaling(operation));
      case "couple":
        return this.#couple(operation);
      case "choose":
        return this.#choose(operation);
      case "expand":
        return this.#expand(operation);
      case "collect":
        return this.#collect(operation);
      case "cap": {
        const { cap } = operation;
        return this.#map(operation, (x) => cap * Math.tanh(x / cap));
      }
      default:
        throw new TypeError(`Unknown operation ${operation satisfies never}`);
    }
  }

  /** Whether a product is wanted for this sum alone, so that it can be added as it is made. */
  #isAddedTo({ to }: HeldMultiply, { from: [a, b] }: Add, index: number): boolean {
    return a !== b && (a === to || b === to) && this.#schedule.lastRead.get(to) === index;
  }

  #norm({ from, to, gains }: Norm<Stored>): void {
    const x = this.#rows(from), { width } = this.#value(from), out = this.#room(width);
    const done = this.#kernels.call.dense_norm(x, gains.handle, width, this.#count, this.#how.normEpsilon, out);
    this.#kernels.check(done, "norm");
    this.#setRows(to, width, out);
  }

  #headNorm({ from, to, gains, first, heads, width }: HeadNorm<Stored>): void {
    const x = this.#rows(from), { width: all } = this.#value(from), out = this.#room(all);
    const { call } = this.#kernels, { normEpsilon } = this.#how;
    const done = call.dense_head_norm(x, gains.handle, all, first, heads, width, this.#count, normEpsilon, out);
    this.#kernels.check(done, "norm heads");
    this.#setRows(to, all, out);
  }

  #multiply({ from, to, weights, rows }: HeldMultiply, sum?: { readonly add: Add; readonly index: number }): void {
    const { matrices, ranges, total } = weights, name = sum?.add.to ?? to;
    // This thread holds none of the rows: the value exists, with no columns here.
    if (total === 0) return this.#setOwn(name, rows, { buffer: -1, ranges, total });
    const inputs = this.#rows(from);
    const buffer = sum ? this.#base(sum.add, sum.index, to, ranges, total) : this.#room(total);
    // Every matrix writes its own columns of the buffer's rows.
    let offset = 0;
    for (const matrix of matrices) {
      const target = { buffer, stride: total, offset, add: sum !== undefined };
      if (matrix.outputs > 0) multiply(this.#kernels, matrix, inputs, this.#count, target, this.#how.exact);
      offset += matrix.outputs;
    }
    this.#setOwn(name, rows, { buffer, ranges, total });
  }

  /** A buffer with these columns of what `product` is added to: its own where nobody reads it again. */
  #base({ from }: Add, index: number, product: string, ranges: readonly Range[], total: number): number {
    const name = from[0] === product ? from[1] : from[0], { own } = this.#value(name);
    const last = this.#schedule.lastRead.get(name) === index;
    if (own && last && sameRanges(own.ranges, ranges)) return own.buffer;
    const buffer = this.#room(total), base = this.#floats(buffer, total);
    if (isWhole(this.#value(name))) gather(this.#wholeFloats(name), this.#value(name).width, ranges, base);
    else base.set(this.#columns(name, ranges, total));
    return buffer;
  }

  #gate({ from, to, activation }: Gate): void {
    const value = this.#value(from), width = value.width / 2, own = value.own ?? this.#asOwn(from);
    const mine = own.total / 2, { ranges: both } = own, half = both.length / 2;
    // Gates and ups may lie in one run of columns, or in as many each.
    const ranges = both.length === 1 ? [{ column: both[0].column, columns: mine }] : both.slice(0, half);
    const result = { ranges, total: mine };
    if (mine === 0) return this.#setOwn(to, width, { ...result, buffer: -1 });
    // This thread has the same columns of gate and up, gates first; half as many are left.
    const { call } = this.#kernels, buffer = this.#room(mine);
    this.#kernels.check(call.dense_gate(own.buffer, ACTIVATIONS[activation], mine, this.#count, buffer), "gate");
    if (isWhole(value)) this.#setRows(to, width, buffer);
    else this.#setOwn(to, width, { ...result, buffer });
  }

  /** The same where gates and what they let through are two values. */
  #gateBy({ from, by, to, activation }: GateBy): void {
    const value = this.#value(from), own = value.own ?? this.#asOwn(from), { ranges, total } = own;
    if (total === 0) return this.#setOwn(to, value.width, { ranges, total, buffer: -1 });
    const pairs = this.#room(2 * total), buffer = this.#room(total), { call } = this.#kernels;
    const both = this.#floats(pairs, 2 * total);
    const gates = this.#columns(from, ranges, total), others = this.#columns(by, ranges, total);
    for (let t = 0; t < this.#count; t++) {
      both.set(gates.subarray(t * total, (t + 1) * total), 2 * t * total);
      both.set(others.subarray(t * total, (t + 1) * total), (2 * t + 1) * total);
    }
    this.#kernels.check(call.dense_gate(pairs, ACTIVATIONS[activation], total, this.#count, buffer), "gate");
    if (isWhole(value)) this.#setRows(to, value.width, buffer);
    else this.#setOwn(to, value.width, { ranges, total, buffer });
  }

  #couple({ from, to, first, width: coupled }: Couple): void {
    const { width } = this.#value(from), all = this.#wholeFloats(from), left = width - coupled;
    const out = new Float32Array(this.#count * left);
    for (let t = 0; t < this.#count; t++) {
      out.set(all.subarray(t * width, t * width + left), t * left);
      for (let i = first, at = t * width; i < left; i++) out[t * left + i] *= all[at + i + coupled];
    }
    this.#setRows(to, left, this.#buffers.from(out));
  }

  #choose({ from, to, used }: Choose): void {
    const { width } = this.#value(from), numbers = this.#wholeFloats(from), row = 2 * used;
    const chosen = new Float32Array(this.#count * row);
    for (let t = 0; t < this.#count; t++) {
      const { experts, shares } = chosenOf(numbers.subarray(t * width, (t + 1) * width), used);
      chosen.set(experts, t * row);
      chosen.set(shares, t * row + used);
    }
    this.#setRows(to, row, this.#buffers.from(chosen));
  }

  /** Expert by expert, the tokens that go to it side by side; of every part this thread's rows. */
  #expand({ from, chosen, to, used, parts, rows, weights }: HeldExpand): void {
    const { column: first, columns: mine } = rowsOfParts(weights[0], parts), width = parts * used * rows;
    const places = Array.from({ length: parts * used }, (_, place) => place);
    const ranges = places.map((place) => ({ column: place * rows + first, columns: mine }));
    const total = places.length * mine;
    if (total === 0) return this.#setOwn(to, width, { buffer: -1, ranges, total });
    const { width: each } = this.#value(from), x = this.#wholeFloats(from).slice();
    const out = new Float32Array(this.#count * total);
    for (const [expert, turns] of this.#turns(chosen, used)) {
      const inputs = concatenate(turns.map(({ token }) => x.subarray(token * each, (token + 1) * each)), Float32Array);
      const products = this.#expertProducts(weights[expert], inputs, turns.length);
      turns.forEach(({ token, slot }, i) => {
        for (let part = 0; part < parts; part++) {
          const at = (i * parts + part) * mine;
          out.set(products.subarray(at, at + mine), token * total + (part * used + slot) * mine);
        }
      });
    }
    this.#setOwn(to, width, { buffer: this.#buffers.from(out), ranges, total });
  }

  /** The other way: this thread's rows of the sums. */
  #collect({ from, chosen, to, used, rows, weights }: HeldCollect): void {
    const { column, columns: mine } = rowsOfParts(weights[0], 1), ranges = [{ column, columns: mine }];
    if (mine === 0) return this.#setOwn(to, rows, { buffer: -1, ranges, total: mine });
    const each = this.#value(from).width / used, x = this.#wholeFloats(from).slice();
    const out = new Float32Array(this.#count * mine);
    for (const [expert, turns] of this.#turns(chosen, used)) {
      const place = ({ token, slot }: Turn) => (token * used + slot) * each;
      const inputs = concatenate(turns.map((turn) => x.subarray(place(turn), place(turn) + each)), Float32Array);
      const products = this.#expertProducts(weights[expert], inputs, turns.length);
      turns.forEach(({ token, share }, i) => {
        for (let r = 0; r < mine; r++) out[token * mine + r] += share * products[i * mine + r];
      });
    }
    this.#setOwn(to, rows, { buffer: this.#buffers.from(out), ranges, total: mine });
  }

  /** Who goes to each expert, experts ascending. */
  #turns(chosen: string, used: number): [expert: number, turns: Turn[]][] {
    const floats = this.#wholeFloats(chosen), turns = new Map<number, Turn[]>();
    for (let token = 0; token < this.#count; token++) {
      for (let slot = 0; slot < used; slot++) {
        const expert = floats[2 * used * token + slot], share = floats[2 * used * token + used + slot];
        if (!turns.has(expert)) turns.set(expert, []);
        turns.get(expert)!.push({ token, slot, share });
      }
    }
    return [...turns].sort(([a], [b]) => a - b);
  }

  /** Products of `count` rows with an expert's matrices, side by side; its buffers are given back at once. */
  #expertProducts({ matrices, total }: HeldMatrices, inputs: Float32Array, count: number): Float32Array {
    return this.#kernels.withBuffers((buffers) => {
      const x = buffers.from(inputs), buffer = buffers.room(count * total * 4);
      let offset = 0;
      for (const matrix of matrices) {
        multiply(this.#kernels, matrix, x, count, { buffer, stride: total, offset }, this.#how.exact);
        offset += matrix.outputs;
      }
      return buffers.read(buffer, new Float32Array(count * total));
    });
  }

  #add({ from: [a, b], to }: Add): void {
    const { width } = this.#value(a);
    // Where one of the two is this thread's columns only, so is the sum.
    const own = [a, b].map((name) => this.#value(name)).find((value) => !isWhole(value))?.own;
    if (!own) {
      // A call may not get one buffer twice.
      const x = this.#rows(a), y = a === b ? this.#buffers.from(this.#wholeFloats(b)) : this.#rows(b);
      const out = this.#room(width);
      this.#kernels.check(this.#kernels.call.dense_add(x, y, this.#count * width, out), "add");
      return this.#setRows(to, width, out);
    }
    const { ranges, total } = own, buffer = total > 0 ? this.#room(total) : -1;
    if (total > 0) {
      const sum = this.#floats(buffer, total);
      sum.set(this.#columns(a, ranges, total));
      addTo(sum, this.#columns(b, ranges, total));
    }
    this.#setOwn(to, width, { buffer, ranges, total });
  }

  /** `change(x, column)` of every number. */
  #map({ from, to }: { from: string; to: string }, change: (x: number, column: number) => number): void {
    const value = this.#value(from), own = value.own ?? this.#asOwn(from), { ranges, total } = own;
    if (total === 0) return this.#setOwn(to, value.width, own);
    const buffer = this.#room(total), floats = this.#floats(buffer, total);
    floats.set(this.#floats(own.buffer, total));
    for (let t = 0, i = 0; t < this.#count; t++) {
      for (const { column, columns } of ranges) {
        for (let c = 0; c < columns; c++, i++) floats[i] = change(floats[i], column + c);
      }
    }
    if (isWhole(value)) this.#setRows(to, value.width, buffer);
    else this.#setOwn(to, value.width, { ...own, buffer });
  }

  /** Puts a value in the workspace: every thread its columns, or the first one all of them. */
  #publish(name: string): void {
    const value = this.#value(name), { width } = value, at = this.#schedule.places.get(name)!;
    const all = this.#workspace.floats(this.#count * at, this.#count * width);
    if (isWhole(value)) {
      if (this.#how.first) all.set(this.#wholeFloats(name));
    } else if (value.own!.total > 0) {
      const { buffer, ranges, total } = value.own!;
      scatter(this.#buffers.floats(buffer, this.#count * total), ranges, all, width);
    }
    this.#values.set(name, { ...value, at });
  }

  #value(name: string): Value {
    return this.#values.get(name)!;
  }

  #setRows(name: string, width: number, buffer: number): void {
    this.#values.set(name, { width, buffer });
  }

  /** One thread alone has whole rows in its columns. */
  #setOwn(name: string, width: number, own: Own): void {
    this.#values.set(name, { width, own, buffer: this.#how.alone ? own.buffer : undefined });
  }

  #room(columns: number): number {
    return this.#buffers.room(this.#count * columns * 4);
  }

  /** What is in such a buffer, valid until the memory grows. */
  #floats(buffer: number, columns: number): Float32Array {
    return this.#buffers.floats(buffer, this.#count * columns);
  }

  /** A buffer with whole rows, not to be written to. */
  #rows(name: string): number {
    const value = this.#value(name);
    const buffer = value.buffer ?? this.#buffers.from(this.#wholeFloats(name));
    if (value.buffer === undefined) this.#values.set(name, { ...value, buffer });
    return buffer;
  }

  /** Whole rows as this thread's columns. */
  #asOwn(name: string): Own {
    const { width } = this.#value(name);
    return { buffer: this.#rows(name), ranges: [{ column: 0, columns: width }], total: width };
  }

  /** Whole rows where they are, valid until the memory or the workspace grows. */
  #wholeFloats(name: string): Float32Array {
    const { buffer, at, width } = this.#value(name), count = this.#count;
    if (buffer !== undefined) return this.#buffers.floats(buffer, count * width);
    if (at === undefined) throw new RangeError(`No thread has whole rows of ${name} here`);
    return this.#workspace.floats(count * at, count * width);
  }

  /** Columns of a value, `[count, total]`, valid until the memory or the workspace grows. */
  #columns(name: string, ranges: readonly Range[], total: number): Float32Array {
    const { own, width } = this.#value(name), count = this.#count;
    if (total === 0) return new Float32Array(0);
    if (own && sameRanges(own.ranges, ranges)) return this.#buffers.floats(own.buffer, count * total);
    const all = this.#wholeFloats(name);
    if (total === width) return all;
    if (count === 1 && ranges.length === 1) return all.subarray(ranges[0].column, ranges[0].column + total);
    const mine = new Float32Array(count * total);
    gather(all, width, ranges, mine);
    return mine;
  }
}

/** This thread's matrices over one input. */
export function heldMatrices(matrices: readonly HeldMatrix[]): HeldMatrices {
  const ranges = matrices.map(({ column, outputs }) => ({ column, columns: outputs }));
  return { matrices, ranges, total: ranges.reduce((all, { columns }) => all + columns, 0) };
}

/** Which rows of each part this thread has of an expert; parts of one matrix are there whole. */
function rowsOfParts({ matrices, total }: HeldMatrices, parts: number): Range {
  return { column: matrices.length < parts ? 0 : matrices[0].column, columns: total / parts };
}

function isWhole({ at, buffer }: Value): boolean {
  return at !== undefined || buffer !== undefined;
}

function sameRanges(a: readonly Range[], b: readonly Range[]): boolean {
  return a.length === b.length &&
    a.every(({ column, columns }, i) => column === b[i].column && columns === b[i].columns);
}

function scaling({ factor, first, width }: Scale): (x: number, column: number) => number {
  return (x, column) => column >= first && column < first + width ? factor * x : x;
}

/** Columns of rows of `width` into rows of those columns alone. */
function gather(all: Float32Array, width: number, ranges: readonly Range[], mine: Float32Array): void {
  if (mine.length === all.length) return mine.set(all);
  for (let row = 0, at = 0; row < all.length; row += width) {
    for (const { column, columns } of ranges) {
      mine.set(all.subarray(row + column, row + column + columns), at);
      at += columns;
    }
  }
}

/** The other way. */
function scatter(mine: Float32Array, ranges: readonly Range[], all: Float32Array, width: number): void {
  if (mine.length === all.length) return all.set(mine);
  for (let row = 0, at = 0; row < all.length; row += width) {
    for (const { column, columns } of ranges) {
      all.set(mine.subarray(at, at + columns), row + column);
      at += columns;
    }
  }
}

/** Apart, so that the engine soon compiles it well. */
function addTo(sum: Float32Array, other: Float32Array): void {
  for (let i = 0; i < sum.length; i++) sum[i] += other[i];
}
