/** The dense stages over buffers: which file, which sizes, how many workgroups. */
import type { GpuBuffer, GpuDevice, ShaderFile, Stage } from "../device.ts";
import type { Activation } from "../../core/dense/operations.ts";
import { ofKind } from "./kinds.ts";
import type { DeviceCollect, DeviceExpand, DeviceList, ListStep } from "./lists.ts";
import { ADD, CAP, CHOOSE, COUPLE, EXPERTS, GATE, MULTIPLY, NARROW, NORM, PAD, ROTATE, SCALE } from "./shaders.ts";
import type { Turn } from "../turning.ts";
import type { MatrixPart } from "./weights.ts";

export interface StagesOptions {
  readonly normEpsilon: number;
  /** Products of many rows multiply in 16-bit floats, and sum in 32. Wants a device with `f16`. */
  readonly f16: boolean;
  /** Results of a thread in each direction, 1, 4 or 8, in products of many rows. Default: what suits device and product. */
  readonly tile?: 1 | 4 | 8;
  /** For measuring: whether a thread takes four units of one row together. */
  readonly wide?: boolean;
}

/** Rows up to which each is taken by itself: the weights are read that often. */
export const FEW_ROWS = 4;
/** Most workgroups in a direction. */
const MOST_GROUPS = 65535;
/** Logits that a workgroup chooses from. */
const SPAN = 4096;
/** Results of a product of many rows lie in squares of this side for each result of a thread. */
const SIDE = 16;
/** Results of a thread in each direction where workgroups are large (`wide_rows`), and such workgroups that keep a device busy. */
const WIDE = 8, BUSY = 100;
/** In the order of their numbers in gate.wgsl. */
const ACTIVATIONS = ["silu", "gelu", "limited"] as const satisfies readonly Activation[];
/** Inputs of one row from which on each thread of a workgroup has four units at least, so that it takes them together. */
const WIDE_INPUTS = 64 * 32;

/** Runs stages on a device; what they read and give are the caller's buffers. */
export class DenseStages {
  readonly gpu: GpuDevice;
  readonly #options: StagesOptions;

  constructor(gpu: GpuDevice, options: StagesOptions) {
    this.gpu = gpu;
    this.#options = options;
  }

  /** Most rows of a list at once: a stage must see all of a value, and a workgroup's place has an end. */
  rowsAtOnce({ widest }: DeviceList): number {
    return Math.max(1, Math.min(MOST_GROUPS, Math.floor(this.gpu.info.maxBinding / (4 * (widest + 8)))));
  }

  /** A list over `count` rows of its `inputs`; its result goes to `out`. */
  run(list: DeviceList, inputs: Readonly<Record<string, GpuBuffer>>, count: number, out: GpuBuffer): void {
    const values = new Map(Object.entries(inputs)), borrowed = new Set<string>();
    const giveBack = (name: string) => {
      if (borrowed.delete(name)) this.gpu.giveBack(values.get(name)!);
    };
    try {
      for (let i = 0; i < list.steps.length; i++) {
        const before = count <= FEW_ROWS ? foldable(list.steps[i], list.steps[i + 1]) : undefined;
        const step = list.steps[before ? ++i : i], isLast = step.to === list.result;
        const to = isLast ? out : this.gpu.borrow(4 * count * list.widths.get(step.to)!);
        if (!isLast) borrowed.add(step.to);
        values.set(step.to, to);
        if (before) this.#folded(step, before, values, count, to);
        else this.#step(step, list, values, count, to);
        before?.done.forEach(giveBack);
        step.done.forEach(giveBack);
      }
    } finally {
      for (const name of [...borrowed]) giveBack(name);
    }
  }

  /** Rows of the embeddings, times `scale`: `ids` `[count]`, `out` `[count, inputs]`. */
  embed(parts: readonly MatrixPart[], ids: GpuBuffer, count: number, scale: number, out: GpuBuffer): void {
    for (const part of parts) {
      const { kind, inputs, padded, outputs, rowBytes, column, weights } = part;
      const constants = { INPUTS: padded, OUTPUTS: outputs, ROW_BYTES: rowBytes, SCALE: scale };
      const stage = this.gpu.stage(ofKind(MULTIPLY, kind, true), {
        entry: "embed",
        constants: { KIND: kind, ...constants },
      });
      const groups = [Math.ceil(padded / 8 / 64), count] as const;
      this.gpu.run(stage, { params: [count, 0, inputs, column], buffers: [weights, out, ids], groups });
    }
  }

  /**
   * Splits `qkv` and turns queries and keys by `table`, `[count, rotated + 1]` (`rotate.wgsl`). With `unrotated` the
   * queries as they were go there.
   */
  rotate(
    turn: Turn,
    [qkv, table]: readonly [GpuBuffer, GpuBuffer],
    count: number,
    out: { queries: GpuBuffer; keys: GpuBuffer; values: GpuBuffer; unrotated?: GpuBuffer },
  ): void {
    const { heads, kvHeads, headDim, rotated, interleaved } = turn, { queries, keys, values, unrotated } = out;
    const stage = this.gpu.stage(ROTATE, {
      entry: unrotated ? "main_unrotated" : "main",
      constants: { HEADS: heads, KV_HEADS: kvHeads, DIM: headDim, ROTATED: rotated, INTERLEAVED: Number(interleaved) },
    });
    const buffers = [qkv, table, queries, keys, values, ...(unrotated ? [unrotated] : [])];
    const groups = [Math.ceil((heads + 2 * kvHeads) * headDim / 64), count] as const;
    this.gpu.run(stage, { params: [count], buffers, groups });
  }

  /** Token and bits of the largest of `length` logits, two words in `choice` (`choose.wgsl`). */
  choose(logits: GpuBuffer, length: number, choice: GpuBuffer): void {
    const groups = Math.ceil(length / SPAN), found = this.gpu.borrow(8 * groups);
    try {
      const parts = this.gpu.stage(CHOOSE, { entry: "parts", constants: { SPAN } });
      this.gpu.run(parts, { params: [length], buffers: [logits, found], groups: [groups] });
      const whole = this.gpu.stage(CHOOSE, { entry: "whole" });
      this.gpu.run(whole, { params: [groups], buffers: [found, choice], groups: [1] });
    } finally {
      this.gpu.giveBack(found);
    }
  }

  #step(
    { operation, addend }: ListStep,
    { widths }: DeviceList,
    values: ReadonlyMap<string, GpuBuffer>,
    count: number,
    to: GpuBuffer,
  ): void {
    const value = (name: string) => values.get(name)!, width = widths.get(operation.to)!;
    switch (operation.op) {
      case "multiply": {
        const added = addend === undefined ? undefined : value(addend);
        return this.#multiply(operation.weights, value(operation.from), count, operation.rows, to, added);
      }
      case "norm":
        return this.#norm(value(operation.from), operation.gains, count, to, { WIDTH: width });
      case "headNorm": {
        const { gains, first, heads, width: WIDTH } = operation;
        if (first % WIDTH !== 0 || width % WIDTH !== 0) {
          throw new RangeError(`${operation.to}: heads between two heads`);
        }
        const runs = { WIDTH, RUNS: width / WIDTH, FIRST: first / WIDTH, NORMED: heads };
        return this.#norm(value(operation.from), gains, count, to, runs);
      }
      case "gate": {
        const constants = { WIDTH: width, ACTIVATION: ACTIVATIONS.indexOf(operation.activation) };
        return this.#each(GATE, constants, [value(operation.from), to], count, width);
      }
      case "add": {
        const [a, b] = operation.from;
        return this.#each(ADD, { WIDTH: width }, [value(a), value(b), to], count, width);
      }
      case "scale": {
        const { first, width: span, factor } = operation;
        const constants = { WIDTH: width, FIRST: first, SPAN: span, FACTOR: factor };
        return this.#each(SCALE, constants, [value(operation.from), to], count, width);
      }
      case "cap":
        return this.#each(CAP, { WIDTH: width, CAP: operation.cap }, [value(operation.from), to], count, width);
      case "choose": {
        const numbers = widths.get(operation.from)!, stage = this.gpu.stage(EXPERTS);
        const params = [count, numbers, operation.used];
        return this.gpu.run(stage, { params, buffers: [value(operation.from), to], groups: [count] });
      }
      case "expand":
        return this.#expand(operation, [value(operation.from), value(operation.chosen)], count, width, to);
      case "collect":
        return this.#collect(operation, [value(operation.from), value(operation.chosen)], count, to);
      case "couple": {
        const constants = { FIRST: operation.first, SPAN: operation.width };
        return this.#each(COUPLE, constants, [value(operation.from), to], count, width);
      }
      case "gateBy": {
        const constants = { WIDTH: width, ACTIVATION: ACTIVATIONS.indexOf(operation.activation) };
        return this.#each(GATE, constants, [value(operation.from), to, value(operation.by)], count, width, "by");
      }
      default:
        throw new TypeError(`Unknown operation ${operation satisfies never}`);
    }
  }

  /** Tokens with their experts' matrices, part by part; of each, the buffers that have some of all experts. */
  #expand(
    { weights, used, rows }: DeviceExpand,
    [x, chosen]: readonly [GpuBuffer, GpuBuffer],
    count: number,
    stride: number,
    to: GpuBuffer,
  ): void {
    weights.forEach((parts, index) => {
      this.#paddedFor(parts[0], x, count, (inputs) => {
        for (const part of parts) {
          const params = [count, part.column, stride, index * used * rows, used, rows];
          this.#experts(part, "expand_rows", params, [inputs, chosen, to], [Math.ceil(rows / 4), used, count]);
        }
      });
    });
  }

  #collect(
    { weights: [parts], used, rows }: DeviceCollect,
    [x, chosen]: readonly [GpuBuffer, GpuBuffer],
    count: number,
    to: GpuBuffer,
  ): void {
    this.#paddedFor(parts[0], x, count * used, (inputs) => {
      parts.forEach((part, i) => {
        const params = [count, part.column, rows, 0, used, rows, Math.min(i, 1)];
        this.#experts(part, "collect_rows", params, [inputs, chosen, to], [Math.ceil(rows / 4), count, 1]);
      });
    });
  }

  #experts(
    part: MatrixPart,
    entry: "expand_rows" | "collect_rows",
    params: readonly number[],
    [x, chosen, to]: readonly GpuBuffer[],
    groups: readonly [number, number, number],
  ): void {
    const stage = this.#product(part, { entry, exact: true, constants: { WIDE: Number(this.#isWide(part)) } }, false);
    // Gains are not read, nor biases that are not there, so the weights stand in for them.
    const buffers = [part.weights, to, x, part.bias ?? part.weights, undefined, undefined, part.weights, chosen];
    this.gpu.run(stage, { params, buffers, groups });
  }

  #isWide({ padded }: MatrixPart): boolean {
    return this.#options.wide ?? (padded >= WIDE_INPUTS && padded % 32 === 0);
  }

  /** Rows of inputs, with the zeros behind that the weights have. */
  #paddedFor({ inputs, padded }: MatrixPart, from: GpuBuffer, count: number, use: (x: GpuBuffer) => void): void {
    if (padded === inputs) return use(from);
    const x = this.gpu.borrow(4 * count * padded);
    try {
      this.#each(PAD, { WIDTH: inputs, PADDED: padded }, [from, x], count, padded);
      use(x);
    } finally {
      this.gpu.giveBack(x);
    }
  }

  /** A product whose inputs are made of `before` on the way. */
  #folded(
    { operation, addend }: ListStep,
    before: ListStep,
    values: ReadonlyMap<string, GpuBuffer>,
    count: number,
    to: GpuBuffer,
  ): void {
    const { op } = before.operation;
    if (operation.op !== "multiply" || op !== "norm" && op !== "gate") return;
    const first = op === "norm" ? 1 : before.operation.activation === "gelu" ? 3 : 2;
    const gains = op === "norm" ? before.operation.gains : undefined, x = values.get(before.operation.from)!;
    const added = addend === undefined ? undefined : values.get(addend)!;
    for (const part of operation.weights) {
      this.#fewRows(part, x, count, operation.rows, to, added, { first, gains });
    }
  }

  /** A stage of one thread for every number of `count` rows of `width`. */
  #each(
    file: ShaderFile,
    constants: Readonly<Record<string, number>>,
    buffers: readonly GpuBuffer[],
    count: number,
    width: number,
    entry?: string,
  ): void {
    const stage = this.gpu.stage(file, { constants, entry });
    this.gpu.run(stage, { params: [count], buffers, groups: [Math.ceil(width / 64), count] });
  }

  #norm(
    x: GpuBuffer,
    gains: GpuBuffer,
    count: number,
    to: GpuBuffer,
    sizes: { readonly WIDTH: number; readonly RUNS?: number },
  ): void {
    const { WIDTH, RUNS = 1 } = sizes, EPSILON = this.#options.normEpsilon;
    const stage = this.gpu.stage(NORM, { constants: { ...sizes, EPSILON, LANES: WIDTH > 256 ? 256 : 64 } });
    this.gpu.run(stage, { params: [count], buffers: [x, gains, to], groups: [RUNS, count] });
  }

  /** Products of `count` rows of `from` with all parts; `stride`: numbers in a row of `to`. */
  #multiply(
    parts: readonly MatrixPart[],
    from: GpuBuffer,
    count: number,
    stride: number,
    to: GpuBuffer,
    addend: GpuBuffer | undefined,
  ): void {
    const [{ inputs, padded }] = parts, made: GpuBuffer[] = [];
    const make = (bytes: number) => {
      const buffer = this.gpu.borrow(bytes);
      made.push(buffer);
      return buffer;
    };
    try {
      let x = from;
      if (padded !== inputs) {
        x = make(4 * count * padded);
        this.#each(PAD, { WIDTH: inputs, PADDED: padded }, [from, x], count, padded);
      }
      if (count <= FEW_ROWS) {
        for (const part of parts) this.#fewRows(part, x, count, stride, to, addend);
        return;
      }
      const forms = parts.map((part) => this.#form(part, count)), narrow: GpuBuffer[] = [];
      if (forms.some(({ exact }) => !exact)) {
        narrow.push(make(2 * count * padded), make(4 * count));
        const stage = this.gpu.stage(NARROW, { constants: { INPUTS: padded } });
        this.gpu.run(stage, { params: [count], buffers: [x, ...narrow], groups: [count] });
      }
      forms.forEach((form, i) => {
        this.#manyRows(parts[i], form, form.exact ? [x] : narrow, count, stride, to, addend);
      });
    } finally {
      for (const buffer of made) this.gpu.giveBack(buffer);
    }
  }

  #fewRows(
    part: MatrixPart,
    x: GpuBuffer,
    count: number,
    stride: number,
    to: GpuBuffer,
    addend?: GpuBuffer,
    { first, gains }: { readonly first: number; readonly gains?: GpuBuffer } = { first: 0 },
  ): void {
    const constants = { WIDE: Number(this.#isWide(part)), FIRST: first, EPSILON: this.#options.normEpsilon };
    const stage = this.#product(part, { entry: "one_row", exact: true, constants }, addend !== undefined);
    const fours = Math.ceil(part.outputs / 4);
    const across = Math.min(fours, MOST_GROUPS), groups = [across, Math.ceil(fours / across), count] as const;
    const buffers = [...buffersOf(part, to, x, addend), undefined, gains ?? part.weights];
    this.gpu.run(stage, { params: paramsOf(part, count, stride), buffers, groups });
  }

  #manyRows(
    part: MatrixPart,
    { side, ...form }: Form,
    [x, ...scales]: readonly GpuBuffer[],
    count: number,
    stride: number,
    to: GpuBuffer,
    addend?: GpuBuffer,
  ): void {
    const stage = this.#product(part, form, addend !== undefined);
    const groups = [Math.ceil(part.outputs / side), Math.ceil(count / side)] as const;
    const buffers = [...buffersOf(part, to, x, addend), ...scales];
    this.gpu.run(stage, { params: paramsOf(part, count, stride), buffers, groups });
  }

  /** How many rows are multiplied. Emulators take seconds to translate a stage with much workgroup memory. */
  #form({ outputs }: MatrixPart, count: number): Form {
    const side = SIDE * WIDE;
    const groups = Math.ceil(outputs / side) * Math.ceil(count / side);
    const { tile = this.gpu.info.emulated ? 1 : groups < BUSY ? 4 : WIDE, f16 } = this.#options;
    const entry = tile === WIDE ? "wide_rows" : tile === 4 ? "many_rows" : "small_rows";
    return { entry, exact: tile === WIDE || !f16, side: SIDE * tile, constants: {} };
  }

  #product(part: MatrixPart, { entry, exact, constants }: Omit<Form, "side">, hasAddend: boolean): Stage {
    const { kind, padded, outputs, rowBytes, bias } = part;
    return this.gpu.stage(ofKind(MULTIPLY, kind, exact), {
      entry,
      constants: {
        KIND: kind,
        INPUTS: padded,
        OUTPUTS: outputs,
        ROW_BYTES: rowBytes,
        HAS_BIAS: Number(bias !== undefined),
        HAS_ADDEND: Number(hasAddend),
        ...constants,
      },
    });
  }
}

/** A norm or a gate that is wanted for the product after it alone, which then makes it of its inputs: one stage fewer. */
function foldable(step: ListStep, next: ListStep | undefined): ListStep | undefined {
  const { operation: { op }, operation } = step;
  if ((op !== "norm" && op !== "gate") || next?.operation.op !== "multiply") return undefined;
  if (operation.op === "gate" && operation.activation === "limited") return undefined;
  const { from, weights } = next.operation, isWhole = weights.every(({ inputs, padded }) => inputs === padded);
  return from === step.to && next.done.includes(step.to) && next.addend !== step.to && isWhole ? step : undefined;
}

/** How a product is made. */
interface Form {
  readonly entry: string;
  /** Without 16-bit floats. */
  readonly exact: boolean;
  /** A workgroup gives a square of results. */
  readonly side: number;
  readonly constants: Readonly<Record<string, number>>;
}

function paramsOf({ column }: MatrixPart, count: number, stride: number): number[] {
  return [count, column, stride, 0];
}

/** What is not there is not read: the weights stand in for it. */
function buffersOf({ weights, bias }: MatrixPart, to: GpuBuffer, x: GpuBuffer, addend: GpuBuffer | undefined) {
  return [weights, to, x, bias ?? weights, addend ?? weights];
}
