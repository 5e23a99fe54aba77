/** A thread's share of the rows of every layer: the commands of `crew_rows.ts` carried out on `WasmRows`. */
import { CACHE_TYPES } from "../../core/cache/entry_type.ts";
import type { Needs, Reduction } from "../../core/policy/policy.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import type { WasmBackend } from "../backend.ts";
import { ANSWER, type NumberArray, type Parcel, parsed } from "./message.ts";
import type { WasmRows } from "../rows.ts";

/** Commands; the first number is the rows' id. Shapes are those of the thread's own heads. */
export const ROWS = {
  /** heads, KV heads, head width, reserve, cache type, heads and KV heads of the whole layer */
  create: 1,
  /** count; keys, values */
  append: 2,
  /** count, column sum?, column maximum?, log-sum-exp?; queries → output, column sum, column maximum, log-sum-exp */
  prefill: 3,
  /** count, probabilities?; queries → output, probabilities of each head */
  decode: 4,
  /** window; queries, needs as JSON → the reductions in the order of `REDUCTIONS`, keys, values */
  observe: 5,
  /** width; wo → norms */
  norms: 6,
  /** kept rows of each head */
  compact: 7,
  /** lengths */
  truncate: 8,
  /** interleaved?, rotated, frequencies …; moves of each head */
  rotate: 9,
  /** id of the twin */
  clone: 10,
  /** KV head; wanted rows → keys, values */
  copy: 11,
  free: 12,
  /** → bytes with slack */
  bytes: 13,
  /** no rows → allocated, most allocated, WebAssembly memory */
  memory: 14,
  /** keys, values of each head, which are empty */
  fill: 15,
} as const;

/** Outputs of `observe` in the order they travel. */
export const REDUCTIONS = [
  "mean",
  "variance",
  "entropy",
  "pooledMean",
  "pooledMax",
  "mass",
  "logSumExp",
] as const satisfies readonly Reduction[];

/** An answer. */
export function answer(arrays: readonly (NumberArray | undefined)[] = [], numbers: readonly number[] = []): Parcel {
  return { operation: ANSWER, numbers, arrays };
}

/** The rows one thread holds, by id. */
export class RowsDesk {
  readonly #backend: WasmBackend;
  readonly #rows = new Map<number, WasmRows>();

  constructor(backend: WasmBackend) {
    this.#backend = backend;
  }

  /** Carries out a command; `undefined` when it is none of {@link ROWS}. Throws what the rows throw. */
  do({ operation, numbers, arrays }: Parcel): Parcel | Promise<Parcel> | undefined {
    const [id, ...rest] = numbers;
    switch (operation) {
      case ROWS.create: {
        const [heads, kvHeads, headDim, reserve, type, allHeads, allKvHeads] = rest;
        const whole = { heads: allHeads, kvHeads: allKvHeads, headDim };
        const rows = this.#backend.createPart({ heads, kvHeads, headDim }, reserve, CACHE_TYPES[type], whole);
        this.#rows.set(id, rows);
        return answer();
      }
      case ROWS.append:
        this.#get(id).append(floats(arrays[0]), floats(arrays[1]), rest[0]);
        return answer();
      case ROWS.prefill:
        return this.#prefill(id, rest, arrays);
      case ROWS.decode:
        return this.#decode(id, rest, arrays);
      case ROWS.observe:
        return this.#observe(id, rest[0], arrays);
      case ROWS.norms:
        return this.#get(id).valueNorms(floats(arrays[0]), rest[0], rest[1] ? "l2" : "l1").then((norms) =>
          answer([norms])
        );
      case ROWS.compact:
        this.#get(id).compact(arrays as Int32Array[]);
        return answer();
      case ROWS.truncate:
        this.#get(id).truncate(rest);
        return answer();
      case ROWS.rotate: {
        const [interleaved, rotated, ...frequencies] = rest;
        const rotation: KeyRotation = {
          pairs: interleaved ? "interleaved" : "half",
          rotated,
          frequencies: Float64Array.from(frequencies),
        };
        return this.#get(id).rotateKeys(arrays as Int32Array[], rotation).then(() => answer());
      }
      case ROWS.clone:
        return this.#get(id).clone().then((twin) => {
          this.#rows.set(rest[0], twin);
          return answer();
        });
      case ROWS.copy: {
        const { keys, values } = this.#get(id).copyNow(rest[0], arrays[0] as Int32Array | undefined);
        return answer([keys, values]);
      }
      case ROWS.fill:
        this.#get(id).fill(
          Array.from({ length: arrays.length / 2 }, (_, h) => {
            return { keys: floats(arrays[2 * h]), values: floats(arrays[2 * h + 1]) };
          }),
        );
        return answer();
      case ROWS.free:
        // Rows that could not be made have nothing to give back.
        this.#rows.get(id)?.free();
        this.#rows.delete(id);
        return answer();
      case ROWS.bytes:
        return answer([], [this.#get(id).allocatedBytes]);
      case ROWS.memory: {
        const { allocatedBytes, highWaterBytes, wasmBytes } = this.#backend.memory();
        return answer([], [allocatedBytes, highWaterBytes, wasmBytes]);
      }
      default:
        return undefined;
    }
  }

  async #prefill(id: number, [count, sum, max, lse]: number[], arrays: Parcel["arrays"]): Promise<Parcel> {
    const want = { columnSum: sum === 1, columnMax: max === 1, logSumExp: lse === 1 };
    const { output, columnSum, columnMax, logSumExp } = await this.#get(id)
      .prefillAttention(floats(arrays[0]), count, want);
    return answer([output, columnSum, columnMax, logSumExp]);
  }

  async #decode(id: number, [count, wanted]: number[], arrays: Parcel["arrays"]): Promise<Parcel> {
    const want = { probabilities: wanted === 1 };
    const { output, probabilities } = await this.#get(id).decodeAttention(floats(arrays[0]), count, want);
    return answer([output, ...probabilities ?? []]);
  }

  async #observe(id: number, window: number, [queries, text]: Parcel["arrays"]): Promise<Parcel> {
    const seen = await this.#get(id).observe(floats(queries), window, parsed(text!) as Needs);
    return answer([...REDUCTIONS.map((name) => seen[name]), seen.keys, seen.values]);
  }

  #get(id: number): WasmRows {
    const rows = this.#rows.get(id);
    if (!rows) throw new RangeError(`No rows ${id} in this thread`);
    return rows;
  }
}

function floats(array: NumberArray | undefined): Float32Array {
  return array as Float32Array;
}
