/** What is observed of a layer's rows: what a backend measures, and what core computes from it for all of them. */
import { dropErrors } from "../measure/drop_errors.ts";
import type { Needs, Observation } from "../policy/policy.ts";
import type { LayerRows } from "./interface.ts";
import type { Tensor, Tensors } from "./tensor.ts";

/** As `LayerRows.observe`, with what no backend has a kernel for. */
export async function observeRows<T extends Tensor>(
  tensors: Tensors<T>,
  rows: LayerRows<T>,
  queries: T,
  window: number,
  needs: Needs,
): Promise<Partial<Observation>> {
  if (!needs.dropErrors) return await rows.observe(queries, window, needs);
  // Asked for together, so that a device is waited for once.
  const [numbers, measured] = await Promise.all([
    tensors.read(queries),
    rows.observe(queries, window, { ...needs, rows: true }),
  ]);
  const { kvHeads } = rows.shape, { keys, values, ...others } = measured;
  const heads = (all: Float32Array) =>
    Array.from({ length: kvHeads }, (_, h) => all.subarray(all.length / kvHeads * h, all.length / kvHeads * (h + 1)));
  const input = { shape: rows.shape, queries: numbers, window, length: keys!.length / kvHeads / rows.shape.headDim };
  return {
    ...others,
    ...(needs.rows && { keys, values }),
    dropErrors: dropErrors({ ...input, keys: heads(keys!), values: heads(values!) }),
  };
}
