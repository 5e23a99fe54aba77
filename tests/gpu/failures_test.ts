/** What goes wrong on a device: no memory at any buffer, a device that is lost, and that nothing is left behind. */
import assert from "node:assert/strict";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { GpuDevice } from "../../gpu/device.ts";
import { openDevice, type OpenedDevice } from "../../gpu/open.ts";
import { createGpuTensors } from "../../gpu/tensors.ts";
import { gpuTest, HAS_GPU, NO_GPU } from "../_helper/gpu.ts";
import { skipped } from "../_helper/skip.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 16 };
const ROW = 32, QUERY = 64, LENGTH = 70;

/** A device that says at buffer `full` that it has no memory left, as WebGPU says it: by an error scope, later. */
class FullDevice {
  /** Buffers asked for so far. */
  buffers = 0;
  full = Infinity;
  readonly #scopes: { readonly filter: string; hit: boolean }[] = [];

  wrap(device: GPUDevice): GPUDevice {
    const own: Record<string, unknown> = {
      createBuffer: (descriptor: GPUBufferDescriptor) => {
        if (this.buffers++ === this.full) {
          const scope = this.#scopes.findLast(({ filter }) => filter === "out-of-memory");
          if (scope) scope.hit = true;
        }
        return device.createBuffer(descriptor);
      },
      pushErrorScope: (filter: GPUErrorFilter) => {
        this.#scopes.push({ filter, hit: false });
        device.pushErrorScope(filter);
      },
      popErrorScope: async () => {
        const scope = this.#scopes.pop(), error = await device.popErrorScope();
        return scope?.hit ? { message: "no room for a buffer" } : error;
      },
      // The device is used again.
      destroy: () => {},
    };
    return new Proxy(device, {
      get(target, name) {
        if (name in own) return own[String(name)];
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }
}

/** Reads, observes, evicts and asks; what it makes is freed whatever happens. */
async function oneContext(gpu: GpuDevice): Promise<Float32Array> {
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, made: Parameters<typeof tensors.free>[0][] = [];
  const upload = (length: number) => {
    const tensor = tensors.upload(Float32Array.from({ length }, (_, i) => Math.sin(i)));
    made.push(tensor);
    return tensor;
  };
  const rows = backend.createRows(SHAPE, 0, "f16");
  try {
    rows.append(upload(LENGTH * ROW), upload(LENGTH * ROW), LENGTH);
    const queries = upload(LENGTH * QUERY), read = await rows.prefillAttention(queries, LENGTH, { logSumExp: true });
    made.push(read.output);
    await rows.observe(upload(16 * QUERY), 16, { window: ["pooledMax", "mass"] });
    rows.compact([0, 1].map((head) => Int32Array.from({ length: 20 + head }, (_, i) => 3 * i)));
    rows.append(upload(ROW), upload(ROW), 1);
    const answer = await rows.decodeAttention(upload(QUERY), 1);
    made.push(answer.output);
    return await tensors.read(answer.output);
  } finally {
    rows.free();
    for (const tensor of made) tensors.free(tensor);
    assert.deepEqual([backend.memory().allocatedBytes, tensors.alive], [0, 0]);
  }
}

const NO_MEMORY = "webgpu: no memory at any buffer is a typed error, nothing is left, and the next context works";
const raw: OpenedDevice | undefined = HAS_GPU ? await openDevice() : undefined;
if (!raw) skipped(NO_MEMORY, NO_GPU);
else {
  Deno.test(NO_MEMORY, async () => {
    const full = new FullDevice();
    using gpu = new GpuDevice({ ...raw, device: full.wrap(raw.device) });
    const started = full.buffers, want = await oneContext(gpu), needed = full.buffers - started;
    assert.ok(needed > 8, `${needed} buffers`);
    for (let at = 0; at < needed; at += 2) {
      using again: GpuDevice = new GpuDevice({ ...raw, device: full.wrap(raw.device) });
      full.full = full.buffers + at;
      await assert.rejects(oneContext(again), { code: "gpu.memory", kind: "resources" }, `buffer ${at} of ${needed}`);
      full.full = Infinity;
      assert.deepEqual(await oneContext(again), want);
      assert.ok(again.memory.bytes - again.memory.spare < 300_000, `${again.memory.bytes} bytes are held`);
    }
  });

  Deno.test("webgpu: rows that a failed command wrote to fail from then on, others go on", async () => {
    const full = new FullDevice();
    using gpu = new GpuDevice({ ...raw, device: full.wrap(raw.device) });
    using backend = createGpuBackend(gpu);
    const { tensors } = backend, numbers = tensors.upload(new Float32Array(ROW).fill(1));
    const [good, bad] = [backend.createRows(SHAPE, 1), backend.createRows(SHAPE, 0)];
    good.append(numbers, numbers, 1);
    await good.copyRows(0);
    full.full = full.buffers;
    bad.append(numbers, numbers, 1);
    await assert.rejects(tensors.read(numbers), { code: "gpu.memory" });
    assert.throws(() => bad.append(numbers, numbers, 1), { code: "gpu.memory" });
    await assert.rejects(bad.copyRows(0), { code: "gpu.memory" });
    assert.deepEqual((await good.copyRows(0)).keys, new Float32Array(16).fill(1));
    for (const rows of [good, bad]) rows.free();
    tensors.free(numbers);
  });

  Deno.test("webgpu: the device that was used again is closed", () => raw.device.destroy());
}

gpuTest("webgpu: a lost device rejects what waits and everything after", async () => {
  const opened = await openDevice();
  using gpu = new GpuDevice(opened);
  const tensors = createGpuTensors(gpu), tensor = tensors.upload(Float32Array.of(1, 2));
  using backend = createGpuBackend(gpu);
  const rows = backend.createRows(SHAPE, 8), pending = tensors.read(tensor);
  opened.device.destroy();
  const lost = { code: "gpu.lost", kind: "resources", message: /was lost/ };
  await assert.rejects(pending, lost);
  assert.equal(gpu.ended?.code, "gpu.lost");
  await assert.rejects(tensors.read(tensor), lost);
  assert.throws(() => tensors.zeros(1), lost);
  assert.throws(() => backend.createRows(SHAPE, 1), lost);
  rows.free();
  tensors.free(tensor);
  assert.equal(backend.memory().allocatedBytes, 0);
});
