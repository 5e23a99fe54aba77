/** A device's backend for suites that know arrays: what goes in is moved to the device, what comes out back. */
import type {
  AttentionOutputs,
  AttentionWants,
  Backend,
  CopiedRows,
  DecodeOutputs,
  LayerRows,
} from "../../core/backend/interface.ts";
import { HOST_TENSORS, type Tensor, type Tensors } from "../../core/backend/tensor.ts";
import { partsOf, storable, unstorable } from "../../core/cache/entry_type.ts";
import type { LinearGate } from "../../core/measure/gate_scores.ts";
import type { Needs, NormKind, Observation } from "../../core/policy/policy.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";

/** A backend with tensors of its own, for suites that know arrays. When it is disposed of, none may be `alive`. */
export function onThisSide<T extends Tensor>(backend: Backend<T>, alive: () => number): Backend<Float32Array> {
  return {
    name: backend.name,
    detail: backend.detail,
    memory: () => backend.memory(),
    refits: backend.refits,
    tensors: HOST_TENSORS,
    createRows: (...shape) => new MovedRows(backend.createRows(...shape), backend.tensors),
    select: (input) => backend.select(input),
    ...(backend.gateScores && {
      async gateScores(gate: LinearGate, hidden: Float32Array, count: number) {
        const moved = backend.tensors.upload(hidden.slice());
        try {
          return await backend.gateScores!(gate, moved, count);
        } finally {
          backend.tensors.free(moved);
        }
      },
    }),
    [Symbol.dispose]: () => {
      const left = alive();
      if (left > 0) throw new Error(`${left} tensors were not freed`);
      backend[Symbol.dispose]();
    },
  };
}

/** Moves what goes in to the device, and what comes out back. */
class MovedRows<T extends Tensor> implements LayerRows<Float32Array> {
  readonly #rows: LayerRows<T>;
  readonly #tensors: Tensors<T>;
  readonly refit?: LayerRows["refit"];
  readonly unmaskedAttention?: LayerRows<Float32Array>["unmaskedAttention"];

  constructor(rows: LayerRows<T>, tensors: Tensors<T>) {
    this.#rows = rows;
    this.#tensors = tensors;
    if (rows.refit) this.refit = (kvHead, refitted) => rows.refit!(kvHead, refitted);
    if (rows.unmaskedAttention) {
      this.unmaskedAttention = (queries, count, want) =>
        this.#attend(queries, (q) => rows.unmaskedAttention!(q, count, want));
    }
  }

  get shape() {
    return this.#rows.shape;
  }

  get type() {
    return this.#rows.type;
  }

  get liveBytes(): number {
    return this.#rows.liveBytes;
  }

  get allocatedBytes(): number {
    return this.#rows.allocatedBytes;
  }

  length(kvHead: number): number {
    return this.#rows.length(kvHead);
  }

  append(keys: Float32Array, values: Float32Array, count: number): void {
    // A device looks at its own numbers, and says so later: these are at hand.
    const types = partsOf(this.type);
    for (const [numbers, type] of [[keys, types.keys], [values, types.values]] as const) {
      if (!storable(numbers, type)) throw unstorable(this.type);
    }
    this.#with([keys, values], ([k, v]) => this.#rows.append(k, v, count));
  }

  prefillAttention(queries: Float32Array, count: number, want?: AttentionWants) {
    return this.#attend(queries, (q): Promise<AttentionOutputs<T>> => this.#rows.prefillAttention(q, count, want));
  }

  decodeAttention(queries: Float32Array, count: number, want?: { probabilities?: boolean }) {
    return this.#attend(queries, (q): Promise<DecodeOutputs<T>> => this.#rows.decodeAttention(q, count, want));
  }

  observe(queries: Float32Array, window: number, needs: Needs): Promise<Partial<Observation>> {
    return this.#with([queries], ([q]) => this.#rows.observe(q, window, needs));
  }

  valueNorms(wo: Float32Array, width: number, kind?: NormKind): Promise<Float32Array> {
    return this.#rows.valueNorms(wo, width, kind);
  }

  compact(kept: readonly Int32Array[]): void {
    this.#rows.compact(kept);
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#rows.truncate(lengths);
  }

  rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    return this.#rows.rotateKeys(moves, rotation);
  }

  async clone(): Promise<LayerRows<Float32Array>> {
    return new MovedRows(await this.#rows.clone(), this.#tensors);
  }

  copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    return this.#rows.copyRows(kvHead, wanted);
  }

  free(): void {
    this.#rows.free();
  }

  async #attend<O extends { readonly output: T }>(queries: Float32Array, attend: (q: T) => Promise<O>) {
    const { output, ...others } = await this.#with([queries], ([q]) => attend(q));
    const tensors = this.#tensors, numbers = await tensors.read(output);
    tensors.free(output);
    return { ...others, output: numbers };
  }

  /** Tensors are freed as soon as the call is made: what was called before still sees them. */
  #with<R>(arrays: readonly Float32Array[], work: (handles: T[]) => R): R {
    const tensors = this.#tensors, handles = arrays.map((numbers) => tensors.upload(numbers.slice()));
    try {
      return work(handles);
    } finally {
      for (const handle of handles) tensors.free(handle);
    }
  }
}
