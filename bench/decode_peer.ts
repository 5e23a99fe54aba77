/**
 * Decode attention over int8 rows beside torch's in bfloat16, one thread each, taking turns in one run.
 *
 *     python3 -m venv ../torch && ../torch/bin/pip install torch
 *     deno task bench decode_peer --python ../torch/bin/python [--simd simd128|relaxed] [--rounds 5] [--seconds 0.2]
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { availableParallelism, cpus, loadavg } from "node:os";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { randomSource } from "../core/measure/random.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { hasRelaxedSimd } from "../runtime/features.ts";
import { createWasmBackend } from "../wasm/backend.ts";

function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

const python = option("python", "python3");
const simd = option("simd", hasRelaxedSimd() ? "relaxed" : "simd128") as "simd128" | "relaxed";
const rounds = Number(option("rounds", "5")), seconds = Number(option("seconds", "0.2"));

/** Torch in a process of its own: one line out, one line back. */
class Peer {
  readonly #process;
  readonly #lines;

  constructor() {
    const script = fileURLToPath(new URL("./peers/torch_decode.py", import.meta.url));
    this.#process = spawn(python, [script], { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
  }

  async answer<T>(line?: string): Promise<T> {
    if (line) this.#process.stdin.write(`${line}\n`);
    const { value, done } = await this.#lines.next();
    assert.ok(!done, `${python} ended without an answer: does it have torch?`);
    return JSON.parse(value);
  }

  close(): void {
    this.#process.stdin.end();
  }
}

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next() - 1.5) * 2);
}

/** Least milliseconds of a call within the time given. */
async function least(call: () => Promise<unknown>): Promise<number> {
  let best = Infinity;
  const end = performance.now() + seconds * 1000;
  do {
    const start = performance.now();
    await call();
    best = Math.min(best, performance.now() - start);
  } while (performance.now() < end);
  return best;
}

function median(all: readonly number[]): number {
  return [...all].sort((a, b) => a - b)[Math.floor(all.length / 2)];
}

const peer = new Peer();
const { torch } = await peer.answer<{ torch: string }>();
const runtime = await currentRuntime();
const cores = `${availableParallelism()} cores, load ${loadavg()[0].toFixed(1)}`;
console.log(`${new Date().toISOString()}, ${runtime.name} ${runtime.version}, ${cpus()[0].model}, ${cores}`);
console.log(`deno task bench decode_peer --simd ${simd} --rounds ${rounds} --seconds ${seconds}; torch ${torch}\n`);
console.log("| one KV head | int8 rows, ms | torch bf16, ms | torch / ours, median of rounds |");
console.log("| --- | --- | --- | --- |");
using backend = await createWasmBackend({ simd });
for (const headDim of [128]) {
  for (const length of [16384, 65536]) {
    for (const group of [1, 4, 8]) {
      const rows = backend.createRows({ heads: group, kvHeads: 1, headDim }, length, "int8");
      rows.append(floats(length * headDim, 1), floats(length * headDim, 2), length);
      const queries = floats(group * headDim, 3);
      const times: { ours: number; theirs: number }[] = [];
      for (let round = 0; round < rounds; round++) {
        const ours = await least(() => rows.decodeAttention(queries, 1));
        const { fused, products } = await peer.answer<{ fused: number; products: number }>(
          `${headDim} ${group} ${length} ${seconds * 2}`,
        );
        times.push({ ours, theirs: Math.min(fused, products) });
      }
      rows.free();
      const [ours, theirs] = [Math.min(...times.map((t) => t.ours)), Math.min(...times.map((t) => t.theirs))];
      const ratio = median(times.map((t) => t.theirs / t.ours));
      const name = `d${headDim} G${group} n${length}`;
      console.log(`| ${name} | ${ours.toFixed(3)} | ${theirs.toFixed(3)} | ${ratio.toFixed(2)} × |`);
    }
  }
}
peer.close();
