/** Keys with channels left out, and queries that read a part of the rows, on every backend and type, against plain sums. */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Backend, CopiedRows, LayerRows } from "../../core/backend/interface.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { CACHE_TYPES, type CacheType, entryBytes, rowBytes } from "../../core/cache/entry_type.ts";
import { chosenRows } from "../../core/measure/foresight.ts";
import { randomSource } from "../../core/measure/random.ts";
import { ALL_BACKENDS, KERNEL_BACKENDS } from "../_helper/backends.ts";
import { assertClose } from "../_helper/close.ts";
import { holds } from "../_helper/property.ts";

const SHAPE = { heads: 6, kvHeads: 3, headDim: 12 };
const ROW = 36, QUERY = 72, LENGTH = 150;
/** float32 sums in another order; decode attention over int8 rows rounds queries and weights to 16 bits. */
const TOLERANCE: Readonly<Record<string, number>> = { f32: 1e-5, f16: 1e-5, int8: 5e-4 };
const CHANNELS = [[0, 1, 5, 6, 7, 11], [2, 3, 4, 8, 9, 10, 11], [7]].map((list) => Int32Array.from(list));

function floats(count: number, seed: number, scale = 2): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => (random() - 0.5) * scale);
}

function filled(backend: Backend, type: CacheType, count = LENGTH, seed = 1): LayerRows {
  const rows = backend.createRows(SHAPE, 0, type);
  append(backend, rows, count, seed);
  return rows;
}

function append({ tensors }: Backend, rows: LayerRows, count: number, seed: number): void {
  rows.append(tensors.upload(floats(count * ROW, seed)), tensors.upload(floats(count * ROW, seed + 100)), count);
}

/** Softmax of q·k/√d over the first `visible` rows, and the mix of their values, in doubles. */
function attended(query: Float32Array, { keys, values, bias }: CopiedRows, visible: number, some?: Int32Array) {
  const { headDim } = SHAPE, rows = some ?? Int32Array.from({ length: visible }, (_, i) => i);
  const dot = (i: number) => query.reduce((sum, x, d) => sum + x * keys[i * headDim + d], 0);
  const weights = Array.from(rows, (i) => Math.exp(dot(i) / Math.sqrt(headDim) + (bias?.[i] ?? 0)));
  const sum = weights.reduce((all, weight) => all + weight, 0);
  const mix = (d: number) => weights.reduce((all, w, i) => all + w / sum * values[rows[i] * headDim + d], 0);
  return { shares: weights.map((weight) => weight / sum), output: Array.from({ length: headDim }, (_, d) => mix(d)) };
}

/** What `decodeAttention` should give for rows as `copyRows` has them. */
async function checkDecode(backend: Backend, rows: LayerRows, type: CacheType, count: number, seed: number) {
  const { heads, kvHeads, headDim } = SHAPE, queries = floats(count * QUERY, seed, 6);
  const output = new Float32Array(count * QUERY), shares: number[][] = [];
  for (let head = 0; head < heads; head++) {
    const kv = Math.floor(head / (heads / kvHeads)), copied = await rows.copyRows(kv), length = rows.length(kv);
    for (let t = 0; t < count; t++) {
      const at = (t * heads + head) * headDim;
      const row = attended(queries.subarray(at, at + headDim), copied, length - count + t + 1);
      output.set(row.output, at);
      if (t === count - 1) shares.push(row.shares);
    }
  }
  const got = await rows.decodeAttention(backend.tensors.upload(queries.slice()), count, { probabilities: true });
  assertClose(await backend.tensors.read(got.output), output, TOLERANCE[type], `${count} queries`);
  got.probabilities!.forEach((each, h) => assertClose(each, shares[h], 10 * TOLERANCE[type], `softmax of head ${h}`));
  const alone = await rows.decodeAttention(backend.tensors.upload(queries.slice()), count);
  assertClose(await backend.tensors.read(alone.output), output, TOLERANCE[type], `${count} queries, output alone`);
}

/** A head's keys with 0 where channels were left out. */
function masked(keys: Float32Array, channels: Int32Array, rows: number): Float32Array {
  return keys.map((x, i) => {
    return Math.floor(i / SHAPE.headDim) >= rows || channels.includes(i % SHAPE.headDim) ? x : 0;
  });
}

for (const { name, start, oneType } of ALL_BACKENDS) {
  for (const type of oneType ? ["f32" as const] : CACHE_TYPES) {
    Deno.test(`${name}, ${type}: thin keys attend as keys with zeros, wherever their rows go`, async () => {
      using backend: Backend = await start();
      const rows = filled(backend, type);
      assert.equal(rows.thin !== undefined, backend.reduces ?? false);
      if (!rows.thin) return rows.free();
      rows.compact([0, 1, 2].map((head) => Int32Array.from({ length: 140 - 20 * head }, (_, i) => i + head)));
      const before = await Promise.all([0, 1, 2].map((head) => rows.copyRows(head)));
      const live = rows.liveBytes, recent = 32;
      for (const head of [0, 2]) rows.thin(head, { channels: CHANNELS[head], recent });
      const saved = [0, 2].reduce((sum, head) => {
        const width = CHANNELS[head].length, thin = rows.length(head) - recent;
        return sum + thin * (rowBytes(12, type) - rowBytes(width, type)) - 2 * width;
      }, 0);
      assert.equal(live - rows.liveBytes, saved);
      for (const head of [0, 1, 2]) {
        const { keys, values } = await rows.copyRows(head), thinned = head === 1 ? 0 : rows.length(head) - recent;
        const zeroed = masked(before[head].keys, CHANNELS[head], thinned);
        assertClose(keys, zeroed, type === "int8" ? 1 / 127 : 0, "keys");
        assert.deepEqual(values, before[head].values);
        const some = Int32Array.of(rows.length(head) - 1, 0, 70, 3), part = await rows.copyRows(head, some);
        some.forEach((row, i) => {
          assert.deepEqual(part.keys.slice(12 * i, 12 * i + 12), keys.slice(12 * row, 12 * row + 12));
        });
      }
      for (const count of [1, 3, 20]) await checkDecode(backend, rows, type, count, count);

      // Rows appended are whole; a copy goes its own way; rows go from everywhere.
      append(backend, rows, 7, 9);
      for (const count of [1, 7]) await checkDecode(backend, rows, type, count, 20 + count);
      const copy = await rows.clone();
      assert.deepEqual(await copy.copyRows(0), await rows.copyRows(0));
      assert.equal(copy.liveBytes, rows.liveBytes);
      const some = [0, 1, 2].map((head) => Int32Array.from({ length: 35 }, (_, i) => 3 * i + head));
      const wanted = await rows.copyRows(0, some[0]);
      rows.compact(some);
      assert.deepEqual(await rows.copyRows(0), wanted);
      await checkDecode(backend, rows, type, 2, 31);
      rows.truncate([3, 2, 1]);
      append(backend, rows, 2, 12);
      for (const count of [1, 2]) await checkDecode(backend, rows, type, count, 40 + count);
      await checkDecode(backend, copy, type, 1, 50);
      const { bias } = await rows.copyRows(1);
      assert.equal(bias, undefined);
      rows.free();
      copy.free();
      assert.equal(backend.memory().allocatedBytes, 0);
    });

    Deno.test(`${name}, ${type}: a query that reads a part reads the rows that its channels choose`, async () => {
      using backend: Backend = await start();
      const rows = filled(backend, type);
      if (!rows.foresee) return rows.free();
      rows.compact([0, 1, 2].map((head) => Int32Array.from({ length: 140 - 20 * head }, (_, i) => i + head)));
      const live = rows.liveBytes, held = rows.allocatedBytes;
      const reading = (head: number) => ({ channels: CHANNELS[head], entries: 40 + head, sinks: 2, recent: 9 });
      for (const head of [0, 2]) rows.foresee(head, reading(head));
      const added = [0, 2].reduce((sum, h) => sum + (4 * rows.length(h) + 2) * CHANNELS[h].length, 0);
      assert.equal(rows.liveBytes - live, added);
      assert.ok(rows.allocatedBytes - held >= added - 2 * 7);
      const check = async (rows: LayerRows, seed: number) => {
        const queries = floats(QUERY, seed, 6), output = new Float32Array(QUERY), { headDim } = SHAPE;
        for (let kv = 0; kv < 3; kv++) {
          const copied = await rows.copyRows(kv), length = rows.length(kv);
          const asked = queries.subarray(24 * kv, 24 * kv + 24), { keys } = copied;
          const some = kv === 1 ? undefined : chosenRows({ queries: asked, keys, length, headDim }, reading(kv));
          if (some) {
            assert.equal(some.length, Math.min(length, 40 + kv));
            assert.ok([0, 1, length - 9, length - 1].every((row) => some.includes(row)));
          }
          for (const h of [0, 1]) {
            const query = asked.subarray(12 * h, 12 * h + 12);
            output.set(attended(query, copied, length, some).output, 24 * kv + 12 * h);
          }
        }
        const got = await rows.decodeAttention(backend.tensors.upload(queries.slice()), 1);
        assertClose(await backend.tensors.read(got.output), output, TOLERANCE[type], "chosen rows");
      };
      for (const seed of [3, 4, 5]) await check(rows, seed);
      // Several queries, and one whose softmax is wanted, see everything.
      await checkDecode2(backend, rows, type);
      append(backend, rows, 5, 9);
      await check(rows, 6);
      const copy = await rows.clone();
      rows.compact([0, 1, 2].map((head) => Int32Array.from({ length: 50 }, (_, i) => 2 * i + head)));
      await check(rows, 7);
      rows.truncate([44, 30, 20]);
      await check(rows, 8);
      append(backend, rows, 30, 14);
      await check(rows, 9);
      await check(copy, 10);
      rows.free();
      copy.free();
      assert.equal(backend.memory().allocatedBytes, 0);
    });
  }
}

/** Queries that read everything of rows that foresee. */
async function checkDecode2(backend: Backend, rows: LayerRows, type: CacheType): Promise<void> {
  const queries = floats(3 * QUERY, 77, 6), { tensors } = backend;
  const plain = createReferenceBackend().createRows(SHAPE, 0, type);
  const heads = await Promise.all([0, 1, 2].map((head) => rows.copyRows(head)));
  const longest = Math.max(...heads.map(({ keys }) => keys.length / 12));
  const by = (part: "keys" | "values") => {
    const all = new Float32Array(longest * ROW);
    heads.forEach((head, h) => {
      for (let i = 0; i < head[part].length / 12; i++) {
        all.set(head[part].subarray(12 * i, 12 * i + 12), (i * 3 + h) * 12);
      }
    });
    return all;
  };
  plain.append(by("keys"), by("values"), longest);
  plain.truncate(heads.map(({ keys }) => keys.length / 12));
  for (const count of [3, 1]) {
    const asked = queries.slice(0, count * QUERY);
    const want = await plain.decodeAttention(asked.slice(), count, { probabilities: true });
    const got = await rows.decodeAttention(tensors.upload(asked), count, { probabilities: true });
    assertClose(await tensors.read(got.output), want.output as Float32Array, TOLERANCE[type], "everything");
    got.probabilities!.forEach((each, h) => assert.equal(each.length, want.probabilities![h].length));
  }
}

for (const { name, start } of [ALL_BACKENDS[0], KERNEL_BACKENDS[0]]) {
  Deno.test(`${name}: all channels, or all rows, give what nothing taken away gives`, async () => {
    using backend: Backend = await start();
    const all = Int32Array.from({ length: 12 }, (_, i) => i), { tensors } = backend, tokens = 5000 / 36 | 0;
    const [whole, thin, foreseeing] = [1, 2, 3].map(() => filled(backend, "f32", tokens));
    const output = async (rows: LayerRows, queries: Float32Array) =>
      await tensors.read((await rows.decodeAttention(tensors.upload(queries.slice()), 1)).output);
    for (let head = 0; head < 3; head++) {
      thin.thin!(head, { channels: all, recent: 7 });
      foreseeing.foresee!(head, { channels: all, entries: 1000, sinks: 0, recent: 0 });
    }
    for (let seed = 0; seed < 20; seed++) {
      const queries = floats(QUERY, seed, 6), want = await output(whole, queries);
      assertClose(await output(thin, queries), want, 1e-6, "thin");
      assert.deepEqual(await output(foreseeing, queries), want);
    }
    assert.deepEqual(await thin.copyRows(1), await whole.copyRows(1));
    for (const rows of [whole, thin, foreseeing]) rows.free();
  });

  Deno.test(`${name}: the memory of channels that are left out is given back`, async () => {
    using backend: Backend = await start();
    const shape = { heads: 2, kvHeads: 1, headDim: 64 }, count = 1280, { tensors } = backend;
    for (const type of CACHE_TYPES) {
      const rows = backend.createRows(shape, 0, type);
      for (let i = 0; i < 2; i++) {
        rows.append(tensors.upload(floats(count * 32, i)), tensors.upload(floats(count * 32, i + 2)), count / 2);
      }
      const [live, held] = [rows.liveBytes, rows.allocatedBytes];
      rows.thin!(0, { channels: Int32Array.from({ length: 32 }, (_, i) => 2 * i), recent: 64 });
      // Half of the keys' numbers: a quarter of the rows', less the list, and int8's scales.
      const number = { f32: 4, f16: 2, int8: 1 }[type], saved = (count - 64) * 32 * number;
      assert.equal(live - rows.liveBytes, saved - 64);
      assert.equal(held - rows.allocatedBytes, saved);
      assert.equal(backend.memory().allocatedBytes, rows.allocatedBytes);
      rows.free();
    }
  });

  Deno.test(`${name}: a bias stays with its row where keys are thin, and where a part is read`, async () => {
    using backend: Backend = await start();
    const [thin, part] = [filled(backend, "f32"), filled(backend, "f32")];
    for (const rows of [thin, part]) rows.refit!(1, { values: floats(LENGTH * 12, 5), bias: floats(LENGTH, 6, 5) });
    thin.thin!(1, { channels: CHANNELS[1], recent: 20 });
    await checkDecode(backend, thin, "f32", 3, 1);
    part.foresee!(1, { channels: Int32Array.from({ length: 12 }, (_, i) => i), entries: 30, sinks: 0, recent: 0 });
    const queries = floats(QUERY, 2, 6), copied = await part.copyRows(1), { keys } = copied;
    const some = chosenRows({ queries: queries.subarray(24, 48), keys, length: LENGTH, headDim: 12 }, {
      ...{ channels: Int32Array.from({ length: 12 }, (_, i) => i), entries: 30, sinks: 0, recent: 0 },
    });
    const got = await backend.tensors.read(
      (await part.decodeAttention(backend.tensors.upload(queries.slice()), 1)).output,
    );
    assertClose(got.slice(24, 36), attended(queries.subarray(24, 36), copied, LENGTH, some).output, 1e-5, "biased");
    for (const rows of [thin, part]) rows.free();
  });

  Deno.test(`${name}: what can't be left out, or read by, is refused and changes nothing`, async () => {
    using backend: Backend = await start();
    const rows = filled(backend, "f32", 20), before = await rows.copyRows(0), { tensors } = backend;
    const channels = Int32Array.of(1, 2);
    for (const list of [[], [2, 1], [1, 1], [-1], [12]]) {
      assert.throws(() => rows.thin!(0, { channels: Int32Array.from(list), recent: 1 }), RangeError);
      const reading = { channels: Int32Array.from(list), entries: 4, sinks: 0, recent: 0 };
      assert.throws(() => rows.foresee!(0, reading), RangeError);
    }
    assert.throws(() => rows.thin!(3, { channels, recent: 1 }), RangeError);
    for (const recent of [-1, 21, 0.5]) assert.throws(() => rows.thin!(0, { channels, recent }), RangeError);
    for (const [entries, sinks, recent] of [[0, 0, 0], [4, 3, 2], [1.5, 0, 0], [4, -1, 0]]) {
      assert.throws(() => rows.foresee!(0, { channels, entries, sinks, recent }), RangeError);
    }
    assert.deepEqual(await rows.copyRows(0), before);
    rows.thin!(0, { channels, recent: 4 });
    assert.throws(() => rows.thin!(0, { channels, recent: 4 }), RangeError);
    assert.throws(() => rows.foresee!(0, { channels, entries: 4, sinks: 0, recent: 0 }), RangeError);
    assert.throws(() => rows.refit!(0, { values: floats(240, 1), bias: floats(20, 1) }), /thin/);
    const queries = tensors.upload(floats(QUERY, 1));
    await assert.rejects(rows.prefillAttention(queries, 1), /thin/);
    await assert.rejects(rows.observe(queries, 1, { window: ["mean"] }), /thin/);
    await assert.rejects(rows.valueNorms(floats(QUERY, 1), 1), /thin/);
    if (rows.unmaskedAttention) await assert.rejects(rows.unmaskedAttention(queries, 1), /thin/);
    const moves = [0, 1, 2].map(() => new Int32Array(20));
    await assert.rejects(
      rows.rotateKeys(moves, { pairs: "half", rotated: 12, frequencies: new Float64Array(6) }),
      /thin/,
    );
    rows.free();
    const near = backend.createRows({ ...SHAPE, reach: 8 }, 0);
    assert.equal(near.thin ?? near.foresee, undefined);
    near.free();
  });
}

Deno.test("chosenRows() takes the highest, of equal ones the earlier, and the first and last in any case", () => {
  holds(
    fc.property(fc.nat(), fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 20 }), (seed, length, entries) => {
      const random = randomSource(seed), headDim = 4, channels = Int32Array.of(1, 2);
      const whole = (n: number) => Float32Array.from({ length: n }, () => Math.floor(random() * 3));
      const input = { queries: whole(2 * headDim), keys: whole(length * headDim), length, headDim };
      const sinks = Math.min(1, entries), recent = Math.min(2, entries - sinks);
      const got = chosenRows(input, { channels, entries, sinks, recent });
      const score = (q: number, i: number) =>
        channels.reduce((sum, j) => sum + input.queries[q * headDim + j] * input.keys[i * headDim + j], 0);
      const peak = (q: number) => Math.max(...Array.from({ length }, (_, i) => score(q, i)));
      const rank = (i: number) =>
        i < sinks || i >= length - recent ? 1e9 : Math.max(...[0, 1].map((q) => score(q, i) - peak(q)));
      const ranks = Array.from({ length }, (_, i) => [rank(i), i]).sort(([a, i], [b, j]) => b - a || i - j);
      assert.deepEqual([...got], ranks.slice(0, entries).map(([, i]) => i).sort((a, b) => a - b));
    }),
    100,
  );
});

Deno.test("bytes of an entry are those of a key and a value", () => {
  for (const type of CACHE_TYPES) assert.equal(entryBytes(64, type), 2 * rowBytes(64, type));
});
