/** Dumps measured by the kernels: the same decisions, and certificates that differ by rounding alone. */
import assert from "node:assert/strict";
import { type DumpLayers, type EvictedLayer, evictLayers, type EvictOptions } from "../../core/dump/layers.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { measureBy, measureOn } from "../../model/dump/kernels.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { type DumpCase, FLAVOURS, makeDump } from "../_helper/dumps.ts";

const SIZES = { length: 300, kvHeads: 2, group: 3, layers: 2, headDim: 16 };
/** By name; `headkv` reads a file. */
const NAMES = policies.map(({ name }) => name).filter((name) => name !== "headkv");

function layersOf(dump: DumpCase): DumpLayers {
  return { ...dump, layers: dump.layers.length, read: (layer) => Promise.resolve(dump.layers[layer]) };
}

function evicted(policy: string, dump: DumpCase, options: EvictOptions): Promise<EvictedLayer[]> {
  return Array.fromAsync(evictLayers(resolvePolicy(policy), layersOf(dump), { keep: { fraction: 0.3 }, ...options }));
}

/** Numbers of certificates, in order. */
function figures(layers: readonly EvictedLayer[]): number[] {
  return layers.flatMap(({ certificate }) =>
    certificate!.heads.flatMap((head) => Object.values(head).filter((value) => typeof value === "number"))
  );
}

function near(a: number, b: number): boolean {
  return Object.is(a, b) || Math.abs(a - b) <= 1e-3 * Math.max(1, Math.abs(b));
}

for (const name of NAMES) {
  Deno.test(`the kernels keep of a dump what plain measuring keeps, with ${name}`, async () => {
    using backend = await createWasmBackend();
    const measure = measureOn(backend);
    for (const flavour of FLAVOURS) {
      const dump = makeDump(11, SIZES, flavour);
      const plain = await evicted(name, dump, { explain: true });
      const byKernels = await evicted(name, dump, { explain: true, measure });
      const kept = (layers: readonly EvictedLayer[]) => layers.map(({ kept }) => kept.map((head) => [...head]));
      assert.deepEqual(kept(byKernels), kept(plain), dump.made);
      const wanted = figures(plain), ours = figures(byKernels);
      assert.equal(ours.length, wanted.length);
      // A float32 can't tell the log-sum-exps of huge keys apart.
      if (flavour !== "huge") ours.forEach((value, i) => assert.ok(near(value, wanted[i]), `${value}, ${wanted[i]}`));
    }
    assert.equal(backend.memory().allocatedBytes, 0, "everything was freed");
  });
}

Deno.test("measureBy() takes the kernels for what is worth their start, and where they are asked for", async () => {
  const small = layersOf(makeDump(1, SIZES)), large: DumpLayers = { ...small, length: 20_000 };
  const measured = async (...[choice, dump, policy, options]: [...Choice, object?]) => {
    return await measureBy(choice, dump, resolvePolicy(policy), options) !== undefined;
  };
  type Choice = ["auto" | "ts" | "wasm", DumpLayers, string];
  assert.equal(await measured("auto", small, "snapkv"), false);
  assert.equal(await measured("wasm", small, "snapkv"), true);
  assert.equal(await measured("auto", large, "snapkv"), true);
  assert.equal(await measured("ts", large, "snapkv"), false);
  assert.equal(await measured("auto", large, "knorm"), false, "nothing there has a kernel");
  assert.equal(await measured("auto", large, "knorm", { explain: true }), true);
  assert.equal(await measured("auto", { ...small, length: 1000 }, "h2o"), true);
  assert.equal(await measured("auto", { ...small, length: 5000 }, "critical"), true);
});

Deno.test("the kernels refuse a dump that lacks something, and stop between heads", async () => {
  using backend = await createWasmBackend();
  const dump = makeDump(1, SIZES), stop = new AbortController(), [layer] = dump.layers;
  const lacking = (policy: string, change: object) => {
    return evicted(policy, { ...dump, layers: [{ ...layer, ...change }] }, { measure: measureOn(backend) });
  };
  await assert.rejects(lacking("critical", { wo: undefined }), /no output projection/);
  await assert.rejects(lacking("critical", { values: new Float32Array(3) }), /Dump values have 3 floats/);
  await assert.rejects(lacking("snapkv", { keys: new Float32Array(3) }), /Dump keys have 3 floats/);
  await assert.rejects(lacking("snapkv", { queries: layer.queries.subarray(0, 96), queryRows: 1 }), /want at least/);
  await assert.rejects(lacking("h2o", { queries: layer.queries.subarray(0, 192), queryRows: 2 }), /want at least/);
  stop.abort(new Error("enough"));
  await assert.rejects(evicted("snapkv", dump, { measure: measureOn(backend, stop.signal) }), /enough/);
  assert.equal(backend.memory().allocatedBytes, 0);
});
