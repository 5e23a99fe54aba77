/** Budgets in bytes, stages in sweeps, and the preset that compares them. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { entryBytes, headBytes } from "../../core/cache/entry_type.ts";
import { entriesWithin, parseBytes, wholeBytes } from "../../core/select/byte_budget.ts";
import { chartsOf, drawChart } from "../../evaluate/report/charts.ts";
import { readResults, type ResultLine } from "../../evaluate/results/results.ts";
import { caseKey, summarise } from "../../evaluate/results/summary.ts";
import { cellGroups, parseCases, parsePart, partOf } from "../../evaluate/sweep/plan.ts";
import { presetOf, solvedByFull } from "../../evaluate/sweep/presets.ts";
import { reducedBytes } from "../../core/backend/reduced.ts";
import { storedAs } from "../../model/read/stored_as.ts";
import { sharesPrefill } from "../../evaluate/sweep/shared_prefill.ts";
import { runGroup, type Subject } from "../../evaluate/sweep/sweep.ts";
import { openTasks } from "../../evaluate/tasks/registry.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { palisade } from "../_helper/io.ts";
import { measureSample } from "../../evaluate/sweep/sweep.ts";
import { proseFile, testFolder, TINY_MODEL, tinyHaystack, tinyModel } from "../_helper/workbench.ts";

const SHAPE = { layers: 3, heads: 6, kvHeads: 2, headDim: 64 };
const folder = await testFolder("bytes");

Deno.test("bytes are read as sizes or shares, and refused by name", () => {
  const good: [string, unknown][] = [
    ["1/16", { share: 1 / 16 }],
    ["6.25%", { share: 1 / 16 }],
    ["2MB", { bytes: 2e6 }],
    ["1.5 KiB", { bytes: 1536 }],
    ["800", { bytes: 800 }],
  ];
  for (const [text, want] of good) assert.deepEqual(parseBytes(text), want, text);
  for (const text of ["", "0", "1/0", "3/2", "-1", "2TB", "120%", "a/b"]) {
    assert.throws(() => parseBytes(text), { code: "bytes.syntax" }, text);
  }
});

Deno.test("what is kept fits its bytes, whichever heads it falls to, and one entry more would not", () => {
  const length = 1024, whole = wholeBytes(length, SHAPE), heads = SHAPE.layers * SHAPE.kvHeads;
  assert.equal(whole, length * heads * 256);
  for (const type of ["f32", "f16", "int8", "int4", "k=int8,v=int4", "k=int4,v=int8"] as const) {
    for (const share of [1, 1 / 4, 1 / 16, 1 / 64]) {
      for (const biased of [false, true]) {
        const kept = entriesWithin({ share }, length, SHAPE, { type, biased });
        const bias = biased ? 4 : 0, total = kept * heads;
        // The worst case: all heads but one begin a group with their only entry.
        const worst = (heads - 1) * headBytes(64, type, 1, 1) +
          headBytes(64, type, total - heads + 1, total - heads + 1);
        const even = heads * headBytes(64, type, kept, kept);
        assert.ok(Math.max(even, worst) + total * bias <= share * whole + 1e-6, `${type} ${share}`);
        if (kept < length && !type.includes("int4")) {
          assert.ok((kept + 1) * heads * (entryBytes(64, type) + bias) > share * whole, `${type} ${share}`);
        }
      }
    }
  }
  assert.throws(() => entriesWithin({ bytes: 100 }, 64, SHAPE, { type: "int8", biased: false }), { code: "bytes.few" });
});

Deno.test("thin keys and merged entries fit their bytes, and one entry more would not", () => {
  const length = 1024, whole = wholeBytes(length, SHAPE), heads = SHAPE.layers * SHAPE.kvHeads;
  for (const type of ["f32", "f16", "int8", "k=int8,v=int4"] as const) {
    for (const share of [1, 1 / 4, 1 / 16, 1 / 64]) {
      const stored = storedAs({ keyChannels: 0.6, merge: "sum" }, type, SHAPE);
      const taken = (entries: number) => {
        const thin = { channels: new Int32Array(stored.thin!.channels), rows: Math.max(0, entries - 32) };
        return heads * (entries * (entryBytes(64, type) + 4) + reducedBytes({ thin }, entries, 64, type));
      };
      const kept = entriesWithin({ share }, length, SHAPE, stored);
      assert.ok(taken(kept) <= share * whole + 1e-6, `${type} ${share}`);
      if (kept < length) assert.ok(taken(kept + 1) > share * whole, `${type} ${share}`);
      assert.ok(kept <= entriesWithin({ share }, length, SHAPE, storedAs({ keyChannels: 0.6 }, type, SHAPE)));
    }
  }
  assert.deepEqual(storedAs({ merge: "mean" }, "f16", SHAPE), { type: "f16", biased: false });
});

Deno.test("parts share out the samples, each once", async () => {
  const groups = cellGroups(await openTasks(["vt", "cwe"], await currentRuntime()), [1024], 5);
  const parts = [1, 2, 3].map((i) => partOf(groups, parsePart(`${i}/3`)));
  assert.deepEqual(new Set(parts.flat()), new Set(groups));
  assert.equal(parts.flat().length, groups.length);
  for (const bad of ["0/3", "4/3", "1", "1/0", "a/b"]) assert.throws(() => parsePart(bad), { code: "part.syntax" });
});

Deno.test("the preset's policies all share one reading, and its tasks are chosen on the full cache alone", () => {
  const { policies, bytes } = presetOf("answers-per-byte");
  const cases = parseCases(policies, "20%", bytes);
  assert.equal(cases.length, 5 + 16 * 5);
  for (const { policy, asked } of cases) assert.ok(sharesPrefill(policy), asked.policy);
  const neighbours = presetOf("neighbours");
  const alone = parseCases(neighbours.policies, "20%", neighbours.bytes).filter(({ policy }) => !sharesPrefill(policy));
  assert.ok(alone.every(({ policy }) => policy.stages?.merge), "merges alone read for themselves");
  const line = (task: string, i: number, score: number) => ({ task, sampleHash: `${i}`, full: { answer: "", score } });
  const lines = [0, 1, 2].flatMap((i) => [line("vt", i, 100), line("cwe", i, 10)]);
  assert.deepEqual(solvedByFull(lines, 3), ["vt"]);
  assert.throws(() => solvedByFull(lines, 4), { code: "preset.unsolved" });
});

Deno.test("a shared reading keeps, stores and refits as a reading of one's own; bytes fit, and make one row", async () => {
  const runtime = await currentRuntime(), haystack = await tinyHaystack(folder);
  const [group] = cellGroups(await openTasks(["niah_single_1"], runtime), [1024], 1);
  await using model = await tinyModel("wasm");
  const subject: Subject = { model, runtime, sha256: "0".repeat(64), palisade: "test" };
  const policies = 'full(rows=int4),kvzip(rows=int4,refit=both),snapkv(rows="k=int8,v=int4"),knorm';
  const cases = parseCases(policies, "20%", "1/8"), lines: ResultLine[] = [];
  const options = { seed: 1, protocol: "context-first", haystack, isDone: () => false, beyondTrained: true } as const;
  for await (const line of runGroup(subject, group, cases, options)) lines.push(line);
  const { context, ids, sample } = measureSample(subject, group, options);
  const f16 = wholeBytes(ids.length, model.config);
  assert.deepEqual(lines.map(({ bytesAsked }) => bytesAsked), [undefined, "1/8", "1/8", "1/8"]);
  for (const line of lines.slice(1)) {
    assert.ok(line.bytes.live <= f16 / 8 && line.bytes.live > f16 / 16, `${line.asked.policy}: ${line.bytes.live}`);
    const { keep, asked } = line;
    using own = await openContext(model, context, { policy: asked.policy, keep, beyondTrained: true });
    assert.equal(own.cache.bytes().live, line.bytes.live, asked.policy);
    const want = await own.ask(sample.question, { answerPrefix: sample.answerPrefix, maxTokens: sample.maxNewTokens });
    assert.equal(want.answer, `${sample.answerPrefix}${line.answer}`, asked.policy);
  }
  const other = { ...lines[1], keep: { tokens: 999 } };
  assert.equal(caseKey(other), caseKey(lines[1]), "samples of other lengths are the same row");
  const { rows } = summarise(lines);
  const chart = chartsOf(rows, lines).find(({ title }) => title === "Answers per byte")!;
  assert.match(await drawChart(chart), /^<svg/);
});

Deno.test("eval --bytes --part goes on where it was, and queues refuse them", async () => {
  const out = join(folder, "part.jsonl"), prose = await proseFile(folder);
  const run = (...more: string[]) =>
    palisade([
      ...["eval", "--models", TINY_MODEL, "--haystack", prose, "--backend", "wasm", "--dense", "web", "--out", out],
      ...["--tasks", "niah_single_1", "--policies", "knorm(rows=int4)", "--bytes", "1/4,1/16", "--samples", "2"],
      ...more,
    ]);
  const first = await run("--part", "1/2");
  assert.equal(first.code, 0, first.err);
  assert.equal((await readResults(await currentRuntime(), out)).lines.length, 2);
  const before = await readFile(out, "utf8");
  assert.equal((await run("--part", "1/2")).code, 0);
  assert.equal(await readFile(out, "utf8"), before);
  assert.equal((await run("--part", "2/2")).code, 0);
  assert.equal((await readResults(await currentRuntime(), out)).lines.length, 4);
  assert.equal((await run("--part", "3/2")).code, 3);
  assert.equal((await run("--bytes", "many")).code, 3);
  const queued = await palisade(["eval", "--out", out, "--queue", "redis://127.0.0.1:1", "--bytes", "1/4"]);
  assert.equal(queued.code, 3);
  assert.match(queued.err, /--keep/);
});

Deno.test("openContext() and ask take bytes: what stays fits them", async () => {
  await using model = await tinyModel("wasm");
  const text = "The keeper counted seventeen stakes, and then she counted them again. ".repeat(12);
  for (const cacheType of ["f16", "int4"] as const) {
    using context = await openContext(model, text, { policy: "knorm", bytes: "1/8", cacheType });
    const whole = wholeBytes(context.cache.position, model.config), { live } = context.cache.bytes();
    assert.ok(live <= whole / 8 && live > whole / 16, `${cacheType}: ${live} of ${whole}`);
  }
  await assert.rejects(openContext(model, text, { bytes: "1/8", keep: "20%" }), { code: "bytes.exclusive" });
  const file = join(folder, "book.txt");
  await writeFile(file, text);
  const asked = ["ask", "--model", TINY_MODEL, "--context", file, "--question", "How many?", "--max-tokens", "2"];
  const more = ["--policy", "knorm", "--snapshots", "off", "--backend", "wasm", "--dense", "web", "--json"];
  const { code, out, err } = await palisade([...asked, ...more, "--bytes", "1/4"]);
  assert.equal(code, 0, err);
  assert.equal(JSON.parse(out).keep.asked, "1/4 bytes");
  assert.equal((await palisade([...asked, ...more, "--bytes", "lots"])).code, 3);
  assert.equal((await palisade(["ask", "--snapshot", file, "--question", "x", "--bytes", "1/4"])).code, 2);
});
