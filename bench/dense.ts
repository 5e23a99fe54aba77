/**
 * Dense engines on SmolLM2 (or the GGUF named), attention left out: time to make one, rows per second through all layers
 * for several rows at once, resident memory. Every configuration runs in a process of its own, so that memory is its own.
 * Speed is of processor time, the best of a few runs: robust on a shared machine.
 *
 *     deno run -A bench/dense.ts [FILE.gguf] [--threads N] [--only ENGINE,…]
 */
import { execFileSync } from "node:child_process";
import { availableParallelism, cpus, loadavg } from "node:os";
import { basename } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import type { DenseEngine } from "../model/dense/interface.ts";
import { type DensePrecision, pickDense } from "../model/dense/pick.ts";
import { probeNode } from "../model/dense/ort/node.ts";
import { configOf } from "../model/file/gguf/config.ts";
import { openGguf } from "../model/file/gguf/reader.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { widenVectors } from "../runtime/wide_vectors.ts";

widenVectors(process, setFlagsFromString);

interface Row {
  readonly detail: string;
  readonly weightMb: number;
  readonly createMs: number;
  /** Rows per second of processor time, for each of `COUNTS` rows at once. */
  readonly rates: readonly number[];
  readonly headMs: number;
  readonly createdMb: number;
  readonly endMb: number;
  /** Checks the answer too: index of the largest logit of one fixed token. */
  readonly top: number;
}

/** `auto`: what `auto` takes, the mixed engine where both are there. */
type Engine = "web" | "node" | "wasm" | "auto";

const CASES: readonly (readonly [Engine, DensePrecision])[] = [
  ["wasm", "quantised"],
  ["node", "quantised"],
  ["auto", "quantised"],
  ["web", "float32"],
  ["web", "quantised"],
  ["node", "float32"],
  ["wasm", "float32"],
];
/** Rows at once. */
const COUNTS = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/** Rows of all runs of one count together. */
const ROWS = 256;
const MOST_RUNS = 8;

/** All layers over `count` equal rows; the q part stands in for attention's output, which has its size. */
async function pass(engine: DenseEngine, count: number): Promise<Float32Array> {
  const { config } = engine;
  const stride = (config.heads + 2 * config.kvHeads) * config.headDim;
  const attentionWidth = config.heads * config.headDim;
  let hidden = engine.embed(new Array(count).fill(1));
  for (let layer = 0; layer < config.layers; layer++) {
    const qkv = await engine.qkv(layer, hidden, count);
    const attention = new Float32Array(count * attentionWidth);
    for (let i = 0; i < count; i++) {
      attention.set(qkv.subarray(i * stride, i * stride + attentionWidth), i * attentionWidth);
    }
    hidden = await engine.finish(layer, hidden, attention, count);
  }
  return hidden;
}

/** Least processor milliseconds of `runs` calls after one that doesn't count. */
async function least(runs: number, call: () => Promise<unknown>): Promise<number> {
  let best = Infinity;
  await call();
  for (let i = 0; i < runs; i++) {
    const start = process.cpuUsage();
    await call();
    const { user, system } = process.cpuUsage(start);
    best = Math.min(best, (user + system) / 1000);
  }
  return best;
}

async function measure(path: string, dense: Engine, precision: DensePrecision, threads: number): Promise<Row> {
  const runtime = await currentRuntime();
  const rssMb = () => Math.round((runtime.memory().rssBytes ?? 0) / 1e6);
  await using file = await openGguf(await runtime.openFile(path));
  const config = await configOf(file);
  const start = performance.now();
  await using engine = await pickDense(file, config, { dense, precision, threads });
  const createMs = performance.now() - start;
  const createdMb = rssMb();
  const last = await pass(engine, 1);
  const headMs = await least(MOST_RUNS, () => engine.logits(last, 1));
  const rates: number[] = [];
  for (const count of COUNTS) {
    const ms = await least(Math.min(MOST_RUNS, Math.ceil(ROWS / count)), () => pass(engine, count));
    rates.push(count / ms * 1000);
  }
  const logits = await engine.logits(last, 1);
  return {
    detail: engine.detail,
    weightMb: Math.round(engine.weightBytes / 1e6),
    createMs: Math.round(createMs),
    rates,
    headMs,
    createdMb,
    endMb: rssMb(),
    top: logits.indexOf(Math.max(...logits)),
  };
}

/** This file again, in a process of its own. */
function child(parameters: readonly string[]): Row {
  const self = fileURLToPath(import.meta.url);
  const run = "Deno" in globalThis ? ["run", "-A", self] : [self];
  return JSON.parse(execFileSync(process.execPath, [...run, ...parameters], { encoding: "utf8" }));
}

async function main(): Promise<void> {
  const parameters = process.argv.slice(2);
  const threads = parameters.includes("--threads") ? Number(parameters[parameters.indexOf("--threads") + 1]) : 1;
  if (parameters[0] === "--case") {
    const [, path, dense, precision] = parameters as [string, string, Engine, DensePrecision];
    console.log(JSON.stringify(await measure(path, dense, precision, threads)));
    return;
  }
  const runtime = await currentRuntime();
  const path = parameters[0]?.endsWith(".gguf") ? parameters[0] : await pullModel("smollm2-135m", runtime);
  const probe = await probeNode();
  console.log(`${new Date().toISOString()}, ${runtime.name} ${runtime.version}, ${cpus()[0].model}`);
  console.log(`${availableParallelism()} cores, load ${loadavg()[0].toFixed(1)}`);
  console.log(`deno run -A bench/dense.ts ${parameters.map((word) => basename(word)).join(" ")}`);
  console.log("");
  const rates = COUNTS.map((count) => `rows/s, ${count} at once`).join(" | ");
  console.log(`| engine | weights MB | create ms | ${rates} | head ms/row | RSS MB made → end | top |`);
  console.log(`| --- | --- | --- | ${COUNTS.map(() => "--- |").join(" ")} --- | --- | --- |`);
  const only = parameters.includes("--only") ? parameters[parameters.indexOf("--only") + 1].split(",") : undefined;
  for (const [dense, precision] of CASES.filter(([engine]) => only?.includes(engine) ?? true)) {
    if (dense === "node" && !probe.available) {
      console.log(`| node ${precision} | ${probe.reason} |`);
      continue;
    }
    const row = child(["--case", path, dense, precision, "--threads", String(threads)]);
    const speed = [...row.rates.map((rate) => rate.toFixed(0)), row.headMs.toFixed(1)].join(" | ");
    const memory = `${row.createdMb} → ${row.endMb}`;
    console.log(`| ${row.detail} | ${row.weightMb} | ${row.createMs} | ${speed} | ${memory} | ${row.top} |`);
  }
}

await main();
