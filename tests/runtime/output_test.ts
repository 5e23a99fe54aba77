import assert from "node:assert/strict";
import { chmod, lstat, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { currentRuntime } from "../../runtime/mod.ts";
import { writeWhole } from "../../runtime/output.ts";
import { testFolder } from "../_helper/workbench.ts";

const runtime = await currentRuntime();
const folder = await testFolder("output");
const bytes = (text: string) => new TextEncoder().encode(text);

Deno.test("writeWhole() makes or replaces a file, keeps links and permissions, leaves nothing else", async () => {
  const path = join(folder, "whole.txt"), linked = join(folder, "link.txt"), ahead = join(folder, "ahead.txt");
  await symlink("whole.txt", linked);
  await writeWhole(runtime, linked, bytes("made through a link that led nowhere"));
  assert.equal(await readFile(path, "utf8"), "made through a link that led nowhere");
  await chmod(path, 0o600);
  await symlink(linked, ahead);
  await writeWhole(runtime, ahead, [bytes("re"), bytes("placed")]);
  assert.equal(await readFile(path, "utf8"), "replaced");
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  assert.ok((await lstat(linked)).isSymbolicLink() && (await lstat(ahead)).isSymbolicLink());
  assert.deepEqual((await readdir(folder)).sort(), ["ahead.txt", "link.txt", "whole.txt"]);
});

Deno.test("writeWhole() that fails leaves what was there and nothing else", async () => {
  const path = join(folder, "kept.txt"), before = await readdir(folder);
  await writeFile(path, "as it was");
  const host = runtime.host!;
  const failing = {
    ...runtime,
    host: {
      ...host,
      create: async (...parameters: Parameters<typeof host.create>) => ({
        ...await host.create(...parameters),
        sync: () => Promise.reject(new Error("the disk is full")),
      }),
    },
  };
  await assert.rejects(writeWhole(failing, path, bytes("half of it")), /the disk is full/);
  assert.equal(await readFile(path, "utf8"), "as it was");
  assert.deepEqual((await readdir(folder)).sort(), [...before, "kept.txt"].sort());
});

/** Files that may open others for writing: the one place, what it stands on, and downloads under names of their own. */
const MAY_OPEN = ["runtime/output.ts", "runtime/node_host.ts", "runtime/node_lock.ts", "model/store/part.ts"];

Deno.test("no other file of the product opens one for writing", async () => {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const opening = /host!?\.create\(|\bwriteFile|createWriteStream|\bopenSync\(|writeTextFile|\bappendFile|copyFile/;
  let seen = 0;
  for (const room of ["cli", "core", "evaluate", "gpu", "model", "runtime", "wasm", "web"]) {
    const entries = await readdir(join(root, room), { recursive: true }).catch(() => []);
    for (const name of entries.filter((each) => /\.ts$/.test(each) && !/node_modules|target/.test(each))) {
      const file = `${room}/${name.replaceAll("\\", "/")}`;
      seen++;
      if (MAY_OPEN.includes(file)) continue;
      assert.doesNotMatch(await readFile(join(root, file), "utf8"), opening, `${file}: use runtime/output.ts`);
    }
  }
  assert.ok(seen > 100, `${seen} files`);
});
