/**
 * Queries, keys and values of few rows that are split and turned (RoPE) as late as can be: by the stage that stores keys
 * and values, which then gives the queries too, or by one of their own as soon as anybody looks at them.
 */
import type { GpuBuffer, GpuDevice } from "./device.ts";

/** How a head is turned. */
export interface Turn {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotated: number;
  readonly interleaved: boolean;
}

export interface TurnedBuffers {
  readonly queries: GpuBuffer;
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
}

export interface TurningInputs {
  readonly turn: Turn;
  readonly count: number;
  /** `[count, (heads + 2 · kvHeads) · headDim]`, borrowed: given back with the last of the three. */
  readonly qkv: GpuBuffer;
  /** `[count, rotated + 1]` (`rotate.wgsl`). */
  readonly table: GpuBuffer;
}

type Part = keyof TurnedBuffers;

export class Turning {
  readonly inputs: TurningInputs;
  readonly #gpu: GpuDevice;
  readonly #make: (inputs: TurningInputs, out: TurnedBuffers) => void;
  /** Those that were not freed. */
  readonly #buffers = new Map<Part, GpuBuffer>();
  /** Those whose numbers are there. */
  readonly #made = new Set<Part>();
  #ended = false;

  /** `make` runs the stage that turns. */
  constructor(gpu: GpuDevice, inputs: TurningInputs, make: (inputs: TurningInputs, out: TurnedBuffers) => void) {
    this.#gpu = gpu;
    this.inputs = inputs;
    this.#make = make;
  }

  /** Names the buffer of a part. */
  add(part: Part, buffer: GpuBuffer): void {
    this.#buffers.set(part, buffer);
  }

  /** The queries' buffer where nothing was made and nothing freed yet. */
  get untouched(): GpuBuffer | undefined {
    return this.#made.size === 0 && this.#buffers.size === 3 ? this.#buffers.get("queries") : undefined;
  }

  /** To be called when another stage has given the queries. */
  stored(): void {
    this.#made.add("queries");
  }

  /** Makes a part unless it is there. */
  look(part: Part): void {
    if (!this.#made.has(part)) this.settle();
  }

  /** Makes all that anybody may still look at. */
  settle(): void {
    const { turn: { heads, kvHeads, headDim }, count } = this.inputs, borrowed: GpuBuffer[] = [];
    if ([...this.#buffers.keys()].every((part) => this.#made.has(part))) return;
    const bufferOf = (part: Part) => {
      const known = this.#buffers.get(part);
      if (known) return known;
      borrowed.push(this.#gpu.borrow(4 * count * headDim * (part === "queries" ? heads : kvHeads)));
      return borrowed[borrowed.length - 1];
    };
    try {
      this.#make(this.inputs, { queries: bufferOf("queries"), keys: bufferOf("keys"), values: bufferOf("values") });
    } finally {
      for (const buffer of borrowed) this.#gpu.giveBack(buffer);
    }
    for (const part of this.#buffers.keys()) this.#made.add(part);
  }

  /** To be called when a part is freed. */
  gone(part: Part): void {
    this.#buffers.delete(part);
    if (this.#buffers.size === 0) this.end();
  }

  /** Gives the inputs back, once. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#gpu.giveBack(this.inputs.qkv);
  }
}
