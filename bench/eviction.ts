/**
 * What eviction adds to reading: observe, score, select and compact, and the value norms by themselves, as a share of
 * the prefill of SmolLM2-135M, and how it grows with the context. One run, one thread:
 *
 *     deno task bench eviction [tokens of the real prefill, default 4096, 0 for none] [engines, default wasm,node]
 *
 * Growth is measured on random rows of the model's shape, one layer; the slope is that of the least-squares line through
 * (log tokens, log time).
 */
import process from "node:process";
import type { Backend, LayerRows } from "../core/backend/interface.ts";
import { layerSelections } from "../core/select/allocate.ts";
import { resolveBudget } from "../core/select/budget.ts";
import { randomSource } from "../core/measure/random.ts";
import { resolvePolicy } from "../core/policy/registry.ts";
import type { NormKind } from "../core/policy/policy.ts";
import { planCalibration } from "../model/gate/fit/plan.ts";
import { loadModel } from "../model/model.ts";
import { readContext } from "../model/read/layers.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { createWasmBackend } from "../wasm/backend.ts";

const SHAPE = { heads: 9, kvHeads: 3, headDim: 64 }, LAYERS = 30, WIDTH = 576;
const LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768];
const policy = resolvePolicy("adakv");
const [tokens, engines] = [Number(process.argv[2] ?? 4096), (process.argv[3] ?? "wasm,node").split(",")];

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next() - 1.5) * 2);
}

/** Fewest milliseconds of at least three calls and 0.3 s; `prepare` is not timed. */
async function least<T>(prepare: () => T | Promise<T>, call: (prepared: T) => Promise<void>): Promise<number> {
  let best = Infinity;
  const end = performance.now() + 300;
  for (let i = 0; i < 3 || performance.now() < end; i++) {
    const prepared = await prepare(), start = performance.now();
    await call(prepared);
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

async function evict(backend: Backend, rows: LayerRows, queries: Float32Array, length: number): Promise<void> {
  const budget = resolveBudget(policy, { fraction: 0.2 }, length, { ...SHAPE, layers: 1 });
  const measured = await rows.observe(queries, budget.window, policy.needs);
  const observation = { layer: 0, shape: SHAPE, length, window: budget.window, ...measured };
  const kept: Int32Array[] = [];
  for (const selection of layerSelections(policy, budget, policy.score(observation, budget))) {
    kept.push(...await backend.select(selection));
  }
  rows.compact(kept);
}

/** Milliseconds for one layer. */
interface Cost {
  readonly length: number;
  readonly evict: number;
  readonly l1: number;
  readonly l2: number;
}

async function costs(backend: Backend, length: number): Promise<Cost> {
  const each = SHAPE.kvHeads * SHAPE.headDim;
  const full = backend.createRows(SHAPE, length);
  full.append(floats(length * each, 1), floats(length * each, 2), length);
  const queries = floats(policy.window * SHAPE.heads * SHAPE.headDim, 3), wo = floats(WIDTH * WIDTH, 4);
  const norms = (kind: NormKind) =>
    least(() => full, async (rows) => {
      await rows.valueNorms(wo, WIDTH, kind);
    });
  const copies: LayerRows[] = [];
  const cost = {
    length,
    evict: await least(
      async () => copies[copies.push(await full.clone()) - 1],
      (rows) => evict(backend, rows, queries, length),
    ),
    l1: await norms("l1"),
    l2: await norms("l2"),
  };
  for (const rows of [full, ...copies]) rows.free();
  return cost;
}

/** Slope of the line through (ln x, ln y). */
function slope(points: readonly (readonly [number, number])[]): number {
  const logs = points.map(([x, y]) => [Math.log(x), Math.log(y)]);
  const mean = (i: number) => logs.reduce((sum, point) => sum + point[i], 0) / logs.length;
  const [x, y] = [mean(0), mean(1)];
  return logs.reduce((sum, p) => sum + (p[0] - x) * (p[1] - y), 0) / logs.reduce((sum, p) => sum + (p[0] - x) ** 2, 0);
}

using backend = await createWasmBackend();
const measured: Cost[] = [];
for (const length of LENGTHS) measured.push(await costs(backend, length));
console.log(
  `${backend.detail}, one layer of ${SHAPE.heads}/${SHAPE.kvHeads} heads of ${SHAPE.headDim}, ${policy.name}\n`,
);
console.log(
  "| tokens | observe … compact ms | norms L1 ms | norms L2 ms | L1 GFLOP/s |\n| --- | --- | --- | --- | --- |",
);
for (const { length, evict, l1, l2 } of measured) {
  const rate = 2 * length * SHAPE.heads * SHAPE.headDim * WIDTH / l1 / 1e6;
  console.log(`| ${length} | ${evict.toFixed(2)} | ${l1.toFixed(1)} | ${l2.toFixed(2)} | ${rate.toFixed(1)} |`);
}
const slopes = (["evict", "l1", "l2"] as const).map((name) =>
  slope(measured.map((c) => [c.length, c[name]])).toFixed(3)
);
console.log(`| log–log slope | ${slopes.join(" | ")} | |\n`);

if (tokens > 0) {
  const runtime = await currentRuntime(), path = await pullModel("smollm2-135m", runtime);
  const cost = await costs(backend, tokens);
  console.log("| dense engine | prefill s | adakv's eviction | norms L1 | norms L2 |\n| --- | --- | --- | --- | --- |");
  for (const engine of engines) {
    await using model = await loadModel(path, runtime, { dense: engine as "wasm" | "node", precision: "float32" });
    const plan = await planCalibration(model, runtime, { tokens: Math.max(1000, 2 * tokens), seed: 99 });
    const ids = plan.fit.flat().slice(0, tokens),
      budget = resolveBudget(policy, { fraction: 0.2 }, tokens, model.config);
    const outputWeights = (layer: number) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
    const { cache, ms } = await readContext(model, ids, { policy, budget, outputWeights });
    cache[Symbol.dispose]();
    const percent = (part: number) => `${(100 * part / ms.prefill).toFixed(2)} %`;
    const shares = [ms.evict, LAYERS * cost.l1, LAYERS * cost.l2].map(percent).join(" | ");
    console.log(`| ${model.dense.detail} | ${(ms.prefill / 1000).toFixed(1)} | ${shares} |`);
  }
}
