/** Products with every tensor type the stages know, on odd shapes: weights as decoded plainly, errors within their bound. */
import assert from "node:assert/strict";
import { randomSource } from "../../core/measure/random.ts";
import { KINDS, ofKind } from "../../gpu/dense/kinds.ts";
import { listOf } from "../../gpu/dense/lists.ts";
import { MULTIPLY } from "../../gpu/dense/shaders.ts";
import { DenseStages, type StagesOptions } from "../../gpu/dense/stages.ts";
import { DeviceWeights, type MatrixPart } from "../../gpu/dense/weights.ts";
import type { GpuDevice } from "../../gpu/device.ts";
import { createGpuTensors } from "../../gpu/tensors.ts";
import { dequantise, rowBytesOf, TENSOR_TYPES, type TensorType, typeNamed } from "../../model/file/tensor_types.ts";
import { gpuTest } from "../_helper/gpu.ts";
import { randomRows } from "../_helper/random_rows.ts";

const TYPES = [...TENSOR_TYPES.values()].filter(({ kernel }) => kernel);
/** Blocks (of 32 at least) in a row, rows of weights, rows of inputs. */
const SHAPES = [[1, 1, 1], [3, 5, 2], [3, 67, 18]] as const;

interface Case {
  readonly type: TensorType;
  readonly width: number;
  readonly outputs: number;
  readonly count: number;
}

/** Products, and beside them what double precision gives and the sum of the sizes of what was summed. */
async function products(gpu: GpuDevice, of: Case, options: Partial<StagesOptions> = {}) {
  const { type, width, outputs, count } = of, next = randomSource(type.id + 1), tensors = createGpuTensors(gpu);
  const padded = Math.ceil(width / 8) * 8, rows = randomRows(type, outputs * width, next);
  const plain = new Float32Array(outputs * width);
  dequantise(type, rows, plain);
  const x = Float32Array.from({ length: count * width }, (_, i) => (2 * next() - 1) * 10 ** Math.floor(i / width % 3));
  const bias = Float32Array.from({ length: outputs }, (_, n) => n - 3);
  using held = new DeviceWeights(gpu);
  const filling = held.fill(outputs * rowBytesOf(type, padded)), own = rowBytesOf(type, width);
  for (let n = 0; n < outputs; n++) {
    filling.add(rows.subarray(n * own, (n + 1) * own));
    filling.add(new Uint8Array(rowBytesOf(type, padded) - own));
  }
  const part: MatrixPart = {
    ...{ kind: type.id, inputs: width, padded, outputs, rowBytes: rowBytesOf(type, padded), column: 0 },
    ...{ weights: filling.end(), bias: held.floats(bias) },
  };
  const list = listOf([{ op: "multiply", from: "x", to: "y", weights: [part], rows: outputs }], { x: width });
  const stages = new DenseStages(gpu, { normEpsilon: 0, f16: false, ...options });
  const inputs = tensors.upload(x.slice()), made = tensors.make(count * outputs);
  stages.run(list, { x: inputs.buffer }, count, made.buffer);
  const got = await tensors.read(made);
  tensors.free(inputs);
  tensors.free(made);
  return [...got].map((value, i) => {
    const t = Math.floor(i / outputs), n = i % outputs;
    let sum = bias[n], size = Math.abs(sum);
    for (let k = 0; k < width; k++) {
      const term = plain[n * width + k] * x[t * width + k];
      sum += term;
      size += Math.abs(term);
    }
    return { value, sum, size, of: `row ${n} of ${t}, ${outputs}×${width}` };
  });
}

async function assertProducts(gpu: GpuDevice, of: Case, bound: number, options?: Partial<StagesOptions>) {
  for (const { value, sum, size, of: place } of await products(gpu, of, options)) {
    assert.ok(
      Math.abs(value - sum) <= bound * size,
      `${of.type.name}: ${value}, not ${sum} ± ${bound * size}; ${place}`,
    );
  }
}

Deno.test("the stages know every type that the kernels know, and a text of its own for each", () => {
  assert.deepEqual(TYPES.map(({ id }) => id), KINDS);
  assert.match(MULTIPLY.text, /switch KIND/);
  for (const kind of KINDS) assert.doesNotMatch(ofKind(MULTIPLY, kind, false).text, /switch|\bcase\b/);
  assert.doesNotMatch(ofKind(MULTIPLY, 2, true).text, /\/\/ f16:/);
  assert.equal(ofKind(MULTIPLY, 2, true), ofKind(MULTIPLY, 2, true));
});

for (const type of TYPES) {
  gpuTest(`products with ${type.name} are off by no more than float32 sums are`, async (gpu) => {
    for (const [blocks, outputs, count] of SHAPES) {
      const width = blocks * Math.max(type.block, 32) / (type.block > 32 ? blocks : 1);
      await assertProducts(gpu, { type, width, outputs, count }, 2 ** -20);
    }
  });
}

gpuTest("products whose threads take four units together are off by no more than float32 sums are", async (gpu) => {
  for (const type of TYPES) {
    await assertProducts(gpu, { type, width: 512, outputs: 6, count: 2 }, 2 ** -20, { wide: true });
  }
});

for (const name of ["F32", "F16", "BF16"]) {
  gpuTest(`rows of ${name} may have any length`, async (gpu) => {
    await assertProducts(gpu, { type: typeNamed(name), width: 13, outputs: 3, count: 1 }, 2 ** -20);
    await assertProducts(gpu, { type: typeNamed(name), width: 21, outputs: 3, count: 6 }, 2 ** -20);
  });
}

for (const [form, bound] of [["32-bit", 2 ** -20], ["16-bit", 2 ** -9]] as const) {
  gpuTest(`products in the tiles of a real device, ${form}, are those of the small tiles`, async (gpu) => {
    for (const name of ["Q4_0", "Q6_K", "F32"]) {
      const type = typeNamed(name), of = { type, width: 256, outputs: 70, count: 66 };
      await assertProducts(gpu, of, bound, { f16: form === "16-bit", tile: 4 });
    }
  });
}

gpuTest("products in large tiles are those of the small ones", async (gpu) => {
  for (const name of ["Q4_K", "F32"]) {
    const of = { type: typeNamed(name), width: name === "F32" ? 136 : 256, outputs: 134, count: 130 };
    await assertProducts(gpu, of, 2 ** -20, { tile: 8 });
  }
});

gpuTest("16-bit products take inputs that 16 bits can't hold", async (gpu) => {
  const type = typeNamed("F32"), next = randomSource(3), tensors = createGpuTensors(gpu);
  using held = new DeviceWeights(gpu);
  const ones = Float32Array.from({ length: 16 }, (_, i) => i < 8 ? 1 : 0);
  const part = { kind: type.id, inputs: 8, padded: 8, outputs: 2, rowBytes: 32, column: 0, weights: held.floats(ones) };
  const list = listOf([{ op: "multiply", from: "x", to: "y", weights: [part], rows: 2 }], { x: 8 });
  const stages = new DenseStages(gpu, { normEpsilon: 0, f16: true });
  // Rows of a millionth, of a million, and of zeros.
  const x = Float32Array.from({ length: 48 }, (_, i) => (next() + 0.5) * [1e-6, 1e6, 0][Math.floor(i / 8) % 3]);
  const inputs = tensors.upload(x.slice()), made = tensors.make(12);
  stages.run(list, { x: inputs.buffer }, 6, made.buffer);
  const got = await tensors.read(made);
  for (let t = 0; t < 6; t++) {
    const sum = x.subarray(8 * t, 8 * t + 8).reduce((a, b) => a + b, 0);
    assert.ok(Math.abs(got[2 * t] - sum) <= 2 ** -9 * sum, `${got[2 * t]}, not ${sum}`);
    assert.equal(got[2 * t + 1], 0);
  }
  tensors.free(inputs);
  tensors.free(made);
});
