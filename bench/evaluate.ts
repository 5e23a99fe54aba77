/**
 * What an evaluation costs beside the model: wall time against the model's own.
 *
 *     deno run -A bench/evaluate.ts [CELLS=200]
 *
 * The model's own time is loading it and what every line says it took: reading, observing, scoring and selecting, the
 * pass over the question, decoding. The rest is the evaluation's: hashing the model's file, reading the prose, making
 * samples, tokenising, copying forks, divergences, ids, writing and syncing lines.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { formatMs } from "../cli/print/format.ts";
import { modelHash } from "../model/store/identity.ts";
import { VERSION } from "../runtime/version.ts";
import { runGroup } from "../evaluate/sweep/sweep.ts";
import { openHaystack } from "../evaluate/tasks/haystack.ts";
import { cellGroups, parseCases } from "../evaluate/sweep/plan.ts";
import { ResultsFile } from "../evaluate/results/results.ts";
import { openTasks } from "../evaluate/tasks/registry.ts";
import { loadModel } from "../model/model.ts";
import { LINE } from "../model/text/frames.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

const CELLS = Number(process.argv[2] ?? 200);
const POLICIES = "full,streaming-llm,snapkv,adakv,critical-adakv,defensive,layer-defensive,layer-defensive@reference";

const runtime = await currentRuntime();
const folder = await mkdtemp(join(tmpdir(), "palisade-bench-"));
const path = await pullModel("smollm2-135m", runtime);
const start = performance.now();
await using model = await loadModel(path, runtime, { oneEngine: true, frame: LINE });
const loading = performance.now() - start;
const sha256 = await modelHash(path, runtime);
const haystack = await openHaystack(runtime);
const cases = parseCases(POLICIES, "20%,10%,5%");
const tasks = await openTasks(["niah_single_1", "niah_single_2", "niah_multikey_1"], runtime);
const groups = cellGroups(tasks, [1024], Math.ceil(CELLS / cases.length / tasks.length));
await using results = await ResultsFile.open(runtime, join(folder, "results.jsonl"));
let cells = 0, own = loading;
for (const group of groups) {
  const options = { seed: 1, protocol: "context-first", haystack, isDone: (id: string) => results.has(id) } as const;
  let first = true;
  for await (const line of runGroup({ model, runtime, sha256, palisade: VERSION }, group, cases, options)) {
    await results.append(line);
    const { prefill, observe, evict, question, decode } = line.ms;
    own += (first ? prefill + observe : 0) + evict + question + decode;
    first = false;
    if (++cells === CELLS) break;
  }
  const wall = performance.now() - start;
  console.log(`${cells} cells: model ${formatMs(own)}, all ${formatMs(wall)}, ${share(wall - own, own)} % more`);
  if (cells === CELLS) break;
}
await rm(folder, { recursive: true });
console.log(`${model.dense.detail}; ${model.backend.detail}`);

function share(part: number, whole: number): string {
  return (100 * part / whole).toFixed(2);
}
