import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PalisadeError } from "../../core/errors.ts";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { openGgufFile, partPaths } from "../../model/file/gguf/split.ts";
import { loadModel } from "../../model/model.ts";
import { openContext } from "../../model/session.ts";
import { modelHash } from "../../model/store/identity.ts";
import { currentRuntime } from "../../runtime/mod.ts";
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
