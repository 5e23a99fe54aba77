/** What attention adds to the logits of a layer's rows after a refit: known on this side, sent when it has changed. */
import { BIAS_BYTES } from "../../core/cache/entry_type.ts";
import type { GpuBuffer, GpuDevice } from "../device.ts";

export class Biases {
  readonly #gpu: GpuDevice;
  /** Of each KV head's first rows; those behind have none. */
  #heads: Float32Array[];
  #buffer: GpuBuffer | undefined;

  constructor(gpu: GpuDevice, kvHeads: number) {
    this.#gpu = gpu;
    this.#heads = Array.from({ length: kvHeads }, () => new Float32Array(0));
  }

  get byteLength(): number {
    return BIAS_BYTES * this.#heads.reduce((sum, { length }) => sum + length, 0);
  }

  /** All heads' biases, one head after the other; four bytes at least. */
  get buffer(): GpuBuffer {
    if (this.#buffer) return this.#buffer;
    this.#buffer = this.#gpu.own(Math.max(4, this.byteLength));
    let at = 0;
    for (const head of this.#heads) {
      this.#gpu.write(this.#buffer, at, head.slice());
      at += head.byteLength;
    }
    return this.#buffer;
  }

  /** Where a head's biases start, and how many there are. */
  of(head: number): [start: number, count: number] {
    const before = this.#heads.slice(0, head).reduce((sum, { length }) => sum + length, 0);
    return [before, this.#heads[head].length];
  }

  /** The biases of rows of a head, of all its `length` or of the `wanted`; `undefined` where it has none. */
  read(head: number, length: number, wanted?: Int32Array): Float32Array | undefined {
    const bias = this.#heads[head];
    if (bias.length === 0) return undefined;
    const rows = wanted ?? Int32Array.from({ length }, (_, i) => i);
    return Float32Array.from(rows, (row) => bias[row] ?? 0);
  }

  set(head: number, bias: Float32Array): void {
    this.#change(this.#heads.with(head, bias.slice()));
  }

  /** Goes with the rows that are kept, ascending. */
  keep(kept: readonly Int32Array[]): void {
    this.#change(
      this.#heads.map((bias, head) =>
        bias.length === 0 ? bias : Float32Array.from(kept[head].filter((row) => row < bias.length), (row) => bias[row])
      ),
    );
  }

  truncate(lengths: ArrayLike<number>): void {
    if (this.#heads.every(({ length }, head) => length <= lengths[head])) return;
    this.#change(this.#heads.map((bias, head) => bias.slice(0, lengths[head])));
  }

  copyFrom(other: Biases): void {
    this.#change(other.#heads.map((bias) => bias.slice()));
  }

  free(): void {
    this.#change(this.#heads.map(() => new Float32Array(0)));
  }

  #change(heads: Float32Array[]): void {
    this.#heads = heads;
    if (this.#buffer) this.#gpu.destroy(this.#buffer);
    this.#buffer = undefined;
  }
}
