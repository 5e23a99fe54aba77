/** Turning keys and cloning rows, on every backend: what the cache's re-rotation and its forks stand on. */
import assert from "node:assert/strict";
import { copyHeads } from "../../core/backend/copy_heads.ts";
import type { LayerRows } from "../../core/backend/interface.ts";
import { StoredRows } from "../../core/backend/stored_rows.ts";
import { CACHE_TYPES, type CacheType, partsOf } from "../../core/cache/entry_type.ts";
import { randomSource } from "../../core/measure/random.ts";
import { type KeyRotation, rotateRows } from "../../core/measure/rotation.ts";
import { ropeTable, rotate } from "../../model/dense/rope.ts";
import { ALL_BACKENDS } from "../_helper/backends.ts";
import { assertClose } from "../_helper/close.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 10 };
const FREQUENCIES = Float64Array.of(1, 0.3, 0.04, 0.001);

/** Where a number lies between two that can be stored, the last bit of its turn decides. */
const TURN_TOLERANCE: Readonly<Record<string, number>> = { f32: 1e-6, f16: 2 ** -10, int8: 1 / 120, int4: 2 ** -10 };

function rotation(pairs: KeyRotation["pairs"]): KeyRotation {
  return { pairs, rotated: 8, frequencies: FREQUENCIES };
}

function floats(count: number, seed: number): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => random() * 2 - 1);
}

/** Rows of `lengths` entries: all the same, then compacted. */
function raggedRows(rows: LayerRows, lengths: readonly number[], seed = 1): void {
  const longest = Math.max(...lengths), each = longest * SHAPE.kvHeads * SHAPE.headDim;
  rows.append(floats(each, seed), floats(each, seed + 1), longest);
  rows.compact(lengths.map((length) => Int32Array.from({ length }, (_, i) => i)));
}

/** As rows of this type hold it. */
function asStored(all: Float32Array, type: CacheType): Float32Array {
  const rows = new StoredRows(SHAPE.headDim, partsOf(type).keys, "keys"), count = all.length / SHAPE.headDim;
  rows.resize(count, 0);
  rows.set(0, all);
  return rows.floats(count);
}

for (const pairs of ["interleaved", "half"] as const) {
  Deno.test(`rotateRows() of ${pairs} pairs makes a key at one position the key at another`, () => {
    const rope = { ...rotation(pairs), magnitude: 1 };
    const plain = floats(6 * SHAPE.headDim, 5), [from, to] = [plain.slice(), plain.slice()];
    rotate(from, 1, SHAPE.headDim, rope, ropeTable(rope, 100, 6));
    rotate(to, 1, SHAPE.headDim, rope, ropeTable(rope, 7, 6));
    rotateRows(from, SHAPE.headDim, new Int32Array(6).fill(-93), rope);
    assertClose(from, to, 1e-5, "keys");
  });
}

Deno.test("rotateRows() leaves what is not rotated, and refuses sizes that don't fit", () => {
  const keys = floats(20, 3), before = keys.slice();
  rotateRows(keys, 10, Int32Array.of(0, 4), rotation("half"));
  assert.deepEqual(keys.slice(0, 10), before.slice(0, 10));
  assert.deepEqual(keys.slice(18), before.slice(18));
  assert.notDeepEqual(keys.slice(10, 18), before.slice(10, 18));
  assert.throws(() => rotateRows(keys, 10, Int32Array.of(1), rotation("half")), RangeError);
  for (const change of [{ rotated: 7 }, { rotated: 12 }, { rotated: 6 }]) {
    assert.throws(() => rotateRows(keys, 10, Int32Array.of(1, 1), { ...rotation("half"), ...change }), RangeError);
  }
});

for (const { name, turnsInFloat32, start } of ALL_BACKENDS) {
  for (const type of CACHE_TYPES) {
    Deno.test(`${name}, ${type}: rotateKeys() turns each row by its own move and leaves the values`, async () => {
      using backend = await start();
      for (const lengths of [[1, 1], [64, 3], [65, 130], [0, 63], [200, 64]]) {
        const rows = backend.createRows(SHAPE, 0, type);
        raggedRows(rows, lengths);
        const before = await copyHeads(rows), bytes = rows.allocatedBytes;
        const moves = lengths.map((length, h) => Int32Array.from({ length }, (_, i) => (h ? 5 : -3) * (i >> 3)));
        await rows.rotateKeys(moves, rotation("interleaved"));
        (await copyHeads(rows)).forEach(({ keys, values }, h) => {
          rotateRows(before[h].keys, SHAPE.headDim, moves[h], rotation("interleaved"));
          if (turnsInFloat32) assertClose(keys, asStored(before[h].keys, type), TURN_TOLERANCE[type], "turned");
          else assert.deepEqual(keys, asStored(before[h].keys, type));
          assert.deepEqual(values, before[h].values);
        });
        assert.ok(rows.allocatedBytes <= bytes, `${rows.allocatedBytes} bytes after, ${bytes} before`);
        rows.free();
      }
      assert.equal(backend.memory().allocatedBytes, 0);
    });
  }

  for (const type of CACHE_TYPES) {
    Deno.test(`${name}, ${type}: clone() gives the same rows, and neither sees the other change`, async () => {
      using backend = await start();
      const rows = backend.createRows(SHAPE, 0, type);
      raggedRows(rows, [70, 5]);
      const before = await copyHeads(rows), twin = await rows.clone();
      assert.deepEqual(await copyHeads(twin), before);
      assert.deepEqual([twin.type, twin.liveBytes], [type, rows.liveBytes]);
      raggedRows(twin, [9, 9], 40);
      twin.compact([Int32Array.of(0), Int32Array.of(1, 2)]);
      assert.deepEqual(await copyHeads(rows), before);
      const attended = await rows.decodeAttention(floats(SHAPE.heads * SHAPE.headDim, 8), 1);
      rows.free();
      assert.equal(attended.output.length, SHAPE.heads * SHAPE.headDim);
      assert.deepEqual(twin.length(1), 2);
      twin.free();
      assert.equal(backend.memory().allocatedBytes, 0);
    });
  }
}
