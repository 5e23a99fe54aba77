import assert from "node:assert/strict";
import { compareTo } from "../../evaluate/results/against.ts";
import type { ResultLine } from "../../evaluate/results/results.ts";

function line(policy: string, sample: number, score: number, task = "vt", keep = "20%"): ResultLine {
  return {
    model: { name: "m", sha256: "0" },
    protocol: "context-first",
    ...{ task, length: 1024, sample, seed: 1, sampleHash: `${task}${sample}`, score },
    policy: { name: policy, parameters: {} },
    keep: { fraction: Number.parseInt(keep) / 100 },
    asked: { policy, keep },
  } as unknown as ResultLine;
}

Deno.test("compareTo() pairs samples, and leaves out those that only one policy has", () => {
  const [row, ...others] = compareTo(
    [line("a", 0, 100), line("a", 1, 50), line("a", 2, 0), line("b", 0, 50), line("b", 1, 75)],
    "b",
  );
  assert.deepEqual(others, []);
  assert.deepEqual([row.policy, row.samples, row.score, row.against, row.difference], ["a", 2, 75, 62.5, 12.5]);
  assert.deepEqual([row.better, row.worse], [1, 1]);
  assert.deepEqual([row.interval!.low, row.interval!.high], [-25, 50]);
});

Deno.test("compareTo() compares within one budget, and with a whole cache at every budget", () => {
  const lines = [
    line("a", 0, 100),
    line("a", 0, 10, "vt", "10%"),
    line("b", 0, 40),
    line("full", 0, 100, "vt", "100%"),
  ];
  assert.deepEqual(
    compareTo(lines, "b").map(({ policy, keep, difference }) => [policy, keep, difference]),
    [["a", "20%", 60]],
  );
  assert.deepEqual(
    compareTo(lines, "full").map(({ policy, keep, difference }) => [policy, keep, difference]),
    [["a", "20%", 0], ["a", "10%", -90], ["b", "20%", -60]],
  );
});

Deno.test("compareTo() weighs tasks alike in their mean", () => {
  const lines = [
    ...[0, 1, 2, 3].flatMap((sample) => [line("a", sample, 100), line("b", sample, 0)]),
    ...[line("a", 0, 0, "cwe"), line("b", 0, 0, "cwe")],
  ];
  const all = compareTo(lines, "b").find(({ task }) => task === "all")!;
  assert.deepEqual([all.samples, all.difference, all.interval], [5, 50, undefined]);
});
