/**
 * Decode attention over keys that have lost channels, and over a part of the rows, against all of it: one token of one
 * layer, every form in turns in one process.
 *
 *     deno task bench reduced [--lengths 4096,8192,16384] [--types f32,f16,int8] [--seconds 1] [--share 0.6]
 *                             [--entries 256] [--chunks 0.25]
 */
import { availableParallelism, cpus, loadavg } from "node:os";
import process from "node:process";
import type { Backend, LayerRows } from "../core/backend/interface.ts";
import { checkCacheType } from "../core/cache/entry_type.ts";
import { channelCount } from "../core/measure/key_channels.ts";
import { randomSource } from "../core/measure/random.ts";
import { createWasmBackend } from "../wasm/backend.ts";

/** SmolLM2-135M's layer, and one of a model of eight billion. */
const SHAPES = [{ heads: 9, kvHeads: 3, headDim: 64 }, { heads: 32, kvHeads: 8, headDim: 128 }];
type Shape = typeof SHAPES[number];

function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

const seconds = Number(option("seconds", "1")), share = Number(option("share", "0.6"));
const entries = Number(option("entries", "256")), chunks = Number(option("chunks", "0.25"));

function floats(count: number, seed: number): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => random() * 2 - 1);
}

function filled(backend: Backend, { kvHeads, headDim, heads }: Shape, length: number, type: string): LayerRows {
  const rows = backend.createRows({ heads, kvHeads, headDim }, length, checkCacheType(type)), each = kvHeads * headDim;
  for (let first = 0; first < length; first += 1024) {
    const count = Math.min(1024, length - first);
    rows.append(floats(count * each, first), floats(count * each, first + 1), count);
  }
  return rows;
}

/** `count` channels, spread evenly. */
function spread(headDim: number, count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => Math.floor(i * headDim / count));
}

/** The same rows whole, thin, and read in part. */
function forms(backend: Backend, shape: Shape, length: number, type: string): Map<string, LayerRows> {
  const { kvHeads, headDim } = shape, kept = channelCount(headDim, share), read = 2 * Math.round(headDim / 2 * chunks);
  const [whole, thin, part] = [1, 2, 3].map(() => filled(backend, shape, length, type));
  for (let head = 0; head < kvHeads; head++) {
    thin.thin!(head, { channels: spread(headDim, kept), recent: 32 });
    part.foresee!(head, { channels: spread(headDim, read), entries, sinks: 4, recent: 32 });
  }
  return new Map([["all", whole], [`${kept} of ${headDim} channels`, thin], [`${entries} rows by ${read}`, part]]);
}

/** The median of each form's times, taken in turns. */
async function times(all: Map<string, LayerRows>, { heads, headDim }: Shape): Promise<Map<string, number>> {
  const taken = new Map([...all.keys()].map((name) => [name, [] as number[]]));
  const queries = floats(heads * headDim, 5), end = performance.now() + 1000 * seconds;
  for (let round = 0; round < 3 || performance.now() < end; round++) {
    for (const [name, rows] of all) {
      const start = performance.now();
      await rows.decodeAttention(queries, 1);
      if (round > 0) taken.get(name)!.push(performance.now() - start);
    }
  }
  return new Map([...taken].map(([name, list]) => [name, list.sort((a, b) => a - b)[list.length >> 1]]));
}

async function main(): Promise<void> {
  const backend = await createWasmBackend();
  console.log(
    `${cpus()[0].model}, ${availableParallelism()} cores, load ${loadavg()[0].toFixed(1)}; ${backend.detail}\n`,
  );
  console.log(
    "| heads | type | rows | form | ms | of all | bytes of all |\n| --- | --- | --- | --- | --- | --- | --- |",
  );
  for (const shape of SHAPES) {
    for (const type of option("types", "f32,f16,int8").split(",")) {
      for (const length of option("lengths", "4096,8192,16384").split(",").map(Number)) {
        const all = forms(backend, shape, length, type), measured = await times(all, shape);
        const whole = measured.get("all")!, bytes = all.get("all")!.liveBytes;
        const { heads, kvHeads, headDim } = shape, place = `${heads}/${kvHeads} × ${headDim} | ${type} | ${length}`;
        for (const [name, rows] of all) {
          const ms = measured.get(name)!, part = (rows.liveBytes / bytes * 100).toFixed(0);
          console.log(`| ${place} | ${name} | ${ms.toFixed(3)} | ${(ms / whole).toFixed(2)} | ${part} % |`);
          rows.free();
        }
      }
    }
  }
  backend[Symbol.dispose]();
}

await main();
