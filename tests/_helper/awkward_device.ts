/**
 * A device that is as awkward as a GPU may be, made of the plain one: its tensors are handles whose numbers can't be
 * reached from this side, every answer comes some turns of the event loop later, an array that was uploaded is no longer
 * the caller's, and a tensor that was freed can't be used. It counts what is alive, and can be made to fail.
 */
import { setImmediate } from "node:timers";
import { checkedRows } from "../../core/backend/checked_rows.ts";
import type {
  AttentionOutputs,
  AttentionWants,
  Backend,
  CopiedRows,
  LayerRows,
  TrustingRows,
} from "../../core/backend/interface.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { HOST_TENSORS, type Tensor, type Tensors } from "../../core/backend/tensor.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import type { Needs, NormKind, Observation } from "../../core/policy/policy.ts";
import type { Dense, Projected } from "../../model/dense/dense.ts";
import type { Device } from "../../model/device.ts";
import type { Model } from "../../model/model.ts";
import { engineOf } from "./host.ts";
import { HostDense } from "../../model/dense/host.ts";

/** Nothing but its size can be asked. */
export class Handle implements Tensor {
  readonly length: number;

  constructor(length: number) {
    this.length = length;
    return new Proxy(this, {
      get(target, name) {
        // A promise that resolves to a handle asks whether it is one.
        if (name === "then") return undefined;
        if (name === "length") return target.length;
        if (name === "byteLength") return 4 * target.length;
        throw new TypeError(`A device's tensor has no ${String(name)} on this side`);
      },
    });
  }

  get byteLength(): number {
    return 4 * this.length;
  }
}

/** What a device holds, and when it answers. */
export class AwkwardMemory {
  readonly #numbers = new Map<Tensor, Float32Array>();
  /** Calls after which every one fails; Infinity: none does. */
  failsAfter = Infinity;
  calls = 0;

  /** Tensors that were not freed. */
  get alive(): number {
    return this.#numbers.size;
  }

  make(numbers: Float32Array): Handle {
    const handle = new Handle(numbers.length);
    this.#numbers.set(handle, numbers);
    return handle;
  }

  /** @throws Error for a tensor that was freed, or is not this device's. */
  of(handle: Tensor): Float32Array {
    const numbers = this.#numbers.get(handle);
    if (!numbers) throw new Error("The tensor was freed, or is another device's");
    return numbers;
  }

  /** Answers later, each time by another number of turns. */
  async later<T>(work: () => T | Promise<T>): Promise<T> {
    const call = this.calls++;
    if (call >= this.failsAfter) {
      await this.#turns(call);
      throw new Error(`The device is lost at call ${call}`);
    }
    const answer = await work();
    await this.#turns(call);
    return answer;
  }

  async #turns(call: number): Promise<void> {
    for (let i = 0; i < call % 5; i++) await null;
    for (let i = 0; i < call % 3; i++) await new Promise((resolve) => setImmediate(resolve));
  }

  readonly tensors: Tensors<Handle> = {
    upload: (numbers) => {
      const own = numbers.slice();
      numbers.fill(NaN);
      return this.make(own);
    },
    zeros: (length) => this.make(new Float32Array(length)),
    room: (length) => this.make(new Float32Array(length).fill(NaN)),
    copy: (from, start, count, to, at) => HOST_TENSORS.copy(this.of(from), start, count, this.of(to), at),
    read: (tensor) => {
      const numbers = this.of(tensor).slice();
      return this.later(() => numbers);
    },
    free: (tensor) => {
      this.of(tensor);
      this.#numbers.delete(tensor);
    },
  };
}

class AwkwardRows implements TrustingRows<Handle> {
  readonly #memory: AwkwardMemory;
  readonly #rows: LayerRows<Float32Array>;

  constructor(memory: AwkwardMemory, rows: LayerRows<Float32Array>) {
    this.#memory = memory;
    this.#rows = rows;
  }

  get allocatedBytes(): number {
    return this.#rows.allocatedBytes;
  }

  append(keys: Handle, values: Handle, count: number): void {
    this.#rows.append(this.#memory.of(keys), this.#memory.of(values), count);
  }

  async prefillAttention(queries: Handle, count: number, want?: AttentionWants): Promise<AttentionOutputs<Handle>> {
    const numbers = this.#memory.of(queries);
    const { output, ...others } = await this.#memory.later(() => this.#rows.prefillAttention(numbers, count, want));
    return { ...others, output: this.#memory.make(output) };
  }

  async decodeAttention(queries: Handle, count: number, want?: { probabilities?: boolean }) {
    const numbers = this.#memory.of(queries);
    const { output, ...others } = await this.#memory.later(() => this.#rows.decodeAttention(numbers, count, want));
    return { ...others, output: this.#memory.make(output) };
  }

  observe(queries: Handle, window: number, needs: Needs): Promise<Partial<Observation>> {
    const numbers = this.#memory.of(queries);
    return this.#memory.later(() => this.#rows.observe(numbers, window, needs));
  }

  valueNorms(wo: Float32Array, width: number, kind?: NormKind): Promise<Float32Array> {
    return this.#memory.later(() => this.#rows.valueNorms(wo, width, kind));
  }

  compact(kept: readonly Int32Array[]): void {
    this.#rows.compact(kept);
  }

  truncate(lengths: ArrayLike<number>): void {
    this.#rows.truncate(lengths);
  }

  rotateKeys(moves: readonly Int32Array[], rotation: KeyRotation): Promise<void> {
    return this.#memory.later(() => this.#rows.rotateKeys(moves, rotation));
  }

  async clone(): Promise<TrustingRows<Handle>> {
    return new AwkwardRows(this.#memory, await this.#memory.later(() => this.#rows.clone()));
  }

  copyRows(kvHead: number, wanted?: Int32Array): Promise<CopiedRows> {
    return this.#memory.later(() => this.#rows.copyRows(kvHead, wanted));
  }

  free(): void {
    this.#rows.free();
  }
}

/** The plain backend behind handles; it has no product of its own for gates. */
export function createAwkwardBackend(memory: AwkwardMemory): Backend<Handle> {
  const plain = createReferenceBackend();
  return {
    name: "webgpu",
    detail: "the plain backend behind handles, answering later",
    memory: () => plain.memory(),
    tensors: memory.tensors,
    createRows: (shape, reserve, type = "f32") =>
      checkedRows(shape, reserve, type, (checked) => new AwkwardRows(memory, plain.createRows(checked, reserve, type))),
    select: (input) => memory.later(() => plain.select(input)),
    [Symbol.dispose]: () => plain[Symbol.dispose](),
  };
}

/** An engine of this side behind handles. */
function createAwkwardDense(memory: AwkwardMemory, on: Dense<Float32Array>): Dense<Handle> {
  const made = async (work: () => Promise<Float32Array>) => memory.make(await memory.later(work));
  return {
    name: on.name,
    detail: on.detail,
    config: on.config,
    weightBytes: on.weightBytes,
    embed: (ids) => made(() => on.embed(ids)),
    async project(layer, hidden, count, first, want): Promise<Projected<Handle>> {
      const numbers = memory.of(hidden);
      const projected = await memory.later(() => on.project(layer, numbers, count, first, want));
      const { queries, keys, values, unrotated } = projected;
      return {
        queries: memory.make(queries),
        keys: memory.make(keys),
        values: memory.make(values),
        ...(unrotated && { unrotated: memory.make(unrotated) }),
      };
    },
    finish(layer, hidden, attention, count, ids) {
      const [before, attended] = [memory.of(hidden), memory.of(attention)];
      return made(() => on.finish(layer, before, attended, count, ids));
    },
    logits(hidden, count) {
      const numbers = memory.of(hidden);
      return made(() => on.logits(numbers, count));
    },
    choose(hidden) {
      const numbers = memory.of(hidden);
      return memory.later(async () => {
        const logits = await on.logits(numbers, 1), logit = logits.reduce((most, each) => Math.max(most, each));
        return { token: logits.indexOf(logit), logit };
      });
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** The same model on an awkward device, which computes what `model`'s engine and the plain backend do. */
export function onAwkwardDevice(model: Model): Model & { readonly held: AwkwardMemory } {
  const held = new AwkwardMemory();
  const device: Device<Handle> = {
    backend: createAwkwardBackend(held),
    dense: createAwkwardDense(held, new HostDense(engineOf(model.dense))),
  };
  return { ...model, ...device, held };
}
