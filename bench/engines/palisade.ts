/**
 * Our kernels alone as one of the engines of bench/engines/engine.ts: loads the model, answers each request
 * of a line with a line.
 *
 *     deno run -A bench/engines/palisade.ts MODEL.gguf POLICY KEEP [THREADS]
 */
import process from "node:process";
import { createInterface } from "node:readline";
import { setFlagsFromString } from "node:v8";
import type { RaggedCache } from "../../core/cache/ragged.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { extendByOne } from "../../model/decode/extend.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { readContext } from "../../model/read/layers.ts";
import { createSampler } from "../../model/decode/sampler.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { widenVectors } from "../../runtime/wide_vectors.ts";
import type { Reply, Request } from "./engine.ts";

/** Processor milliseconds of all threads since `from`. */
function processor(from: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(from);
  return (user + system) / 1000;
}

class Ours {
  readonly #model: Model;
  readonly #policy: string;
  readonly #keep: number;
  #cache?: RaggedCache;

  constructor(model: Model, policy: string, keep: number) {
    this.#model = model;
    this.#policy = policy;
    this.#keep = keep;
  }

  async prefill(ids: readonly number[]): Promise<Reply> {
    this.#cache?.[Symbol.dispose]();
    const { dense, backend, file, config } = this.#model;
    const policy = resolvePolicy(this.#keep === 1 ? "full" : this.#policy);
    const budget = resolveBudget(policy, { fraction: this.#keep }, ids.length, config);
    const outputWeights = (layer: number) => file.readFloat32(`blk.${layer}.attn_output.weight`);
    const start = performance.now(), cpu = process.cpuUsage();
    const { cache, lastHidden } = await readContext({ dense, backend }, ids, { policy, budget, outputWeights });
    await dense.logits(lastHidden, 1);
    this.#cache = cache;
    return { ms: performance.now() - start, cpu: processor(cpu) };
  }

  /** Greedy tokens after `id`; the cache as before. */
  async decode(first: number, steps: number): Promise<Reply> {
    const cache = this.#cache!, mark = cache.mark(), sampler = createSampler(), ms: number[] = [];
    const start = process.cpuUsage();
    for (let id = first; ms.length < steps;) {
      const start = performance.now();
      id = await extendByOne(this.#model.dense, cache, [id], sampler);
      ms.push(performance.now() - start);
    }
    const cpu = processor(start) / steps, cacheBytes = cache.bytes().allocated;
    cache.trim(mark);
    return { ms, cpu, cacheBytes };
  }
}

widenVectors(process, setFlagsFromString);
const [path, policy, keep] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const runtime = await currentRuntime();
const threads = Number(process.argv[5] ?? 1), begin = performance.now();
await using model = await loadModel(path, runtime, { backend: "wasm", dense: "wasm", threads });
const loadMs = performance.now() - begin;
const ours = new Ours(model, policy, keep);
console.log(JSON.stringify({ detail: `palisade, keep ${keep * 100} %, ${model.dense.detail}`, loadMs }));
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line) as Request;
  const reply = request.what === "prefill"
    ? await ours.prefill(request.ids)
    : await ours.decode(request.id, request.steps);
  console.log(JSON.stringify({ ...reply, rss: runtime.memory().rssBytes }));
}
