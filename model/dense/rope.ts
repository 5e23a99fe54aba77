/** Rotary position embedding (RoFormer, arXiv 2104.09864), applied outside the dense engine so that attention can be ours. */
import type { Rope } from "../config.ts";

/** Cosines and sines for a run of positions, `[count, rotated / 2]` each, scaled by the rope's magnitude. */
export interface RopeTable {
  readonly cos: Float32Array;
  readonly sin: Float32Array;
}

/** The table for positions `first … first + count − 1`. Angles are float64 before the cosine is rounded. */
export function ropeTable(rope: Rope, first: number, count: number): RopeTable {
  const pairs = rope.rotated / 2;
  const cos = new Float32Array(count * pairs);
  const sin = new Float32Array(count * pairs);
  for (let t = 0; t < count; t++) {
    for (let j = 0; j < pairs; j++) {
      const angle = (first + t) * rope.frequencies[j];
      cos[t * pairs + j] = Math.cos(angle) * rope.magnitude;
      sin[t * pairs + j] = Math.sin(angle) * rope.magnitude;
    }
  }
  return { cos, sin };
}

/** Factor on the queries at a position. */
export function growthAt({ growth }: Rope, position: number): number {
  return growth ? 1 + growth.scale * Math.log(1 + Math.floor(position / growth.length)) : 1;
}

/** Rotates `x`, `[count, heads, headDim]`, in place by the table's `count` positions. */
export function rotate(x: Float32Array, heads: number, headDim: number, rope: Rope, table: RopeTable): void {
  const width = heads * headDim;
  for (let t = 0; t * width < x.length; t++) rotateToken(x, t * width, x, t * width, heads, headDim, rope, table, t);
}

/**
 * Puts heads of one token, `[heads, headDim]` from `from` on, rotated by the table's position `t`, to `to` on, which may
 * be the same place. What a head has beyond the rotated numbers is copied.
 */
export function rotateToken(
  source: Float32Array,
  from: number,
  target: Float32Array,
  to: number,
  heads: number,
  headDim: number,
  rope: Rope,
  { cos, sin }: RopeTable,
  t: number,
): void {
  const { rotated } = rope, pairs = rotated / 2, angles = t * pairs;
  const step = rope.pairs === "interleaved" ? 2 : 1, partner = rope.pairs === "interleaved" ? 1 : pairs;
  for (let h = 0; h < heads; h++) {
    const a = from + h * headDim, b = to + h * headDim;
    for (let j = 0; j < pairs; j++) {
      const c = cos[angles + j], s = sin[angles + j], i = j * step;
      const x = source[a + i], y = source[a + i + partner];
      target[b + i] = x * c - y * s;
      target[b + i + partner] = y * c + x * s;
    }
    for (let i = rotated; i < headDim; i++) target[b + i] = source[a + i];
  }
}
