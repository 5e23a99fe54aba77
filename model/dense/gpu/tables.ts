/** Cosines and sines of positions on the device. */
import type { GpuBuffer, GpuDevice } from "../../../gpu/device.ts";
import type { Rope } from "../../config.ts";
import { growthAt, ropeTable } from "../rope.ts";

/** Bytes of tables that are kept: the layers of a chunk, and the chunks of a layer, ask for the same ones. */
const MOST = 4 << 20;

/** Tables for runs of positions; the oldest make room for new ones. */
export class RopeTables implements Disposable {
  readonly #gpu: GpuDevice;
  readonly #ropes: readonly Rope[];
  readonly #held = new Map<string, GpuBuffer>();
  /** The table of one position, of each rope: written anew for each token, so that it is bound as before. */
  readonly #ones = new Map<Rope, { buffer: GpuBuffer; first: number }>();
  #bytes = 0;

  /** `ropes`: those that there are. */
  constructor(gpu: GpuDevice, ropes: readonly Rope[]) {
    this.#gpu = gpu;
    this.#ropes = [...new Set(ropes)];
  }

  /** `[count, rotated + 1]` for positions from `first` on, as `rotate.wgsl` reads it. */
  table(rope: Rope, first: number, count: number): GpuBuffer {
    if (count === 1) return this.#one(rope, first);
    const key = `${this.#ropes.indexOf(rope)} ${first} ${count}`, known = this.#held.get(key);
    if (known) return known;
    const numbers = tableOf(rope, first, count);
    while (this.#bytes > 0 && this.#bytes + numbers.byteLength > MOST) this.#dropOldest();
    const buffer = this.#gpu.own(numbers.byteLength);
    this.#gpu.write(buffer, 0, numbers);
    this.#held.set(key, buffer);
    this.#bytes += buffer.size;
    return buffer;
  }

  [Symbol.dispose](): void {
    while (this.#held.size > 0) this.#dropOldest();
    for (const { buffer } of this.#ones.values()) this.#gpu.destroy(buffer);
    this.#ones.clear();
  }

  #one(rope: Rope, first: number): GpuBuffer {
    const known = this.#ones.get(rope);
    if (known?.first === first) return known.buffer;
    const numbers = tableOf(rope, first, 1), buffer = known?.buffer ?? this.#gpu.own(numbers.byteLength);
    this.#gpu.write(buffer, 0, numbers);
    this.#ones.set(rope, { buffer, first });
    return buffer;
  }

  #dropOldest(): void {
    const [[key, buffer]] = this.#held;
    this.#held.delete(key);
    this.#bytes -= buffer.size;
    this.#gpu.destroy(buffer);
  }
}

function tableOf(rope: Rope, first: number, count: number): Float32Array<ArrayBuffer> {
  const { cos, sin } = ropeTable(rope, first, count), pairs = rope.rotated / 2, width = rope.rotated + 1;
  const all = new Float32Array(count * width);
  for (let t = 0; t < count; t++) {
    all.set(cos.subarray(t * pairs, (t + 1) * pairs), t * width);
    all.set(sin.subarray(t * pairs, (t + 1) * pairs), t * width + pairs);
    all[t * width + rope.rotated] = growthAt(rope, first + t);
  }
  return all;
}
