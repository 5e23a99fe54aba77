/**
 * Selector and allocators from a thousand to a million entries: time for each size, and the slope of log time over log
 * entries (1 is linear). Every answer is checked. The load of the machine is printed with the figures.
 *
 *     deno run -A bench/select.ts
 */
import { cpus, loadavg } from "node:os";
import process from "node:process";
import { selectLayer } from "../core/select/allocate.ts";
import { CascadeSelection } from "../core/select/cascade.ts";
import { JointSelection } from "../core/select/joint.ts";
import { safeguarded } from "../core/policies/adakv.ts";
import type { Budget, LayerScores } from "../core/policy/policy.ts";
import { randomSource } from "../core/measure/random.ts";
import { type Segment, selectTop } from "../core/select/select.ts";
import { apportion } from "../core/select/apportion.ts";
import { createWasmBackend } from "../wasm/backend.ts";

const SIZES = [10, 12, 14, 16, 18, 20].map((power) => 2 ** power);
const LAYERS = 8, KV_HEADS = 4, KEEP = 0.2, SEED = 1, LEAST_MS = 150;

/** Runs on `entries` entries made outside; answers how many stay. */
interface Case {
  readonly name: string;
  make(entries: number): () => number | Promise<number>;
}

function scoresOf(entries: number): Float32Array {
  return Float32Array.from({ length: entries }, randomSource(SEED));
}

function layersOf(entries: number): { budget: Budget; layers: LayerScores[] } {
  const each = entries / LAYERS, length = each / KV_HEADS, perHead = Math.floor(KEEP * length), all = scoresOf(entries);
  const model = { heads: KV_HEADS, kvHeads: KV_HEADS, headDim: 1, layers: LAYERS };
  const counts = { perHead, perLayer: perHead * KV_HEADS, total: perHead * KV_HEADS * LAYERS };
  return {
    budget: { length, model, fraction: KEEP, ...counts, sinks: 0, window: 0, windowAsked: 0 },
    layers: Array.from({ length: LAYERS }, (_, layer) => ({
      scores: all.subarray(layer * each, (layer + 1) * each),
      preference: layer + 1,
    })),
  };
}

function sizeOf(kept: readonly Int32Array[]): number {
  return kept.reduce((sum, head) => sum + head.length, 0);
}

function segmentCase(name: string, fill: (entries: number) => Segment[]): Case {
  return {
    name,
    make(entries) {
      const segments = fill(entries), count = Math.floor(KEEP * entries);
      return () => sizeOf(selectTop({ segments, count }));
    },
  };
}

using wasm = await createWasmBackend();

const CASES: readonly Case[] = [
  segmentCase("selectTop, random scores", (entries) => [{ scores: scoresOf(entries) }]),
  segmentCase("selectTop, all equal", (entries) => [{ scores: new Float32Array(entries) }]),
  segmentCase("selectTop, protected and second key", (entries) => [{
    scores: scoresOf(entries).map((score) => Math.floor(score * 8)),
    second: scoresOf(entries),
    protectedEntries: Uint8Array.from({ length: entries }, (_, i) => Number(i % 16 === 0)),
  }]),
  {
    name: "wasm select, random scores",
    make(entries) {
      const segments = [{ scores: scoresOf(entries) }], count = Math.floor(KEEP * entries);
      return async () => sizeOf(await wasm.select({ segments, count }));
    },
  },
  {
    name: "per head",
    make(entries) {
      const { budget, layers } = layersOf(entries);
      return () =>
        layers.reduce((sum, scores) => sum + sizeOf(selectLayer({ allocate: { kind: "head" } }, budget, scores)), 0);
    },
  },
  {
    name: "adakv over each layer's heads",
    make(entries) {
      const { budget, layers } = layersOf(entries);
      const one = (scores: LayerScores) =>
        selectLayer({ allocate: { kind: "layer" } }, budget, safeguarded(scores, budget, 0.2));
      return () => layers.reduce((sum, scores) => sum + sizeOf(one(scores)), 0);
    },
  },
  {
    name: `joint over ${LAYERS} layers, streaming`,
    make(entries) {
      const { budget, layers } = layersOf(entries);
      return () => streamed(new JointSelection(budget), layers);
    },
  },
  {
    name: `cascade over ${LAYERS} layers, streaming`,
    make(entries) {
      const { budget, layers } = layersOf(entries);
      return () => streamed(new CascadeSelection(budget), layers);
    },
  },
  {
    name: "apportion over 32 claimants",
    make(entries) {
      const weights = Array.from({ length: 32 }, randomSource(SEED)), rooms = weights.map(() => entries / 32);
      return () => apportion(weights, rooms, Math.floor(KEEP * entries)).reduce((sum, seats) => sum + seats, 0);
    },
  },
];

function streamed(selection: JointSelection | CascadeSelection, layers: readonly LayerScores[]): number {
  layers.forEach((scores, layer) => selection.add(layer, scores));
  return layers.reduce((sum, _, layer) => sum + sizeOf(selection.kept(layer)), 0);
}

/** Milliseconds of the fastest call: on a shared machine the others count what else ran. */
async function measure({ name, make }: Case, entries: number): Promise<number> {
  const run = make(entries), times: number[] = [], began = performance.now();
  const kept = await run();
  if (Math.abs(kept - KEEP * entries) > LAYERS * KV_HEADS) throw new Error(`${name} kept ${kept} of ${entries}`);
  await run();
  while (times.length < 5 || (performance.now() - began < LEAST_MS && times.length < 200)) {
    const start = performance.now();
    await run();
    times.push(performance.now() - start);
  }
  return Math.min(...times);
}

/** Least-squares slope of ln time over ln size. */
function slopeOf(times: readonly number[]): number {
  const x = SIZES.map(Math.log), y = times.map(Math.log);
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const [meanX, meanY] = [mean(x), mean(y)];
  const above = x.reduce((sum, value, i) => sum + (value - meanX) * (y[i] - meanY), 0);
  return above / x.reduce((sum, value) => sum + (value - meanX) ** 2, 0);
}

const version = process.versions["deno"] ? `deno ${process.versions["deno"]}` : process.version;
console.log(`${version}, ${cpus()[0]?.model.trim()}, ${cpus().length} cores, load ${loadavg()[0].toFixed(1)}\n`);
const head = ["ms for entries", ...SIZES.map((size) => `2^${Math.log2(size)}`), "slope", "ns/entry at 2^20"];
console.log(`| ${head.join(" | ")} |\n| ${head.map(() => "---").join(" | ")} |`);
for (const each of CASES) {
  const times: number[] = [];
  for (const size of SIZES) times.push(await measure(each, size));
  const figures = [...times.map((ms) => ms.toPrecision(3)), slopeOf(times).toFixed(2)];
  console.log(`| ${[each.name, ...figures, (times.at(-1)! * 1e6 / SIZES.at(-1)!).toFixed(0)].join(" | ")} |`);
}
