/**
 * What eviction can have cost, per layer and KV head, proved from what is still there.
 *
 * Words: `a[t, i]` is the attention of window query `t` of query head `h` on context entry `i`, a softmax row that sums
 * to 1 over the entries the query sees. `I[j, i]` is its pooled form, the importance that the defensive rule observes:
 * the row's prefix part (positions below N = L − window) average-pooled over positions and scaled back to its own mass;
 * `j` runs over the window queries of all heads of the group. S are the kept entries of the KV head, E the evicted ones.
 *
 * **Importance.** Row `j` loses Σ_{i∈E} I[j, i] ≤ Σ_{i∈E} max_j I[j, i] = `riskSum`, term by term. A convex mix of rows
 * Σ_j λ_j I[j, ·], λ ≥ 0, Σ λ = 1, loses Σ_j λ_j Σ_{i∈E} I[j, i] ≤ Σ_j λ_j · `riskSum` = `riskSum`. So the bound holds for
 * every future query that attends as some mix of the observed ones, pooled as they are.
 *
 * **Evicted mass.** ε_t = Σ_{i∈E} a[t, i], un-pooled, the window's own entries included. The row's log-sum-exp ℓ_t over all
 * its entries gives a[t, i] = exp(q·k_i/√d − ℓ_t), so ε_t = 1 − Σ_{i∈S} exp(q·k_i/√d − ℓ_t) needs kept keys alone.
 *
 * **Output.** With o = Σ a_i v_i over all entries and o' = Σ_{i∈S} a_i v_i / (1 − ε), the softmax over what is kept,
 *
 *     o − o' = Σ_{i∈E} a_i v_i + Σ_{i∈S} a_i v_i − 1/(1−ε) Σ_{i∈S} a_i v_i = Σ_{i∈E} a_i v_i − ε/(1−ε) Σ_{i∈S} a_i v_i.
 *
 * The weights of the first sum add to ε, those of the second to 1 − ε, so by the triangle inequality, for any norm,
 * ‖o − o'‖ ≤ ε · max_E ‖v‖ + ε/(1−ε) · (1−ε) · max_S ‖v‖ = ε · (max_E ‖v‖ + max_S ‖v‖). The map Wo_h is linear, so the same
 * holds for o·Wo_h with ‖v·Wo_h‖₁ in place of ‖v‖; over the query heads of a layer, whose outputs are summed, the bounds
 * add up. Where all a query saw is gone (ε = 1) o' counts as 0, and the bound still holds.
 *
 * **Null logits.** Where a query gives a share to nothing (`AttentionShape.nullLogits`), that share is one of an entry in S
 * whose value is 0, and all of the above holds with it: it is in ℓ, and in what is kept.
 *
 * Rounding: ℓ is float32, half an ulp of which leaves ε an absolute error of 6e−8 · |ℓ|, and kernels that sum in float32
 * about as much again; ε is cut to 0 … 1. Where |ℓ| is beyond {@link LARGEST_LOG_SUM} it tells nothing any more, and ε is
 * NaN. A value that is not finite makes every figure it enters NaN too: NaN certifies nothing.
 */
import { exp } from "../measure/exp.ts";
import type { AttentionShape } from "../shape.ts";

/** Beyond this a float32 log-sum-exp is off by more than 5e−4. Logits of trained models are far below. */
export const LARGEST_LOG_SUM = 1e4;

/** One KV head of one layer. */
export interface HeadCertificate {
  readonly kept: number;
  readonly evicted: number;
  /** Evicted entries of the window itself, whose importance nobody observed; in `evictedMass` they count. */
  readonly unobserved: number;
  /** max_{i∈E} max_j I[j, i], 0 … 1; 0 when nothing is evicted. */
  readonly largestRisk: number;
  /** Σ_{i∈E} max_j I[j, i]: no observed row, and no convex mix of them, loses more. */
  readonly riskSum: number;
  /** ε of every window query, 0 … 1: one array per query head of the group, `[window]`. */
  readonly evictedMass: readonly Float64Array[];
  /** max ‖v‖₂ over the evicted and over the kept entries. */
  readonly valueNorm: NormMaxima;
  /** The same of ‖v·Wo_h‖₁ for each query head of the group; undefined without an output projection. */
  readonly projectedNorm?: readonly NormMaxima[];
}

/** Largest norms; 0 over no entries. */
export interface NormMaxima {
  readonly evicted: number;
  readonly kept: number;
}

/** What eviction can have cost in one layer. */
export interface LayerCertificate {
  readonly layer: number;
  /** Window queries observed. */
  readonly window: number;
  readonly heads: readonly HeadCertificate[];
}

/** What is compared when heads or layers are ranked. */
export interface CertificateSummary {
  /** Largest importance of an evicted entry: pooled attention, 0 to 1. */
  readonly largestRisk: number;
  /** Sum of the importance of all evicted entries. */
  readonly riskSum: number;
  /** Largest ε of a window query. */
  readonly evictedMass: number;
  /** Largest bound on ‖o − o'‖₂ of one query head. */
  readonly outputBound: number;
  /** Largest bound on ‖o·Wo_h − o'·Wo_h‖₁, of one query head for a head, summed over the heads for a layer. */
  readonly projectedBound?: number;
}

/** The window queries and their log-sum-exps over all entries they saw. */
export interface WindowRows {
  readonly shape: AttentionShape;
  readonly length: number;
  readonly window: number;
  /** `[window, heads, headDim]`, after RoPE. */
  readonly queries: Float32Array;
  /** `[heads, window]`. */
  readonly logSumExp: Float32Array;
}

/** What is left of one KV head. */
export interface KeptRows {
  /** `[kept, headDim]`, after RoPE at their true positions. */
  readonly keys: Float32Array;
  /** `[kept]`, ascending. */
  readonly positions: Int32Array;
}

/**
 * ε of every window query, one array per query head of a KV head's group, `[window]`, from kept keys alone. 0 where
 * nothing that the query saw is evicted. O(group · window · kept · headDim).
 */
export function evictedMass(rows: WindowRows, kvHead: number, { keys, positions }: KeptRows): Float64Array[] {
  const { shape: { heads, kvHeads, headDim, nullLogits }, length, window, queries, logSumExp } = rows;
  const group = heads / kvHeads, scale = 1 / Math.sqrt(headDim);
  if (positions.length === length) return Array.from({ length: group }, () => new Float64Array(window));
  const ofQuery = (head: number, t: number) => {
    const query = (t * heads + head) * headDim, last = length - window + t, logSum = logSumExp[head * window + t];
    if (!(Math.abs(logSum) <= LARGEST_LOG_SUM)) return NaN;
    // What goes to nothing is never evicted.
    let kept = nullLogits ? exp(nullLogits[head] - logSum) : 0, seen = 0;
    for (; seen < positions.length && positions[seen] <= last; seen++) {
      let dot = 0;
      for (let j = 0, k = seen * headDim; j < headDim; j++, k++) dot += queries[query + j] * keys[k];
      kept += exp(dot * scale - logSum);
    }
    return seen === last + 1 ? 0 : Math.min(1, Math.max(0, 1 - kept));
  };
  return Array.from({ length: group }, (_, member) => {
    return Float64Array.from({ length: window }, (_, t) => ofQuery(kvHead * group + member, t));
  });
}

/** The figures of one head that are largest over its group and window. */
export function summariseHead({ largestRisk, riskSum, evictedMass, ...norms }: HeadCertificate): CertificateSummary {
  const masses = evictedMass.map(worst);
  const projected = norms.projectedNorm?.map((norm, member) => outputBound(masses[member], norm));
  return {
    largestRisk,
    riskSum,
    evictedMass: worst(masses),
    outputBound: outputBound(worst(masses), norms.valueNorm),
    ...(projected && { projectedBound: worst(projected) }),
  };
}

/** The worst head of each figure; `projectedBound`: of the whole layer's output, for the window query it is largest of. */
export function summariseLayer({ heads, window }: LayerCertificate): CertificateSummary {
  const each = heads.map(summariseHead);
  const worstOf = (figure: (summary: CertificateSummary) => number) => worst(each.map(figure));
  const projected = heads.every(({ projectedNorm }) => projectedNorm) &&
    Float64Array.from({ length: window }, (_, t) => projectedSum(heads, t));
  return {
    largestRisk: worstOf(({ largestRisk }) => largestRisk),
    riskSum: worstOf(({ riskSum }) => riskSum),
    evictedMass: worstOf(({ evictedMass }) => evictedMass),
    outputBound: worstOf(({ outputBound }) => outputBound),
    ...(projected && { projectedBound: worst(projected) }),
  };
}

/** The bound after Wo for window query `t`, over all query heads of the layer. */
function projectedSum(heads: readonly HeadCertificate[], t: number): number {
  let sum = 0;
  for (const { evictedMass, projectedNorm } of heads) {
    evictedMass.forEach((masses, member) => sum += outputBound(masses[t], projectedNorm![member]));
  }
  return sum;
}

/** The mean over all layers and query heads of the largest ε of a window query: what `risk` bounds. */
export function meanLargestMass(layers: readonly LayerCertificate[]): number {
  const masses = layers.flatMap(({ heads }) => heads.flatMap(({ evictedMass }) => evictedMass.map(worst)));
  return masses.reduce((sum, mass) => sum + mass, 0) / masses.length;
}

/** ε · (max_E ‖v‖ + max_S ‖v‖); 0 when ε is 0, whatever the norms are. */
export function outputBound(mass: number, { evicted, kept }: NormMaxima): number {
  return mass === 0 ? 0 : mass * (evicted + kept);
}

/** The largest number, at least 0; NaN when there is one, because what is unknown must not look safe. */
export function worst(values: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < values.length; i++) largest = Math.max(largest, values[i]);
  return largest;
}
