/**
 * The queries that a refit goes by (`core/refit/refit.ts`): some of those that repeat the context, or pieces of it, else
 * some of the context's own, moved behind its end. Each is asked over all rows of its layer, and what it got is kept until
 * the layer's entries are final.
 *
 * Memory: `tokens` queries and as many outputs for each layer that waits.
 */
import { attendUnmasked } from "../../core/backend/unmasked.ts";
import type { LayerRows } from "../../core/backend/interface.ts";
import type { Tensor, Tensors } from "../../core/backend/tensor.ts";
import { exp } from "../../core/measure/exp.ts";
import type { HeadReferences } from "../../core/refit/refit.ts";
import type { AttentionShape } from "../../core/shape.ts";

/** References of a layer, a number for each query head of each token. */
export interface LayerReferences {
  readonly tokens: number;
  /** `[tokens, heads, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** `[tokens, heads, headDim]`, over all rows. */
  readonly outputs: Float32Array;
  /** `[tokens, heads]`. */
  readonly logSumExp: Float32Array;
}

/** One query in `every` of a run of `total` tokens that come chunk by chunk; the last one's always. */
export class SampledQueries implements Disposable {
  readonly count: number;
  readonly #tensors: Tensors;
  readonly #row: number;
  readonly #total: number;
  readonly #every: number;
  #queries: Tensor;

  constructor(tensors: Tensors, { heads, headDim }: AttentionShape, total: number, every: number) {
    this.#tensors = tensors;
    this.#row = heads * headDim;
    this.#total = total;
    this.#every = every;
    this.count = Math.ceil(total / every);
    this.#queries = tensors.zeros(this.count * this.#row);
  }

  /** `[count, heads, headDim]`, in the order of the tokens; still this object's. */
  get queries(): Tensor {
    return this.#queries;
  }

  /** The token that the `i`-th query is of. */
  token(i: number): number {
    return this.#total - 1 - (this.count - 1 - i) * this.#every;
  }

  /** Takes what is wanted of a chunk's queries, `[count, heads, headDim]`, tokens from `first` on. */
  add(queries: Tensor, first: number, count: number): void {
    for (let t = 0; t < count; t++) {
      const behind = this.#total - 1 - first - t;
      if (behind % this.#every !== 0) continue;
      const place = this.count - 1 - behind / this.#every;
      this.#tensors.copy(queries, t * this.#row, this.#row, this.#queries, place * this.#row);
    }
  }

  /** Puts others in their place, made of a copy of their numbers. */
  async change(change: (numbers: Float32Array) => void): Promise<void> {
    const numbers = (await this.#tensors.read(this.#queries)).slice();
    change(numbers);
    const changed = this.#tensors.upload(numbers);
    this.#tensors.free(this.#queries);
    this.#queries = changed;
  }

  [Symbol.dispose](): void {
    this.#tensors.free(this.#queries);
  }
}

/** What the queries get from all rows of the layer, of which every head has the same number. */
export async function referencesOf(
  tensors: Tensors,
  rows: LayerRows,
  { queries, count: tokens }: Pick<SampledQueries, "queries" | "count">,
): Promise<LayerReferences> {
  const { output, logSumExp } = await attendUnmasked(tensors, rows, queries, tokens, { logSumExp: true });
  try {
    const [asked, outputs] = [(await tensors.read(queries)).slice(), (await tensors.read(output)).slice()];
    return { tokens, queries: asked, outputs, logSumExp: logSumExp! };
  } finally {
    tensors.free(output);
  }
}

/** Those of one KV head: all query heads of its group. */
export function ofKvHead(references: LayerReferences, shape: AttentionShape, kvHead: number): HeadReferences {
  const { heads, kvHeads, headDim, nullLogits } = shape, group = heads / kvHeads, { tokens } = references;
  const queries = new Float32Array(tokens * group * headDim), outputs = new Float32Array(queries.length);
  const logSumExp = new Float32Array(tokens * group);
  for (let t = 0; t < tokens; t++) {
    const from = t * heads + kvHead * group, to = t * group;
    queries.set(references.queries.subarray(from * headDim, (from + group) * headDim), to * headDim);
    outputs.set(references.outputs.subarray(from * headDim, (from + group) * headDim), to * headDim);
    logSumExp.set(references.logSumExp.subarray(from, from + group), to);
  }
  if (!nullLogits) return { queries, outputs, logSumExp };
  const nothing = Float64Array.from(logSumExp, (sum, i) => exp(nullLogits[kvHead * group + i % group] - sum));
  return { queries, outputs, logSumExp, nothing };
}

/** Bytes of a layer's references. */
export function referenceBytes({ queries, outputs, logSumExp }: LayerReferences): number {
  return queries.byteLength + outputs.byteLength + logSumExp.byteLength;
}
