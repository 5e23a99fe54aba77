/**
 * Eviction on dumps: queries, keys, values and output projections of any model, as arrays. No model, no backend.
 */
import { type Keep, resolveBudget } from "../select/budget.ts";
import { columnReductions } from "../measure/attention_columns.ts";
import { dropErrors } from "../measure/drop_errors.ts";
import { movedMaxima } from "../measure/moved.ts";
import { observeWindow } from "../measure/observe.ts";
import type { Budget, Needs, NormKind, Observation, Policy, QueryStatisticsNeed } from "../policy/policy.ts";
import { refuseStages } from "../policy/stages.ts";
import {
  type PairStatisticsResult,
  queriesBeforeRotation,
  queriesToCome,
  QueryStatistics,
  type QueryStatisticsResult,
} from "../measure/query_statistics.ts";
import { resolvePolicy } from "../policy/registry.ts";
import type { KeyRotation } from "../measure/rotation.ts";
import { selectAll } from "../select/select_layers.ts";
import type { AttentionShape } from "../shape.ts";
import { valueNorms } from "../measure/value_norms.ts";

/** One layer of a dump. Keys and queries are after RoPE. What a policy does not look at may be empty. */
export interface LayerDump {
  /** `[heads, queryRows, headDim]`: the last `queryRows` queries; at least the window. */
  readonly queries: Float32Array;
  readonly queryRows: number;
  /** `[kvHeads, L, headDim]`. */
  readonly keys: Float32Array;
  /** `[kvHeads, L, headDim]`. */
  readonly values: Float32Array;
  /** Output projection `[width, heads · headDim]`, y = x·woᵀ; only for policies that weigh values. */
  readonly wo?: Float32Array;
  /** `[kvHeads, L]`, each only for policies that need it: what no dump of one prefill can tell. */
  readonly reconstruction?: Float32Array;
  readonly gate?: Float32Array;
  readonly selfGate?: Float32Array;
  readonly softTokens?: Float32Array;
  /** How the model turned queries and keys; only for policies that need queries before RoPE. */
  readonly rotation?: KeyRotation;
}

/** What was decided of a dump, and by what. */
export interface DumpEviction {
  readonly policy: Policy;
  readonly budget: Budget;
  /** Kept positions, ascending: `kept[layer][kvHead]`. */
  readonly kept: Int32Array[][];
  /** Scores `[kvHeads, L]` per layer, as the selector saw them. */
  readonly scores: Float32Array[];
}

/**
 * What `policy` (its text, or resolved) keeps of a context of which every layer was dumped.
 *
 * ```ts
 * const { kept } = evictDump("layer-defensive", { fraction: 0.2 }, shape, layers);
 * ```
 * @throws PalisadeError for a bad policy or budget; RangeError when a shape does not fit or queries are missing.
 */
export function evictDump(
  policy: string | Policy,
  keep: Keep,
  shape: AttentionShape,
  layers: readonly LayerDump[],
): DumpEviction {
  const resolved = typeof policy === "string" ? resolvePolicy(policy) : policy;
  refuseStages(resolved);
  const length = (layers[0]?.keys.length ?? 0) / (shape.kvHeads * shape.headDim);
  const budget = resolveBudget(resolved, keep, length, { ...shape, layers: layers.length });
  const layerScores = layers.map((dump, layer) =>
    resolved.score(observeDump(dump, layer, budget, resolved.needs), budget)
  );
  const kept = selectAll(resolved, budget, layerScores);
  return { policy: resolved, budget, kept, scores: layerScores.map(({ scores }) => scores) };
}

/**
 * Measures one layer of a dump as `needs` asks.
 * @throws RangeError when a shape does not fit, or what is needed is not in the dump.
 */
export function observeDump(dump: LayerDump, layer: number, budget: Budget, needs: Needs): Observation {
  const { model: shape, length, window } = budget;
  const keys = () => splitHeads(dump.keys, shape.kvHeads, length * shape.headDim, "keys");
  const queries = needs.window && windowQueries(dump, shape, window);
  return {
    layer,
    shape,
    length,
    window,
    ...(queries && observeWindow({ shape, queries, window, keys: keys(), length }, needs)),
    ...(needs.dropErrors && queries &&
      {
        dropErrors: dropErrors({
          shape,
          queries,
          window,
          keys: keys(),
          values: valueHeads(dump, shape, length),
          length,
        }),
      }),
    ...(needs.valueNorms &&
      { valueNorms: dumpNorms(valueHeads(dump, shape, length), dump.wo, shape, needs.valueNorms) }),
    ...(needs.reconstruction && { reconstruction: given(dump.reconstruction, budget, "reconstruction scores") }),
    ...(needs.gate && { gate: given(dump.gate, budget, "gate scores") }),
    ...(needs.selfGate && { selfGate: given(dump.selfGate, budget, "self-gate scores") }),
    ...(needs.softTokens && { softTokens: given(dump.softTokens, budget, "soft token scores") }),
    ...(needs.moved && { moved: movedOf(dump, keys(), budget, needs.moved.every) }),
    ...columnsOf(dump, keys, budget, needs),
    ...queryStatistics(dump, budget, needs),
    ...(needs.rows && { keys: dump.keys, values: whole(dump, shape, length) }),
  };
}

/** `[kvHeads, L, headDim]`. */
function whole(dump: LayerDump, shape: AttentionShape, length: number): Float32Array {
  valueHeads(dump, shape, length);
  return dump.values;
}

/** The values, one view per KV head. */
export function valueHeads({ values }: LayerDump, { kvHeads, headDim }: AttentionShape, length: number) {
  return splitHeads(values, kvHeads, length * headDim, "values");
}

function given(scores: Float32Array | undefined, { model, length }: Budget, name: string): Float32Array {
  if (scores?.length === model.kvHeads * length) return scores;
  throw new RangeError(`Dump has ${scores?.length ?? 0} ${name}: want ${model.kvHeads} heads × ${length}`);
}

function movedOf(dump: LayerDump, keys: readonly Float32Array[], { model: shape, length }: Budget, every: number) {
  const { rotation } = dump;
  if (!rotation) throw new RangeError("Dump has no rotation, which moved queries need");
  return movedMaxima({ shape, queries: allQueries(dump, shape, length), keys, length, rotation }, every);
}

function columnsOf(
  dump: LayerDump,
  keys: () => readonly Float32Array[],
  { model: shape, length }: Budget,
  { columnSum, columnMax }: Needs,
): Pick<Observation, "columnSum" | "columnMax"> {
  if (!columnSum && !columnMax) return {};
  const measured = columnReductions({ shape, queries: allQueries(dump, shape, length), keys: keys(), length });
  return { ...(columnSum && { columnSum: measured.columnSum }), ...(columnMax && { columnMax: measured.columnMax }) };
}

function queryStatistics(
  dump: LayerDump,
  { model: shape, length }: Budget,
  { queryStatistics, pairStatistics }: Needs,
): Partial<QueryStatisticsResult & PairStatisticsResult> {
  const statistics = (need?: QueryStatisticsNeed) => {
    if (!need) return {};
    const { rotation } = dump;
    if (!rotation) throw new RangeError("Dump has no rotation: the policy needs queries before RoPE");
    if (need.calibrated) throw new RangeError("Dump has no calibrated statistics: they are of a model");
    const sums = new QueryStatistics(shape, length, need.sinks, need === pairStatistics ? rotation : undefined);
    const queries = queriesBeforeRotation(allQueries(dump, shape, length), shape, rotation);
    sums.add(queries, 0, length, shape.heads * shape.headDim);
    return queriesToCome(sums.means(), shape, rotation, { ...need, next: length, magnitude: 1 });
  };
  return { ...statistics(queryStatistics), ...statistics(pairStatistics) };
}

/** `[heads, L, headDim]`; refuses a dump of the last queries only. */
function allQueries({ queries, queryRows }: LayerDump, { heads, headDim }: AttentionShape, length: number) {
  if (queryRows !== length || queries.length !== heads * length * headDim) {
    throw new RangeError(`Dump has ${queryRows} queries: the policy needs those of all ${length} tokens`);
  }
  return queries;
}

/** `[heads, each]` as one view per head. */
export function splitHeads(all: Float32Array, heads: number, each: number, name: string): Float32Array[] {
  if (all.length !== heads * each) throw new RangeError(`Dump ${name} have ${all.length} floats: want ${heads * each}`);
  return Array.from({ length: heads }, (_, head) => all.subarray(head * each, (head + 1) * each));
}

/** `[heads, queryRows, headDim]` → the last `window` rows as `[window, heads, headDim]`. */
export function windowQueries({ queries, queryRows }: LayerDump, { heads, headDim }: AttentionShape, window: number) {
  if (queryRows < window) throw new RangeError(`Dump has ${queryRows} queries: want at least the window of ${window}`);
  const rows = new Float32Array(window * heads * headDim);
  splitHeads(queries, heads, queryRows * headDim, "queries").forEach((head, h) => {
    for (let t = 0; t < window; t++) {
      const from = (queryRows - window + t) * headDim;
      rows.set(head.subarray(from, from + headDim), (t * heads + h) * headDim);
    }
  });
  return rows;
}

/** ‖v·Wo‖ meaned over the group, `[kvHeads, L]`. */
function dumpNorms(
  values: readonly Float32Array[],
  wo: Float32Array | undefined,
  shape: AttentionShape,
  kind: NormKind = "l1",
): Float32Array {
  if (!wo) throw new RangeError("Dump has no output projection: the policy weighs values");
  const norms = valueNorms(values, wo, shape, kind);
  const all = new Float32Array(norms.length * norms[0].length);
  norms.forEach((head, h) => all.set(head, h * head.length));
  return all;
}
