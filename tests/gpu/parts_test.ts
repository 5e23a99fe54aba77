/** Heads of several buffers, each no larger than a stage may see, against the plain backend. */
import assert from "node:assert/strict";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { type LayerRows, ROW_PAGE } from "../../core/backend/interface.ts";
import { CACHE_TYPES, type CacheType, entryBytes } from "../../core/cache/entry_type.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { layOut, MOST_PARTS } from "../../gpu/backend/blocks.ts";
import { createGpuBackend } from "../../gpu/backend/backend.ts";
import { checkSeen } from "../../gpu/backend/stages.ts";
import { type GpuDevice, type GpuInfo, openGpu } from "../../gpu/device.ts";
import { REDUCTIONS } from "../../wasm/rows.ts";
import { gpuTest, HAS_GPU } from "../_helper/gpu.ts";
import { ONE_SIZE, PARITY_CASES, sameDecode, sameObservation, samePrefill, Twins } from "../_helper/parity.ts";
import { partedBackend } from "../_helper/parted.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 16 };
const ROW = 32, QUERY = 64;
/** Heads of two and three parts of a page. */
const SIZES = { ...ONE_SIZE, lengths: [150], observed: [130], long: 80, reached: [150] };

function floats(count: number, seed: number): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => random() * 2 - 1);
}

function upTo(length: number, first = 0, step = 1): Int32Array {
  return Int32Array.from({ length }, (_, i) => first + step * i);
}

function append(twins: Twins, count: number, seed: number, each = ROW): void {
  twins.append(floats(count * each, seed), floats(count * each, seed + 1), count);
}

// One device for all of them, so that its stages are compiled once.
const shared = HAS_GPU ? await openGpu() : undefined;
const cases = PARITY_CASES.filter(({ title }) => !/^select|^gate/.test(title));
for (const [i, { title, types, body }] of shared ? cases.entries() : []) {
  // Of the narrower types one in turn.
  for (const type of types.filter((_, at) => at === 0 || at === 1 + i % 2)) {
    Deno.test(`webgpu, heads in parts, ${type}: ${title}`, async () => {
      using oracle = createReferenceBackend();
      using backend = partedBackend(shared!, 1);
      await body({ oracle, backend, type }, SIZES);
      assert.equal(backend.memory().allocatedBytes, 0, "everything was freed");
    });
  }
}

/** The same rows, by everything that looks at them. */
async function sameRows({ want, got }: Twins): Promise<void> {
  assert.deepEqual(await copyHeads(got), await copyHeads(want));
}

async function sameAll(twins: Twins, width: number, what: string): Promise<void> {
  const count = 70, queries = floats(count * width, 7);
  await samePrefill(twins, queries, count, what);
  await sameDecode(twins, queries.subarray(0, 3 * width), 3, what);
  await sameObservation(twins, queries.subarray(0, 20 * width), 20, { window: REDUCTIONS, kernel: 7 }, what);
}

gpuTest("webgpu: every stage of attention goes over a head's parts", async (gpu) => {
  const shape: AttentionShape = { heads: 2, kvHeads: 1, headDim: 64 };
  for (const type of CACHE_TYPES) {
    using oracle = createReferenceBackend();
    for (const [pages, length] of [[1, 150], [2, 270]]) {
      using backend = partedBackend(gpu, pages, { short: false });
      using twins = new Twins({ oracle, backend, type }, shape);
      append(twins, length, 1, 64);
      await sameAll(twins, 128, `${type}, ${length} rows, ${pages} pages a part`);
    }
  }
});

gpuTest("webgpu: a head grows into several parts and comes back, and takes what the formula says", async (gpu) => {
  for (const type of CACHE_TYPES) {
    using oracle = createReferenceBackend();
    using backend = partedBackend(gpu, 1);
    using twins = new Twins({ oracle, backend, type }, { ...SHAPE, reach: 100 });
    const takes = async (rows: number, parts: number) => {
      assert.equal(twins.got.allocatedBytes, 2 * rows * entryBytes(16, type));
      assert.equal(backend.memory().allocatedBytes, twins.got.allocatedBytes);
      // A pair of buffers for each part of each head.
      const { buffers, spare } = gpu.memory;
      assert.ok(buffers >= 4 * parts, `${buffers} buffers, ${spare} spare bytes`);
      await sameRows(twins);
      const count = Math.min(3, twins.got.length(0), twins.got.length(1));
      await sameDecode(twins, floats(count * QUERY, 9), count, `${type}, ${rows} rows of room`);
    };
    append(twins, 60, 1);
    await takes(64, 1);
    append(twins, 1, 3);
    append(twins, 4, 5);
    await takes(128, 2);
    append(twins, 235, 7);
    await takes(65 + 235 + 63, 6);
    // The window moves on: what lies before it is released, across every boundary.
    twins.compact([upTo(100, 200), upTo(100, 200)]);
    await takes(128, 2);
    append(twins, 100, 9);
    twins.compact([upTo(66, 1, 3), upTo(130, 0)]);
    assert.equal(twins.got.allocatedBytes, (128 + 192) * entryBytes(16, type));
    await sameRows(twins);
    for (const rows of [twins.want, twins.got]) rows.truncate([65, 64]);
    await takes((128 + 64) / 2, 1);
    for (const rows of [twins.want, twins.got]) rows.truncate([3, 0]);
    assert.equal(twins.got.allocatedBytes, (64 + 64) * entryBytes(16, type));
    append(twins, 200, 11);
    await sameRows(twins);
    twins.compact([upTo(0), upTo(200)]);
    append(twins, 2, 13);
    await sameDecode(twins, floats(QUERY, 9), 1, "a head that was empty");
    await sameRows(twins);
  }
});

gpuTest("webgpu: a head in parts lies beside heads that share a buffer", async (gpu) => {
  const plain: AttentionShape = { heads: 4, kvHeads: 4, headDim: 16 };
  for (const type of CACHE_TYPES) {
    // Once with logits for nothing, which are merged as one part more.
    const shape = type === "f16" ? { ...plain, nullLogits: Float32Array.of(-30, 0.5, 9, 4) } : plain;
    using oracle = createReferenceBackend();
    using backend = partedBackend(gpu, 2);
    using twins = new Twins({ oracle, backend, type }, shape);
    append(twins, 300, 1, 64);
    await sameAll(twins, 64, type);
    twins.compact([10, 50, 270, 7].map((length) => upTo(length)));
    append(twins, 5, 3, 64);
    await sameRows(twins);
    for (const count of [1, 5, 12]) await sameDecode(twins, floats(count * 64, 5), count, `${type}, ragged`);
    const wanted = Int32Array.of(250, 0, 274, 127, 128, 5, 250);
    assert.deepEqual(await twins.got.copyRows(2, wanted), await twins.want.copyRows(2, wanted));
  }
});

gpuTest("webgpu: a copy of a head in parts goes its own way", async (gpu) => {
  using backend = partedBackend(gpu, 1);
  const rows: LayerRows<Float32Array> = backend.createRows(SHAPE, 0, "f16");
  rows.append(floats(200 * ROW, 1), floats(200 * ROW, 2), 200);
  rows.refit!(1, { values: floats(200 * 16, 3), bias: floats(200, 4) });
  const before = await copyHeads(rows), copy = await rows.clone(), bytes = rows.allocatedBytes;
  assert.deepEqual(await copyHeads(copy), before);
  assert.deepEqual(before[1].bias, floats(200, 4));
  copy.append(floats(70 * ROW, 5), floats(70 * ROW, 6), 70);
  copy.compact([upTo(90, 0, 3), upTo(1, 130)]);
  assert.deepEqual(await copyHeads(rows), before);
  assert.equal(rows.allocatedBytes, bytes);
  rows.free();
  assert.deepEqual((await copy.copyRows(1)).values, before[1].values.slice(130 * 16, 131 * 16));
  copy.free();
  assert.equal(backend.memory().allocatedBytes, 0);
});

/** Passes and submits of what an answer and an eviction take, of rows that a stage can see whole. */
async function work(gpu: GpuDevice, maxBinding: number, type: CacheType): Promise<[passes: number, waits: number]> {
  using backend = createGpuBackend(gpu, { maxBinding });
  const { tensors } = backend, rows = backend.createRows(SHAPE, 0, type), length = 256;
  const made = [ROW, ROW, QUERY].map((each, seed) => tensors.upload(floats(length * each, seed)));
  const window = tensors.upload(floats(64 * QUERY, 5));
  await tensors.read(made[0]);
  const before = gpu.counts;
  rows.append(made[0], made[1], length);
  const { output } = await rows.prefillAttention(made[2], length);
  await Promise.all([rows.observe(window, 64, { window: REDUCTIONS }), rows.valueNorms(floats(8 * QUERY, 6), 8)]);
  rows.compact([upTo(100), upTo(100)]);
  const { passes, waits } = gpu.counts;
  for (const tensor of [...made, window, output]) tensors.free(tensor);
  rows.free();
  return [passes - before.passes, waits - before.waits];
}

gpuTest("webgpu: parts cost a few stages more, and no wait", async (gpu) => {
  const all = await work(gpu, gpu.info.maxBinding, "f32");
  // Two heads in two parts each: stored, attended to and merged, scored, measured, moved.
  const parts = await work(gpu, 128 * 64, "f32");
  assert.equal(all[0], 7);
  assert.ok(parts[0] > all[0]);
  assert.equal(parts[1], all[1]);
});

gpuTest("webgpu: a page that no stage can see is refused by its size, and so are more parts than are merged", (gpu) => {
  using backend = createGpuBackend(gpu, { maxBinding: 4096 });
  const rows = backend.createRows(SHAPE, 64);
  const refused = (text: RegExp) => ({ code: "gpu.limit", kind: "resources", message: text });
  const wide = refused(/^A page of a head's keys of 4352 bytes is more than the 4096/);
  assert.throws(() => backend.createRows({ ...SHAPE, headDim: 17 }, 64), wide);
  const most = MOST_PARTS * ROW_PAGE, long = refused(/^A head's keys of 1048640 bytes is more than the 1048576/);
  assert.throws(() => backend.createRows(SHAPE, most + 1), refused(/^A head's keys/));
  const [keys, values] = [0, 1].map(() => backend.tensors.zeros((most + 1) * ROW));
  assert.throws(() => rows.append(keys, values, most + 1), refused(/^A head's keys/));
  assert.deepEqual([rows.length(0), rows.allocatedBytes], [0, 64 * 2 * entryBytes(16, "f32")]);
  for (const tensor of [keys, values]) backend.tensors.free(tensor);
  rows.free();
  assert.throws(() => layOut([most + 1], 16, 4096), long);
  assert.equal(layOut([most], 16, 4096).length, MOST_PARTS);
});

Deno.test("webgpu: numbers that no stage could see together are refused by their name and size", () => {
  const device = { info: { maxBinding: 100 } as GpuInfo };
  checkSeen(device, "These", 100);
  const message = "These of 104 bytes is more than the 100 that the WebGPU device allows";
  assert.throws(() => checkSeen(device, "These", 104), { code: "gpu.limit", message });
});

gpuTest("webgpu: what is made of too many rows for one stage is refused, and the rows go on", async (gpu) => {
  using backend = createGpuBackend(gpu);
  const { tensors } = backend, rows = backend.createRows(SHAPE, 0), { info } = gpu;
  const made = [ROW, ROW, QUERY].map((each, seed) => tensors.upload(floats(200 * each, seed)));
  rows.append(made[0], made[1], 200);
  const query = tensors.upload(floats(QUERY, 5)), wo = floats(QUERY, 6);
  const calls: [maxBinding: number, message: RegExp, call: () => Promise<unknown>][] = [
    [6000, /^Sums and maxima of a layer's attention/, () => rows.prefillAttention(query, 1, { columnSum: true })],
    [6000, /^What is observed of a layer's rows/, () => rows.observe(query, 1, { window: ["mean"] })],
    [700, /^What is observed of a layer's rows/, () => rows.observe(made[2], 200, { window: ["mass"] })],
    [700, /^A query's attention/, () => rows.decodeAttention(query, 1, { probabilities: true })],
    [1500, /^The norms of a layer's values/, () => rows.valueNorms(wo, 1)],
    [120, /^The output projection of a head's group/, () => shorter.valueNorms(wo, 1)],
  ];
  const shorter = backend.createRows(SHAPE, 0);
  shorter.append(query, query, 2);
  for (const [maxBinding, message, call] of calls) {
    Object.assign(gpu, { info: { ...info, maxBinding } });
    await assert.rejects(call(), { code: "gpu.limit", kind: "resources", message });
    Object.assign(gpu, { info });
    const { output } = await rows.decodeAttention(query, 1);
    assert.ok((await tensors.read(output)).every(Number.isFinite));
    tensors.free(output);
  }
  for (const tensor of [...made, query]) tensors.free(tensor);
  for (const each of [rows, shorter]) each.free();
  assert.deepEqual([tensors.alive, backend.memory().allocatedBytes], [0, 0]);
});

Deno.test("webgpu: heads share a block while they fit, and are cut into powers of two where they don't", () => {
  const blocks = (capacities: number[]) =>
    layOut(capacities, 4, 16 * 200).map(({ first, words, from, to, bytes }) => [first, words, from, to, bytes]);
  assert.deepEqual(blocks([100, 100, 50]), [[0, [0, 400], 0, Infinity, 3200], [2, [0], 0, Infinity, 800]]);
  assert.deepEqual(blocks([0, 0]), []);
  assert.deepEqual(blocks([0, 200, 0]), [[0, [0, 0, 800], 0, Infinity, 3200]]);
  assert.deepEqual(blocks([10, 201, 0, 256, 1]), [
    [0, [0], 0, Infinity, 160],
    [1, [0], 0, 128, 2048],
    [1, [-512], 128, Infinity, 73 * 16],
    [3, [0], 0, 128, 2048],
    [3, [-512], 128, Infinity, 2048],
    [4, [0], 0, Infinity, 16],
  ]);
});

if (shared) Deno.test("webgpu: the shared device of heads in parts is closed", () => shared[Symbol.dispose]());
