import assert from "node:assert/strict";
import { browserRuntime } from "../../runtime/browser.ts";
import { currentRuntime, runtimeName } from "../../runtime/mod.ts";
import { hasRelaxedSimd, hasSimd128, hasThreads } from "../../runtime/features.ts";

Deno.test("currentRuntime() knows where it runs", async () => {
  const runtime = await currentRuntime();
  assert.equal(runtimeName(), "deno");
  assert.deepEqual([runtime.name, runtime.version], ["deno", Deno.version.deno]);
  assert.match(runtime.platform, /^(linux|darwin|win32)-/);
  const { logical, physical } = runtime.cores();
  assert(logical >= 1 && (physical === undefined || physical >= 1));
  const { rssBytes, heapBytes, peakRssBytes, limitBytes } = runtime.memory();
  assert(rssBytes! > heapBytes! && heapBytes! > 0);
  assert(peakRssBytes! >= rssBytes! && limitBytes! > rssBytes!);
  assert.equal(runtime.isTerminal("stdout"), Deno.stdout.isTerminal());
});

Deno.test("environment() takes an empty variable for an unset one", async () => {
  const runtime = await currentRuntime();
  Deno.env.set("PALISADE_TEST_EMPTY", "");
  assert.equal(runtime.environment("PALISADE_TEST_EMPTY"), undefined);
  Deno.env.set("PALISADE_TEST_EMPTY", "x");
  assert.equal(runtime.environment("PALISADE_TEST_EMPTY"), "x");
  Deno.env.delete("PALISADE_TEST_EMPTY");
  assert.equal(runtime.environment("PALISADE_TEST_EMPTY"), undefined);
});

/** Modules reached from `start` by static imports. */
async function staticImports(start: URL, seen = new Set<string>()): Promise<Set<string>> {
  if (seen.has(start.href)) return seen;
  seen.add(start.href);
  if (start.protocol !== "file:") return seen;
  const text = await Deno.readTextFile(start);
  for (const [, , specifier] of text.matchAll(/^(import|export)\b(?! type)[^;]*?from "([^"]+)";/gm)) {
    await staticImports(/^[./]/.test(specifier) ? new URL(specifier, start) : new URL(`npm:${specifier}`), seen);
  }
  return seen;
}

Deno.test("runtime/mod.ts and runtime/browser.ts reach no node: module statically", async () => {
  for (const name of ["mod", "browser", "sandbox_browser", "features", "sources", "host"]) {
    const reached = await staticImports(new URL(`../../runtime/${name}.ts`, import.meta.url));
    assert.deepEqual([...reached].filter((url) => url.includes("node:")), [], name);
  }
  const node = await staticImports(new URL("../../runtime/node.ts", import.meta.url));
  assert([...node].some((url) => url.startsWith("npm:node:")), "the search finds node: modules where they are");
});

Deno.test("browserRuntime refuses paths and has no host", async () => {
  assert.equal(browserRuntime.host, undefined);
  for (const promise of [browserRuntime.openFile("a.gguf"), browserRuntime.readText("-")]) {
    await assert.rejects(promise, { code: "runtime.no-files", kind: "resources" });
  }
});

Deno.test("hasSimd128(), hasRelaxedSimd() and hasThreads() are true in this engine, which has them all", () => {
  assert.deepEqual([hasSimd128(), hasRelaxedSimd(), hasThreads()], [true, true, true]);
});

Deno.test("hasThreads() is false without SharedArrayBuffer", () => {
  const before = globalThis.SharedArrayBuffer;
  try {
    Reflect.deleteProperty(globalThis, "SharedArrayBuffer");
    assert.equal(hasThreads(), false);
  } finally {
    Object.defineProperty(globalThis, "SharedArrayBuffer", { value: before, configurable: true, writable: true });
  }
});
