/**
 * What docs/scale.md calculates with: reading speed at several lengths, and cells through a real Redis server.
 *
 *     deno run -A bench/scale.ts [LENGTHS=1024,2048,4096] [GROUPS=200]
 *
 * Reading is measured in processor time too, which a shared machine disturbs less. The queue's cells are computed by
 * nobody: ten lines of 2.5 kB a group, one worker and one collector in this process, lines dropped instead of written.
 */
import process from "node:process";
import { resolveBudget } from "../core/select/budget.ts";
import { resolvePolicy } from "../core/policy/registry.ts";
import { collectSweep } from "../evaluate/queue/collector.ts";
import { QUEUE_PROTOCOL, type SweepManifest } from "../evaluate/queue/protocol.ts";
import { openServer } from "../evaluate/queue/server.ts";
import { workOnSweeps } from "../evaluate/queue/worker.ts";
import { cellId, type CellInputs, RESULT_FORMAT, type ResultLine } from "../evaluate/results/results.ts";
import { rulerTasks } from "../evaluate/tasks/registry.ts";
import { loadModel } from "../model/model.ts";
import { readContext } from "../model/read/layers.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { findRedis, startRedis } from "../tests/_helper/redis.ts";

const [lengths = "1024,2048,4096", groupCount = "200"] = process.argv.slice(2);
const runtime = await currentRuntime();

await reading(lengths.split(",").map(Number));
await queue(Number(groupCount));

async function reading(lengths: readonly number[]): Promise<void> {
  await using model = await loadModel(await pullModel("smollm2-135m", runtime), runtime);
  const { layers, heads, headDim, width, vocabulary } = model.config;
  const policy = resolvePolicy("full"), parameters = 134.5e6 - width * vocabulary;
  for (const length of lengths) {
    const ids = Array.from({ length }, (_, i) => 100 + (i * 7919) % 40_000);
    const budget = resolveBudget(policy, { fraction: 1 }, length, model.config);
    const cpu = process.cpuUsage(), wall = performance.now();
    const { cache } = await readContext(model, ids, {
      policy,
      budget,
      outputWeights: (layer) => model.file.readFloat32(`blk.${layer}.attn_output.weight`),
    });
    cache[Symbol.dispose]();
    const { user, system } = process.cpuUsage(cpu), seconds = (user + system) / 1e6;
    const operations = 2 * parameters * length + 2 * layers * heads * headDim * length ** 2;
    console.log(
      `${length} tokens: ${seconds.toFixed(1)} s of processor (${((performance.now() - wall) / 1000).toFixed(1)} s), ` +
        `${(length / seconds).toFixed(0)} tokens/s, ${(operations / seconds / 1e9).toFixed(1)} GFLOP/s`,
    );
  }
  console.log(`${model.dense.detail}; ${model.backend.detail}`);
}

async function queue(groupCount: number): Promise<void> {
  const program = await findRedis();
  if (program === undefined) return console.log("no redis-server: the queue was not measured");
  await using redis = await startRedis(program);
  await using server = await openServer(redis.url, console.log);
  const manifest: SweepManifest = {
    protocol: QUEUE_PROTOCOL,
    palisade: "bench",
    model: { name: "bench", sha256: "ab".repeat(32) },
    policies: "full",
    keep: "20%",
    tasks: ["vt"],
    seed: 1,
    reading: "context-first",
    beyondTrained: false,
    haystack: { sha256: "" },
    files: {},
  };
  const task = rulerTasks.find(({ name }) => name === "vt")!;
  const groups = Array.from({ length: groupCount }, (_, sample) => ({ task, length: 131_072, sample }));
  const stop = new AbortController(), ids = new Set<string>();
  const working = workOnSweeps(server, {
    runtime,
    runner: {
      engines: { backend: "none", dense: "none" },
      ended: new Promise(() => {}),
      begin: () => Promise.resolve(),
      run({ sample }, onLine) {
        const lines = Array.from({ length: 10 }, (_, i) => trivial(manifest, sample, i));
        lines.forEach(onLine);
        return Promise.resolve(lines.map(({ id }) => id));
      },
    },
    sha256: manifest.model.sha256,
    palisade: manifest.palisade,
    name: "bench",
    signal: stop.signal,
    onNote: () => {},
    pollMs: 20,
  }).catch(() => {});
  const start = performance.now();
  const { computed } = await collectSweep(server, {
    runtime,
    manifest,
    groups,
    signal: stop.signal,
    onNote: console.log,
    results: {
      before: [],
      has: (id) => ids.has(id),
      append: (line) => Promise.resolve(void ids.add(line.id)),
    },
  });
  const seconds = (performance.now() - start) / 1000;
  console.log(
    `${computed} cells in ${groupCount} groups through the queue in ${seconds.toFixed(1)} s: ` +
      `${(computed / seconds).toFixed(0)} cells/s`,
  );
  stop.abort();
  await working;
}

function trivial(manifest: SweepManifest, sample: number, i: number): ResultLine {
  const inputs = {
    format: RESULT_FORMAT,
    model: manifest.model,
    task: "vt",
    length: 131_072,
    sample,
    seed: 1,
    protocol: manifest.reading,
    keep: { tokens: i + 1 },
    engines: { palisade: "bench", backend: "none", dense: "none" },
  } as unknown as CellInputs;
  return { ...inputs, id: cellId(inputs, runtime), answer: "x".repeat(2000) } as ResultLine;
}
