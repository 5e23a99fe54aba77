import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PalisadeError } from "../../core/errors.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { openGgufFile, openGgufSources, partPaths } from "../../model/file/gguf/split.ts";
import { loadModel } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { modelHash } from "../../model/store/identity.ts";
import { bufferSource, currentRuntime } from "../../runtime/mod.ts";
import { splitGguf } from "../_helper/split_gguf.ts";
import { testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const runtime = await currentRuntime();
const whole = await readFile(TINY_MODEL);

/** Writes the parts and returns the paths. */
async function writeParts(parts: readonly Uint8Array[]): Promise<string[]> {
  const folder = await testFolder("split");
  const paths = partPaths(join(folder, `tiny-00001-of-0000${parts.length}.gguf`));
  for (const [i, path] of paths.entries()) await writeFile(path, parts[i]);
  return paths;
}

async function refusal(path: string): Promise<PalisadeError> {
  const error = await openGgufFile(path, runtime).then((file) => file.close(), (reason) => reason);
  assert.ok(error instanceof PalisadeError, `${error}`);
  return error;
}

Deno.test("partPaths() names all parts from any of them, and leaves other names alone", () => {
  const parts = ["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf"];
  for (const part of parts) assert.deepEqual(partPaths(`x/${part}`), parts.map((each) => `x/${each}`));
  const alone = ["a.gguf", "a-00001-of-00001.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a-1-of-2.gguf"];
  for (const path of [...alone, "a-00001-of-99999.gguf"]) assert.deepEqual(partPaths(path), [path]);
});

Deno.test("openGgufFile() joins three parts to the file they were cut from, whichever is named", async () => {
  const paths = await writeParts(splitGguf(whole, 3));
  await using one = await openGgufFile(TINY_MODEL, runtime);
  for (const path of paths) {
    await using file = await openGgufFile(path, runtime);
    assert.deepEqual([...file.tensors.keys()], [...one.tensors.keys()]);
    assert.deepEqual([...file.metadata], [...one.metadata]);
    for (const name of one.tensors.keys()) assert.deepEqual(await file.readRaw(name), await one.readRaw(name), name);
    await assert.rejects(file.readFloat32("no.such"), { code: "gguf.missing" });
  }
});

Deno.test("a split model answers as the whole one, and its identity is all its bytes", async () => {
  const paths = await writeParts(splitGguf(whole, 2));
  const answers: string[] = [];
  for (const path of [TINY_MODEL, paths[0]]) {
    await using model = await loadModel(path, runtime, { backend: "ts", dense: "web", precision: "float32" });
    using context = await openContext(model, "Seven stakes stand by the gate.", { policy: "full" });
    answers.push((await context.ask("Which?", { maxTokens: 8 })).answer);
  }
  assert.equal(answers[0], answers[1]);
  const hash = createHash("sha256");
  for (const path of paths) hash.update(await readFile(path));
  assert.equal(await modelHash(paths[0], runtime), hash.digest("hex"));
});

Deno.test("openGgufFile() refuses parts that are missing, foreign, doubled or lie", async () => {
  const [first, second] = await writeParts(splitGguf(whole, 2));
  const good = await readFile(second);
  const cases: [problem: RegExp, bytes: Uint8Array][] = [
    [/part 2 of 2, its metadata part 1 of 2/, await readFile(first)],
    [/part 2 of 2, its metadata part 2 of 3/, splitGguf(whole, 3)[1]],
    [/part 2 of 2, its metadata nothing of parts/, whole],
    [/promises \d+ tensors, the parts have \d+/, splitGguf(whole, 4, (part) => ({ ...part, no: 1, count: 2 }))[3]],
    [/is in another part too/, splitGguf(whole, 2, (part) => ({ ...part, no: 1 - part.no }))[0]],
  ];
  for (const [problem, bytes] of cases) {
    await writeFile(second, bytes);
    const error = await refusal(first);
    assert.deepEqual([error.kind, error.code], ["input", "gguf.split"], String(problem));
    assert.match(error.message, problem);
  }
  await Deno.remove(second);
  assert.match((await refusal(first)).message, /00002-of-00002\.gguf: it is not there; all 2 parts/);
  await writeFile(second, good);
  await (await openGgufFile(first, runtime)).close();
  await using alone = await openGguf(await runtime.openFile(first));
  assert.equal(alone.metadata.get("split.count"), 2);
});

Deno.test("openGgufSources() joins parts in any order, and refuses what is not all parts of one model", async () => {
  const [one, two, three] = splitGguf(whole, 3), closed: string[] = [];
  const open = (...parts: Uint8Array<ArrayBuffer>[]) =>
    openGgufSources(parts.map((bytes, i) => {
      const name = `source ${i + 1}`, source = bufferSource(bytes, name);
      return { ...source, close: () => (closed.push(name), Promise.resolve()) };
    }));
  await using expected = await openGgufFile(TINY_MODEL, runtime);
  const { file, sources } = await open(three, one, two);
  assert.deepEqual(sources.map(({ name }) => name), ["source 2", "source 3", "source 1"]);
  assert.deepEqual([...file.tensors.keys()].sort(), [...expected.tensors.keys()].sort());
  for (const name of expected.tensors.keys()) assert.deepEqual(await file.readRaw(name), await expected.readRaw(name));
  await file.close();
  assert.equal(closed.length, 3);
  const cases: [parts: Uint8Array<ArrayBuffer>[], problem: RegExp][] = [
    [[], /there is none/],
    [[two], /source 1: it is one of 3 parts; the sources are 1/],
    [[one, two], /it is one of 3 parts; the sources are 2/],
    [[one, three, three], /source 2: the sources make it part 2 of 3, its metadata part 3 of 3/],
    [[whole, whole], /it is a whole model; the sources are 2/],
  ];
  for (const [parts, problem] of cases) {
    closed.length = 0;
    await assert.rejects(open(...parts), { code: "gguf.split", message: problem });
    assert.equal(new Set(closed).size, parts.length, "all are closed");
  }
  closed.length = 0;
  await assert.rejects(open(one, new Uint8Array(40), three), { code: "gguf.magic" });
  assert.deepEqual(closed.sort(), ["source 1", "source 2", "source 3"]);
});
