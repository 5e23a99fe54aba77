import assert from "node:assert/strict";
import { chmod, mkdir, readdir, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileSink, MemorySink, pushed } from "../../../model/snapshot/bytes.ts";
import { folderStore } from "../../../model/snapshot/folder_store.ts";
import { currentRuntime } from "../../../runtime/mod.ts";
import { storeSuite } from "../../_helper/snapshot_stores.ts";
import { testFolder } from "../../_helper/workbench.ts";

const runtime = await currentRuntime();
const folder = await testFolder("snapshots");

storeSuite("the folder store", () => Promise.resolve(folderStore(runtime, join(folder, "made", "on", "demand"))));

Deno.test("a folder store's files are their owner's alone, and other files are left alone", async () => {
  const place = join(folder, "shared"), store = folderStore(runtime, place);
  assert.deepEqual(await store.list(), [], "no folder yet");
  await store.put("book", new Uint8Array(3));
  const mode = async () => (await stat(join(place, "book.palisade"))).mode & 0o777;
  assert.equal(await mode(), 0o600);
  await chmod(join(place, "book.palisade"), 0o664);
  await store.put("book", new Uint8Array(4));
  assert.equal(await mode(), 0o600, "whatever the old one could be read by");
  await writeFile(join(place, "notes.txt"), "mine");
  await writeFile(join(place, ".part.palisade"), "half");
  await mkdir(join(place, "folder.palisade"));
  await symlink("nowhere", join(place, "gone.palisade"));
  assert.deepEqual((await store.list()).map(({ name }) => name), ["book"]);
  assert.equal(await store.delete("folder"), false);
  assert.equal((await readdir(place)).length, 5);
});

Deno.test("a file sink makes the file at its commit, or leaves nothing", async () => {
  const path = join(folder, "alone.palisade");
  const sink = fileSink(runtime, path);
  await sink.write(new Uint8Array(10));
  assert.ok(!(await readdir(folder)).includes("alone.palisade"));
  await sink.commit();
  assert.deepEqual([(await stat(path)).size, (await stat(path)).mode & 0o777], [10, 0o600]);
  const before = await readdir(folder), nowhere = fileSink(runtime, join(folder, "no", "such", "folder"));
  await assert.rejects(nowhere.write(new Uint8Array(1)), { code: "file.no-folder" });
  await nowhere.abort();
  assert.deepEqual(await readdir(folder), before);
});

Deno.test("a pushed sink says when nobody takes its bytes", async () => {
  const sink = pushed(() => Promise.resolve());
  await assert.rejects(sink.write(new Uint8Array(1)), /Nobody takes/);
  const memory = new MemorySink();
  await memory.write(Uint8Array.of(1));
  await memory.abort();
  assert.equal(memory.bytes().length, 0);
});
