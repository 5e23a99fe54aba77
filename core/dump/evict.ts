/**
 * Eviction on dumps: queries, keys, values and output projections of any model, as arrays. No model, no backend.
 */
import { type Keep, resolveBudget } from "../select/budget.ts";
import { columnReductions } from "../measure/attention_columns.ts";
import { dropErrors } from "../measure/drop_errors.ts";
import { movedMaxima } from "../measure/moved.ts";
import { observeWindow } from "../measure/observe.ts";
import type { Budget, Needs, NormKind, Observation, Policy } from "../policy/policy.ts";
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
  const values = () => valueHeads(dump, shape, length);
  const queries = needs.window && windowQueries(dump, shape, window);
  return {
    layer,
    shape,
    length,
    window,
    ...(queries && observeWindow({ shape, queries, window, keys: keys(), length }, needs)),
    ...(needs.dropErrors && queries &&
      { dropErrors: dropErrors({ shape, queries, window, keys: keys(), values: values(), length }) }),
    ...(needs.valueNorms && { valueNorms: dumpNorms(values(), dump.wo, shape, needs.valueNorms) }),
    ...scoresOf(dump, budget, needs),
    ...(needs.moved && { moved: movedOf(dump, keys(), budget, needs.moved.every) }),
    ...columnsOf(dump, keys, budget, needs),
    ...queryStatistics(dump, budget, needs),
    // Whose sizes are looked at.
    ...(needs.rows && values() && { keys: dump.keys, values: dump.values }),
  };
}

/** The values, one view per KV head. */
export function valueHeads({ values }: LayerDump, { kvHeads, headDim }: AttentionShape, length: number) {
  return splitHeads(values, kvHeads, length * headDim, "values");
}

/** Fields of a dump that are scores, `[kvHeads, L]`. */
const SCORES = ["reconstruction", "gate", "selfGate", "softTokens"] as const;

function scoresOf(dump: LayerDump, { model, length }: Budget, needs: Needs): Pick<Observation, typeof SCORES[number]> {
  return Object.fromEntries(
    SCORES.filter((name) => needs[name]).map((name) => {
      const scores = dump[name], { kvHeads } = model;
      if (scores?.length === kvHeads * length) return [name, scores];
      throw new RangeError(`Dump has ${scores?.length ?? 0} ${name} scores: want ${kvHeads} heads × ${length}`);
    }),
  );
}

function movedOf(dump: LayerDump, keys: readonly Float32Array[], { model: shape, length }: Budget, every: number) {
  const rotation = rotationOf(dump);
  return movedMaxima({ shape, queries: allQueries(dump, shape, length), keys, length, rotation }, every);
}

function rotationOf({ rotation }: LayerDump): KeyRotation {
  if (rotation) return rotation;
  throw new RangeError("Dump has no rotation, by which the policy turns queries");
}

function columnsOf(
  dump: LayerDump,
  keys: () => readonly Float32Array[],
  { model: shape, length }: Budget,
  { columnSum, columnMax }: Needs,
): Pick<Observation, "columnSum" | "columnMax"> {
  if (!columnSum && !columnMax) return {};
  return columnReductions({ shape, queries: allQueries(dump, shape, length), keys: keys(), length });
}

function queryStatistics(
  dump: LayerDump,
  { model: shape, length }: Budget,
  { queryStatistics, pairStatistics }: Needs,
): Partial<QueryStatisticsResult & PairStatisticsResult> {
  const need = queryStatistics ?? pairStatistics;
  if (!need) return {};
  const rotation = rotationOf(dump), queries = queriesBeforeRotation(allQueries(dump, shape, length), shape, rotation);
  if (need.calibrated) throw new RangeError("Dump has no calibrated statistics: they are of a model");
  const sums = new QueryStatistics(shape, length, need.sinks, pairStatistics && rotation);
  sums.add(queries, 0, length, shape.heads * shape.headDim);
  return queriesToCome(sums.means(), shape, rotation, { ...need, next: length, magnitude: 1 });
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
