/**
 * A whole token of a model whose queries read a part (`fasa`), against the same token over all entries, in turns in one
 * process. The caches hold random rows: a token's time goes by how many there are.
 *
 *     deno task bench fasa --model FILE.gguf [--lengths 4096,8192,16384] [--tokens 12] [--entries 256] [--chunks 0.25]
 */
import { loadavg } from "node:os";
import process from "node:process";
import { RaggedCache } from "../core/cache/ragged.ts";
import { randomSource } from "../core/measure/random.ts";
import { extend } from "../model/decode/extend.ts";
import { loadModel, type Model } from "../model/model.ts";
import { currentRuntime } from "../runtime/mod.ts";

function option(name: string, otherwise: string): string {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? otherwise : process.argv[at + 1];
}

const entries = Number(option("entries", "256")), chunks = Number(option("chunks", "0.25"));
const tokens = Number(option("tokens", "12"));

/** Every layer holds `length` random entries in each head. */
function filled({ backend, config }: Model, length: number): RaggedCache {
  const cache = new RaggedCache(backend, config), each = config.kvHeads * config.headDim, random = randomSource(length);
  const floats = (count: number) => Float32Array.from({ length: count * each }, () => random() * 2 - 1);
  for (let first = 0; first < length; first += 1024) {
    const count = Math.min(1024, length - first), [keys, values] = [floats(count), floats(count)];
    for (let layer = 0; layer < config.layers; layer++) cache.append(layer, keys, values, count, first);
  }
  cache.advance(length);
  return cache;
}

/** Every head reads `entries` by the first of its channels. */
function readInPart(cache: RaggedCache, { kvHeads, headDim }: Model["config"]): void {
  const channels = Int32Array.from({ length: 2 * Math.max(1, Math.round(chunks * headDim / 2)) }, (_, i) => i);
  for (const layer of cache.globals) {
    for (let head = 0; head < kvHeads; head++) cache.foresee(layer, head, { channels, entries, sinks: 4, recent: 32 });
  }
}

/** Milliseconds of one token; the cache is as before afterwards. */
async function oneToken(model: Model, cache: RaggedCache): Promise<number> {
  const mark = cache.mark(), start = performance.now();
  await extend(model.dense, cache, [7]);
  const ms = performance.now() - start;
  cache.trim(mark);
  return ms;
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.floor(share * (sorted.length - 1))];
}

await using model = await loadModel(option("model", ""), await currentRuntime(), { backend: "wasm", threads: 1 });
console.log(`${model.name}, ${model.backend.detail}, ${model.dense.detail}; load ${loadavg()[0].toFixed(1)}`);
console.log(
  "| entries of a head | all, ms | in part, ms | pairs: median of all / part | quarters | MB, all | in part |",
);
console.log("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
for (const length of option("lengths", "4096,8192,16384").split(",").map(Number)) {
  using whole = filled(model, length);
  using part = filled(model, length);
  readInPart(part, model.config);
  const all: number[] = [], read: number[] = [];
  for (let i = -2; i < tokens; i++) {
    const [a, b] = [await oneToken(model, whole), await oneToken(model, part)];
    if (i >= 0) all.push(a), read.push(b);
  }
  const ratios = all.map((ms, i) => ms / read[i]).sort((a, b) => a - b);
  const [middle, other] = [all, read].map((each) => quantile(each.sort((a, b) => a - b), 0.5).toFixed(1));
  const quarters = [0.25, 0.75].map((share) => quantile(ratios, share).toFixed(2)).join(" … ");
  const bytes = [whole, part].map((cache) => (cache.bytes().live / 1e6).toFixed(0)).join(" | ");
  console.log(`| ${length} | ${middle} | ${other} | ${quantile(ratios, 0.5).toFixed(2)} | ${quarters} | ${bytes} |`);
}
