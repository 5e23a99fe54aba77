/**
 * Keeps certificates computable while entries leave: per KV head the running maxima and sums over what is gone, and
 * three numbers for each entry that is still there. Entries may leave at any time, in any number of steps: with the
 * streaming selection over layers (`joint.ts`) an entry of layer 0 may go when the last layer comes.
 *
 * Held per layer: window queries and log-sum-exps (heads · window · (headDim + 1) floats, whatever the context), and per
 * surviving entry its position, importance, ‖v‖₂ and one ‖v·Wo_h‖₁ per query head of the group.
 */
import { rowNorms } from "../measure/row_norms.ts";
import {
  evictedMass,
  type HeadCertificate,
  type KeptRows,
  type LayerCertificate,
  type NormMaxima,
  type WindowRows,
  worst,
} from "./certificate.ts";

/** A layer as it is before anything of it is evicted. */
export interface LayerEvidence extends WindowRows {
  /** max_j I[j, i]: the reduction `pooledMax`, `[kvHeads, N]`. */
  readonly importance: Float32Array;
  /** One array per KV head, `[L, headDim]`; read, not kept. */
  readonly values: readonly Float32Array[];
  /** ‖v·Wo_h‖₁, `[heads, L]`; without it there is no bound after Wo. */
  readonly projectedNorms?: Float32Array;
}

/** Follows what leaves each layer, so that a certificate can be given at any time. */
export class CertificateTracker {
  readonly #layers = new Map<number, { rows: WindowRows; heads: HeadTracker[] }>();

  /**
   * Begins a layer; each once, in any order.
   * @throws RangeError when a shape does not fit.
   */
  add(layer: number, evidence: LayerEvidence): void {
    checkEvidence(evidence);
    if (this.#layers.has(layer)) throw new RangeError(`Cannot add layer ${layer} to the certificates twice`);
    const { shape, length, window, queries, logSumExp } = evidence;
    const heads = Array.from({ length: shape.kvHeads }, (_, head) => new HeadTracker(evidence, head));
    this.#layers.set(layer, { rows: { shape, length, window, queries, logSumExp }, heads });
  }

  /** Follows an eviction: the rows of each head that stay, ascending, as indices into those there before. */
  compact(layer: number, kept: readonly Int32Array[]): void {
    this.#layer(layer).heads.forEach((head, h) => head.keep(kept[h]));
  }

  /** Positions still there, per KV head, ascending. */
  positions(layer: number): Int32Array[] {
    return this.#layer(layer).heads.map(({ positions }) => positions);
  }

  /**
   * The layer's certificate. `keys`: what is left, one array per KV head, `[kept, headDim]`, at true positions.
   * @throws RangeError when the keys are not those of the entries that stayed.
   */
  certificate(layer: number, keys: readonly Float32Array[]): LayerCertificate {
    const { rows, heads } = this.#layer(layer);
    const { window, shape: { headDim } } = rows;
    if (keys.length !== heads.length || keys.some((head, h) => head.length !== heads[h].positions.length * headDim)) {
      const wanted = heads.map(({ positions }) => positions.length);
      throw new RangeError(`Keys of layer ${layer} don't fit the kept entries: want ${wanted} rows × ${headDim}`);
    }
    return {
      layer,
      window,
      heads: heads.map((head, h) => head.certificate(rows, h, { keys: keys[h], positions: head.positions })),
    };
  }

  /** Bytes held. */
  get byteLength(): number {
    let bytes = 0;
    for (const { rows, heads } of this.#layers.values()) {
      bytes += rows.queries.byteLength + rows.logSumExp.byteLength;
      for (const head of heads) bytes += head.byteLength;
    }
    return bytes;
  }

  #layer(layer: number) {
    const found = this.#layers.get(layer);
    if (!found) throw new RangeError(`The certificates know no layer ${layer}`);
    return found;
  }
}

/** One KV head: what is there, and the worst of what is gone. */
class HeadTracker {
  readonly #length: number;
  readonly #prefix: number;
  positions: Int32Array;
  /** `[kept]`; 0 for the window's own entries. */
  #importance: Float32Array;
  /** ‖v‖₂, `[kept]`. */
  #norms: Float64Array;
  /** ‖v·Wo_h‖₁ per query head of the group, `[kept]` each. */
  #projected?: Float32Array[];
  #largestRisk = 0;
  #riskSum = 0;
  #unobserved = 0;
  #evictedNorm = 0;
  readonly #evictedProjected: number[];

  constructor({ shape, length, window, importance, values, projectedNorms }: LayerEvidence, kvHead: number) {
    const group = shape.heads / shape.kvHeads;
    this.#length = length;
    this.#prefix = length - window;
    this.positions = Int32Array.from({ length }, (_, i) => i);
    this.#importance = new Float32Array(length);
    this.#importance.set(importance.subarray(kvHead * this.#prefix, (kvHead + 1) * this.#prefix));
    this.#norms = rowNorms(values[kvHead], shape.headDim);
    this.#projected = projectedNorms && Array.from({ length: group }, (_, member) => {
      const start = (kvHead * group + member) * length;
      return projectedNorms.slice(start, start + length);
    });
    this.#evictedProjected = new Array(group).fill(0);
  }

  get byteLength(): number {
    const each = (this.#projected ?? []).reduce((sum, { byteLength }) => sum + byteLength, 0);
    return this.positions.byteLength + this.#importance.byteLength + this.#norms.byteLength + each;
  }

  keep(rows: Int32Array): void {
    // Both lists ascend, so one pass tells who stays and who goes.
    let next = 0;
    for (let i = 0; i < this.positions.length; i++) {
      if (rows[next] === i) next++;
      else this.#evict(i);
    }
    if (next !== rows.length) {
      throw new RangeError(`Kept rows ${rows} are not ascending below ${this.positions.length}`);
    }
    // What is remembered of an entry moves up with it.
    this.positions = Int32Array.from(rows, (row) => this.positions[row]);
    this.#importance = Float32Array.from(rows, (row) => this.#importance[row]);
    this.#norms = Float64Array.from(rows, (row) => this.#norms[row]);
    this.#projected = this.#projected?.map((norms) => Float32Array.from(rows, (row) => norms[row]));
  }

  /** Math.max passes NaN on, as `worst` does. */
  #evict(i: number): void {
    // Nothing was measured of the window's own entries.
    if (this.positions[i] >= this.#prefix) this.#unobserved++;
    this.#largestRisk = Math.max(this.#largestRisk, this.#importance[i]);
    this.#riskSum += this.#importance[i];
    // Bounds need the largest value that left, before the output projection and after it per query head.
    this.#evictedNorm = Math.max(this.#evictedNorm, this.#norms[i]);
    this.#projected?.forEach((norms, member) => {
      this.#evictedProjected[member] = Math.max(this.#evictedProjected[member], norms[i]);
    });
  }

  certificate(rows: WindowRows, kvHead: number, kept: KeptRows): HeadCertificate {
    const maxima = (evicted: number, norms: ArrayLike<number>): NormMaxima => ({ evicted, kept: worst(norms) });
    return {
      kept: this.positions.length,
      evicted: this.#length - this.positions.length,
      unobserved: this.#unobserved,
      largestRisk: this.#largestRisk,
      riskSum: this.#riskSum,
      evictedMass: evictedMass(rows, kvHead, kept),
      valueNorm: maxima(this.#evictedNorm, this.#norms),
      projectedNorm: this.#projected?.map((norms, member) => maxima(this.#evictedProjected[member], norms)),
    };
  }
}

function checkEvidence(
  { shape, length, window, queries, logSumExp, importance, values, projectedNorms }: LayerEvidence,
) {
  const { heads, kvHeads, headDim } = shape;
  const wanted: [string, ArrayLike<unknown> | undefined, number][] = [
    ["queries", queries, window * heads * headDim],
    ["log-sum-exps", logSumExp, heads * window],
    ["importances", importance, kvHeads * (length - window)],
    ["projected norms", projectedNorms, heads * length],
    ["heads of values", values, kvHeads],
    ...values.map((head): [string, Float32Array, number] => ["values", head, length * headDim]),
  ];
  for (const [name, array, size] of wanted) {
    if (array && array.length !== size) throw new RangeError(`Evidence has ${array.length} ${name}: want ${size}`);
  }
}
