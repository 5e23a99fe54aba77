/** The dense stages over buffers: which file, which sizes, how many workgroups. */
import type { GpuBuffer, GpuDevice, ShaderFile, Stage } from "../device.ts";
import { ofKind } from "./kinds.ts";
import type { DeviceList, ListStep } from "./lists.ts";
import { ADD, CAP, CHOOSE, GATE, MULTIPLY, NARROW, NORM, PAD, ROTATE, SCALE } from "./shaders.ts";
import type { MatrixPart } from "./weights.ts";

export interface StagesOptions {
  readonly normEpsilon: number;
  /** Products of many rows multiply in 16-bit floats, and sum in 32. Wants a device with `f16`. */
  readonly f16: boolean;
  /** Results of a thread in each direction, 1 … 4, in products of many rows. Default: what suits the device. */
  readonly tile?: number;
}

/** How a head is turned. */
export interface Turn {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotated: number;
  readonly interleaved: boolean;
}

/** Rows up to which each is taken by itself: the weights are read that often. */
export const FEW_ROWS = 4;
/** Most workgroups in a direction. */
const MOST_GROUPS = 65535;
/** Logits that a workgroup chooses from. */
const SPAN = 4096;
/** Results of a product of many rows lie in squares of this side for each result of a thread. */
const SIDE = 16;

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
      for (const step of list.steps) {
        const isLast = step.to === list.result;
        const to = isLast ? out : this.gpu.borrow(4 * count * list.widths.get(step.to)!);
        if (!isLast) borrowed.add(step.to);
        values.set(step.to, to);
        this.#step(step, list, values, count, to);
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
        const constants = { WIDTH: width, GELU: Number(operation.activation === "gelu") };
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
      case "choose":
      case "expand":
      case "collect":
        throw new RangeError("No shader sends tokens to experts");
      default:
        throw new TypeError(`Unknown operation ${operation satisfies never}`);
    }
  }

  /** A stage of one thread for every number of `count` rows of `width`. */
  #each(
    file: ShaderFile,
    constants: Readonly<Record<string, number>>,
    buffers: readonly GpuBuffer[],
    count: number,
    width: number,
  ): void {
    const stage = this.gpu.stage(file, { constants });
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
      } else if (!this.#options.f16) {
        for (const part of parts) this.#manyRows(part, [x], count, stride, to, addend);
      } else {
        const narrow = make(2 * count * padded), scales = make(4 * count);
        const stage = this.gpu.stage(NARROW, { constants: { INPUTS: padded } });
        this.gpu.run(stage, { params: [count], buffers: [x, narrow, scales], groups: [count] });
        for (const part of parts) this.#manyRows(part, [narrow, scales], count, stride, to, addend);
      }
    } finally {
      for (const buffer of made) this.gpu.giveBack(buffer);
    }
  }

  #fewRows(part: MatrixPart, x: GpuBuffer, count: number, stride: number, to: GpuBuffer, addend?: GpuBuffer): void {
    const stage = this.#product(part, "one_row", addend !== undefined), fours = Math.ceil(part.outputs / 4);
    const across = Math.min(fours, MOST_GROUPS), groups = [across, Math.ceil(fours / across), count] as const;
    this.gpu.run(stage, { params: paramsOf(part, count, stride), buffers: buffersOf(part, to, x, addend), groups });
  }

  #manyRows(
    part: MatrixPart,
    [x, ...scales]: readonly GpuBuffer[],
    count: number,
    stride: number,
    to: GpuBuffer,
    addend?: GpuBuffer,
  ): void {
    const tile = this.#tile(count), stage = this.#product(part, "many_rows", addend !== undefined, tile);
    const groups = [Math.ceil(part.outputs / (SIDE * tile.EACH_N)), Math.ceil(count / (SIDE * tile.EACH_T))] as const;
    const buffers = [...buffersOf(part, to, x, addend), ...scales];
    this.gpu.run(stage, { params: paramsOf(part, count, stride), buffers, groups });
  }

  /** Emulators take seconds to translate a stage with much workgroup memory, and gain nothing by it. */
  #tile(count: number): { readonly EACH_N: number; readonly EACH_T: number } {
    const { tile = this.gpu.info.emulated ? 1 : 4 } = this.#options;
    return { EACH_N: tile, EACH_T: count <= SIDE ? 1 : tile };
  }

  #product(part: MatrixPart, entry: string, hasAddend: boolean, more: Readonly<Record<string, number>> = {}): Stage {
    const { kind, padded, outputs, rowBytes, bias } = part;
    return this.gpu.stage(ofKind(MULTIPLY, kind, !this.#options.f16), {
      entry,
      constants: {
        KIND: kind,
        INPUTS: padded,
        OUTPUTS: outputs,
        ROW_BYTES: rowBytes,
        HAS_BIAS: Number(bias !== undefined),
        HAS_ADDEND: Number(hasAddend),
        ...more,
      },
    });
  }
}

function paramsOf({ column }: MatrixPart, count: number, stride: number): number[] {
  return [count, column, stride, 0];
}

/** What is not there is not read: the weights stand in for it. */
function buffersOf({ weights, bias }: MatrixPart, to: GpuBuffer, x: GpuBuffer, addend: GpuBuffer | undefined) {
  return [weights, to, x, bias ?? weights, addend ?? weights];
}
