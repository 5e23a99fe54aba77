/**
 * A layer's short convolution, as attention of its kind: what is convolved is in the rows, and what lets it through in the
 * queries. So everything that holds for rows of a window layer holds for it: they are let go of, marked, trimmed, forked
 * and saved.
 *
 * out[t, c] = query[t, c] · Σ_j taps[c, j] · row[t − taps + 1 + j, c]; before the first row there are zeros. Channel `c`
 * of query head `2g` is in the keys of KV head `g`, of head `2g + 1` in its values.
 */
import type { AttentionOutputs, CopiedRows, LayerRows } from "../../core/backend/interface.ts";
import type { Tensor, Tensors } from "../../core/backend/tensor.ts";
import type { AttentionShape } from "../../core/shape.ts";

/** What a step asks of a layer's rows. */
export type StepRows = Pick<LayerRows, "prefillAttention" | "decodeAttention" | "observe">;

/** Rows of a layer that convolves. `taps`: `[width, taps]`, the oldest first. */
export class ConvolvedRows implements StepRows {
  readonly #rows: LayerRows;
  readonly #tensors: Tensors;
  readonly #taps: Float32Array;

  constructor(rows: LayerRows, tensors: Tensors, taps: Float32Array) {
    this.#rows = rows;
    this.#tensors = tensors;
    this.#taps = taps;
  }

  /** Nothing can be wanted beside the output. */
  prefillAttention(queries: Tensor, count: number): Promise<AttentionOutputs> {
    return this.decodeAttention(queries, count);
  }

  async decodeAttention(queries: Tensor, count: number): Promise<{ readonly output: Tensor }> {
    if (this.#rows.convolve) return await this.#rows.convolve(queries, count, this.#taps);
    const { shape } = this.#rows, taps = this.#taps.length / (shape.heads * shape.headDim);
    const length = this.#rows.length(0), first = Math.max(0, length - count - taps + 1);
    const last = Int32Array.from({ length: length - first }, (_, i) => first + i);
    const copies = Array.from({ length: shape.kvHeads }, (_, head) => this.#rows.copyRows(head, last));
    const [heads, gates] = await Promise.all([Promise.all(copies), this.#tensors.read(queries)]);
    return { output: this.#tensors.upload(convolved(shape, heads, this.#taps, gates)) };
  }

  observe(): Promise<never> {
    return Promise.reject(new RangeError("Cannot observe a layer that convolves"));
  }
}

/** `heads`: the last rows of each KV head; `gates`: of the last of them, `[count, heads, headDim]`. */
function convolved(
  { heads: queryHeads, headDim }: AttentionShape,
  heads: readonly CopiedRows[],
  taps: Float32Array,
  gates: Float32Array,
): Float32Array<ArrayBuffer> {
  const width = queryHeads * headDim, each = taps.length / width, count = gates.length / width;
  const output = new Float32Array(gates.length);
  heads.forEach(({ keys, values }, g) => {
    const behind = keys.length / headDim - count;
    [keys, values].forEach((rows, part) => {
      const first = (2 * g + part) * headDim;
      for (let t = 0; t < count; t++) {
        for (let d = 0; d < headDim; d++) {
          const channel = first + d;
          let sum = 0;
          for (let j = Math.max(0, each - 1 - behind - t); j < each; j++) {
            sum += taps[channel * each + j] * rows[(behind + t - each + 1 + j) * headDim + d];
          }
          output[t * width + channel] = sum * gates[t * width + channel];
        }
      }
    });
  });
  return output;
}
