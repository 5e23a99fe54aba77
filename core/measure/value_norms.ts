/**
 * ‖v·Wo_h‖₁ (or ‖v·Wo_h‖₂) of every entry, meaned over the query heads of its group: how far losing the value can move
 * the output. CriticalKV (arXiv 2502.03805), kvpress `critical_kv_press.py`.
 */
import type { NormKind } from "../policy/policy.ts";
import type { AttentionShape } from "../shape.ts";

/**
 * `values`: one array per KV head, `[rows, headDim]`. `wo`: `[width, heads · headDim]`, y = x·woᵀ.
 * Returns one array per KV head, `[rows]`. O(heads · rows · headDim · width).
 * @throws RangeError when a shape does not fit.
 */
export function valueNorms(
  values: readonly Float32Array[],
  wo: Float32Array,
  { heads, kvHeads, headDim }: AttentionShape,
  kind: NormKind = "l1",
): Float32Array[] {
  const inner = heads * headDim, width = wo.length / inner, group = heads / kvHeads;
  if (!Number.isInteger(width) || width < 1) throw new RangeError(`Wo has ${wo.length} floats: want width × ${inner}`);
  if (values.length !== kvHeads || values.some((head) => head.length % headDim !== 0)) {
    throw new RangeError(`Values don't fit ${kvHeads} heads of rows × ${headDim}`);
  }
  return values.map((head, kvHead) => {
    const norms = new Float32Array(head.length / headDim);
    for (let row = 0; row < norms.length; row++) {
      let sum = 0;
      for (let h = kvHead * group; h < (kvHead + 1) * group; h++) {
        sum += rowNorm(head, row * headDim, wo, { inner, width, headDim, column: h * headDim }, kind);
      }
      norms[row] = sum / group;
    }
    return norms;
  });
}

function rowNorm(
  values: Float32Array,
  at: number,
  wo: Float32Array,
  { inner, width, headDim, column }: { inner: number; width: number; headDim: number; column: number },
  kind: NormKind,
): number {
  let norm = 0;
  for (let out = 0; out < width; out++) {
    let dot = 0;
    for (let j = 0, w = out * inner + column; j < headDim; j++, w++) dot += values[at + j] * wo[w];
    norm += kind === "l1" ? Math.abs(dot) : dot * dot;
  }
  return kind === "l1" ? norm : Math.sqrt(norm);
}
