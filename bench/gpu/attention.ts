/** Attention over the rows of one layer in the shape of Llama 3.2 1B: of a token, and of a chunk that is read. */
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { type Ceilings, noise, type Report, seconds } from "./measure.ts";

const SHAPE = { heads: 32, kvHeads: 8, headDim: 64 };
/** Queries of a chunk. */
const CHUNK = 1024;

/** Bytes of keys and values a second for a token, operations for a chunk at the end of the rows. */
export async function attention(gpu: GpuDevice, { copy, multiplyAdd }: Ceilings, report: Report): Promise<void> {
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, { heads, kvHeads, headDim } = SHAPE, each = kvHeads * headDim;
  const { emulated } = gpu.info;
  for (const rows of emulated ? [64] : [1024, 4096, 16384]) {
    for (const type of ["f32", "f16", "int8"] as const) {
      const kept = backend.createRows(SHAPE, rows, type), chunk = Math.min(rows, emulated ? 32 : CHUNK);
      const numbers = tensors.upload(noise(chunk * each)), queries = tensors.upload(noise(chunk * heads * headDim));
      const query = tensors.upload(noise(heads * headDim));
      for (let at = 0; at < rows; at += chunk) kept.append(numbers, numbers, chunk);
      const answers: Promise<void>[] = [], free = ({ output }: { output: typeof query }) => tensors.free(output);
      const token = await seconds(gpu, () => answers.push(kept.decodeAttention(query, 1).then(free)));
      const what = `attention over ${rows} rows ${type}`;
      report({ what: `${what}, a token`, value: kept.liveBytes / token / 1e9, unit: "GB/s", ceiling: copy });
      if (type === "f32" && rows > 1024 || emulated) {
        const work = await seconds(gpu, () => answers.push(kept.prefillAttention(queries, chunk).then(free)));
        const pairs = chunk * (rows - (chunk - 1) / 2), value = 4 * pairs * heads * headDim / work / 1e9;
        report({ what: `${what}, ${chunk} tokens`, value, unit: "GFLOP/s", ceiling: multiplyAdd });
      }
      await Promise.all(answers);
      kept.free();
      for (const tensor of [numbers, queries, query]) tensors.free(tensor);
    }
  }
}
