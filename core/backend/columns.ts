/** Column sums and maxima of the softmax over all queries of a layer, merged over chunks of queries. */
import type { Needs, Observation } from "../policy/policy.ts";

/** What one chunk gave, `[heads, rows so far]` each. */
type ChunkColumns = Pick<Observation, "columnSum" | "columnMax">;

export class ColumnReductions {
  /** What to ask of each chunk's attention. */
  readonly want: { columnSum?: boolean; columnMax?: boolean };
  readonly #heads: number;
  readonly #length: number;
  readonly #sum?: Float64Array;
  readonly #max?: Float32Array;

  constructor(needs: Pick<Needs, "columnSum" | "columnMax">, heads: number, length: number) {
    this.want = { columnSum: needs.columnSum, columnMax: needs.columnMax };
    this.#heads = heads;
    this.#length = length;
    if (needs.columnSum) this.#sum = new Float64Array(heads * length);
    if (needs.columnMax) this.#max = new Float32Array(heads * length);
  }

  /** Adds a chunk that saw `rows` rows. */
  add(chunk: ChunkColumns, rows: number): void {
    for (let h = 0; h < this.#heads; h++) {
      for (let i = 0; i < rows; i++) {
        const to = h * this.#length + i, from = h * rows + i;
        if (this.#sum) this.#sum[to] += chunk.columnSum![from];
        if (this.#max) this.#max[to] = Math.max(this.#max[to], chunk.columnMax![from]);
      }
    }
  }

  /** Of all chunks, `[heads, length]` each. */
  result(): ChunkColumns {
    return { columnSum: this.#sum && Float32Array.from(this.#sum), columnMax: this.#max };
  }
}
