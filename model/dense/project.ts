/** The step between an engine's `qkv` and attention: split the projections, rotate queries and keys. */
import { HOST_TENSORS, type Tensors } from "../../core/backend/tensor.ts";
import { layerShape, sourceOf } from "../../core/shape.ts";
import type { ModelConfig, Rope } from "../config.ts";
import type { Projected } from "./dense.ts";
import { growthAt, type RopeTable, ropeTable, rotateToken } from "./rope.ts";

export interface ProjectOptions {
  readonly unrotated?: boolean;
  /** Where the results come from. */
  readonly tensors?: Tensors<Float32Array>;
}

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
  { unrotated: wanted, tensors = HOST_TENSORS }: ProjectOptions = {},
): Projected<Float32Array> {
  const { heads, kvHeads: all, headDim } = layerShape(config, layer), rope = config.ropes[layer];
  const kvHeads = sourceOf(config, layer) === layer ? all : 0;
  const q = heads * headDim, kv = kvHeads * headDim, row = q + 2 * kv;
  const queries = tensors.room(count * q), keys = tensors.room(count * kv), values = tensors.room(count * kv);
  const unrotated = wanted ? new Float32Array(count * q) : undefined, table = tableOf(rope, first, count);
  for (let t = 0; t < count; t++) {
    const at = t * row;
    rotateToken(qkv, at, queries, t * q, heads, headDim, rope, table, t);
    rotateToken(qkv, at + q, keys, t * kv, kvHeads, headDim, rope, table, t);
    values.set(qkv.subarray(at + q + kv, at + row), t * kv);
    unrotated?.set(qkv.subarray(at, at + q), t * q);
  }
  if (rope.growth) grow(queries, rope, first, q);
  return { queries, keys, values, ...(unrotated && { unrotated }) };
}

/** Queries in rows of `width` from position `first` on, times what they have grown by there. */
function grow(queries: Float32Array, rope: Rope, first: number, width: number): void {
  for (let at = 0, position = first; at < queries.length; at += width, position++) {
    const factor = growthAt(rope, position);
    if (factor !== 1) { for (let i = at; i < at + width; i++) queries[i] *= factor; }
  }
}

/** Tables of each rotation, by their positions: every layer of a text asks for the same runs, one after another. */
const tables = new WeakMap<Rope, Map<string, RopeTable>>();
/** Most tables of a rotation: 16,384 tokens in runs of 256, 4 MB of heads 64 wide. */
const MOST_TABLES = 64;

function tableOf(rope: Rope, first: number, count: number): RopeTable {
  const name = `${first}+${count}`, made = tables.get(rope) ?? new Map<string, RopeTable>();
  tables.set(rope, made);
  const found = made.get(name);
  if (found) return found;
  if (made.size === MOST_TABLES) made.clear();
  const table = ropeTable(rope, first, count);
  made.set(name, table);
  return table;
}
