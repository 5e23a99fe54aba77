/**
 * The WebAssembly kernels against what 128-bit WebAssembly can do at most here: a loop that only reads the same bytes,
 * and multiply-adds in registers, measured in turns with each row in the same process. The share is of the slower of
 * the two, which no kernel can beat. Every answer is checked against plain loops before it is timed.
 *
 *     deno task bench kernels [--simd simd128|relaxed] [--seconds 0.3] [--only decode|prefill|evictions|dense]
 */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { availableParallelism, cpus, loadavg } from "node:os";
import process from "node:process";
import type { Backend, LayerRows } from "../core/backend/interface.ts";
import { createReferenceBackend } from "../core/backend/reference.ts";
import { CACHE_TYPES, type CacheType, entryBytes } from "../core/cache/entry_type.ts";
import { randomSource } from "../core/measure/random.ts";
import type { AttentionShape } from "../core/shape.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { hasRelaxedSimd } from "../runtime/features.ts";
import { typeNamed } from "../model/file/tensor_types.ts";
import { multiply, Stored } from "../wasm/dense/products.ts";
import { createWasmBackend } from "../wasm/backend.ts";
import { Kernels } from "../wasm/module.ts";

/** bench/ceilings/src/lib.rs */
interface Ceilings {
  readonly memory: WebAssembly.Memory;
  reserve(bytes: number): number;
  read(address: number, bytes: number): number;
  multiply(times: number, x: number, y: number): number;
}

/** One kernel's work: bytes that must be read and multiply-adds that must be done. */
interface Work {
  readonly bytes: number;
  readonly multiplyAdds: number;
}

function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

const simd = option("simd", hasRelaxedSimd() ? "relaxed" : "simd128") as "simd128" | "relaxed";
const seconds = Number(option("seconds", "0.3"));
const only = option("only", "");

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next() - 1.5) * 2);
}

/** Rounds in which a row and its two ceilings take turns. */
const ROUNDS = 3;

/** Least milliseconds of a call within a round's share of the time given. */
async function least(call: () => unknown): Promise<number> {
  let best = Infinity;
  const end = performance.now() + seconds * 1000 / ROUNDS;
  do {
    const start = performance.now();
    await call();
    best = Math.min(best, performance.now() - start);
  } while (performance.now() < end);
  return best;
}

async function startCeilings(): Promise<Ceilings> {
  const bytes = await readFile(new URL(`ceilings_${simd}.wasm`, import.meta.url));
  const { instance } = await WebAssembly.instantiate(new Uint8Array(bytes), {});
  return instance.exports as unknown as Ceilings;
}

class Bench {
  readonly #ceilings: Ceilings;
  readonly #address: number;
  readonly #room = 64 << 20;

  constructor(ceilings: Ceilings) {
    this.#ceilings = ceilings;
    this.#address = ceilings.reserve(this.#room);
    // Pages never written are all one page of zeros, and always in cache.
    new Uint8Array(ceilings.memory.buffer, this.#address, this.#room).fill(1);
  }

  async row(name: string, { bytes, multiplyAdds }: Work, call: () => unknown): Promise<void> {
    const slice = Math.min(this.#room, Math.ceil(bytes / 128) * 128), times = 20000;
    // In turns, because the clock and the memory that is shared with other machines drift.
    let [ms, readMs, multiplyMs] = [Infinity, Infinity, Infinity];
    for (let round = 0; round < ROUNDS; round++) {
      ms = Math.min(ms, await least(call));
      readMs = Math.min(readMs, await least(() => this.#ceilings.read(this.#address, slice)) * bytes / slice);
      const multiply = await least(() => this.#ceilings.multiply(times, 0.5, 1));
      multiplyMs = Math.min(multiplyMs, multiply * multiplyAdds / (times * 48));
    }
    const bound = readMs > multiplyMs ? "reading" : "multiplying";
    const share = Math.round(100 * Math.max(readMs, multiplyMs) / ms);
    const rate = `${(bytes / ms / 1e6).toFixed(1)} | ${(2 * multiplyAdds / ms / 1e6).toFixed(1)}`;
    console.log(`| ${name} | ${ms.toFixed(3)} | ${rate} | ${bound} | ${share} % |`);
  }
}

/** Rows of a backend, filled alike. */
function filled(
  backend: Backend<Float32Array>,
  shape: AttentionShape,
  length: number,
  type: CacheType = "f32",
): LayerRows<Float32Array> {
  const rows = backend.createRows(shape, length, type), each = shape.kvHeads * shape.headDim;
  rows.append(floats(length * each, 1), floats(length * each, 2), length);
  return rows;
}

/** Runs one call on both backends and compares what it gives. */
async function checked(
  backend: Backend<Float32Array>,
  shape: AttentionShape,
  call: (rows: LayerRows<Float32Array>) => Promise<Float32Array>,
  type: CacheType = "f32",
): Promise<void> {
  using oracle = createReferenceBackend();
  const [want, got] = [filled(oracle, shape, 200, type), filled(backend, shape, 200, type)];
  const [a, b] = [await call(want), await call(got)];
  const tolerance = type === "int8" ? 1e-3 : 1e-4;
  a.forEach((x, i) => assert.ok(Math.abs(x - b[i]) < tolerance * (1 + Math.abs(x)), `${x} against ${b[i]}`));
  got.free();
}

async function decode(bench: Bench, backend: Backend<Float32Array>): Promise<void> {
  for (const type of CACHE_TYPES) {
    for (const headDim of type === "f32" ? [64, 128] : [128]) {
      for (const group of type === "int8" ? [1, 4, 8] : [1, 2, 4]) {
        const shape = { heads: group, kvHeads: 1, headDim }, queries = floats(group * headDim, 3);
        await checked(backend, shape, async (rows) => (await rows.decodeAttention(queries, 1)).output, type);
        for (const length of type === "f32" ? [4096, 16384, 65536] : [16384, 65536]) {
          const rows = filled(backend, shape, length, type);
          const work = { bytes: length * entryBytes(headDim, type), multiplyAdds: 2 * length * headDim * group };
          const name = `decode ${type} d${headDim} G${group} n${length}`;
          await bench.row(name, work, () => rows.decodeAttention(queries, 1));
          rows.free();
        }
      }
    }
  }
}

async function prefill(bench: Bench, backend: Backend<Float32Array>): Promise<void> {
  const sizes = [[64, 32, 1024], [80, 32, 1024], [96, 32, 1024], [100, 32, 1024], [128, 32, 1024], [256, 32, 512]];
  for (const [headDim, count, length] of [...sizes, [64, 256, 4096], [128, 256, 4096], [64, 2048, 2048]]) {
    const shape = { heads: 3, kvHeads: 1, headDim }, queries = floats(count * 3 * headDim, 3);
    await checked(
      backend,
      shape,
      async (rows) => (await rows.prefillAttention(floats(600 * headDim, 3), 200)).output,
    );
    const rows = filled(backend, shape, length);
    const pairs = count * length - count * (count - 1) / 2;
    const work = { bytes: 8 * length * headDim, multiplyAdds: 2 * pairs * 3 * headDim };
    const name = `prefill d${headDim} ${count} × ${length}`;
    await bench.row(name, work, () => rows.prefillAttention(queries, count));
    if (headDim === 64) {
      const want = { columnMax: true };
      await bench.row(`${name}, column maxima`, work, () => rows.prefillAttention(queries, count, want));
    }
    rows.free();
  }
}

async function evictions(bench: Bench, backend: Backend<Float32Array>): Promise<void> {
  const window = 32, width = 576, shape = { heads: 9, kvHeads: 3, headDim: 64 };
  const queries = floats(window * 576, 3), wo = floats(width * 576, 4);
  const needs = { window: ["pooledMax", "mean", "mass", "logSumExp"] as const };
  await checked(backend, shape, async (rows) => (await rows.observe(queries, window, needs)).pooledMax!);
  await checked(backend, shape, (rows) => rows.valueNorms(wo, width));
  for (const length of [1024, 4096, 32768]) {
    const rows = filled(backend, shape, length), entries = length * 3 * 64;
    const twoPasses = { bytes: 8 * entries, multiplyAdds: 2 * window * 3 * entries };
    await bench.row(`observe w32, 9/3 heads of 64, n${length}`, twoPasses, () => rows.observe(queries, window, needs));
    const norms = { bytes: 4 * entries, multiplyAdds: entries * 3 * width };
    await bench.row(`value norms, width 576, n${length}`, norms, () => rows.valueNorms(wo, width));
    const gram = { bytes: 4 * entries, multiplyAdds: entries * 3 * 64 + width * width * 64 };
    await bench.row(`value norms L2, width 576, n${length}`, gram, () => rows.valueNorms(wo, width, "l2"));
    const scores = floats(3 * length, 5);
    const select = { bytes: 4 * scores.length, multiplyAdds: 0 };
    const input = { segments: [{ scores }], count: Math.floor(scores.length / 5) };
    await bench.row(`select a fifth of ${scores.length}`, select, () => backend.select(input));
    rows.free();
  }
}

async function dense(bench: Bench): Promise<void> {
  const kernels = await Kernels.start({ simd });
  const shapes: [string, number, number][] = [["Q4_0", 3072, 576], ["Q4_1", 3072, 576], ["Q4_1", 576, 1536], [
    "Q8_0",
    49152,
    576,
  ]];
  for (const [type, outputs, inputs] of shapes) {
    const { id: kernel, block, bytes: size } = typeNamed(type);
    const bytes = outputs * inputs / block * size, weights = new Stored(kernels, bytes);
    // Small positive float16 scales wherever one may stand; the answers are checked in tests/model/dense_wasm_test.ts.
    weights.view(0, bytes).forEach((_, i, all) => all[i] = i * 7 & 31);
    for (const count of outputs > 9999 ? [1] : [1, 64]) {
      for (const exact of [false, true]) {
        const x = new Stored(kernels, count * inputs * 4), y = new Stored(kernels, count * outputs * 4);
        const work = { bytes, multiplyAdds: count * outputs * inputs };
        const how = exact ? "float32" : "int16 inputs";
        await bench.row(
          `${type} ${outputs} × ${inputs}, ${count} rows, ${how}`,
          work,
          () =>
            multiply(kernels, { kernel, outputs, inputs, weights }, x.handle, count, {
              buffer: y.handle,
              stride: outputs,
            }, exact),
        );
        x.free();
        y.free();
      }
    }
    weights.free();
  }
}

const runtime = await currentRuntime();
const cores = `${availableParallelism()} cores, load ${loadavg()[0].toFixed(1)}`;
console.log(`${new Date().toISOString()}, ${runtime.name} ${runtime.version}, ${cpus()[0].model}, ${cores}`);
console.log(`deno task bench kernels --simd ${simd} --seconds ${seconds}\n`);
console.log("| kernel | ms | GB/s | GFLOP/s | bound by | share of the bound |");
console.log("| --- | --- | --- | --- | --- | --- |");
const bench = new Bench(await startCeilings());
using backend = await createWasmBackend({ simd });
if (!only || only === "decode") await decode(bench, backend);
if (!only || only === "prefill") await prefill(bench, backend);
if (!only || only === "evictions") await evictions(bench, backend);
if (!only || only === "dense") await dense(bench);
