import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { embedPackageData, packageData } from "../../runtime/package_data.ts";
import { currentRuntime } from "../../runtime/mod.ts";

Deno.test("packageData() finds the package's files by name, reads them, and takes a binary's own instead", async () => {
  const runtime = await currentRuntime();
  const texts = (await packageData(runtime, "demo")).filter(({ name }) => name.endsWith(".txt"));
  assert.deepEqual(texts.map(({ name }) => name), ["moby-dick-2.txt", "moby-dick-7.txt"]);
  const path = fileURLToPath(new URL("../../cli/commands/demo_texts/moby-dick-2.txt", import.meta.url));
  assert.deepEqual(await texts[0].read(), new Uint8Array(readFileSync(path)));
  assert.deepEqual(await packageData({ ...runtime, host: undefined }, "gates"), []);

  const read = () => Promise.resolve(Uint8Array.of(7));
  embedPackageData({ "demo/b.txt": read, "demo/a.txt": read });
  const carried = await packageData(runtime, "demo");
  assert.deepEqual(carried.map(({ name }) => name), ["a.txt", "b.txt"]);
  assert.deepEqual(await carried[0].read(), Uint8Array.of(7));
  assert.ok((await packageData(runtime, "gates")).some(({ name }) => name.endsWith(".gate.safetensors")));
});
