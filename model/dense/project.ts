/** The step between an engine's `qkv` and attention: split the projections, rotate queries and keys. */
import { layerShape, sourceOf } from "../../core/shape.ts";
import type { ModelConfig, Rope } from "../config.ts";
import type { Projected } from "./dense.ts";
import { growthAt, type RopeTable, ropeTable, rotate } from "./rope.ts";

/**
 * Splits `qkv`, `[count, (heads + 2·kvHeads)·headDim]`, and rotates q and k to positions `first`, `first + 1`, … There is q
 * alone of a layer that looks at another's keys and values.
 */
export function project(
  config: ModelConfig,
  layer: number,
  qkv: Float32Array,
  count: number,
  first: number,
  want: { readonly unrotated?: boolean } = {},
): Projected<Float32Array> {
  const { heads, kvHeads: all, headDim } = layerShape(config, layer), rope = config.ropes[layer];
  const kvHeads = sourceOf(config, layer) === layer ? all : 0;
  const q = heads * headDim, kv = kvHeads * headDim, row = q + 2 * kv;
  const queries = new Float32Array(count * q);
  const keys = new Float32Array(count * kv);
  const values = new Float32Array(count * kv);
  for (let t = 0; t < count; t++) {
    const at = t * row;
    queries.set(qkv.subarray(at, at + q), t * q);
    keys.set(qkv.subarray(at + q, at + q + kv), t * kv);
    values.set(qkv.subarray(at + q + kv, at + row), t * kv);
  }
  const unrotated = want.unrotated ? { unrotated: queries.slice() } : {};
  const table = tableOf(rope, first, count);
  rotate(queries, heads, headDim, rope, table);
  rotate(keys, kvHeads, headDim, rope, table);
  if (rope.growth) grow(queries, rope, first, q);
  return { queries, keys, values, ...unrotated };
}

/** Queries in rows of `width` from position `first` on, times what they have grown by there. */
function grow(queries: Float32Array, rope: Rope, first: number, width: number): void {
  for (let at = 0, position = first; at < queries.length; at += width, position++) {
    const factor = growthAt(rope, position);
    if (factor !== 1) { for (let i = at; i < at + width; i++) queries[i] *= factor; }
  }
}

/** The last table of each rotation: all its layers ask for the same positions. */
const lastTables = new WeakMap<Rope, { readonly first: number; readonly count: number; readonly table: RopeTable }>();

function tableOf(rope: Rope, first: number, count: number): RopeTable {
  const last = lastTables.get(rope);
  if (last?.first === first && last.count === count) return last.table;
  const table = ropeTable(rope, first, count);
  lastTables.set(rope, { first, count, table });
  return table;
}
