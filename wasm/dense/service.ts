/** A thread's share of the dense weights: the commands of the dense engine carried out on `DenseShare`. */
import { answer } from "../threads/rows_service.ts";
import type { SharedBoard } from "../threads/barrier.ts";
import { Stored } from "./products.ts";
import { type DensePlan, DenseShare, type Step } from "./part.ts";
import type { Kernels } from "../module.ts";
import { type Parcel, parsed } from "../threads/message.ts";

/** Commands; the first number is the id of the weights or of the engine. */
export const DENSE = {
  /** bytes */
  store: 32,
  /** first byte; bytes */
  write: 33,
  /** row bytes, rows … → bytes of those rows */
  rows: 34,
  /** the plan as JSON */
  plan: 35,
  /** step, layer, count */
  step: 36,
  /** ids of all its weights … */
  free: 37,
} as const;

export class DenseDesk {
  readonly #kernels: Kernels;
  readonly #board: SharedBoard;
  readonly #stored = new Map<number, Stored>();
  readonly #shares = new Map<number, DenseShare>();

  constructor(kernels: Kernels, board: SharedBoard) {
    this.#kernels = kernels;
    this.#board = board;
  }

  /** Carries out a command; `undefined` when it is none of {@link DENSE}. */
  do({ operation, numbers: [id, ...rest], arrays }: Parcel): Parcel | undefined {
    switch (operation) {
      case DENSE.store:
        this.#stored.set(id, new Stored(this.#kernels, rest[0]));
        return answer();
      case DENSE.write:
        this.#weights(id).view(rest[0], arrays[0]!.length).set(arrays[0] as Uint8Array);
        return answer();
      case DENSE.rows:
        return answer([rowsOf(this.#weights(id), rest[0], rest.slice(1))]);
      case DENSE.plan:
        this.#shares.set(id, new DenseShare(this.#kernels, this.#board, parsed(arrays[0]!) as DensePlan, this.#stored));
        return answer();
      case DENSE.step: {
        const [step, layer, count] = rest;
        this.#shares.get(id)!.run(step as Step, layer, count, () => this.#board.meet());
        return answer();
      }
      case DENSE.free:
        this.#shares.delete(id);
        for (const each of rest) {
          this.#stored.get(each)?.free();
          this.#stored.delete(each);
        }
        return answer();
      default:
        return undefined;
    }
  }

  #weights(id: number): Stored {
    const stored = this.#stored.get(id);
    if (!stored) throw new RangeError(`No weights ${id} in this thread`);
    return stored;
  }
}

/** Copies of rows of a matrix, one after another. */
export function rowsOf(weights: Stored, rowBytes: number, rows: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(rows.length * rowBytes);
  rows.forEach((row, i) => bytes.set(weights.view(row * rowBytes, rowBytes), i * rowBytes));
  return bytes;
}
