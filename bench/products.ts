/**
 * Products of our kernels with weights of each type on one core: multiply-adds per second with one row of inputs and
 * with many. Best of a few runs, by processor time, so that others on the machine disturb little.
 *
 *     deno run -A bench/products.ts [--types Q4_K,Q6_K] [--rows 1,64] [--simd simd128] [--width 2048] [--outputs 2048]
 */
import { loadavg } from "node:os";
import process from "node:process";
import { parseArgs } from "node:util";
import { rowBytesOf, TENSOR_TYPES } from "../model/file/tensor_types.ts";
import { multiply, Stored } from "../wasm/dense/products.ts";
import { Kernels, type WasmOptions } from "../wasm/module.ts";

const { values } = parseArgs({
  options: {
    types: { type: "string" },
    rows: { type: "string", default: "1,64" },
    simd: { type: "string", default: "auto" },
    width: { type: "string", default: "2048" },
    outputs: { type: "string", default: "2048" },
    exact: { type: "boolean", default: false },
  },
});

/** Least processor milliseconds of a call; about half a second of calls. */
function least(call: () => void): number {
  let best = Infinity;
  call();
  for (const end = performance.now() + 500; performance.now() < end;) {
    const start = process.cpuUsage();
    call();
    const { user, system } = process.cpuUsage(start);
    best = Math.min(best, (user + system) / 1000);
  }
  return best;
}

const kernels = await Kernels.start({ simd: values.simd as WasmOptions["simd"] });
const [width, outputs] = [Number(values.width), Number(values.outputs)];
const counts = values.rows.split(",").map(Number);
const wanted = values.types?.split(",");
const types = [...TENSOR_TYPES.values()].filter(({ kernel, name }) => kernel && (wanted?.includes(name) ?? true));

console.log(`${outputs} × ${width}, ${kernels.relaxed ? "relaxed" : "simd128"}, load ${loadavg()[0].toFixed(1)}`);
console.log(`| type | ${counts.map((count) => `G/s, ${count} rows`).join(" | ")} | MB/s, ${counts[0]} rows |`);
console.log(`| --- | ${counts.map(() => "---").join(" | ")} | --- |`);
for (const type of types) {
  const bytes = outputs * rowBytesOf(type, width), weights = new Stored(kernels, bytes);
  // Scales as real files have them: as float16 0x2222 is 0.012, and 0x0202, below the normal range, 3e-5.
  weights.view(0, bytes).fill(type.block === 256 ? 0x02 : 0x22);
  const times = counts.map((count) =>
    kernels.withBuffers((buffers) => {
      const x = buffers.from(Float32Array.from({ length: count * width }, (_, i) => Math.sin(i)));
      const buffer = buffers.zeros(count * outputs * 4), matrix = { kernel: type.id, outputs, inputs: width, weights };
      return least(() => multiply(kernels, matrix, x, count, { buffer, stride: outputs }, values.exact));
    })
  );
  weights.free();
  const rates = times.map((ms, i) => (counts[i] * outputs * width / ms / 1e6).toFixed(1));
  console.log(`| ${type.name} | ${rates.join(" | ")} | ${(bytes / times[0] / 1e3).toFixed(0)} |`);
}
