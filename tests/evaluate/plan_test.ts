import assert from "node:assert/strict";
import { cellGroups, cellsBefore, parseCases } from "../../evaluate/sweep/plan.ts";
import { rulerTasks } from "../../evaluate/tasks/registry.ts";

Deno.test("cellsBefore() counts lines of the same sample, policy and keep, each once", () => {
  const groups = cellGroups(rulerTasks.slice(0, 1), [1024, 2048], 2), [task] = rulerTasks;
  const cases = parseCases("full,snapkv,gate(combine=risk)", "20%,10%");
  assert.equal(cases.length, 5);
  const line = (sample: number, policy: string, keep: string, length = 1024, name = task.name) => {
    return { task: name, length, sample, asked: { policy, keep } };
  };
  const lines = [
    ...[line(0, "full", "100%"), line(0, "snapkv", "20%"), line(0, "snapkv", "20%"), line(0, "kvzip", "20%")],
    ...[line(0, "snapkv", "30%"), line(0, "gate", "20%"), line(0, "snapkv", "10%", 1024, "vt")],
    ...[line(1, "gate(combine=risk)", "10%"), line(1, "snapkv", "10%", 2048)],
  ];
  assert.deepEqual([...cellsBefore(lines, groups, cases)].map(([{ length, sample }, n]) => [length, sample, n]), [
    [1024, 0, 2],
    [1024, 1, 1],
    [2048, 0, 0],
    [2048, 1, 1],
  ]);
});
