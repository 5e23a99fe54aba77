/**
 * Dense engines on SmolLM2 (or the GGUF named), attention left out: time to make one, one row and 256 rows through all
 * layers, resident memory. Every configuration runs in a process of its own, so that memory is its own.
 *
 *     deno run -A bench/dense.ts [FILE.gguf] [--threads N]
 */
import { execFileSync } from "node:child_process";
import { availableParallelism, cpus, loadavg } from "node:os";
import { basename } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { DenseEngine } from "../model/dense/interface.ts";
import { type DensePrecision, pickDense } from "../model/dense/pick.ts";
import { probeNode } from "../model/dense/node.ts";
import { configOf } from "../model/gguf/config.ts";
import { openGguf } from "../model/gguf/reader.ts";
import { pullModel } from "../model/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

interface Row {
  readonly detail: string;
  readonly weightMb: number;
  readonly createMs: number;
  readonly layersMs: number;
  readonly headMs: number;
  readonly rowsPerSecond: number;
  readonly createdMb: number;
  readonly endMb: number;
  /** Checks the answer too: index of the largest logit of one fixed token. */
  readonly top: number;
}

const CASES: readonly (readonly ["web" | "node", DensePrecision])[] = [
  ["web", "float32"],
  ["web", "quantised"],
  ["node", "float32"],
  ["node", "quantised"],
];
const CHUNK = 256;
const STEPS = 8;

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

/** Median milliseconds of `runs` calls after one that doesn't count. */
async function median(runs: number, call: () => Promise<unknown>): Promise<number> {
  const times = [];
  for (let i = 0; i <= runs; i++) {
    const start = performance.now();
    await call();
    times.push(performance.now() - start);
  }
  return times.slice(1).sort((a, b) => a - b)[runs >> 1];
}

async function measure(path: string, dense: "web" | "node", precision: DensePrecision, threads: number): Promise<Row> {
  const runtime = await currentRuntime();
  const rssMb = () => Math.round((runtime.memory().rssBytes ?? 0) / 1e6);
  await using file = await openGguf(await runtime.openFile(path));
  const config = await configOf(file);
  const start = performance.now();
  await using engine = await pickDense(file, config, { dense, precision, threads });
  const createMs = performance.now() - start;
  const createdMb = rssMb();
  const last = await pass(engine, 1);
  const layersMs = await median(STEPS, () => pass(engine, 1));
  const headMs = await median(STEPS, () => engine.logits(last, 1));
  const chunkMs = await median(2, () => pass(engine, CHUNK));
  const logits = await engine.logits(last, 1);
  return {
    detail: engine.detail,
    weightMb: Math.round(engine.weightBytes / 1e6),
    createMs: Math.round(createMs),
    layersMs,
    headMs,
    rowsPerSecond: Math.round(CHUNK / chunkMs * 1000),
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
    const [, path, dense, precision] = parameters as [string, string, "web" | "node", DensePrecision];
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
  console.log(
    "| engine | weights MB | create ms | layers ms/row | head ms/row | rows/s at 256 | RSS MB made → end | top |",
  );
  console.log("| --- | --- | --- | --- | --- | --- | --- | --- |");
  for (const [dense, precision] of CASES) {
    if (dense === "node" && !probe.available) {
      console.log(`| node ${precision} | ${probe.reason} |`);
      continue;
    }
    const row = child(["--case", path, dense, precision, "--threads", String(threads)]);
    const speed = `${row.layersMs.toFixed(1)} | ${row.headMs.toFixed(1)} | ${row.rowsPerSecond}`;
    const memory = `${row.createdMb} → ${row.endMb}`;
    console.log(`| ${row.detail} | ${row.weightMb} | ${row.createMs} | ${speed} | ${memory} | ${row.top} |`);
  }
}

await main();
