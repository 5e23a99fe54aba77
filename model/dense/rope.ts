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
  const pairs = rope.rotated / 2;
  const step = rope.pairs === "interleaved" ? 2 : 1;
  const partner = rope.pairs === "interleaved" ? 1 : pairs;
  const count = x.length / (heads * headDim);
  for (let t = 0; t < count; t++) {
    for (let h = 0; h < heads; h++) {
      const row = (t * heads + h) * headDim;
      for (let j = 0; j < pairs; j++) {
        const a = row + j * step, b = a + partner;
        const cos = table.cos[t * pairs + j], sin = table.sin[t * pairs + j];
        const xa = x[a], xb = x[b];
        x[a] = xa * cos - xb * sin;
        x[b] = xb * cos + xa * sin;
      }
    }
  }
}
