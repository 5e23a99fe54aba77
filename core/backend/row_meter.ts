/** What the rows of a backend without memory of its own take. */
import type { BackendMemory } from "./interface.ts";

/** Counts the bytes of all rows; old and new place of a move count together, as they exist together. */
export class RowMeter {
  #bytes = 0;
  #high = 0;

  change(bytes: number): void {
    this.#bytes += bytes;
    this.#high = Math.max(this.#high, this.#bytes);
  }

  memory(): BackendMemory {
    return { allocatedBytes: this.#bytes, highWaterBytes: this.#high, wasmBytes: 0 };
  }
}
