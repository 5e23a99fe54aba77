/**
 * Attention of a few tokens that stand behind a context, forwards and backwards: the context's rows are constants, the
 * tokens' own queries, keys and values are not. For soft tokens (`core/policies/judge_q.ts`) on their way through a layer.
 */
import type { ModelShape } from "../shape.ts";

/** A layer's rows of a context. */
export interface ContextRows {
  readonly length: number;
  /** `[kvHeads, length, headDim]`, rotated. */
  readonly keys: Float32Array;
  /** `[kvHeads, length, headDim]`. */
  readonly values: Float32Array;
}

/** The tokens at a layer's attention: `[count, heads or kvHeads, headDim]`, queries and keys rotated. */
export interface SoftRows {
  readonly queries: Float32Array;
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** What the tokens saw. */
export interface SoftAttention {
  /** `[count, heads, headDim]`. */
  readonly output: Float32Array;
  /** `[heads, count, length + count]`; zero where nothing may be seen. */
  readonly probabilities: Float32Array;
  /** Mean over group and tokens of the attention on the context, `[kvHeads, length]`. */
  readonly mean: Float32Array;
}

/** Causal among the tokens; `window`: tokens a layer looks back, itself among them, or Infinity. */
export function softAttention(
  shape: Pick<ModelShape, "heads" | "kvHeads" | "headDim">,
  context: ContextRows,
  tokens: SoftRows,
  window = Infinity,
): SoftAttention {
  const { heads, kvHeads, headDim } = shape, { length } = context, count = tokens.queries.length / heads / headDim;
  const all = length + count, group = heads / kvHeads, scale = 1 / Math.sqrt(headDim);
  const probabilities = new Float32Array(heads * count * all), output = new Float32Array(tokens.queries.length);
  const mean = new Float32Array(kvHeads * length);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / group);
    for (let token = 0; token < count; token++) {
      const query = (token * heads + head) * headDim, row = (head * count + token) * all;
      const first = firstSeen(length + token, window);
      for (let i = first; i <= length + token; i++) {
        const [keys, at] = rowAt(context, tokens, "keys", i, kvHead, shape);
        let sum = 0;
        for (let j = 0; j < headDim; j++) sum += tokens.queries[query + j] * keys[at + j];
        probabilities[row + i] = sum * scale;
      }
      softmax(probabilities, row + first, row + length + token + 1);
      for (let i = first; i <= length + token; i++) {
        const [values, at] = rowAt(context, tokens, "values", i, kvHead, shape), p = probabilities[row + i];
        for (let j = 0; j < headDim; j++) output[query + j] += p * values[at + j];
        if (i < length) mean[kvHead * length + i] += p / (group * count);
      }
    }
  }
  return { output, probabilities, mean };
}

/**
 * Gradients of the tokens' queries, keys and values from those of the output, `[count, heads, headDim]`, and of the mean,
 * `[kvHeads, length]`, where there is one.
 */
export function softAttentionGradient(
  shape: Pick<ModelShape, "heads" | "kvHeads" | "headDim">,
  context: ContextRows,
  tokens: SoftRows,
  { probabilities }: SoftAttention,
  output: Float32Array,
  mean?: Float32Array,
  window = Infinity,
): SoftRows {
  const { heads, kvHeads, headDim } = shape, { length } = context, count = tokens.queries.length / heads / headDim;
  const all = length + count, group = heads / kvHeads, scale = 1 / Math.sqrt(headDim);
  const gradients = {
    queries: new Float32Array(tokens.queries.length),
    keys: new Float32Array(tokens.keys.length),
    values: new Float32Array(tokens.values.length),
  };
  const towards = new Float64Array(all);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / group);
    for (let token = 0; token < count; token++) {
      const query = (token * heads + head) * headDim, row = (head * count + token) * all;
      const first = firstSeen(length + token, window);
      let inner = 0;
      for (let i = first; i <= length + token; i++) {
        const [values, at] = rowAt(context, tokens, "values", i, kvHead, shape);
        let sum = mean && i < length ? mean[kvHead * length + i] / (group * count) : 0;
        for (let j = 0; j < headDim; j++) sum += output[query + j] * values[at + j];
        towards[i] = sum;
        inner += probabilities[row + i] * sum;
      }
      for (let i = first; i <= length + token; i++) {
        const p = probabilities[row + i], logit = p * (towards[i] - inner) * scale;
        const [keys, at] = rowAt(context, tokens, "keys", i, kvHead, shape);
        for (let j = 0; j < headDim; j++) gradients.queries[query + j] += logit * keys[at + j];
        if (i < length) continue;
        for (let j = 0; j < headDim; j++) {
          gradients.keys[at + j] += logit * tokens.queries[query + j];
          gradients.values[at + j] += p * output[query + j];
        }
      }
    }
  }
  return gradients;
}

function firstSeen(position: number, window: number): number {
  return Math.max(0, position - window + 1);
}

/** The array that holds row `i` of a KV head, and where. */
function rowAt(
  context: ContextRows,
  tokens: SoftRows,
  which: "keys" | "values",
  i: number,
  kvHead: number,
  { kvHeads, headDim }: Pick<ModelShape, "kvHeads" | "headDim">,
): readonly [Float32Array, number] {
  if (i < context.length) return [context[which], (kvHead * context.length + i) * headDim];
  return [tokens[which], ((i - context.length) * kvHeads + kvHead) * headDim];
}

function softmax(x: Float32Array, first: number, end: number): void {
  let most = -Infinity, total = 0;
  for (let i = first; i < end; i++) most = Math.max(most, x[i]);
  for (let i = first; i < end; i++) total += x[i] = Math.exp(x[i] - most);
  for (let i = first; i < end; i++) x[i] /= total;
}
