/** Attention without a mask: the backend's where it has it, else computed here from copies of its rows. */
import { softmaxRow } from "../measure/attention.ts";
import { ln } from "../measure/exp.ts";
import { copyHeads } from "./copy_heads.ts";
import type { AttentionOutputs, AttentionWants, LayerRows } from "./interface.ts";
import type { Tensor, Tensors } from "./tensor.ts";

/** `LayerRows.unmaskedAttention` of rows that may lack it. */
export async function attendUnmasked<T extends Tensor>(
  tensors: Tensors<T>,
  rows: LayerRows<T>,
  queries: T,
  count: number,
  want: AttentionWants = {},
): Promise<AttentionOutputs<T>> {
  if (rows.unmaskedAttention) return await rows.unmaskedAttention(queries, count, want);
  const { heads, kvHeads, headDim } = rows.shape, length = rows.length(0);
  if (want.rowWeights && want.rowWeights.length !== count) {
    throw new RangeError(`Cannot weigh ${count} queries by ${want.rowWeights.length}`);
  }
  if (queries.length !== count * heads * headDim) {
    throw new RangeError(`queries have ${queries.length} floats: want ${count} × ${heads * headDim}`);
  }
  const copies = await copyHeads(rows), numbers = await tensors.read(queries);
  const output = new Float32Array(count * heads * headDim), logSumExp = new Float32Array(count * heads);
  const sums = new Float64Array(heads * length), columnMax = new Float32Array(heads * length);
  const row = new Float64Array(length);
  for (let head = 0; head < heads; head++) {
    const { keys, values, bias } = copies[Math.floor(head / (heads / kvHeads))];
    for (let t = 0; t < count; t++) {
      const at = t * heads + head, query = { vector: numbers, offset: at * headDim };
      const { maximum, sum } = softmaxRow(query, keys, headDim, length, row, 0, bias, rows.shape.nullLogits?.[head]);
      logSumExp[at] = maximum + ln(sum);
      const weight = want.rowWeights?.[t] ?? 1;
      for (let i = 0; i < length; i++) {
        sums[head * length + i] += weight * row[i];
        columnMax[head * length + i] = Math.max(columnMax[head * length + i], weight * row[i]);
        for (let d = 0; d < headDim; d++) output[at * headDim + d] += row[i] * values[i * headDim + d];
      }
    }
  }
  return {
    output: tensors.upload(output),
    ...(want.columnSum && { columnSum: Float32Array.from(sums) }),
    ...(want.columnMax && { columnMax }),
    ...(want.logSumExp && { logSumExp }),
  };
}
