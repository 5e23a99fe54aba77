/**
 * Prints what the kernels compute, as one hash of all bits for each kind of call: products of every tensor type,
 * attention, norms and scores over rows of every type. Runs in Deno, Node and Bun:
 *
 *     node --experimental-wasm-revectorize tests/_helper/kernel_bits.ts [times] [joined]
 *
 * `joined`: in the forms for an engine that joins vectors.
 */
import { createHash } from "node:crypto";
import { CACHE_TYPES } from "../../core/cache/entry_type.ts";
import { randomSource } from "../../core/measure/random.ts";
import { TENSOR_TYPES } from "../../model/file/tensor_types.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { multiply, Stored } from "../../wasm/dense/products.ts";
import { Kernels } from "../../wasm/module.ts";
import { randomRows } from "./random_rows.ts";

/** Calls of each kind: an engine may take long to run its best code. */
const TIMES = Number(process.argv[2] ?? 1);
const OPTIONS = { wideVectors: process.argv[3] === "joined" };

const next = randomSource(11);
const floats = (length: number) => Float32Array.from({ length }, () => 2 * next() - 1);

function told(name: string, ...all: readonly (Float32Array | Float64Array | undefined)[]): void {
  const hash = createHash("sha256");
  for (const numbers of all) {
    if (numbers) hash.update(new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength));
  }
  console.log(`${name} ${hash.digest("hex").slice(0, 16)}`);
}

async function products(): Promise<void> {
  const kernels = await Kernels.start(OPTIONS), width = 512, outputs = 20;
  for (const type of [...TENSOR_TYPES.values()].filter(({ kernel }) => kernel)) {
    const rows = randomRows(type, outputs * width, next), weights = new Stored(kernels, rows.length);
    weights.view(0, rows.length).set(rows);
    for (const count of [1, 13]) {
      const inputs = floats(count * width);
      for (const exact of [false, true]) {
        kernels.withBuffers((buffers) => {
          const x = buffers.from(inputs), buffer = buffers.zeros(count * outputs * 4);
          const matrix = { kernel: type.id, outputs, inputs: width, weights };
          // Calls are made in both forms of products (wasm/dense/forms.ts) at first.
          for (let i = 0; i < TIMES; i++) multiply(kernels, matrix, x, count, { buffer, stride: outputs }, exact);
          told(`${type.name}, ${count}, ${exact}`, buffers.read(buffer, new Float32Array(count * outputs)));
        });
      }
    }
    weights.free();
  }
}

async function rows(): Promise<void> {
  using backend = await createWasmBackend(OPTIONS);
  for (const headDim of [64, 100]) {
    const shape = { heads: 6, kvHeads: 2, headDim }, length = 333, window = 32, width = 96;
    for (const type of CACHE_TYPES) {
      const stored = backend.createRows(shape, length, type), name = `${headDim}, ${type}`;
      await stored.append(floats(length * 2 * headDim), floats(length * 2 * headDim), length);
      const queries = floats(100 * 6 * headDim), one = queries.subarray(0, 6 * headDim);
      const output = floats(width * 6 * headDim);
      for (let i = 1; i <= TIMES; i++) {
        const decoded = await stored.decodeAttention(one, 1);
        const read = await stored.prefillAttention(queries, 100, { columnMax: true });
        const seen = await stored.observe(queries.subarray(0, window * 6 * headDim), window, {
          window: ["mean", "variance", "entropy", "pooledMean", "pooledMax", "mass", "logSumExp"],
        });
        const norms = [await stored.valueNorms(output, width), await stored.valueNorms(output, width, "l2")];
        if (i < TIMES) continue;
        told(`decode ${name}`, decoded.output);
        told(`prefill ${name}`, read.output, read.columnMax);
        const { mean, variance, entropy, pooledMean, pooledMax, mass, logSumExp } = seen;
        told(`observe ${name}`, mean, variance, entropy, pooledMean, pooledMax, mass, logSumExp);
        told(`norms ${name}`, ...norms);
      }
      stored.free();
    }
  }
}

await products();
await rows();
