/** The WebGPU backend against the plain one, on the device of this process; beyond what every backend must do. */
import assert from "node:assert/strict";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { type CacheType, entryBytes } from "../../core/cache/entry_type.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { Needs } from "../../core/policy/policy.ts";
import { createGpuBackend, type GpuBackendOptions } from "../../gpu/backend/backend.ts";
import { type GpuDevice, openGpu } from "../../gpu/device.ts";
import { REDUCTIONS } from "../../wasm/rows.ts";
import { readGolden } from "../_helper/golden.ts";
import { goldenKept } from "../_helper/golden_kept.ts";
import { gpuTest, HAS_GPU } from "../_helper/gpu.ts";
import { FEW_SIZES, filled, PARITY_CASES, sameDecode, sameObservation, samePrefill } from "../_helper/parity.ts";
import { onThisSide } from "../_helper/this_side.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 16 };
const ROW = 32, QUERY = 64;

function floats(count: number, seed: number): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => random() * 2 - 1);
}

/** A backend on arrays; when it is disposed of, no tensor may be left. */
function onArrays(gpu: GpuDevice, options?: GpuBackendOptions) {
  const inner = createGpuBackend(gpu, options);
  return onThisSide(inner, () => inner.tensors.alive);
}

// One device for all of them, so that its stages are compiled once.
const shared = HAS_GPU ? await openGpu() : undefined;
for (const { title, types, body } of shared ? PARITY_CASES : []) {
  for (const type of types) {
    Deno.test(`webgpu, ${type}: ${title}`, async () => {
      using oracle = createReferenceBackend();
      using backend = onArrays(shared!, { short: false });
      await body({ oracle, backend, type }, FEW_SIZES);
      assert.equal(backend.memory().allocatedBytes, 0, "everything was freed");
    });
  }
}

gpuTest("webgpu: the golden tiny models keep the published sets", async (gpu) => {
  using backend = onArrays(gpu, { short: false });
  await goldenKept(backend, [97, 300], readGolden);
});

/** Everything that attends, over rows that lie in many buffers and attention that comes in many runs. */
async function samePieces(gpu: GpuDevice, options: GpuBackendOptions, type: CacheType): Promise<void> {
  using oracle = createReferenceBackend();
  using backend = onArrays(gpu, options);
  using twins = filled({ oracle, backend, type }, SHAPE, 150);
  const queries = floats(40 * QUERY, 3), what = JSON.stringify(options);
  await samePrefill(twins, queries, 40, what);
  await sameObservation(twins, queries, 40, { window: REDUCTIONS, kernel: 7, rows: true }, what);
  const wo = floats(30 * QUERY, 4);
  const norms = await Promise.all([twins.want, twins.got].map((rows) => rows.valueNorms(wo, 30)));
  norms[1].forEach((norm, i) => assert.ok(Math.abs(norm - norms[0][i]) < 1e-4, `norm ${i}`));
  twins.compact([0, 1].map((head) => Int32Array.from({ length: 100 - 90 * head }, (_, i) => i + head)));
  twins.append(floats(3 * ROW, 5), floats(3 * ROW, 6), 3);
  await sameDecode(twins, queries.subarray(0, 3 * QUERY), 3, what);
}

gpuTest("webgpu: a layer is cut into buffers that a stage can see, and attention into runs", async (gpu) => {
  for (const type of ["f32", "int8"] as const) {
    await samePieces(gpu, { maxBinding: 20_000 }, type);
    // Runs of two heads, of one, and of a part of one.
    for (const scratch of [15_000, 7000, 1000]) await samePieces(gpu, { scratch }, type);
  }
});

gpuTest("webgpu: what a type can't hold rejects the next read, and those rows from then on", async (gpu) => {
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, refused = { code: "cache-type.range", kind: "input" };
  for (const [type, number] of [["f16", 65520], ["int8", NaN], ["int8", -Infinity]] as const) {
    const bad = backend.createRows(SHAPE, 0, type), good = backend.createRows(SHAPE, 0, type);
    const numbers = tensors.upload(floats(ROW, 1).with(5, number)), fine = tensors.upload(floats(ROW, 1));
    bad.append(fine, numbers, 1);
    good.append(fine, fine, 1);
    await assert.rejects(bad.copyRows(0), refused);
    assert.throws(() => bad.append(fine, fine, 1), refused);
    await assert.rejects(bad.decodeAttention(fine, 1), RangeError);
    assert.equal((await good.copyRows(0)).keys.length, 16);
    for (const rows of [bad, good]) rows.free();
    for (const tensor of [numbers, fine]) tensors.free(tensor);
  }
  assert.deepEqual([backend.memory().allocatedBytes, tensors.alive], [0, 0]);
});

/** A context's life: read in chunks, observed, evicted, asked, forgotten. */
async function oneContext(gpu: GpuDevice): Promise<void> {
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, needs: Needs = { window: ["pooledMax"] };
  const rows = backend.createRows(SHAPE, 0);
  for (let chunk = 0; chunk < 2; chunk++) {
    const [keys, values, queries] = [1, 2, 3].map((seed) => tensors.upload(floats((seed === 3 ? 64 : 32) * 50, seed)));
    rows.append(keys, values, 50);
    const { output } = await rows.prefillAttention(queries, 50);
    if (chunk === 1) await rows.observe(queries, 50, needs);
    for (const tensor of [keys, values, queries, output]) tensors.free(tensor);
  }
  rows.compact([0, 1].map(() => Int32Array.from({ length: 20 }, (_, i) => 5 * i)));
  const query = tensors.upload(floats(QUERY, 4)), { output } = await rows.decodeAttention(query, 1);
  await tensors.read(output);
  for (const tensor of [query, output]) tensors.free(tensor);
  rows.free();
  assert.equal(tensors.alive, 0);
}

gpuTest("webgpu: twenty contexts leave the counted bytes as the first left them", async (gpu) => {
  await oneContext(gpu);
  const { bytes, buffers, spare } = gpu.memory;
  for (let i = 1; i < 20; i++) await oneContext(gpu);
  assert.deepEqual([gpu.memory.bytes, gpu.memory.buffers, gpu.memory.spare], [bytes, buffers, spare]);
  assert.ok(bytes - spare < 300_000, `${bytes - spare} bytes are held though nothing is`);
});

gpuTest("webgpu: rows take what the formula says, and reading a layer waits once", async (gpu) => {
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, length = 512;
  for (const type of ["f32", "f16", "int8"] as const) {
    const rows = backend.createRows(SHAPE, length, type), before = gpu.counts, { bytes } = gpu.memory;
    const made = [ROW, ROW, QUERY].map((each, seed) => tensors.upload(floats(length * each, seed)));
    rows.append(made[0], made[1], length);
    const attended = await rows.prefillAttention(made[2], length);
    const window = tensors.upload(floats(32 * QUERY, 5));
    assert.equal(gpu.counts.waits, before.waits, "appending and attending wait for nothing");
    await Promise.all([
      rows.observe(window, 32, { window: REDUCTIONS }),
      rows.valueNorms(floats(8 * QUERY, 6), 8),
    ]);
    const { passes } = gpu.counts;
    rows.compact([0, 1].map((head) => Int32Array.from({ length: 64 - head }, (_, i) => i)));
    assert.equal(gpu.counts.passes, passes + 1, "keys and values of all heads move in one stage");
    assert.equal(gpu.counts.waits, before.waits + 1);
    assert.ok(gpu.counts.submits - before.submits <= 6, `${gpu.counts.submits - before.submits} submits`);
    const held = 2 * 64 * entryBytes(16, type);
    assert.equal(rows.allocatedBytes, held);
    for (const tensor of [...made, attended.output, window]) tensors.free(tensor);
    const { output } = await rows.decodeAttention(made[2].length ? tensors.upload(floats(QUERY, 7)) : window, 1);
    assert.equal(gpu.counts.waits, before.waits + 1, "a token's attention waits for nothing");
    await tensors.read(output);
    rows.free();
    assert.ok(gpu.memory.bytes - gpu.memory.spare <= bytes + 4 * QUERY * 64, "rows were really freed");
  }
});

gpuTest("webgpu: a gate's numbers are sent once", async (gpu) => {
  using backend = createGpuBackend(gpu);
  const gate = { weights: floats(2 * 40, 1), bias: floats(2, 2), epsilon: 1e-5 };
  const hidden = backend.tensors.upload(floats(3 * 40, 3));
  const first = await backend.gateScores!(gate, hidden, 3), { buffers } = gpu.memory;
  assert.deepEqual(await backend.gateScores!(gate, hidden, 3), first);
  assert.equal(gpu.memory.buffers, buffers);
  backend.tensors.free(hidden);
});

if (shared) Deno.test("webgpu: the shared device is closed", () => shared[Symbol.dispose]());
