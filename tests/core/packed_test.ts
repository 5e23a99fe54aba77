/** Rows of four bits: bounded errors, the same bits in every backend, and every move of packed rows. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import { fromHalf, toHalf } from "../../core/backend/halves.ts";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { type CacheType, checkCacheType, entryBytes } from "../../core/cache/entry_type.ts";
import { GROUP, packedAfter, packRows, unpackRows } from "../../core/cache/packed.ts";
import { randomSource } from "../../core/measure/random.ts";
import { KERNEL_BACKENDS } from "../_helper/backends.ts";
import { SEED } from "../_helper/property.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 40 };
const TYPES: readonly CacheType[] = ["int4", "k=int4,v=int8", "k=f16,v=int4"];

function floats(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  // Some channels stand far off zero, as keys' do.
  return Float32Array.from({ length: count }, (_, i) => (next() - 0.5) * 4 + (i % SHAPE.headDim === 3 ? 30 : 0));
}

function filled(backend: Backend, type: CacheType, count: number): LayerRows {
  const rows = backend.createRows(SHAPE, 0, type), each = SHAPE.kvHeads * SHAPE.headDim;
  rows.append(floats(count * each, 1), floats(count * each, 2), count);
  return rows;
}

/** Heads of uneven lengths. */
function ragged(rows: LayerRows, lengths: readonly number[]): void {
  rows.compact(lengths.map((length, h) => Int32Array.from({ length }, (_, i) => 2 * i + h)));
}

Deno.test("a packed number is off by at most half a step of its group, whatever the numbers", () => {
  const numbers = fc.array(fc.float({ min: -60000, max: 60000, noNaN: true }), { minLength: 1, maxLength: 80 });
  fc.assert(
    fc.property(numbers, fc.constantFrom("keys" as const, "values" as const), (given, part) => {
      const width = 2, halves = given.length % width === 0 ? given : [...given, 0];
      const rows = Float32Array.from(halves, (x) => fromHalf(toHalf(x)));
      const back = unpackRows(part, packRows(part, rows, width), rows.length / width, width);
      rows.forEach((x, i) => {
        const row = Math.floor(i / width), first = Math.floor(row / GROUP) * GROUP;
        const group = part === "keys"
          ? Array.from(rows).filter((_, j) =>
            j % width === i % width && Math.floor(j / width / GROUP) === first / GROUP
          )
          // Values are filled up with zeros.
          : [0, ...rows.subarray(row * width, (row + 1) * width)];
        const range = Math.max(...group) - Math.min(...group);
        assert.ok(Math.abs(back[i] - x) <= range / 30 * 1.002 + Math.abs(x) * 1e-6 + 2 ** -24, `${x} as ${back[i]}`);
      });
    }),
    { seed: SEED, numRuns: 300 },
  );
});

Deno.test("types are read with keys and values apart, and refused by name", () => {
  assert.equal(checkCacheType("k=int4,v=int8"), "k=int4,v=int8");
  assert.equal(checkCacheType(" v = f16 , k=int8"), "k=int8,v=f16");
  assert.equal(checkCacheType("k=int4,v=int4"), "int4");
  for (const bad of ["int5", "k=int4", "k=int4,k=int8", "k=int4,v=int5", "k=int4,v=int8,v=f16", ""]) {
    assert.throws(() => checkCacheType(bad), { code: "cache-type.unknown" }, bad);
  }
  assert.equal(entryBytes(64, "int4"), 80);
  assert.equal(entryBytes(64, "k=int4,v=int8"), 40 + 68);
});

Deno.test("rows in front of the first that moves stay packed, by whole groups", () => {
  const kept = (rows: number[]) => Int32Array.from(rows), first = (n: number) => Array.from({ length: n }, (_, i) => i);
  assert.equal(packedAfter(kept(first(40)), 70), 40);
  assert.equal(packedAfter(kept([...first(40), 41]), 70), 32);
  assert.equal(packedAfter(kept([1, 2]), 70), 0);
  assert.equal(packedAfter(kept([...first(75), 80]), 70), 70);
});

for (const { name, start } of KERNEL_BACKENDS) {
  Deno.test(`${name}: packed rows have the plain backend's bits, through every move`, async () => {
    using backend = await start();
    using oracle = createReferenceBackend();
    for (const type of TYPES) {
      const twins = [filled(oracle, type, 200), filled(backend, type, 200)];
      const each = SHAPE.kvHeads * SHAPE.headDim, queries = floats(3 * SHAPE.heads * SHAPE.headDim, 9);
      const check = async (what: string) => {
        const [want, got] = await Promise.all(twins.map((rows) => copyHeads(rows)));
        assert.deepEqual(got, want, `${type}, ${what}`);
        assert.equal(twins[1].liveBytes, twins[0].liveBytes);
        const [a, b] = await Promise.all(twins.map((rows) => rows.decodeAttention(queries, 3)));
        const [x, y] = [a.output as Float32Array, b.output as Float32Array];
        x.forEach((number, i) => assert.ok(Math.abs(number - y[i]) < 1e-3, `${type}, ${what}: ${number} as ${y[i]}`));
        return want;
      };
      const both = async (what: string, move: (rows: LayerRows) => void | Promise<void>) => {
        for (const rows of twins) await move(rows);
        return await check(what);
      };
      const loose = twins[0].liveBytes;
      await both("packed, all heads alike", (rows) => rows.pack!());
      assert.ok(twins[0].liveBytes < loose);
      const level = floats(200 * SHAPE.heads * SHAPE.headDim, 5);
      const [p, q] = await Promise.all(twins.map((rows) => rows.prefillAttention(level, 200)));
      (p.output as Float32Array).forEach((x, i) => assert.ok(Math.abs(x - (q.output as Float32Array)[i]) < 1e-3));
      await both("some rows go", (rows) => ragged(rows, [95, 37]));
      await both("packed again", (rows) => rows.pack!());
      const heads = await both("rows come behind", (rows) => rows.append(floats(5 * each, 3), floats(5 * each, 4), 5));
      assert.deepEqual(heads.map(({ packed }) => packed?.rows), [95, 37]);
      await both("refitted", (rows) => {
        rows.refit!(0, { values: floats(100 * SHAPE.headDim, 6), bias: floats(100, 7).map((x) => x / 100) });
      });
      await both("cut", (rows) => rows.truncate([90, 40]));
      const copies = await Promise.all(twins.map((rows) => rows.clone()));
      assert.deepEqual(await copyHeads(copies[1]), await copyHeads(copies[0]), `${type}, copied`);
      assert.deepEqual(await copyHeads(copies[1]), await copyHeads(twins[1]), `${type}, copied as it was`);
      for (const copy of copies) copy.free();
      await both("grown and packed", (rows) => {
        rows.append(floats(40 * each, 3), floats(40 * each, 4), 40);
        rows.pack!();
      });
      await both(
        "a row in the middle goes",
        (rows) =>
          rows.compact([0, 1].map((h) => Int32Array.from(Array(rows.length(h)).keys()).filter((i) => i !== 50))),
      );
      await both("turned", (rows) =>
        rows.rotateKeys(
          [0, 1].map((h) => new Int32Array(rows.length(h)).fill(3)),
          { pairs: "half", rotated: 40, frequencies: Float64Array.from({ length: 20 }, (_, i) => 100 ** (-i / 20)) },
        ));
      for (const rows of twins) rows.free();
    }
    assert.equal(backend.memory().allocatedBytes, 0);
  });
}

Deno.test("what doesn't fit is refused, and nothing changes", async () => {
  using backend = createReferenceBackend();
  const rows = filled(backend, "k=int4,v=int8", 40), [before] = await copyHeads(rows);
  const part = packRows("keys", new Float32Array(40 * 10), 40);
  const bad = [
    [undefined],
    [{ rows: 41, keys: part }, undefined],
    [{ rows: 10 }, undefined],
    [{ rows: 10, keys: part, values: part }, undefined],
    [{ rows: 9, keys: part }, undefined],
  ];
  for (const given of bad) assert.throws(() => rows.pack!(given), RangeError);
  assert.deepEqual((await copyHeads(rows))[0], before);
  rows.free();
});
