/** A thread's part of the dense weights, and the commands that other threads have for it. */
import { bytes, commandsFrom, floats, json, list, number } from "../threads/command.ts";
import type { Barrier } from "../threads/barrier.ts";
import { Stored } from "./products.ts";
import { DensePart, type DensePlan, type Step } from "./part.ts";
import type { Kernels } from "../module.ts";

/** The weights and the parts of engines that one thread holds, by id. */
export class DenseService {
  readonly #kernels: Kernels;
  readonly #barrier: Barrier;
  readonly #stored = new Map<number, Stored>();
  readonly #parts = new Map<number, DensePart>();

  constructor(kernels: Kernels, barrier: Barrier) {
    this.#kernels = kernels;
    this.#barrier = barrier;
  }

  store(id: number, bytes: number): void {
    this.#stored.set(id, new Stored(this.#kernels, bytes));
  }

  weights(id: number): Stored {
    const stored = this.#stored.get(id);
    if (!stored) throw new RangeError(`No weights ${id} in this thread`);
    return stored;
  }

  plan(id: number, plan: DensePlan): void {
    this.#parts.set(id, new DensePart(this.#kernels, this.#barrier, plan, this.#stored));
  }

  step(id: number, step: Step, layer: number, count: number): void {
    this.#parts.get(id)!.run(step, layer, count, () => this.#barrier.meet());
  }

  free(id: number, weights: readonly number[]): void {
    this.#parts.delete(id);
    for (const each of weights) {
      this.#stored.get(each)?.free();
      this.#stored.delete(each);
    }
  }
}

const command = commandsFrom<DenseService>(32);
const id = number;

/** On weights, by their id, and on a thread's part of an engine, by the engine's. */
export const DENSE = {
  /** Makes room for weights. */
  store: command({ id, bytes: number }, {}, (service, { id, bytes }) => service.store(id, bytes)),
  /** Puts bytes of weights where they belong. */
  write: command({ id, at: number, bytes }, {}, (service, { id, at, bytes }) => {
    service.weights(id).view(at, bytes.length).set(bytes);
  }),
  /** Copies of rows of a matrix as float32, one after another. */
  rows: command(
    { id, kernel: number, inputs: number, rows: list(number) },
    { floats },
    (service, { id, kernel, inputs, rows }) => ({ floats: service.weights(id).rows(kernel, inputs, rows) }),
  ),
  plan: command({ id, plan: json<DensePlan>() }, {}, (service, { id, plan }) => service.plan(id, plan)),
  /** Runs with the other threads at the barrier. */
  step: command(
    { id, step: number, layer: number, count: number },
    {},
    (service, { id, step, layer, count }) => service.step(id, step as Step, layer, count),
  ),
  /** An engine, and all weights that it has in this thread. */
  free: command({ id, weights: list(number) }, {}, (service, { id, weights }) => service.free(id, weights)),
};
