/** The device: commands in order, buffers counted, errors typed and told once. */
import assert from "node:assert/strict";
import { floatBits, openGpu, type ShaderFile } from "../../gpu/device.ts";
import { lookForDevice } from "../../gpu/open.ts";
import { variant } from "../../gpu/stage.ts";
import { createGpuTensors } from "../../gpu/tensors.ts";
import { findGpu } from "../../runtime/gpu.ts";
import { gpuTest } from "../_helper/gpu.ts";

/** b = scale · a + params[1] */
const ADD: ShaderFile = {
  name: "add.wgsl",
  text: `
override scale: f32 = 1.0;
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> b: array<f32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= params[0]) { return; }
  b[id.x] = scale * a[id.x] + bitcast<f32>(params[1]);
}`,
};

gpuTest("stages, copies and writes are carried out in the order of the calls", async (gpu) => {
  const tensors = createGpuTensors(gpu);
  const a = tensors.upload(Float32Array.of(1, 2, 3)), b = tensors.zeros(3);
  const twice = gpu.stage(ADD, { constants: { scale: 2 } });
  const add = (params: number[], from: typeof a, to: typeof a) =>
    gpu.run(twice, { params, buffers: [from.buffer, to.buffer], groups: [1] });
  add([3, floatBits(0.5)], a, b);
  add([2, floatBits(0.25)], b, a);
  tensors.copy(b, 1, 2, a, 1);
  gpu.write(b.buffer, 0, Float32Array.of(7));
  const read = Promise.all([tensors.read(a), tensors.read(b)]);
  tensors.free(a);
  assert.deepEqual(await read, [Float32Array.of(5.25, 4.5, 6.5), Float32Array.of(7, 4.5, 6.5)]);
  assert.equal(gpu.counts.waits, 1);
  assert.throws(() => a.buffer, /was freed/);
  assert.throws(() => tensors.copy(b, 2, 2, b, 0), RangeError);
  tensors.free(b);
  assert.equal(tensors.alive, 0);
});

gpuTest("many stages are cut into batches, and nothing is lost between them", async (gpu) => {
  const tensors = createGpuTensors(gpu), a = tensors.zeros(1), b = tensors.zeros(1);
  const stage = gpu.stage(ADD);
  for (let i = 0; i < 150; i++) {
    const [from, to] = i % 2 === 0 ? [a, b] : [b, a];
    gpu.run(stage, { params: [1, floatBits(1)], buffers: [from.buffer, to.buffer], groups: [1] });
  }
  assert.deepEqual(await tensors.read(a), Float32Array.of(150));
  // What is bound in two batches is bound in the third: there the parameters lie where they lay.
  assert.deepEqual(gpu.counts, { passes: 150, submits: 3, bound: 64, waits: 1 });
});

gpuTest("a stage that doesn't compile fails the next read by its name, once", async (gpu) => {
  const tensors = createGpuTensors(gpu), a = tensors.upload(Float32Array.of(1));
  gpu.stage({ name: "bad.wgsl", text: "fn main( {" });
  await assert.rejects(tensors.read(a), { code: "gpu.shader", where: "bad.wgsl, main" });
  assert.deepEqual(await tensors.read(a), Float32Array.of(1));
});

gpuTest("a command that the device refuses tells who was written to", async (gpu) => {
  const tensors = createGpuTensors(gpu), a = tensors.upload(Float32Array.of(1, 2));
  const told: Error[] = [];
  gpu.touch({ fail: (error) => told.push(error) });
  gpu.copy(a.buffer, 0, a.buffer, 2 ** 20, 8);
  await assert.rejects(tensors.read(a), { code: "gpu.command" });
  assert.equal(told.length, 1);
  assert.deepEqual(await tensors.read(a), Float32Array.of(1, 2));
});

gpuTest("faults that a stage sets are its owner's error, and the device goes on", async (gpu) => {
  const tensors = createGpuTensors(gpu), a = tensors.upload(Float32Array.of(1));
  const owner = gpu.listen(() => new Error("can't be stored"));
  gpu.write(gpu.faults, 0, Uint32Array.of(owner));
  await assert.rejects(tensors.read(a), /can't be stored/);
  assert.deepEqual(await tensors.read(a), Float32Array.of(1));
  gpu.unlisten(owner);
});

gpuTest("buffers are counted: spare ones are used again, owned ones are freed", (gpu) => {
  const before = gpu.memory;
  const first = gpu.borrow(1000);
  gpu.giveBack(first);
  assert.equal(gpu.borrow(1024), first);
  const own = gpu.own(4096);
  assert.equal(gpu.memory.bytes, before.bytes + 1024 + 4096);
  gpu.destroy(own);
  gpu.destroy(own);
  gpu.giveBack(first);
  assert.deepEqual([gpu.memory.bytes, gpu.memory.spare], [before.bytes + 1024, 1024]);
  assert.throws(() => gpu.own(gpu.info.maxBuffer + 4), { code: "gpu.limit" });
  assert.throws(
    () => gpu.run(gpu.stage(ADD), { params: Array(70000).fill(0), buffers: [], groups: [1] }),
    RangeError,
  );
});

gpuTest("what a closed device is asked for is refused, a read that waits too", async (gpu) => {
  const tensors = createGpuTensors(gpu), pending = tensors.read(tensors.zeros(3));
  const refused = assert.rejects(pending, { code: "gpu.lost" });
  gpu[Symbol.dispose]();
  gpu[Symbol.dispose]();
  await refused;
  assert.throws(() => tensors.zeros(1), { code: "gpu.lost" });
  assert.equal(gpu.memory.bytes, 0);
});

Deno.test("a line of a stage gives way to its variant where the device has the feature", () => {
  const text = "// f16: enable f16;\nalias N = f32; // f16: alias N = f16;\nlet x = 1; // subgroups: let x = 2;";
  assert.equal(variant(text, { f16: false, subgroups: false }), text);
  const with16 = "enable f16;\nalias N = f16;\nlet x = 1; // subgroups: let x = 2;";
  assert.equal(variant(text, { f16: true, subgroups: false }), with16);
  assert.equal(variant("a // subgroups: b", { f16: false, subgroups: true }), "b");
});

Deno.test("no device is an error that says what was looked for", async () => {
  const missing = { code: "gpu.missing", kind: "resources" };
  await assert.rejects(openGpu({ entry: { reason: "nothing here" } }), { ...missing, message: /nothing here/ });
  const none = { requestAdapter: () => Promise.resolve(null) } as unknown as GPU;
  await assert.rejects(lookForDevice({ gpu: none }), { ...missing, message: /finds no adapter/ });
  const small = {
    limits: { maxStorageBuffersPerShaderStage: 8 },
    features: new Set(),
    info: { vendor: "65541", description: "SwiftShader Device" },
  };
  const weak = { requestAdapter: () => Promise.resolve(small) } as unknown as GPU;
  await assert.rejects(lookForDevice({ gpu: weak }), { ...missing, message: /SwiftShader Device lets a stage use 8/ });
  const busy = {
    ...small,
    limits: { maxStorageBuffersPerShaderStage: 10 },
    requestDevice: () => Promise.reject(new Error("busy")),
  };
  const refusing = { requestAdapter: () => Promise.resolve(busy) } as unknown as GPU;
  await assert.rejects(openGpu({ entry: { gpu: refusing } }), { ...missing, message: /busy/ });
});

Deno.test("an adapter is told without its vendor's number, and a rasteriser on the CPU as one", async () => {
  const llvmpipe = { vendor: "65541", architecture: "", description: "llvmpipe (LLVM 15.0.6, 256 bits)" };
  const cases: [unknown, string, boolean][] = [
    [llvmpipe, "llvmpipe (LLVM 15.0.6, 256 bits)", true],
    [{ vendor: "maker", architecture: "chip", description: "Model 1" }, "maker chip Model 1", false],
    [{ vendor: "maker", isFallbackAdapter: true }, "maker", true],
    [{ vendor: "0x10de", device: "Model 1" }, "Model 1", false],
    [{ vendor: "4318", device: "8711" }, "unnamed", false],
  ];
  const limits = { maxStorageBuffersPerShaderStage: 10, maxStorageBufferBindingSize: 2, maxBufferSize: 1 };
  for (const [info, description, emulated] of cases) {
    const gpu = { requestAdapter: () => Promise.resolve({ info, limits, features: new Set(["shader-f16"]) }) };
    assert.deepEqual(await lookForDevice({ gpu: gpu as unknown as GPU }), {
      ...{ description, emulated, maxBinding: 1, maxBuffer: 1 },
      features: { f16: true, subgroups: false },
    });
  }
});

Deno.test("findGpu() takes the npm package where the runtime has none, and says what is missing", async () => {
  const own = Object.getOwnPropertyDescriptor(globalThis, "navigator")!;
  Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
  try {
    const made = {} as GPU, globals = { GPUMadeUp: class {} };
    assert.deepEqual(await findGpu(() => Promise.resolve({ create: () => made, globals })), { gpu: made });
    assert.equal((globalThis as Record<string, unknown>)["GPUMadeUp"], globals.GPUMadeUp);
    const none = await findGpu(() => Promise.reject(new Error("Cannot find it\nanywhere")));
    assert.match("reason" in none ? none.reason : "", /npm package webgpu can't be loaded: Cannot find it$/);
  } finally {
    Object.defineProperty(globalThis, "navigator", own);
    delete (globalThis as Record<string, unknown>)["GPUMadeUp"];
  }
});
