/**
 * A WebGPU device: its ceilings, palisade's products and attention against them, and a model's reading and answering with
 * 20 % and all of the context kept. Prints one table; on an emulated device everything runs once, small, and no time is
 * printed.
 *
 * deno task bench gpu [--model FILE.gguf] [--tokens 1000,4000,16000]
 */
import { readFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { createGpuBackend } from "../gpu/backend/backend.ts";
import { listOf } from "../gpu/dense/lists.ts";
import { DenseStages } from "../gpu/dense/stages.ts";
import { DeviceWeights } from "../gpu/dense/weights.ts";
import { type GpuDevice, openGpu, type ShaderFile } from "../gpu/device.ts";
import { loadModel } from "../model/model.ts";
import { openContext } from "../model/session.ts";
import { currentRuntime } from "../runtime/mod.ts";

const { values } = parseArgs({
  options: { model: { type: "string" }, tokens: { type: "string", default: "1000,4000,16000" } },
});

/** A row of the table: a figure in a unit, and its share of a ceiling. */
interface Figure {
  readonly what: string;
  readonly value: number;
  readonly unit: string;
  readonly ceiling?: number;
}

function shader(name: string): ShaderFile {
  return { name, text: readFileSync(new URL(name, import.meta.url), "utf8") };
}

/** Seconds of one `work` on the device: the best of five runs of `times`, or one run of one where it is emulated. */
async function seconds(gpu: GpuDevice, times: number, work: () => void): Promise<number> {
  const probe = gpu.borrow(16), many = gpu.info.emulated ? 1 : times;
  const run = async () => {
    const start = performance.now();
    for (let i = 0; i < many; i++) work();
    await gpu.read(probe, 0, 4);
    return (performance.now() - start) / 1000 / many;
  };
  await run();
  let best = Infinity;
  for (let i = 0; i < (gpu.info.emulated ? 1 : 5); i++) best = Math.min(best, await run());
  gpu.giveBack(probe);
  return best;
}

async function copyCeiling(gpu: GpuDevice): Promise<number> {
  const bytes = gpu.info.emulated ? 2 ** 20 : Math.min(gpu.info.maxBinding, 2 ** 28), count = bytes / 16;
  const [from, to] = [gpu.own(bytes), gpu.own(bytes)], stage = gpu.stage(shader("gpu_copy.wgsl"));
  const rows = Math.ceil(count / 256 / 65535), groups = [Math.ceil(count / 256 / rows), rows] as const;
  const time = await seconds(gpu, 10, () => gpu.run(stage, { params: [count], buffers: [from, to], groups }));
  for (const buffer of [from, to]) gpu.destroy(buffer);
  return 2 * bytes / time / 1e9;
}

async function multiplyAddCeiling(gpu: GpuDevice): Promise<number> {
  const count = gpu.info.emulated ? 256 : 2 ** 20, steps = gpu.info.emulated ? 4 : 512;
  const from = gpu.own(32), to = gpu.own(16 * count), stage = gpu.stage(shader("gpu_multiply_add.wgsl"));
  const call = { params: [count, steps], buffers: [from, to], groups: [count / 256] as const };
  const time = await seconds(gpu, 5, () => gpu.run(stage, call));
  for (const buffer of [from, to]) gpu.destroy(buffer);
  return 2 * 16 * count * steps / time / 1e9;
}

/** Products of a square matrix in blocks of 8 bits: bytes of weights a second for one row, operations for many. */
async function products(gpu: GpuDevice, copy: number, multiplyAdd: number): Promise<Figure[]> {
  const side = gpu.info.emulated ? 256 : 4096, rowBytes = side / 32 * 34, rows = gpu.info.emulated ? 8 : 512;
  using weights = new DeviceWeights(gpu);
  const filling = weights.fill(side * rowBytes);
  filling.add(new Uint8Array(side * rowBytes));
  const shape = { kind: 8, inputs: side, padded: side, outputs: side, column: 0, rowBytes };
  const part = { ...shape, weights: filling.end() };
  const list = listOf([{ op: "multiply", weights: [part], rows: side, from: "x", to: "y" }], { x: side });
  const figures: Figure[] = [];
  for (const f16 of gpu.info.features.f16 ? [false, true] : [false]) {
    const stages = new DenseStages(gpu, { normEpsilon: 0, f16 });
    const x = gpu.borrow(4 * side * rows), y = gpu.borrow(4 * side * rows), bits = f16 ? "16" : "32";
    const one = await seconds(gpu, 50, () => stages.run(list, { x }, 1, y));
    const many = await seconds(gpu, 5, () => stages.run(list, { x }, rows, y));
    if (!f16) {
      figures.push({ what: "product of one row", value: side * rowBytes / one / 1e9, unit: "GB/s", ceiling: copy });
    }
    const rate = 2 * side * side * rows / many / 1e9;
    figures.push({
      what: `product of ${rows} rows, ${bits} bits`,
      value: rate,
      unit: "GFLOP/s",
      ceiling: multiplyAdd,
    });
    for (const buffer of [x, y]) gpu.giveBack(buffer);
  }
  return figures;
}

/** Attention of one token over rows of one layer: bytes of keys and values a second. */
async function attention(gpu: GpuDevice, copy: number): Promise<Figure[]> {
  const shape = { heads: 32, kvHeads: 8, headDim: 128 }, figures: Figure[] = [];
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, each = shape.kvHeads * shape.headDim;
  for (const rows of gpu.info.emulated ? [64] : [1024, 4096, 16384]) {
    for (const type of ["f32", "f16", "int8"] as const) {
      const kept = backend.createRows(shape, rows, type), chunk = Math.min(rows, 256);
      const numbers = tensors.zeros(chunk * each), query = tensors.zeros(shape.heads * shape.headDim);
      for (let at = 0; at < rows; at += chunk) kept.append(numbers, numbers, chunk);
      const answers: Promise<void>[] = [];
      const time = await seconds(gpu, 20, () => {
        answers.push(kept.decodeAttention(query, 1).then(({ output }) => tensors.free(output)));
      });
      await Promise.all(answers);
      const value = kept.liveBytes / time / 1e9;
      figures.push({ what: `attention of a token, ${rows} rows ${type}`, value, unit: "GB/s", ceiling: copy });
      kept.free();
      for (const tensor of [numbers, query]) tensors.free(tensor);
    }
  }
  return figures;
}

/** Reading and answering of a whole model. */
async function model(path: string, emulated: boolean): Promise<Figure[]> {
  await using loaded = await loadModel(path, await currentRuntime(), { backend: "webgpu" });
  const figures: Figure[] = [], word = "The keeper counted seventeen stakes before the gate was shut. ";
  for (const tokens of emulated ? [64] : values.tokens.split(",").map(Number)) {
    for (const keep of ["20%", "100%"]) {
      const text = word.repeat(Math.ceil(tokens / 13));
      using context = await openContext(loaded, text, { policy: "snapkv", keep });
      const { prefill, evict } = context.ms, at = `${context.tokens} tokens, ${keep} kept`;
      const { ms } = await context.ask("What was counted?", { maxTokens: emulated ? 2 : 64, allowLoops: true });
      figures.push({ what: `read ${at}`, value: 1000 * context.tokens / prefill, unit: "tokens/s" });
      figures.push({ what: `evict ${at}`, value: 100 * evict / (prefill + evict), unit: "% of reading" });
      figures.push({ what: `answer ${at}`, value: 1000 / ms.decodePerToken, unit: "tokens/s" });
    }
  }
  return figures;
}

using gpu = await openGpu();
const { description, emulated, features } = gpu.info;
console.log(`${description}; 16-bit floats: ${features.f16}; subgroups: ${features.subgroups}`);
const copy = await copyCeiling(gpu), multiplyAdd = await multiplyAddCeiling(gpu);
const figures: Figure[] = [
  { what: "copy", value: copy, unit: "GB/s" },
  { what: "multiply-add", value: multiplyAdd, unit: "GFLOP/s" },
  ...await products(gpu, copy, multiplyAdd),
  ...await attention(gpu, copy),
  ...(values.model === undefined ? [] : await model(values.model, emulated)),
];
if (emulated) {
  console.log(`${figures.length} figures could be taken; an emulated device's say nothing, so none is printed`);
} else {
  for (const { what, value, unit, ceiling } of figures) {
    const share = ceiling === undefined ? "" : `${(100 * value / ceiling).toFixed(0)} %`;
    console.log(`${what.padEnd(44)} ${value.toPrecision(3).padStart(8)} ${unit.padEnd(12)} ${share}`);
  }
}
process.exitCode = 0;
