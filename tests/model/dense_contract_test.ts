/** What every dense engine promises besides its numbers: sizes, progress, disposal, absence, and the choice itself. */
import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import type { ModelConfig } from "../../model/config.ts";
import { MixedEngine } from "../../model/dense/by_rows.ts";
import { widenVectors } from "../../runtime/wide_vectors.ts";
import type { DenseEngine } from "../../model/dense/interface.ts";
import { createNodeEngine, probeNode } from "../../model/dense/ort/node.ts";
import {
  describeAuto,
  float32Bytes,
  hasSmallBlocks,
  pickDense,
  staysInBlocks,
  WEB_FLOAT32_LIMIT,
  weightForm,
} from "../../model/dense/pick.ts";
import { createWasmEngine } from "../../model/dense/wasm/engine.ts";
import type { GgufFile } from "../../model/file/gguf/reader.ts";
import { typeNamed } from "../../model/file/tensor_types.ts";
import { configureOrt, createWebEngine } from "../../model/dense/ort/web.ts";
import { skipped } from "../_helper/skip.ts";
import { openTiny } from "../_helper/tiny_models.ts";

const probe = await probeNode();

for (const [name, create] of Object.entries({ web: createWebEngine, node: createNodeEngine })) {
  const test = (title: string, run: () => Promise<void>) => {
    if (name === "node" && !probe.available) skipped(title, probe.reason, "device");
    else Deno.test(title, run);
  };

  test(`${name} engine refuses buffers of another size than its rows`, async () => {
    await using open = await openTiny("llama-plain");
    await using engine = await create(open.file, open.config, "float32");
    const { width, heads, headDim, vocabulary } = open.config;
    const hidden = new Float32Array(2 * width);
    await assert.rejects(() => engine.qkv(0, hidden, 3), RangeError);
    await assert.rejects(() => engine.qkv(0, hidden, 0), RangeError);
    await assert.rejects(() => engine.qkv(0, hidden, 1.5), RangeError);
    await assert.rejects(() => engine.qkv(open.config.layers, hidden, 2), RangeError);
    await assert.rejects(() => engine.finish(0, hidden, new Float32Array(heads * headDim), 2), RangeError);
    await assert.rejects(() => engine.logits(hidden.subarray(1), 2), RangeError);
    assert.throws(() => engine.embed([vocabulary]), /from 0 to 319, not 320/);
    assert.throws(() => engine.embed([-1]), RangeError);
    assert.throws(() => engine.embed([0.5]), RangeError);
  });

  test(`${name} engine reads a view into a larger buffer, and its results stay after the next call`, async () => {
    await using open = await openTiny("llama-plain");
    await using engine = await create(open.file, open.config, "float32");
    const rows = engine.embed([5, 6, 7]);
    const first = await engine.qkv(0, rows.subarray(0, open.config.width), 1);
    const copy = first.slice();
    await engine.qkv(0, rows.subarray(open.config.width), 2);
    assert.deepEqual(first, copy);
    const all = await engine.qkv(0, rows, 3);
    all.subarray(0, first.length).forEach((value, i) => assert.ok(Math.abs(value - first[i]) < 1e-5));
  });

  test(`${name} engine reports every session it makes, and runs none after disposal`, async () => {
    await using open = await openTiny("llama-plain");
    const seen: string[] = [];
    const onProgress = (done: number, total: number) => seen.push(`${done}/${total}`);
    const engine = await create(open.file, open.config, "blocks", { onProgress });
    assert.deepEqual(seen, ["1/5", "2/5", "3/5", "4/5", "5/5"]);
    await engine[Symbol.asyncDispose]();
    await engine[Symbol.asyncDispose]();
    await assert.rejects(() => engine.logits(new Float32Array(open.config.width), 1), /disposed/);
  });

  test(`${name} engine stops between sessions with the signal's reason`, async () => {
    await using open = await openTiny("llama-plain");
    const stop = new AbortController();
    const reason = new Error("stopped by the test");
    const options = { signal: stop.signal, onProgress: () => stop.abort(reason) };
    await assert.rejects(() => create(open.file, open.config, "blocks", options), reason);
  });

  test(`${name} engine holds blocks in less memory than float32`, async () => {
    await using open = await openTiny("llama3-factors");
    await using exact = await create(open.file, open.config, "float32");
    await using packed = await create(open.file, open.config, "blocks");
    assert.ok(packed.weightBytes < exact.weightBytes / 2, `${packed.weightBytes} of ${exact.weightBytes} bytes`);
  });
}

Deno.test("createWebEngine() refuses another number of threads than the first engine's", async () => {
  await using open = await openTiny("llama-yarn");
  await using _first = await createWebEngine(open.file, open.config, "float32");
  await assert.rejects(
    () => createWebEngine(open.file, open.config, "float32", { threads: 2 }),
    (error) => error instanceof PalisadeError && error.code === "dense.threads" && error.kind === "usage",
  );
  assert.throws(() => configureOrt({ wasmPaths: "/elsewhere/" }), /before the first/);
});

Deno.test("createWebEngine() types what it can't make as dense.failed", async () => {
  await using open = await openTiny("llama-yarn");
  const file = { ...open.file, tensors: open.file.tensors } as typeof open.file;
  file.readRaw = (name, range) => open.file.readRaw(name, range);
  // One row too few for the shape the graph states.
  file.readFloat32 = async (name) => (await open.file.readFloat32(name)).subarray(open.config.width);
  await assert.rejects(
    () => createWebEngine(file, open.config, "float32"),
    (error) => error instanceof PalisadeError && error.code === "dense.failed" && error.where === "web",
  );
});

Deno.test("createWebEngine() types a failed allocation as dense.memory, a matter of resources", async () => {
  await using open = await openTiny("llama-yarn");
  const file = { ...open.file, tensors: open.file.tensors } as typeof open.file;
  file.readRaw = (name, range) => open.file.readRaw(name, range);
  file.readFloat32 = () => Promise.resolve(new Float32Array(2 ** 53));
  await assert.rejects(
    () => createWebEngine(file, open.config, "float32"),
    (error) => error instanceof PalisadeError && error.code === "dense.memory" && error.kind === "resources",
  );
});

Deno.test("probeNode() says why the package is absent", async () => {
  const absent = await probeNode(() => Promise.reject(new Error("Cannot find package\nstack")));
  assert.deepEqual(absent, {
    available: false,
    reason: "onnxruntime-node can't be loaded: Cannot find package",
    version: "",
  });
});

Deno.test("pickDense() takes both engines where the file allows it, one where told, and any by name", async () => {
  for (const name of ["llama-yarn", "llama-plain"] as const) {
    await using open = await openTiny(name);
    const ours = staysInBlocks(open.file);
    await using auto = await pickDense(open.file, open.config);
    assert.equal(auto.name, ours ? (probe.available ? "mixed" : "wasm") : probe.available ? "node" : "web", name);
    for (const options of [{ oneEngine: true }, { precision: "float32" }] as const) {
      await using one = await pickDense(open.file, open.config, options);
      assert.equal(one.name, probe.available ? "node" : ours ? "wasm" : "web", name);
    }
  }
  await using open = await openTiny("llama-yarn");
  await assert.rejects(() => pickDense(open.file, open.config, { threads: 0 }), RangeError);
  await using web = await pickDense(open.file, open.config, { dense: "web" });
  assert.equal(web.name, "web");
  await using wasm = await pickDense(open.file, open.config, { dense: "wasm" });
  assert.equal(wasm.name, "wasm");
  assert.match(web.detail, /^onnxruntime-web 1\.\d+\.\d+, 1 thread, float32 weights$/);
});

Deno.test("with vectors of 256 bits our kernels are alone, but where results are compared", async () => {
  await using open = await openTiny("llama-plain");
  assert.ok(staysInBlocks(open.file));
  const node26 = { arch: "x64", execArgv: [], versions: { v8: "14.6.202.34-node.20" } };
  try {
    widenVectors(node26, () => {}, "node");
    await using auto = await pickDense(open.file, open.config);
    assert.equal(auto.name, "wasm");
    await using one = await pickDense(open.file, open.config, { oneEngine: true });
    assert.equal(one.name, probe.available ? "node" : "wasm");
    assert.equal(/from 8 rows/.test(describeAuto(true)), false);
  } finally {
    widenVectors({ ...node26, arch: "none" }, () => {});
  }
  assert.match(describeAuto(true), /from 8 rows/);
});

Deno.test("MixedEngine gives few rows to one engine and many to the other, and disposes of both", async () => {
  await using open = await openTiny("llama-plain");
  const { width, heads, headDim } = open.config, threshold = 3;
  const few = await createWasmEngine(open.file, open.config);
  const many = await createWebEngine(open.file, open.config, "float32");
  const mixed = new MixedEngine(few, many, threshold);
  for (const count of [1, 2, 3, 9]) {
    const hidden = Float32Array.from({ length: count * width }, (_, i) => Math.sin(i));
    const attention = Float32Array.from({ length: count * heads * headDim }, (_, i) => Math.cos(i));
    const engine = count < threshold ? few : many;
    assert.deepEqual(await mixed.qkv(1, hidden, count), await engine.qkv(1, hidden, count));
    assert.deepEqual(await mixed.finish(0, hidden, attention, count), await engine.finish(0, hidden, attention, count));
    assert.deepEqual(await mixed.logits(hidden, count), await few.logits(hidden, count));
  }
  assert.deepEqual(mixed.embed([3, 1]), few.embed([3, 1]));
  assert.equal(mixed.detail, `${few.detail}; from 3 rows at once on: ${many.detail}`);
  assert.equal(mixed.weightBytes, few.weightBytes + many.weightBytes);
  await mixed[Symbol.asyncDispose]();
  for (const engine of [few, many]) {
    await assert.rejects(() => engine.qkv(0, new Float32Array(width), 1), /disposed/);
  }
});

Deno.test("pickDense() makes a mixed engine that reports every piece, and stops between them", async () => {
  await using open = await openTiny("llama-plain");
  const seen: string[] = [];
  await using engine = await pickDense(open.file, open.config, {
    onProgress: (done, all) => seen.push(`${done}/${all}`),
  });
  const pieces = engine.name === "mixed" ? 3 * open.config.layers + 1 : open.config.layers + 1;
  assert.deepEqual(seen, Array.from({ length: pieces }, (_, i) => `${i + 1}/${pieces}`));
  const stop = new AbortController(), reason = new Error("stopped by the test");
  const onProgress = (done: number) => done === pieces - 1 && stop.abort(reason);
  await assert.rejects(() => pickDense(open.file, open.config, { signal: stop.signal, onProgress }), reason);
});

Deno.test("staysInBlocks() tells files that our kernels multiply as they stand", () => {
  const file = (...types: string[]) =>
    ({
      tensors: new Map(
        types.map((name, i) => [name, { name: `blk.${i}.ffn_up.weight`, type: typeNamed(name), shape: [64, 8] }]),
      ),
    }) as unknown as GgufFile;
  assert.equal(staysInBlocks(file("Q4_0", "Q4_1", "Q8_0", "Q5_0")), true);
  assert.equal(staysInBlocks(file("Q4_K", "Q6_K", "IQ4_XS", "MXFP4")), true);
  assert.equal(staysInBlocks(file("Q4_0", "IQ2_XXS", "TQ2_0")), true);
  for (const type of ["F32", "F16", "BF16"]) assert.equal(staysInBlocks(file("Q4_0", type)), false);
  assert.equal(hasSmallBlocks(file("Q4_0", "Q4_1", "Q8_0", "Q5_0")), true);
  for (const type of ["Q4_K", "Q5_1", "F16"]) assert.equal(hasSmallBlocks(file("Q4_0", type)), false);
});

Deno.test("weightForm() keeps float32 on the web up to its limit and blocks beyond", async () => {
  await using open = await openTiny("llama-plain");
  const large: ModelConfig = { ...open.config, layers: 1e5 };
  assert.ok(float32Bytes(large) > WEB_FLOAT32_LIMIT);
  assert.equal(weightForm("web", "auto", open.config), "float32");
  assert.equal(weightForm("web", "auto", large), "blocks");
  assert.equal(weightForm("web", "float32", large), "float32");
  assert.equal(weightForm("node", "auto", open.config), "blocks");
  assert.equal(weightForm("node", "quantised", open.config), "blocks");
});

Deno.test("createWebEngine() gives each of several models loaded at once its own weights", async () => {
  const names = ["llama-plain", "llama-linear", "llama-plain", "llama-linear"] as const;
  const files = await Promise.all(names.map((name) => openTiny(name)));
  const alone: number[] = [];
  for (const { file, config } of files) {
    await using engine = await createWebEngine(file, config, "float32");
    alone.push(await fingerprint(engine));
  }
  for (let round = 0; round < 3; round++) {
    const engines = await Promise.all(files.map(({ file, config }) => createWebEngine(file, config, "float32")));
    const together: number[] = [];
    for (const engine of engines) together.push(await fingerprint(engine));
    for (const engine of engines) await engine[Symbol.asyncDispose]();
    assert.deepEqual(together, alone);
  }
  for (const open of files) await open[Symbol.asyncDispose]();
});

/** A number that depends on every layer's weights. */
async function fingerprint(engine: DenseEngine): Promise<number> {
  const { layers, heads, headDim } = engine.config;
  const hidden = engine.embed([1, 2, 3]);
  const attention = new Float32Array(3 * heads * headDim).fill(0.1);
  let sum = 0;
  for (let layer = 0; layer < layers; layer++) {
    for (const x of await engine.qkv(layer, hidden, 3)) sum += Math.abs(x);
    for (const x of await engine.finish(layer, hidden, attention, 3)) sum += Math.abs(x);
  }
  return sum;
}
