/** Biases and new values of rows, and attention without a mask, on every backend and type, against plain sums. */
import assert from "node:assert/strict";
import type { Backend, CopiedRows, LayerRows } from "../../core/backend/interface.ts";
import { attendUnmasked } from "../../core/backend/unmasked.ts";
import { CACHE_TYPES, type CacheType, entryBytes } from "../../core/cache/entry_type.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { randomSource } from "../../core/measure/random.ts";
import { ALL_BACKENDS } from "../_helper/backends.ts";
import { assertClose as close } from "../_helper/close.ts";

const SHAPE = { heads: 6, kvHeads: 3, headDim: 12 };
const ROW = 36, QUERY = 72, LENGTH = 150;
/** float32 sums in another order; decode attention over int8 rows rounds queries and weights to 16 bits. */
const TOLERANCE: Readonly<Record<string, number>> = { f32: 1e-5, f16: 1e-5, int8: 5e-4, int4: 1e-5 };

function assertClose(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number): void {
  close(got, want, tolerance, "what attention gives");
}

function floats(count: number, seed: number, scale = 2): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => (random() - 0.5) * scale);
}

/** Softmax of q·k/√d + bias over the first `visible` rows of a head, and the mix of its values. */
function attended(query: Float32Array, { keys, values, bias }: CopiedRows, visible: number) {
  const { headDim } = SHAPE;
  const dot = (i: number) => query.reduce((sum, x, d) => sum + x * keys[i * headDim + d], 0);
  const logits = Array.from({ length: visible }, (_, i) => dot(i) / Math.sqrt(headDim) + (bias?.[i] ?? 0));
  const sum = logits.reduce((all, logit) => all + Math.exp(logit), 0);
  const shares = logits.map((logit) => Math.exp(logit) / sum);
  const mix = (d: number) => shares.reduce((all, share, i) => all + share * values[i * headDim + d], 0);
  return { shares, output: Array.from({ length: headDim }, (_, d) => mix(d)), logSumExp: Math.log(sum) };
}

/** `attended` of every query and head; query `t` sees `visible(head, t)` rows. */
async function plain(
  rows: LayerRows,
  queries: Float32Array,
  count: number,
  visible: (kv: number, t: number) => number,
) {
  const { heads, kvHeads, headDim } = SHAPE, output = new Float32Array(count * QUERY);
  const seen = [];
  for (let head = 0; head < heads; head++) {
    const kv = Math.floor(head / (heads / kvHeads)), copied = await rows.copyRows(kv);
    for (let t = 0; t < count; t++) {
      const at = (t * heads + head) * headDim;
      const row = attended(queries.subarray(at, at + headDim), copied, visible(kv, t));
      output.set(row.output, at);
      seen.push({ head, t, ...row });
    }
  }
  return { output, seen };
}

/** Rows of `LENGTH` tokens in every head. */
function filled(backend: Backend, type: CacheType): LayerRows {
  const rows = backend.createRows(SHAPE, 0, type), { tensors } = backend;
  rows.append(tensors.upload(floats(LENGTH * ROW, 1)), tensors.upload(floats(LENGTH * ROW, 2)), LENGTH);
  return rows;
}

async function checkDecode(backend: Backend, rows: LayerRows, type: CacheType, count: number): Promise<void> {
  const queries = floats(count * QUERY, 3, 6);
  const { output } = await plain(rows, queries, count, (kv, t) => rows.length(kv) - count + t + 1);
  const got = await rows.decodeAttention(backend.tensors.upload(queries.slice()), count);
  assertClose(await backend.tensors.read(got.output), output, TOLERANCE[type]);
}

for (const { name, start, oneType } of ALL_BACKENDS) {
  for (const type of oneType ? ["f32" as const] : CACHE_TYPES) {
    Deno.test(`${name}, ${type}: unmasked attention sees every row from every query`, async () => {
      using backend: Backend = await start();
      const rows = filled(backend, type),
        { tensors } = backend,
        wanted = { columnMax: true, columnSum: true, logSumExp: true };
      for (const count of [1, 5, LENGTH + 30]) {
        const queries = floats(count * QUERY, 4, 6);
        const want = await plain(rows, queries, count, () => LENGTH);
        const got = await attendUnmasked(tensors, rows, tensors.upload(queries.slice()), count, wanted);
        assertClose(await tensors.read(got.output), want.output, 1e-5);
        const max = new Float32Array(SHAPE.heads * LENGTH), sum = new Float32Array(max.length);
        const logSumExp = new Float32Array(count * SHAPE.heads);
        for (const { head, t, shares, logSumExp: log } of want.seen) {
          shares.forEach((share, i) => {
            max[head * LENGTH + i] = Math.max(max[head * LENGTH + i], share);
            sum[head * LENGTH + i] += share;
          });
          logSumExp[t * SHAPE.heads + head] = log;
        }
        assertClose(got.columnMax!, max, 1e-5);
        assertClose(got.columnSum!, sum, 1e-5);
        assertClose(got.logSumExp!, logSumExp, 1e-5);
      }
      rows.free();
    });

    Deno.test(`${name}, ${type}: a bias and new values go with their rows wherever they go`, async () => {
      using backend: Backend = await start();
      const rows = filled(backend, type), { tensors } = backend;
      assert.equal(rows.refit !== undefined, backend.refits ?? false);
      if (!rows.refit) return rows.free();
      rows.compact([0, 1, 2].map((head) => Int32Array.from({ length: 100 - 20 * head }, (_, i) => i + head)));
      const before = await rows.copyRows(1), bytes = rows.allocatedBytes, live = rows.liveBytes;
      rows.refit(0, { values: floats(100 * 12, 5), bias: floats(100, 6, 5) });
      rows.refit(2, { values: floats(60 * 12, 7), bias: floats(60, 8, 5) });
      assert.deepEqual([rows.allocatedBytes - bytes, rows.liveBytes - live], [640, 640]);
      const after = await rows.copyRows(0);
      assert.deepEqual(after.bias, floats(100, 6, 5));
      if (type === "f32") assert.deepEqual(after.values, floats(100 * 12, 5));
      assert.deepEqual(await rows.copyRows(1), before);
      for (const count of [1, 3, 20]) await checkDecode(backend, rows, type, count);

      // Appended rows have none, whichever way they are attended to.
      rows.append(tensors.upload(floats(7 * ROW, 9)), tensors.upload(floats(7 * ROW, 10)), 7);
      assert.deepEqual(
        (await rows.copyRows(2, Int32Array.of(59, 60, 0))).bias,
        Float32Array.of(floats(60, 8, 5)[59], 0, floats(60, 8, 5)[0]),
      );
      for (const count of [1, 7]) await checkDecode(backend, rows, type, count);

      const some = [0, 1, 2].map((head) => Int32Array.from({ length: 30 }, (_, i) => 2 * i + head));
      const kept = await rows.copyRows(0, some[0]);
      rows.compact(some);
      assert.deepEqual(await rows.copyRows(0), kept);
      const copy = await rows.clone();
      rows.truncate([11, 12, 13]);
      await rows.rotateKeys([0, 1, 2].map((head) => new Int32Array(11 + head).fill(-3)), {
        pairs: "half",
        rotated: 12,
        frequencies: Float64Array.of(1, 0.5, 0.2, 0.1, 0.05, 0.01),
      });
      assert.deepEqual((await rows.copyRows(0)).bias, kept.bias!.slice(0, 11));
      assert.deepEqual(await copy.copyRows(0), kept);
      assert.deepEqual([rows.liveBytes - 36 * entryBytes(12, type), copy.liveBytes - 90 * entryBytes(12, type)], [
        96,
        236,
      ]);
      for (const each of [rows, copy]) await checkDecode(backend, each, type, 2);
      rows.free();
      copy.free();
      assert.equal(backend.memory().allocatedBytes, 0);
    });

    Deno.test(`${name}, ${type}: prefill attention and observations add a bias`, async () => {
      using backend: Backend = await start();
      const rows = filled(backend, type), { tensors } = backend;
      if (!rows.refit) return rows.free();
      for (let head = 0; head < 3; head++) {
        const { values } = await rows.copyRows(head);
        rows.refit(head, { values, bias: floats(LENGTH, 20 + head, 5) });
      }
      const count = 9, queries = floats(count * QUERY, 11, 6);
      const want = await plain(rows, queries, count, (_, t) => LENGTH - count + t + 1);
      const got = await rows.prefillAttention(tensors.upload(queries.slice()), count, { columnMax: true });
      assertClose(await tensors.read(got.output), want.output, 1e-5);
      const seen = await rows.observe(tensors.upload(queries.slice()), count, {
        window: ["mean", "pooledMax"],
        kernel: 3,
      });
      const mean = new Float32Array(3 * (LENGTH - count)), prefix = LENGTH - count;
      for (const { head, shares } of want.seen) {
        for (let i = 0; i < prefix; i++) mean[Math.floor(head / 2) * prefix + i] += shares[i] / (2 * count);
      }
      assertClose(seen.mean!, mean, 1e-5);
      using oracle = await ALL_BACKENDS[0].start();
      const twin = oracle.createRows(SHAPE, 0, type);
      for (let head = 0; head < 3; head++) {
        if (head === 0) twin.append(floats(LENGTH * ROW, 1), floats(LENGTH * ROW, 2), LENGTH);
        twin.refit!(head, { values: (await rows.copyRows(head)).values, bias: floats(LENGTH, 20 + head, 5) });
      }
      const plainSeen = await twin.observe(queries, count, { window: ["pooledMax"], kernel: 3 });
      assertClose(seen.pooledMax!, plainSeen.pooledMax!, 1e-5);
      twin.free();
      rows.free();
    });
  }

  Deno.test(`${name}: refit() and unmasked attention refuse what doesn't fit`, async () => {
    using backend: Backend = await start();
    const rows = filled(backend, "f16"), { tensors } = backend;
    await assert.rejects(attendUnmasked(tensors, rows, tensors.upload(new Float32Array(5)), 1), RangeError);
    if (!rows.refit || !rows.unmaskedAttention) return rows.free();
    const values = floats(LENGTH * 12, 1), bias = new Float32Array(LENGTH);
    const refused = (refit: () => void, wanted: object) => assert.throws(refit, wanted);
    refused(() => rows.refit!(3, { values, bias }), { message: "No KV head 3: there are 3" });
    refused(() => rows.refit!(0, { values, bias: bias.slice(1) }), { message: "biases have 149 floats: want 150 × 1" });
    refused(() => rows.refit!(0, { values: bias, bias }), { message: "values have 150 floats: want 150 × 12" });
    refused(() => rows.refit!(0, { values, bias: bias.with(3, NaN) }), {
      message: "Cannot refit: a bias is not finite",
    });
    refused(() => rows.refit!(0, { values: values.with(0, 1e6), bias }), { code: "cache-type.range" });
    assert.equal((await rows.copyRows(0)).bias, undefined);
    rows.compact([Int32Array.of(), Int32Array.of(1), Int32Array.of(2)]);
    refused(() => rows.refit!(0, { values: bias, bias }), { message: "Cannot refit KV head 0: it has no rows" });
    const query = tensors.upload(new Float32Array(QUERY));
    await assert.rejects(rows.unmaskedAttention(query, 1), {
      message: /^Cannot attend to all: the heads have different/,
    });
    rows.truncate([0, 0, 0]);
    await assert.rejects(rows.unmaskedAttention(query, 1), { message: "Cannot attend to no rows" });
    rows.free();
  });
}

Deno.test("RaggedCache.refit() counts the biases, and takes them along through forks, compactions and trims", async () => {
  using backend = await ALL_BACKENDS[0].start();
  const cache = new RaggedCache(backend, { ...SHAPE, layers: 1 });
  cache.append(0, floats(80 * ROW, 1), floats(80 * ROW, 2), 80, 0);
  const bytes = cache.bytes().live;
  cache.refit(0, 1, { values: floats(80 * 12, 3), bias: floats(80, 4) });
  assert.deepEqual([cache.biased, cache.bytes().live - bytes], [80, 320]);
  const mark = cache.mark();
  cache.append(0, floats(5 * ROW, 1), floats(5 * ROW, 2), 5, 80);
  using fork = await cache.fork();
  assert.equal(fork.biased, 80);
  cache.trim(mark);
  cache.compact(0, [0, 1, 2].map(() => Int32Array.of(3, 40, 79)));
  assert.deepEqual([cache.biased, cache.bytes().live], [3, 9 * entryBytes(12, "f32") + 12]);
  await cache.realign({ pairs: "half", rotated: 2, frequencies: Float64Array.of(1) });
  const all = floats(80, 4);
  assert.deepEqual((await cache.rows(0).copyRows(1)).bias, Float32Array.of(all[3], all[40], all[79]));
  using other = new RaggedCache(backend, { ...SHAPE, layers: 1 });
  const heads = [];
  for (let head = 0; head < 3; head++) {
    heads.push({ ...await cache.rows(0).copyRows(head), positions: cache.positions(0, head) });
  }
  other.fill(0, heads);
  assert.deepEqual(await other.rows(0).copyRows(1), await cache.rows(0).copyRows(1));
  assert.equal(other.biased, 3);
  cache[Symbol.dispose]();
  assert.equal(cache.biased, 0);
  using awkward: Backend = await ALL_BACKENDS.at(-1)!.start();
  using without = new RaggedCache(awkward, { ...SHAPE, layers: 1 });
  assert.throws(() => without.refit(0, 0, { values: all, bias: all }), /adds no biases/);
});
