/** What `auto` thinks of a device: measured once, kept by device and version, never an emulator. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { judgeGpu, measureProducts, type ProductRates } from "../../model/gpu_choice.ts";
import type { GpuEntry } from "../../runtime/gpu.ts";
import { VERSION } from "../../runtime/version.ts";
import { gpuTest } from "../_helper/gpu.ts";
import { place } from "../_helper/store.ts";

/** An adapter that says what it is, and opens nothing. */
function adapter(description: string, isFallbackAdapter = false): GpuEntry {
  const limits = { maxStorageBuffersPerShaderStage: 10, maxStorageBufferBindingSize: 2 ** 30, maxBufferSize: 2 ** 31 };
  const made = { limits, features: new Set(["shader-f16"]), info: { description, isFallbackAdapter } };
  return { gpu: { requestAdapter: () => Promise.resolve(made) } as unknown as GPU };
}

/** Rates as if they had been measured, and how often they were asked for. */
function measured(rates: ProductRates) {
  const calls: number[] = [];
  return {
    calls,
    measure: () => {
      calls.push(1);
      return Promise.resolve(rates);
    },
  };
}

Deno.test("judgeGpu() measures a device once and keeps it, by device and version", async () => {
  await using here = await place();
  const runtime = { ...here.runtime, cores: () => ({ logical: 1, physical: 1 }) };
  const entry = adapter("Fast One"), fast = measured({ device: 5000, kernels: 400 });
  const unknown = await judgeGpu(runtime, { entry, ...fast, onlyLook: true });
  assert.deepEqual([unknown.taken, fast.calls.length], [false, 0]);
  assert.match(unknown.reason, /not measured yet/);
  const verdict = await judgeGpu(runtime, { entry, ...fast });
  assert.deepEqual([verdict.taken, verdict.info?.description], [true, "Fast One"]);
  assert.equal(verdict.reason, "its product is 13 times as fast as the kernels'");
  await judgeGpu(runtime, { entry, ...fast });
  assert.equal(fast.calls.length, 1);
  const path = here.models.replace(/models$/, "webgpu.json"), kept = JSON.parse(await readFile(path, "utf8"));
  assert.deepEqual(kept, { [`${VERSION} ${runtime.name} Fast One`]: { device: 5000, kernels: 400 } });
  const slow = measured({ device: 100, kernels: 400 });
  assert.equal((await judgeGpu(runtime, { entry: adapter("Slow One"), ...slow })).taken, false);
  assert.equal(Object.keys(JSON.parse(await readFile(path, "utf8"))).length, 2);
});

Deno.test("judgeGpu() counts the kernels' threads, and takes what it can't read as nothing", async () => {
  await using here = await place();
  const runtime = { ...here.runtime, threads: true, cores: () => ({ logical: 8, physical: 4 }) };
  const rates = measured({ device: 1000, kernels: 400 });
  const path = here.models.replace(/models$/, "webgpu.json");
  assert.equal((await judgeGpu(runtime, { entry: adapter("Even One"), ...rates })).taken, false);
  for (const text of ["no JSON", "[]", `{"0.1.0 x": {"device": "fast"}}`, "null"]) {
    await writeFile(path, text);
    await judgeGpu(runtime, { entry: adapter(`After ${text}`), ...rates });
  }
  assert.equal(rates.calls.length, 5);
});

Deno.test("judgeGpu() never takes an emulator, and says what is missing", async () => {
  await using here = await place();
  const rates = measured({ device: 5000, kernels: 1 });
  for (const entry of [adapter("SwiftShader Device (Subzero)"), adapter("Some GPU", true)]) {
    const { taken, reason } = await judgeGpu(here.runtime, { entry, ...rates });
    assert.deepEqual([taken, /is emulated on the processor/.test(reason)], [false, true]);
  }
  const none = await judgeGpu(here.runtime, { entry: { reason: "nothing to be seen" }, ...rates });
  assert.deepEqual([none.taken, none.info, rates.calls.length], [false, undefined, 0]);
  assert.match(none.reason, /There is no WebGPU device: nothing to be seen/);
  const broken = { gpu: { requestAdapter: () => Promise.reject(new TypeError("a bug")) } as unknown as GPU };
  await assert.rejects(judgeGpu(here.runtime, { entry: broken, ...rates }), /a bug/);
});

gpuTest("measureProducts() gives products a second of the device and of the kernels", async () => {
  const { device, kernels } = await measureProducts();
  assert.ok(device > 0 && kernels > 0);
});
