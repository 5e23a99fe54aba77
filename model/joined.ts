/**
 * What is observed of rows that several layers look at (`ModelShape.sources`): the queries of all of them count, as those of
 * one layer with so many more query heads. Of each group, the layer's own heads come first, then its readers' in order.
 */
import type { Observation } from "../core/policy/policy.ts";

/** Numbers of each KV head in which query heads are one already: means stay means. */
const MEANS = ["mean", "pooledMean", "variance", "valueNorms", "dropErrors"] as const;
/** Of each query head. */
const BY_HEAD = [
  ...["entropy", "mass", "logSumExp", "columnSum", "columnMax"] as const,
  ...["queryMean", "queryCovariance", "pairMean", "pairRest"] as const,
] as const;

/** One observation of several over the same rows, the first that of the layer whose rows they are. */
export function joinObservations([own, ...readers]: readonly Observation[]): Observation {
  if (readers.length === 0) return own;
  const all = [own, ...readers], { shape } = own;
  const of = (name: keyof Observation) => all.map((each) => each[name]).filter((part) => part instanceof Float32Array);
  const joined = <Name extends keyof Observation>(
    names: readonly Name[],
    join: (parts: Float32Array[]) => Float32Array,
  ) => Object.fromEntries(names.filter((name) => own[name] !== undefined).map((name) => [name, join(of(name))]));
  return {
    ...own,
    shape: { ...shape, heads: shape.heads * all.length },
    ...joined(MEANS, meanOf),
    ...joined(["pooledMax"], largestOf),
    ...joined(BY_HEAD, (parts) => joinHeads(parts, shape.kvHeads)),
  };
}

/** `[heads, …]` of each layer as one, groups of a KV head side by side. */
export function joinHeads(parts: readonly Float32Array[], kvHeads: number): Float32Array {
  const each = parts[0].length / kvHeads, all = new Float32Array(each * kvHeads * parts.length);
  for (let head = 0, at = 0; head < kvHeads; head++) {
    for (const part of parts) {
      all.set(part.subarray(head * each, (head + 1) * each), at);
      at += each;
    }
  }
  return all;
}

/** Queries of each layer, `[window, heads, headDim]`, as those of one. */
export function joinQueries(parts: readonly Float32Array[], window: number, kvHeads: number): Float32Array {
  if (parts.length === 1) return parts[0];
  const each = parts[0].length / window, all = new Float32Array(each * window * parts.length);
  for (let t = 0; t < window; t++) {
    const rows = parts.map((part) => part.subarray(t * each, (t + 1) * each));
    all.set(joinHeads(rows, kvHeads), t * each * parts.length);
  }
  return all;
}

/** Each query head's row, by layer, as one list: groups of a KV head side by side. */
export function joinRows<T>(parts: readonly (readonly T[])[], kvHeads: number): T[] {
  const each = parts[0].length / kvHeads;
  return Array.from({ length: kvHeads }, (_, head) => head)
    .flatMap((head) => parts.flatMap((part) => part.slice(head * each, (head + 1) * each)));
}

function meanOf(parts: readonly Float32Array[]): Float32Array {
  return parts[0].map((_, i) => parts.reduce((sum, part) => sum + part[i], 0) / parts.length);
}

function largestOf(parts: readonly Float32Array[]): Float32Array {
  return parts[0].map((_, i) => parts.reduce((most, part) => Math.max(most, part[i]), -Infinity));
}
