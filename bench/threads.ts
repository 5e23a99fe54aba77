/**
 * One thread against several: prefill attention, decode attention and the dense steps on SmolLM2's shapes, alternating in
 * one process, and what a wake-up costs. Answers of all are compared bit by bit first.
 *
 *     deno task bench threads [--threads 2] [--seconds 0.3]
 */
import assert from "node:assert/strict";
import { cpus, loadavg } from "node:os";
import process from "node:process";
import type { Backend } from "../core/backend/interface.ts";
import { randomSource } from "../core/measure/random.ts";
import { createWasmEngine } from "../model/dense/wasm/engine.ts";
import { configOf } from "../model/file/gguf/config.ts";
import { openGguf } from "../model/file/gguf/reader.ts";
import { modelPath } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { ThreadPool } from "../wasm/threads/pool.ts";
import { createWasmBackend } from "../wasm/backend.ts";
import { createThreadedBackend } from "../wasm/threads/backend.ts";

function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

const threads = Number(option("threads", "2"));
const seconds = Number(option("seconds", "0.3"));

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next() - 1.5) * 2);
}

function median(numbers: number[]): number {
  return numbers.sort((a, b) => a - b)[numbers.length >> 1];
}

/** Least milliseconds of each call, taken in turns. */
async function compare(calls: readonly (() => Promise<Float32Array>)[]): Promise<number[]> {
  const [first, ...others] = await Promise.all(calls.map((call) => call()));
  for (const other of others) assert.deepEqual(other, first);
  const taken: number[][] = calls.map(() => []);
  const end = performance.now() + seconds * 1000 * calls.length;
  do {
    for (const [i, call] of calls.entries()) {
      const start = performance.now();
      await call();
      taken[i].push(performance.now() - start);
    }
  } while (performance.now() < end);
  return taken.map((each) => Math.min(...each));
}

async function row(name: string, calls: readonly (() => Promise<Float32Array>)[]): Promise<void> {
  const [one, several] = await compare(calls);
  console.log(`| ${name} | ${one.toFixed(3)} | ${several.toFixed(3)} | ${(one / several).toFixed(2)}× |`);
}

async function attention(backends: readonly Backend<Float32Array>[]): Promise<void> {
  for (const shape of [{ heads: 9, kvHeads: 3, headDim: 64 }, { heads: 16, kvHeads: 4, headDim: 128 }]) {
    const { heads, kvHeads, headDim } = shape, of = `${heads}/${kvHeads} heads of ${headDim}`;
    for (const length of [512, 1024, 2048, 4096, 16384]) {
      const each = kvHeads * headDim, keys = floats(length * each, 1), values = floats(length * each, 2);
      const rows = backends.map((backend) => backend.createRows(shape, length));
      for (const layer of rows) layer.append(keys, values, length);
      const queries = floats(256 * heads * headDim, 3), one = queries.subarray(0, heads * headDim);
      await row(`decode, ${of}, n ${length}`, rows.map((r) => async () => (await r.decodeAttention(one, 1)).output));
      if (length === 4096) {
        const call = rows.map((r) => async () => (await r.prefillAttention(queries, 256)).output);
        await row(`prefill, ${of}, 256 × ${length}`, call);
      }
      for (const layer of rows) layer.free();
    }
  }
}

async function dense(pool: ThreadPool): Promise<void> {
  const runtime = await currentRuntime();
  const file = await openGguf(await runtime.openFile(await modelPath("smollm2-135m", runtime)));
  const config = await configOf(file);
  const engines = [await createWasmEngine(file, config), await createWasmEngine(file, config, { pool })];
  for (const count of [1, 2, 4, 8, 64, 256]) {
    const hidden = floats(count * config.width, 4), attention = floats(count * config.heads * config.headDim, 5);
    await row(`dense qkv, ${count} rows`, engines.map((e) => () => e.qkv(3, hidden, count)));
    await row(`dense finish, ${count} rows`, engines.map((e) => () => e.finish(3, hidden, attention, count)));
    if (count === 1) await row("dense logits, 1 row", engines.map((e) => () => e.logits(hidden, count)));
  }
  const token = floats(config.width, 6), attended = floats(config.heads * config.headDim, 7);
  await row(
    "dense, a whole token",
    engines.map((engine) => async () => {
      let hidden = token;
      for (let layer = 0; layer < config.layers; layer++) {
        await engine.qkv(layer, hidden, 1);
        hidden = await engine.finish(layer, hidden, attended, 1);
      }
      return await engine.logits(hidden, 1);
    }),
  );
  for (const engine of engines) await engine[Symbol.asyncDispose]();
  await file.close();
}

const runtime = await currentRuntime();
const { logical, physical = "unknown" } = runtime.cores();
console.log(`${new Date().toISOString().slice(0, 10)}, ${runtime.name} ${runtime.version}, ${cpus()[0].model}, `);
console.log(`${logical} hardware threads, ${physical} physical cores as told, load ${loadavg()[0].toFixed(1)}`);
console.log(`deno task bench threads --threads ${threads} --seconds ${seconds}\n`);
using pool = await ThreadPool.start({ threads, startThread: runtime.startThread });
using one = await createWasmBackend();
using several = await createThreadedBackend(pool);
console.log(`| what | 1 thread, ms | ${threads} threads, ms | faster |`);
console.log("| --- | --- | --- | --- |");
const empty = several.createRows({ heads: threads, kvHeads: threads, headDim: 4 }, 0);
empty.append(new Float32Array(4 * threads), new Float32Array(4 * threads), 1);
const wake = [];
for (let i = 0; i < 500; i++) {
  const start = performance.now();
  await empty.decodeAttention(new Float32Array(4 * threads), 1);
  wake.push(performance.now() - start);
}
await attention([one, several]);
await dense(pool);
console.log(`\nAn attention call with next to nothing to do: ${(median(wake) * 1000).toFixed(0)} µs.`);
