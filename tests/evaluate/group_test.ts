/** Cells of the workbench: what makes a cell another one. */
import assert from "node:assert/strict";
import { runGroup, type Subject } from "../../evaluate/sweep/sweep.ts";
import { cellGroups, parseCases } from "../../evaluate/sweep/plan.ts";
import { hashOf, type ResultLine } from "../../evaluate/results/results.ts";
import { openTasks } from "../../evaluate/tasks/registry.ts";
import { withWords } from "../../model/text/prompt.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { randomGate } from "../_helper/gate.ts";
import { randomSoftTokens } from "../_helper/soft_tokens.ts";
import { anyStatistics } from "../_helper/statistics.ts";
import { testFolder, tinyHaystack, tinyModel } from "../_helper/workbench.ts";

Deno.test("runGroup() gives the cells of gate other ids with another gate, and kvzip's the same", async () => {
  const runtime = await currentRuntime();
  const haystack = await tinyHaystack(await testFolder("group"));
  const [group] = cellGroups(await openTasks(["niah_single_1"], runtime), [1024], 1);
  const run = async (seed: number): Promise<ResultLine[]> => {
    await using tiny = await tinyModel("wasm");
    const gate = randomGate(tiny.config, seed);
    const model = { ...tiny, gate: () => Promise.resolve(gate) };
    const subject: Subject = { model, runtime, sha256: "0".repeat(64), palisade: "test" };
    const cases = parseCases("kvzip,gate,gate(read=stream)", "30%"), lines: ResultLine[] = [];
    const options = { seed: 1, protocol: "context-first", haystack, isDone: () => false, beyondTrained: true } as const;
    for await (const line of runGroup(subject, group, cases, options)) lines.push(line);
    return lines;
  };
  const [one, two] = [await run(1), await run(2)];
  const same = one.map(({ id }, i) => id === two[i].id);
  assert.deepEqual(one.map(({ asked }) => asked.policy), ["kvzip", "gate", "gate(read=stream)"]);
  assert.deepEqual(same, [true, false, false]);
  assert.match(String(one[1].policy.parameters.gate), /^[0-9a-f]{16}$/);
});

Deno.test("runGroup() gives cells that go by calibrated statistics other ids with others, and the rest the same", async () => {
  const runtime = await currentRuntime();
  const haystack = await tinyHaystack(await testFolder("statistics"));
  const [group] = cellGroups(await openTasks(["niah_single_1"], runtime), [1024], 1);
  await using tiny = await tinyModel("wasm");
  const known = anyStatistics(tiny.config, await tiny.identity());
  const run = async (scale: number): Promise<ResultLine[]> => {
    const statistics = () => Promise.resolve({ ...known, mean: known.mean.map((x) => x * scale) });
    const subject: Subject = { model: { ...tiny, statistics }, runtime, sha256: "0".repeat(64), palisade: "test" };
    const cases = parseCases("qfilter,qfilter(statistics=calibrated)", "30%"), lines: ResultLine[] = [];
    const options = { seed: 1, protocol: "context-first", haystack, isDone: () => false, beyondTrained: true } as const;
    for await (const line of runGroup(subject, group, cases, options)) lines.push(line);
    return lines;
  };
  const [one, two] = [await run(1), await run(2)];
  assert.deepEqual(one.map(({ id }, i) => id === two[i].id), [true, false]);
  assert.match(String(one[1].policy.parameters.statisticsOf), /^[0-9a-f]{16}$/);
});

Deno.test("runGroup() gives cells of judge-q other ids with other soft tokens of the model's own", async () => {
  const runtime = await currentRuntime();
  const haystack = await tinyHaystack(await testFolder("soft-tokens"));
  const [group] = cellGroups(await openTasks(["niah_single_1"], runtime), [1024], 1);
  await using tiny = await tinyModel("wasm");
  const known = randomSoftTokens(tiny.config);
  const run = async (scale: number): Promise<ResultLine> => {
    const softTokens = () => Promise.resolve({ ...known, embeddings: known.embeddings.map((x) => x * scale) });
    const subject: Subject = { model: { ...tiny, softTokens }, runtime, sha256: "0".repeat(64), palisade: "test" };
    const options = { seed: 1, protocol: "context-first", haystack, isDone: () => false, beyondTrained: true } as const;
    for await (const line of runGroup(subject, group, parseCases("judge-q", "30%"), options)) return line;
    throw new Error("no line");
  };
  const [one, two] = [await run(1), await run(2)];
  assert.notEqual(one.id, two.id);
  assert.match(String(one.policy.parameters.softTokensOf), /^[0-9a-f]{16}$/);
});

Deno.test("runGroup() gives cells asked in other words other ids, and those of the line break the ids they had", async () => {
  const runtime = await currentRuntime();
  const haystack = await tinyHaystack(await testFolder("frames"));
  const [group] = cellGroups(await openTasks(["niah_single_1"], runtime), [1024], 1);
  await using tiny = await tinyModel("wasm");
  const { prefix, suffix } = tiny.frame;
  const run = async (frame: string): Promise<ResultLine> => {
    const model = { ...tiny, frame: withWords(tiny.frame, frame) };
    const subject: Subject = { model, runtime, sha256: "0".repeat(64), palisade: "test" };
    const options = { seed: 1, protocol: "context-first", haystack, isDone: () => false, beyondTrained: true } as const;
    for await (const line of runGroup(subject, group, parseCases("full", "20%"), options)) return line;
    throw new Error("no line");
  };
  const [line, written, blank] = [await run("line"), await run("{text}\n{question}"), await run("blank")];
  assert.equal(line.frame, hashOf({ prefix, suffix }, runtime));
  assert.deepEqual([written.id, written.frame], [line.id, line.frame]);
  assert.notEqual(blank.frame, line.frame);
  assert.equal(line.modelName, "llama-plain");
});

Deno.test("runGroup() gives each cell away before it computes the next, so that a crash costs one", async () => {
  const haystack = await tinyHaystack(await testFolder("one-ahead")), runtime = await currentRuntime();
  const [group] = cellGroups(await openTasks(["niah_single_1"], runtime), [1024], 1);
  await using model = await tinyModel("wasm");
  const subject: Subject = { model, runtime, sha256: "0".repeat(64), palisade: "test" };
  let begun = 0, given = 0;
  const options = {
    ...{ seed: 1, protocol: "context-first", haystack, isDone: () => false, beyondTrained: true } as const,
    onStep: (step: string) => step.startsWith("answering") && begun++,
  };
  const cases = parseCases("full,snapkv,layer-defensive,gate(read=stream)", "40%,20%");
  for await (const _ of runGroup(subject, group, cases, options)) assert.equal(begun, ++given);
  assert.equal(given, 7);
});
