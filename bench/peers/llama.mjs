/**
 * llama.cpp through node-llama-cpp, on the processor alone, as a peer of bench/step.ts. Reads one JSON request a line,
 * answers each with one line. Full cache, as llama.cpp keeps it.
 *
 *     node llama.mjs MODEL.gguf THREADS CONTEXT
 */
import process from "node:process";
import { createInterface } from "node:readline";
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [path, threads, context] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const begin = performance.now();
const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
const session = await model.createContext({ contextSize: context, batchSize: 512, threads });
const loadMs = performance.now() - begin;
const sequence = session.getSequence();

/** Processor milliseconds of all threads since `from`. */
function processor(from) {
  const { user, system } = process.cpuUsage(from);
  return (user + system) / 1000;
}

const requests = {
  /** Reads `ids` into an empty cache. */
  async prefill({ ids }) {
    await sequence.clearHistory();
    const start = performance.now(), cpu = process.cpuUsage();
    await sequence.evaluateWithoutGeneratingNewTokens(ids);
    return { ms: performance.now() - start, cpu: processor(cpu) };
  },
  /** `steps` greedy tokens after token `id`, then the cache as before; milliseconds of each step, processor time of one. */
  async decode({ id, steps }) {
    const length = sequence.nextTokenIndex, ms = [], said = [];
    const cpu = process.cpuUsage();
    let start = performance.now();
    for await (const token of sequence.evaluate([id], { temperature: 0 })) {
      ms.push(performance.now() - start);
      said.push(token);
      if (ms.length === steps) break;
      start = performance.now();
    }
    const used = processor(cpu) / steps;
    await sequence.eraseContextTokenRanges([{ start: length, end: sequence.nextTokenIndex }]);
    return { ms, cpu: used, said };
  },
};

console.log(JSON.stringify({ detail: `llama.cpp (node-llama-cpp), full cache, ${threads} thread`, loadMs }));
for await (const line of createInterface({ input: process.stdin })) {
  const { what, ...request } = JSON.parse(line);
  const rss = () => process.memoryUsage.rss();
  console.log(JSON.stringify({ ...await requests[what](request), rss: rss() }));
}
process.exit(0);
