/** Products with every tensor type the kernels know: weights decoded as PyPI gguf does, errors within their bound. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { randomSource } from "../../core/measure/random.ts";
import { dequantise, rowBytesOf, TENSOR_TYPES, type TensorType, typeNamed } from "../../model/file/tensor_types.ts";
import { hasRelaxedSimd } from "../../runtime/features.ts";
import { BYTE_INPUT_TYPES, multiply, Stored } from "../../wasm/dense/products.ts";
import { Kernels } from "../../wasm/module.ts";
import { HALVES, randomRows } from "../_helper/random_rows.ts";

/** What a file may hold without being widened to float32. */
const TYPES = [...TENSOR_TYPES.values()].filter(({ kernel }) => kernel);
const BUILDS = hasRelaxedSimd() ? ["simd128", "relaxed"] as const : ["simd128"] as const;

interface Blocks {
  /** Base64. */
  readonly bytes: string;
  /** Base64 of little-endian float32. */
  readonly floats: string;
}

const QUANTS: Record<string, Blocks> = JSON.parse(
  await readFile(new URL("../data/quants.json", import.meta.url), "utf8"),
);

const decoded = (text: string) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** `(count, outputs)`: products of rows of a type with `count` rows of inputs. */
function products(
  kernels: Kernels,
  type: TensorType,
  rows: Uint8Array,
  x: Float32Array,
  width: number,
  exact: boolean,
) {
  const outputs = rows.length / rowBytesOf(type, width), count = x.length / width;
  const weights = new Stored(kernels, rows.length);
  weights.view(0, rows.length).set(rows);
  try {
    return kernels.withBuffers((buffers) => {
      const inputs = buffers.from(x), buffer = buffers.zeros(count * outputs * 4);
      const matrix = { kernel: type.id, outputs, inputs: width, weights };
      multiply(kernels, matrix, inputs, count, { buffer, stride: outputs }, exact);
      return buffers.read(buffer, new Float32Array(count * outputs));
    });
  } finally {
    weights.free();
  }
}

/** Inputs `(count, width)` that are 1 at one place each, from place `first` on. */
function ones(first: number, count: number, width: number): Float32Array {
  const x = new Float32Array(count * width);
  for (let t = 0; t < count; t++) x[t * width + first + t] = 1;
  return x;
}

for (const simd of BUILDS) {
  for (const type of TYPES) {
    Deno.test(`${simd}: the kernels decode ${type.name} as PyPI gguf does, bit for bit`, async () => {
      const kernels = await Kernels.start({ simd });
      const bytes = decoded(QUANTS[type.name].bytes),
        floats = new Float32Array(decoded(QUANTS[type.name].floats).buffer);
      // Rows of 32 numbers, or of one block.
      const width = Math.max(type.block, 32), rows = floats.length / width;
      let compared = 0;
      for (const [count, places] of [[1, 32], [width / 8, 8]]) {
        for (let place = 0; place < places; place++) {
          const first = place * width / places,
            y = products(kernels, type, bytes, ones(first, count, width), width, true);
          for (let n = 0; n < rows; n++) {
            const row = floats.subarray(n * width, (n + 1) * width);
            // 0 times what isn't finite would be no number.
            if (!row.every(Number.isFinite)) continue;
            for (let t = 0; t < count; t++) {
              assert.ok(y[t * rows + n] === row[first + t], `row ${n}, weight ${first + t}`);
            }
            compared += count;
          }
        }
      }
      assert.ok(compared > 900, `only ${compared} were compared`);
    });

    Deno.test(`${simd}: products with ${type.name} are off by no more than rounding their inputs explains`, async () => {
      const kernels = await Kernels.start({ simd }), next = randomSource(type.id + 1);
      const uniform = () => 2 * next() - 1, bytes = BYTE_INPUT_TYPES.includes(type.id);
      for (const [blocks, outputs, count] of [[1, 1, 1], [3, 5, 2], [4, 8, 4], [5, 17, 3], [9, 11, 13]]) {
        const width = blocks * Math.max(type.block, 32), rows = randomRows(type, outputs * width, next);
        const x = Float32Array.from({ length: count * width }, (_, i) => uniform() * 10 ** Math.floor(i / width % 3));
        const weights = new Float32Array(outputs * width);
        dequantise(type, rows, weights);
        for (const exact of [false, true]) {
          const y = products(kernels, type, rows, x, width, exact);
          y.forEach((got, i) => {
            const t = Math.floor(i / outputs), n = i % outputs;
            const { sum, bound } = product(
              weights.subarray(n * width, (n + 1) * width),
              x.subarray(t * width, (t + 1) * width),
            );
            // In float32 what is left is the rounding of the sums; in int16 and int8 half a step of the inputs, and that.
            const most = bound * (exact ? 2 ** -21 : simd === "relaxed" && bytes ? 1 / 253 : 2 ** -15);
            assert.ok(
              Math.abs(got - sum) <= most,
              `${got}, not ${sum} ± ${most}; ${outputs}×${width}, row ${n} of ${t}`,
            );
          });
        }
      }
    });
  }
}

/** Product in double precision; and the sum over groups of 32 of the largest input times the sizes of the weights. */
function product(weights: Float32Array, x: Float32Array): { sum: number; bound: number } {
  let sum = 0, bound = 0;
  for (let first = 0; first < weights.length; first += 32) {
    let most = 0, sizes = 0;
    for (let k = first; k < first + 32; k++) {
      sum += weights[k] * x[k];
      most = Math.max(most, Math.abs(x[k]));
      sizes += Math.abs(weights[k]);
    }
    bound += most * sizes;
  }
  return { sum, bound };
}

Deno.test("infinite scales come through as what is no finite number", async () => {
  const kernels = await Kernels.start();
  for (const name of ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "Q5_1"]) {
    const type = typeNamed(name), rows = randomRows(type, 2 * type.block, randomSource(5));
    for (const half of HALVES[name]) rows.set([0, 0x7c], half);
    const x = new Float32Array(5 * type.block).fill(1);
    for (let t = 0; t < 5; t++) {
      const y = products(kernels, type, rows, x.subarray(t * type.block), type.block, false);
      for (let i = 0; i < y.length; i += 2) assert.ok(!Number.isFinite(y[i]) && Number.isFinite(y[i + 1]), name);
    }
  }
});
