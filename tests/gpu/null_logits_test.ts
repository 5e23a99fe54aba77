/** Logits for nothing on a device: every stage that counts them against the plain backend. */
import { attendUnmasked } from "../../core/backend/unmasked.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { HOST_TENSORS } from "../../core/backend/tensor.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { REDUCTIONS } from "../../wasm/rows.ts";
import { assertClose } from "../_helper/close.ts";
import { gpuTest } from "../_helper/gpu.ts";
import { filled, sameDecode, sameObservation, samePrefill } from "../_helper/parity.ts";
import { onThisSide } from "../_helper/this_side.ts";

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => 3 * (next() - 0.5));
}

/** Logits from hardly anything to nearly all of a row. All shapes take the same compiled stages. */
const PLAIN: AttentionShape = {
  ...{ heads: 4, kvHeads: 2, headDim: 16 },
  nullLogits: Float32Array.of(-30, 0.5, 9, 40),
};
const SHAPES = [PLAIN, { ...PLAIN, reach: 40 }];
const QUERY = PLAIN.heads * PLAIN.headDim;

gpuTest("webgpu: what goes to nothing is the plain backend's, whatever is asked", async (gpu) => {
  using oracle = createReferenceBackend();
  const inner = createGpuBackend(gpu);
  using backend = onThisSide(inner, () => inner.tensors.alive);
  for (const [i, shape] of SHAPES.entries()) {
    for (const [length, count] of [[1, 1], [65, 7]]) {
      using twins = filled({ oracle, backend, type: "f32" }, shape, length);
      const queries = floats(count * QUERY, 3), what = `shape ${i}, ${count} of ${length}`;
      await samePrefill(twins, queries, count, what);
      await sameDecode(twins, queries, count, what);
      await sameObservation(twins, queries, count, { window: REDUCTIONS }, what);
      const wanted = { columnSum: true, columnMax: true, logSumExp: true };
      const [want, got] = await Promise.all([twins.want, twins.got].map((rows) => {
        return attendUnmasked(HOST_TENSORS, rows, queries, count, wanted);
      }));
      for (const part of ["output", "columnSum", "columnMax", "logSumExp"] as const) {
        assertClose(got[part]!, want[part]!, 1e-5, `${what}, unmasked: ${part}`);
      }
    }
    // So many rows that they are cut into splits; and a copy of them.
    using long = filled({ oracle, backend, type: "f32" }, shape, 530);
    await sameDecode(long, floats(QUERY, 5), 1, "splits");
    const copies = await Promise.all([long.want.clone(), long.got.clone()]);
    const [want, got] = await Promise.all(copies.map((rows) => rows.decodeAttention(floats(QUERY, 4), 1)));
    assertClose(got.output, want.output, 1e-5, "a copy");
    copies.forEach((rows) => rows.free());
  }
});
