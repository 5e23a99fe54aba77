import assert from "node:assert/strict";
import { bootstrapMean, mean } from "../../evaluate/results/bootstrap.ts";
import { csvOf, summarise } from "../../evaluate/results/summary.ts";
import type { ResultLine } from "../../evaluate/results/results.ts";

interface Options {
  readonly task?: string;
  readonly sample?: number;
  readonly policy?: string;
  readonly score: number;
  readonly full?: number;
  readonly backend?: string;
}

function line({ task = "vt", sample = 0, policy = "snapkv", score, full = 100, backend = "ts" }: Options): ResultLine {
  return {
    id: `${task}/${sample}/${policy}/${backend}`,
    model: { name: "m", sha256: "0" },
    protocol: "context-first",
    task,
    length: 1024,
    sample,
    seed: 1,
    sampleHash: `${task}${sample}`,
    policy: { name: policy, parameters: {} },
    keep: { fraction: 0.2 },
    asked: { policy, keep: "20%" },
    score,
    full: { answer: "", score: full },
    kl: { mean: 0.5, max: 1 },
    bytes: { live: 20, full: 100 },
    kept: [[4], [4], [4], [4]],
    ms: { evict: sample },
    engines: { palisade: "0", backend, dense: "web" },
  } as unknown as ResultLine;
}

Deno.test("summarise() counts held, lost and accidental samples apart", () => {
  const scores = [[100, 100], [0, 100], [50, 100], [100, 0], [0, 0]];
  const [row] = summarise(scores.map(([score, full], sample) => line({ sample, score, full }))).rows;
  assert.deepEqual([row.held, row.lost, row.accidental, row.samples], [1, 2, 1, 5]);
  assert.deepEqual([row.score, row.full, row.loss], [50, 60, 10]);
  assert.ok(Math.abs(row.bytes - 0.2) < 1e-12);
  // A quarter of the full bytes is the layer that is being read; the middle of 0 … 4 ms.
  assert.deepEqual([row.live, row.peak, row.evict], [20, 45, 2]);
});

Deno.test("summarise() adds a row over all tasks, each weighing the same", () => {
  const lines = [
    line({ task: "a", sample: 0, score: 0 }),
    line({ task: "a", sample: 1, score: 0 }),
    line({ task: "b", sample: 0, score: 100 }),
  ];
  const { rows } = summarise(lines);
  assert.deepEqual(rows.map(({ task, score }) => [task, score]), [["a", 0], ["b", 100], ["all", 50]]);
});

Deno.test("summarise() calls a task solved from 60 on 20 samples on, and averages the solved ones", () => {
  const lines = ["a", "b", "c"].flatMap((task) =>
    Array.from({ length: task === "c" ? 19 : 20 }, (_, sample) => line({ task, sample, score: 10, full: 60 }))
  );
  const { solved, rows } = summarise(lines);
  assert.deepEqual(solved, ["a 1024 m", "b 1024 m"]);
  assert.ok(rows.some(({ task, samples }) => task === "solved" && samples === 40));
  assert.deepEqual(summarise(lines.map((each) => ({ ...each, full: { answer: "", score: 59 } }))).solved, []);
});

Deno.test("summarise() takes the later of two measurements of one sample, so that none counts twice", () => {
  const { rows, superseded } = summarise([line({ score: 0 }), line({ score: 100, backend: "wasm" })]);
  assert.equal(superseded, 1);
  assert.deepEqual([rows[0].samples, rows[0].score], [1, 100]);
});

Deno.test("bootstrapMean() is the same each time, holds the mean, and is nothing for one sample", () => {
  const differences = [0, 0, 100, 0, 100, 100, 0, 0];
  const first = bootstrapMean([differences])!;
  assert.deepEqual(bootstrapMean([differences]), first);
  assert.equal(first.mean, 37.5);
  assert.ok(first.low < 37.5 && first.high > 37.5);
  assert.equal(bootstrapMean([[1]]), undefined);
  assert.equal(bootstrapMean([]), undefined);
  assert.deepEqual(bootstrapMean([[7, 7, 7]]), { mean: 7, low: 7, high: 7 });
});

Deno.test("bootstrapMean() covers the truth about as often as it says", () => {
  // 200 draws of 40 differences that are 100 with probability 0.3
  let state = 12345, covered = 0;
  const coin = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 < 0.3 ? 100 : 0;
  for (let i = 0; i < 200; i++) {
    const { low, high } = bootstrapMean([Array.from({ length: 40 }, coin)])!;
    if (low <= 30 && high >= 30) covered++;
  }
  assert.ok(covered >= 176 && covered <= 199, `${covered} of 200`);
});

Deno.test("mean() is the arithmetic mean", () => assert.equal(mean([1, 2, 6]), 3));

Deno.test("csvOf() quotes what holds commas and keeps numbers whole", () => {
  const csv = csvOf(summarise([line({ policy: "adakv(snapkv, safeguard=0.2)", score: 100 / 3 })]).rows);
  const [head, row] = csv.split("\r\n");
  assert.match(head, /^model,protocol,length,task,policy,keep,samples,score,full,loss,loss_low,loss_high/);
  assert.match(row, /^m,context-first,1024,vt,"adakv\(snapkv, safeguard=0\.2\)",20%,1,33\.3333/);
});

Deno.test("summarise() calls a model by the name that people know, old lines of the same file too", () => {
  const smollm2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
  const named = (name: string, sha256: string, modelName?: string) => ({
    ...line({ score: 1, sample: modelName?.length ?? 0 }),
    model: { name, sha256 },
    ...(modelName !== undefined && { modelName }),
  });
  const names = (lines: ResultLine[]) => [...new Set(summarise(lines).rows.map(({ model }) => model))];
  assert.deepEqual(names([named("Smollm2 135M 8k", smollm2)]), ["smollm2-135m"]);
  assert.deepEqual(names([named("Some title", "1".repeat(64))]), ["Some title"]);
  assert.deepEqual(names([named("Some title", "1".repeat(64)), named("Some title", "1".repeat(64), "mine")]), ["mine"]);
});
