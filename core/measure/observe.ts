/**
 * What the last queries of a layer attend to, reduced as a policy asks. Sums are taken in doubles and given as
 * float32; one row of attention is held at a time. Works on raw arrays: no model, no backend.
 */
import { softmaxRow } from "./attention.ts";
import { ln } from "./exp.ts";
import { poolRow } from "./pool.ts";
import type { Needs, Observation, Reduction } from "../policy/policy.ts";
import { type AttentionShape, firstSeen } from "../shape.ts";

/** The queries of the window and the keys of the whole context, after RoPE. */
export interface WindowInput {
  readonly shape: AttentionShape;
  /** `[window, heads, headDim]`: the last `window` queries. */
  readonly queries: Float32Array;
  readonly window: number;
  /** One array per KV head, `[length, headDim]`. */
  readonly keys: readonly Float32Array[];
  readonly length: number;
  /** What is added to the logits of each KV head's first rows. */
  readonly bias?: readonly Float32Array[];
}

/** The fields of {@link Observation} that come from the window's attention. */
export type WindowObservation = Pick<Observation, Reduction>;

/** Keeps the entropy's logarithm finite at 0, as CAKE's published code does. */
const ENTROPY_EPSILON = 1e-10;

/**
 * Softmax rows of the last `window` queries over their causal keys (row t sees keys up to length − window + t), reduced
 * as `needs.window` asks; shapes and meanings at {@link Reduction}. O(heads · window · length · headDim).
 * @throws RangeError when a shape or the kernel does not fit.
 */
export function observeWindow(input: WindowInput, needs: Pick<Needs, "window" | "kernel">): WindowObservation {
  checkWindow(input, needs.kernel ?? 5);
  const { shape, queries, window, keys, length, bias } = input, { heads, kvHeads, headDim } = shape;
  const sums = new WindowSums(input, needs);
  const row = new Float64Array(length);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / (heads / kvHeads));
    for (let t = 0; t < window; t++) {
      const query = { vector: queries, offset: (t * heads + head) * headDim };
      const visible = length - window + t + 1, first = firstSeen(shape, visible);
      const nothing = shape.nullLogits?.[head];
      const { maximum, sum } = softmaxRow(query, keys[kvHead], headDim, visible, row, first, bias?.[kvHead], nothing);
      sums.addRow(head, t, row, maximum + ln(sum));
    }
  }
  return sums.result();
}

function checkWindow({ shape, queries, window, keys, length }: WindowInput, kernel: number): void {
  const { heads, kvHeads, headDim } = shape;
  if (!Number.isInteger(heads / kvHeads)) throw new RangeError(`${heads} heads don't divide over ${kvHeads} KV heads`);
  if (!Number.isInteger(window) || window < 1 || window > length) {
    throw new RangeError(`Cannot observe a window of ${window} queries over ${length} keys`);
  }
  if (queries.length !== window * heads * headDim) {
    throw new RangeError(`Window queries have ${queries.length} floats: want ${window} × ${heads} × ${headDim}`);
  }
  if (keys.length !== kvHeads || keys.some((head) => head.length !== length * headDim)) {
    throw new RangeError(`Keys don't fit ${kvHeads} heads of ${length} × ${headDim}`);
  }
  if (!Number.isInteger(kernel) || kernel < 1 || kernel % 2 === 0) {
    throw new RangeError(`Pooling kernel ${kernel}: want an odd integer ≥ 1`);
  }
}

/** Running reductions; rows must come head by head, and within a head query by query. */
class WindowSums {
  readonly #prefix: number;
  readonly #window: number;
  readonly #kernel: number;
  readonly #group: number;
  readonly #mean?: Float64Array;
  readonly #pooledMean?: Float64Array;
  readonly #pooledMax?: Float32Array;
  readonly #variance?: Float64Array;
  readonly #entropy?: Float32Array;
  readonly #mass?: Float32Array;
  readonly #logSumExp?: Float32Array;
  readonly #pooled: Float64Array;
  /** Welford's running mean and squared deviation of each column of the current query head. */
  readonly #running: { mean: Float64Array; squares: Float64Array };

  constructor({ shape: { heads, kvHeads }, window, length }: WindowInput, { window: wanted, kernel }: Needs) {
    const wants = (reduction: Reduction) => wanted?.includes(reduction) ?? false;
    const prefix = length - window;
    this.#prefix = prefix;
    this.#window = window;
    this.#kernel = kernel ?? 5;
    this.#group = heads / kvHeads;
    if (wants("mean")) this.#mean = new Float64Array(kvHeads * prefix);
    if (wants("pooledMean")) this.#pooledMean = new Float64Array(kvHeads * prefix);
    if (wants("pooledMax")) this.#pooledMax = new Float32Array(kvHeads * prefix);
    if (wants("variance")) this.#variance = new Float64Array(kvHeads * prefix);
    if (wants("entropy")) this.#entropy = new Float32Array(heads * window);
    if (wants("mass")) this.#mass = new Float32Array(heads * window);
    if (wants("logSumExp")) this.#logSumExp = new Float32Array(heads * window);
    this.#pooled = new Float64Array(prefix);
    this.#running = { mean: new Float64Array(prefix), squares: new Float64Array(prefix) };
  }

  addRow(head: number, t: number, row: Float64Array, logSumExp: number): void {
    const at = head * this.#window + t;
    const first = Math.floor(head / this.#group) * this.#prefix;
    let mass = 0;
    for (let i = 0; i < this.#prefix; i++) mass += row[i];
    if (this.#mass) this.#mass[at] = mass;
    if (this.#logSumExp) this.#logSumExp[at] = logSumExp;
    if (this.#entropy) this.#entropy[at] = this.#rowEntropy(row);
    if (this.#mean) { for (let i = 0; i < this.#prefix; i++) this.#mean[first + i] += row[i]; }
    if (this.#variance) this.#addVariance(this.#variance, first, t, row);
    if (this.#pooledMean || this.#pooledMax) this.#addPooled(first, row, mass);
  }

  #rowEntropy(row: Float64Array): number {
    let entropy = 0;
    for (let i = 0; i < this.#prefix; i++) entropy -= row[i] * ln(row[i] + ENTROPY_EPSILON);
    return entropy;
  }

  #addVariance(variance: Float64Array, first: number, t: number, row: Float64Array): void {
    const { mean, squares } = this.#running;
    if (t === 0) {
      mean.fill(0);
      squares.fill(0);
    }
    for (let i = 0; i < this.#prefix; i++) {
      const off = row[i] - mean[i];
      mean[i] += off / (t + 1);
      squares[i] += off * (row[i] - mean[i]);
    }
    if (t !== this.#window - 1 || t === 0) return; // one query has no variance: stays 0
    for (let i = 0; i < this.#prefix; i++) variance[first + i] += squares[i] / t;
  }

  /** Pools the row and scales it back to its own mass; a row without mass (0/0 in the published code) stays zero. */
  #addPooled(first: number, row: Float64Array, mass: number): void {
    poolRow(row, this.#pooled, this.#kernel);
    let sum = 0;
    for (let i = 0; i < this.#prefix; i++) sum += this.#pooled[i];
    const scale = sum === 0 ? 0 : mass / sum;
    for (let i = 0; i < this.#prefix; i++) {
      const importance = this.#pooled[i] * scale;
      if (this.#pooledMean) this.#pooledMean[first + i] += importance;
      // Not `>` alone: a NaN must come through, not vanish.
      if (this.#pooledMax && !(importance <= this.#pooledMax[first + i])) this.#pooledMax[first + i] = importance;
    }
  }

  result(): WindowObservation {
    const rows = this.#group * this.#window;
    return {
      ...(this.#mean && { mean: divided(this.#mean, rows) }),
      ...(this.#pooledMean && { pooledMean: divided(this.#pooledMean, rows) }),
      ...(this.#pooledMax && { pooledMax: this.#pooledMax }),
      ...(this.#variance && { variance: divided(this.#variance, this.#group) }),
      ...(this.#entropy && { entropy: this.#entropy }),
      ...(this.#mass && { mass: this.#mass }),
      ...(this.#logSumExp && { logSumExp: this.#logSumExp }),
    };
  }
}

function divided(sums: Float64Array, by: number): Float32Array {
  return Float32Array.from(sums, (sum) => sum / by);
}
