/** Kept sets of many budgets at once. */
import type { Budget } from "../policy/policy.ts";

/** Kept sets of at most 32 candidates, one bit per entry and candidate. */
export class KeptSets {
  readonly #length: number;
  readonly #kvHeads: number;
  /** `[kvHeads, length]` per layer. */
  readonly #bits: Uint32Array[];

  constructor({ length, model: { layers, kvHeads } }: Budget) {
    this.#length = length;
    this.#kvHeads = kvHeads;
    this.#bits = Array.from({ length: layers }, () => new Uint32Array(kvHeads * length));
  }

  get byteLength(): number {
    return this.#bits.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  add(candidate: number, kept: readonly (readonly Int32Array[])[]): void {
    kept.forEach((heads, layer) =>
      heads.forEach((head, h) => {
        for (const i of head) this.#bits[layer][h * this.#length + i] |= 1 << candidate;
      })
    );
  }

  of(candidate: number, layer: number): Int32Array[] {
    const positions = Int32Array.from({ length: this.#length }, (_, i) => i);
    return Array.from({ length: this.#kvHeads }, (_, head) => {
      return positions.filter((i) => this.#bits[layer][head * this.#length + i] >>> candidate & 1);
    });
  }
}
