/**
 * V8 joins two vectors into one of 256 bits where it is told to and needs no checks of bounds, as in Node 26
 * (runtime/wide_vectors.ts). Deno's V8 is made to do so here.
 */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { runChild } from "../../tools/child.ts";

const PROGRAM = fileURLToPath(new URL("../_helper/kernel_bits.ts", import.meta.url));

/** What the kernels compute, and how many times V8 said that it joins something. */
async function bits(flags: string, form: "plain" | "joined"): Promise<{ lines: string[]; joined: number }> {
  const args = ["run", "-A", `--v8-flags=--no-liftoff${flags}`, PROGRAM, "1", form];
  const { code, stdout, stderr, killed } = await runChild(Deno.execPath(), args, { timeout: 120 });
  assert.equal(code, 0, killed || stderr);
  const lines = stdout.split("\n");
  return {
    lines: lines.filter((line) => /^\S.* [0-9a-f]{16}$/.test(line)),
    joined: lines.filter((line) => /Decided to vectorize, [1-9]/.test(line)).length,
  };
}

/** Elsewhere V8 joins nothing. */
async function hasAvx2(): Promise<boolean> {
  return Deno.build.os === "linux" && / avx2 /.test(await readFile("/proc/cpuinfo", "utf8"));
}

Deno.test("vectors of 256 bits give the bits that those of 128 give", async () => {
  const wanted = "--experimental-wasm-revectorize,--trace-wasm-revectorize,--no-wasm-bounds-checks";
  const [narrow, wide] = await Promise.all([bits("", "plain"), bits(`,${wanted}`, "joined")]);
  assert.ok(narrow.lines.length > 80 && narrow.joined === 0, `${narrow.lines.length} lines`);
  if (await hasAvx2()) assert.ok(wide.joined > 20, `joined ${wide.joined} times`);
  assert.deepEqual(wide.lines, narrow.lines);
  const [form, vectors] = await Promise.all([bits("", "joined"), bits(`,${wanted}`, "plain")]);
  assert.deepEqual(form.lines, narrow.lines, "the form alone");
  assert.deepEqual(vectors.lines, narrow.lines, "the vectors alone");
});
