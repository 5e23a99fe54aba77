import assert from "node:assert/strict";
import { browserRuntime } from "../../runtime/browser.ts";
import { probeGpu } from "../../runtime/gpu_probe.ts";
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

/** Runs `body` with `navigator.gpu` replaced. */
async function withGpu(gpu: unknown, body: () => Promise<void>): Promise<void> {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator")!;
  Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
  try {
    await body();
  } finally {
    Object.defineProperty(globalThis, "navigator", before);
  }
}

Deno.test("probeGpu() describes the adapter, or says why there is none, and never waits longer than told", async () => {
  const info = { vendor: "maker", architecture: "chip", description: "Model 1" };
  const cases: [unknown, unknown][] = [
    [undefined, /no WebGPU/],
    [{ requestAdapter: () => Promise.resolve(null) }, /finds no adapter/],
    [{ requestAdapter: () => Promise.reject(new Error("driver fell over")) }, /driver fell over/],
    [{ requestAdapter: () => new Promise(() => {}) }, /within 50 ms/],
    [{ requestAdapter: () => Promise.resolve({ info }) }, "maker chip Model 1"],
  ];
  for (const [gpu, expected] of cases) {
    await withGpu(gpu, async () => {
      const probe = await probeGpu(50);
      if (probe.available) assert.deepEqual(probe, { available: true, description: expected, fallback: false });
      else assert.match(probe.reason, expected as RegExp);
    });
  }
});

Deno.test("probeGpu() leaves out a vendor's number and names a software rasteriser as one", async () => {
  const llvmpipe = { vendor: "65541", architecture: "", description: "llvmpipe (LLVM 15.0.6, 256 bits)" };
  const cases: [unknown, unknown][] = [
    [llvmpipe, { description: "software only: llvmpipe (LLVM 15.0.6, 256 bits)", fallback: true }],
    [{ vendor: "maker", isFallbackAdapter: true }, { description: "software only: maker", fallback: true }],
    [{ vendor: "0x10de", device: "Model 1" }, { description: "Model 1", fallback: false }],
    [{ vendor: "4318", device: "8711" }, { description: "unnamed adapter", fallback: false }],
  ];
  for (const [info, expected] of cases) {
    await withGpu({ requestAdapter: () => Promise.resolve({ info }) }, async () => {
      assert.deepEqual(await probeGpu(50), { available: true, ...expected as object });
    });
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
