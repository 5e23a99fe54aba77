/** The golden tiny models: dumps of a random 3-layer Llama, and evictions of them through any backend. */
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { observeRows } from "../../core/backend/observe_rows.ts";
import { keptOfAll } from "../../core/select/eviction.ts";
import { type Keep, resolveBudget } from "../../core/select/budget.ts";
import type { LayerDump } from "../../core/dump/evict.ts";
import type { Budget, Needs, Observation, Policy } from "../../core/policy/policy.ts";
import { attendUnmasked } from "../../core/backend/unmasked.ts";
import { isMoved, largestOfGroup } from "../../core/measure/moved.ts";
import { queriesBeforeRotation, queriesToCome, QueryStatistics } from "../../core/measure/query_statistics.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { type KeyRotation, rotateRows } from "../../core/measure/rotation.ts";
import type { AttentionShape } from "../../core/shape.ts";
import type { Tensor } from "./safetensors.ts";

export const TINY_SHAPE: AttentionShape = { heads: 6, kvHeads: 2, headDim: 8 };
export const TINY_WIDTH = 48;
/** RoPE with theta 10000 on 8 dimensions. */
export const TINY_ROTATION: KeyRotation = {
  pairs: "half",
  rotated: 8,
  frequencies: Float64Array.of(1, 0.1, 0.01, 0.001),
};
export const TINY_LENGTHS = [97, 300, 513];

/** Golden policy name → ours, in the published arithmetic. */
export const GOLDEN_POLICIES: Readonly<Record<string, string>> = {
  "snapkv-w32": "snapkv@reference",
  "streaming-llm": "streaming-llm@reference",
  "tova": "tova@reference",
  "knorm": "knorm@reference",
  "h2o-normalized": "h2o@reference",
  "keydiff": "keydiff@reference",
  "lagkv": "lagkv@reference",
  "expected-attention": "expected-attention@reference",
  "adakv(snapkv-w32,0.2)": "adakv@reference",
  "critical-adakv(snapkv-w32,0.2)": "critical-adakv@reference",
  "defensive": "defensive@reference",
  "layer-defensive": "layer-defensive@reference",
};

/** The three layers of a tiny file of `length` tokens. */
export function tinyLayers(tensors: ReadonlyMap<string, Tensor>, length: number): LayerDump[] {
  const data = (name: string) => {
    const tensor = tensors.get(name);
    if (!tensor) throw new Error(`No tensor ${name}`);
    return tensor.data;
  };
  return [0, 1, 2].map((layer) => ({
    queries: data(`layers/${layer}/q`),
    queryRows: length,
    keys: data(`layers/${layer}/k`),
    values: data(`layers/${layer}/v`),
    wo: data(`layers/${layer}/wo`),
    rotation: TINY_ROTATION,
    // No golden file has these: any numbers do, the first of each key.
    reconstruction: firstOfRows(data(`layers/${layer}/k`)),
    gate: firstOfRows(data(`layers/${layer}/k`)),
    selfGate: firstOfRows(data(`layers/${layer}/v`)),
    softTokens: firstOfRows(data(`layers/${layer}/v`)),
  }));
}

function firstOfRows(all: Float32Array): Float32Array {
  return Float32Array.from({ length: all.length / TINY_SHAPE.headDim }, (_, i) => all[i * TINY_SHAPE.headDim]);
}

/** `[heads, rows, headDim]`, the rows from `first` on, as `[count, heads, headDim]`. */
export function byToken(all: Float32Array, heads: number, headDim: number, first: number, count: number) {
  const rows = all.length / (heads * headDim);
  const turned = new Float32Array(count * heads * headDim);
  for (let head = 0; head < heads; head++) {
    for (let t = 0; t < count; t++) {
      const from = (head * rows + first + t) * headDim;
      turned.set(all.subarray(from, from + headDim), (t * heads + head) * headDim);
    }
  }
  return turned;
}

/** A dump's keys and values appended to a backend in chunks of `chunk` tokens. */
export function appendDump(
  backend: Backend<Float32Array>,
  dump: LayerDump,
  shape: AttentionShape,
  chunk = 50,
): LayerRows<Float32Array> {
  const { kvHeads, headDim } = shape;
  const rows = backend.createRows(shape, 0);
  const length = dump.keys.length / (kvHeads * headDim);
  for (let first = 0; first < length; first += chunk) {
    const count = Math.min(chunk, length - first);
    const turn = (all: Float32Array) => byToken(all, kvHeads, headDim, first, count);
    rows.append(turn(dump.keys), turn(dump.values), count);
  }
  return rows;
}

export interface BackendEviction {
  readonly budget: Budget;
  /** `kept[layer][kvHead]`. */
  readonly kept: Int32Array[][];
  readonly scores: Float32Array[];
}

/** `evictDump` with everything measured and selected by a backend, as a decoder does it. */
export async function evictThrough(
  backend: Backend<Float32Array>,
  text: string,
  keep: Keep,
  shape: AttentionShape,
  layers: readonly LayerDump[],
): Promise<BackendEviction> {
  const policy = resolvePolicy(text);
  const length = layers[0].keys.length / (shape.kvHeads * shape.headDim);
  const budget = resolveBudget(policy, keep, length, { ...shape, layers: layers.length });
  const observations: Observation[] = [];
  for (const [layer, dump] of layers.entries()) {
    observations.push(await observeThrough(backend, policy, budget, dump, layer));
  }
  const kept = await keptOfAll({ policy, budget }, observations, backend);
  return { budget, kept, scores: observations.map((observation) => policy.score(observation, budget).scores) };
}

async function observeThrough(
  backend: Backend<Float32Array>,
  policy: Policy,
  budget: Budget,
  dump: LayerDump,
  layer: number,
): Promise<Observation> {
  const { model: shape, length, window } = budget;
  const rows = appendDump(backend, dump, shape);
  const queries = byToken(dump.queries, shape.heads, shape.headDim, dump.queryRows - window, window);
  const { needs } = policy;
  const columns = needs.columnSum || needs.columnMax ? await columnsThrough(rows, dump, shape, needs) : {};
  const measured = needs.window || needs.rows ? await observeRows(backend.tensors, rows, queries, window, needs) : {};
  const wo = dump.wo!;
  const norms = needs.valueNorms &&
    await rows.valueNorms(wo, wo.length / (shape.heads * shape.headDim), needs.valueNorms);
  const moved = needs.moved && await movedThrough(backend, rows, dump, needs.moved.every);
  rows.free();
  const { reconstruction, gate, selfGate, softTokens } = dump;
  const given = {
    valueNorms: norms,
    reconstruction,
    gate,
    selfGate,
    softTokens,
    ...(moved && { moved }),
    ...statistics(dump, shape, needs),
  };
  return { layer, shape, length, window, ...columns, ...measured, ...given };
}

/** All queries in one call, right after the last row was appended. */
async function columnsThrough(
  rows: LayerRows<Float32Array>,
  dump: LayerDump,
  { heads, headDim }: AttentionShape,
  needs: Needs,
) {
  const { queryRows, queries } = dump;
  const all = byToken(queries, heads, headDim, 0, queryRows);
  const { columnSum, columnMax } = await rows.prefillAttention(all, queryRows, needs);
  return { columnSum, columnMax };
}

/** Taken in chunk by chunk, as a reader does. */
/** Every `every`-th query, turned behind the end. */
async function movedThrough(
  backend: Backend<Float32Array>,
  rows: LayerRows<Float32Array>,
  { queries, queryRows: length, rotation }: LayerDump,
  every: number,
): Promise<Float32Array> {
  const { shape } = rows, { heads, headDim } = shape, sampled: number[] = [];
  for (let t = 0; t < length; t++) if (isMoved(t, length, every)) sampled.push(t);
  const turned = queries.slice();
  rotateRows(turned, headDim, new Int32Array(heads * length).fill(length), rotation!);
  const asked = Float32Array.from(sampled.flatMap((t) => [...byToken(turned, heads, headDim, t, 1)]));
  const { columnMax } = await attendUnmasked(backend.tensors, rows, asked, sampled.length, { columnMax: true });
  return largestOfGroup(columnMax!, shape);
}

function statistics({ queries, queryRows, rotation }: LayerDump, shape: AttentionShape, needs: Needs) {
  const { queryStatistics, pairStatistics } = needs;
  if (!queryStatistics && !pairStatistics) return {};
  const row = shape.heads * shape.headDim, all = queriesBeforeRotation(queries, shape, rotation!);
  const meansOf = (sinks: number, pairs?: KeyRotation) => {
    const sums = new QueryStatistics(shape, queryRows, sinks, pairs);
    for (let first = 0; first < queryRows; first += 50) {
      const count = Math.min(50, queryRows - first);
      sums.add(all.subarray(first * row, (first + count) * row), first, count, row);
    }
    return sums.means();
  };
  const next = { magnitude: 1, next: queryRows }, [whole, pairs] = [queryStatistics, pairStatistics];
  return {
    ...(whole && queriesToCome(meansOf(whole.sinks), shape, rotation!, { ...next, ...whole })),
    ...(pairs && queriesToCome(meansOf(pairs.sinks, rotation), shape, rotation!, { ...next, ...pairs })),
  };
}
