/** Queries of one layer moved behind the context's end (`core/measure/moved.ts`). */
import { attendUnmasked } from "../../core/backend/unmasked.ts";
import type { LayerRows } from "../../core/backend/interface.ts";
import type { Tensors } from "../../core/backend/tensor.ts";
import { largestOfGroup } from "../../core/measure/moved.ts";
import { rotateRows } from "../../core/measure/rotation.ts";
import type { ModelConfig, Rope } from "../config.ts";
import { growthAt } from "../dense/rope.ts";
import type { SampledQueries } from "./references.ts";

/**
 * Turns the sampled queries of a context of `length` tokens, the first at `start`, by that length; where queries grow with
 * position, they grow on.
 */
export async function moveBehind(
  sampled: SampledQueries,
  { heads, headDim }: Pick<ModelConfig, "heads" | "headDim">,
  length: number,
  rope: Rope,
  start = 0,
): Promise<void> {
  await sampled.change((numbers) => {
    rotateRows(numbers, headDim, new Int32Array(sampled.count * heads).fill(length), rope);
    if (!rope.growth) return;
    for (let i = 0, row = heads * headDim; i < sampled.count; i++) {
      const token = start + sampled.token(i), factor = growthAt(rope, token + length) / growthAt(rope, token);
      for (let j = i * row; j < (i + 1) * row; j++) numbers[j] *= factor;
    }
  });
}

/** Largest attention on each of the rows over all these queries and the group, `[kvHeads, length]`; none is masked. */
export async function unmaskedMaxima(
  tensors: Tensors,
  rows: LayerRows,
  sampled: SampledQueries,
): Promise<Float32Array> {
  const { output, columnMax } = await attendUnmasked(tensors, rows, sampled.queries, sampled.count, {
    columnMax: true,
  });
  tensors.free(output);
  return largestOfGroup(columnMax!, rows.shape);
}
