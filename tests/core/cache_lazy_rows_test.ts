import assert from "node:assert/strict";
import type { LayerRows } from "../../core/backend/interface.ts";
import { LazyRows } from "../../core/cache/lazy_rows.ts";
import { randomSource } from "../../core/measure/random.ts";
import { createWasmBackend } from "../../wasm/backend.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 };
const EACH = SHAPE.kvHeads * SHAPE.headDim;

/** Rows of `count` entries per head with random numbers. */
async function rowsOf(count: number): Promise<LayerRows & Disposable> {
  const backend = await createWasmBackend(), rows = backend.createRows(SHAPE, 0);
  rows.append(Float32Array.from({ length: count * EACH }, randomSource(1)), new Float32Array(count * EACH), count);
  return Object.assign(rows, { [Symbol.dispose]: () => backend[Symbol.dispose]() });
}

Deno.test("LazyRows ends with the rows that move at once, and holds as many pages all the way", async () => {
  using eager = await rowsOf(500);
  using other = await rowsOf(500);
  const lazy = new LazyRows(other), next = randomSource(7);
  for (let round = 0; round < 40; round++) {
    const share = [0, 0.02, 0.3][round % 3];
    const kept = [0, 1].map((head) =>
      Int32Array.from({ length: eager.length(head) }, (_, i) => i).filter(() => next() >= share)
    );
    eager.compact(kept);
    lazy.compact(kept);
    assert.equal(lazy.allocatedBytes, eager.allocatedBytes);
    if (round % 5 === 4) assert.deepEqual(await lazy.settled().copyRows(1), await eager.copyRows(1));
  }
  for (const head of [0, 1]) assert.deepEqual(await lazy.settled().copyRows(head), await eager.copyRows(head));
});

Deno.test("LazyRows moves rows only when a head can free a page or somebody looks", async () => {
  using rows = await rowsOf(100);
  let moves = 0;
  const compact = rows.compact.bind(rows);
  rows.compact = (kept) => {
    moves++;
    compact(kept);
  };
  const lazy = new LazyRows(rows),
    but = (count: number, lost: number) => Int32Array.from({ length: count }, (_, i) => i).filter((i) => i !== lost);
  for (let count = 100; count > 65; count--) lazy.compact([but(count, 3), but(count, 0)]);
  assert.deepEqual([moves, rows.length(0)], [0, 100]);
  lazy.compact([but(65, 3), but(65, 99)]);
  assert.deepEqual([moves, rows.length(0), rows.length(1)], [1, 64, 100]);
  assert.equal(lazy.settled().length(1), 65);
  lazy.settled();
  assert.equal(moves, 2);
});

Deno.test("LazyRows refuses lists that don't fit what is left of a head", async () => {
  using rows = await rowsOf(10);
  const lazy = new LazyRows(rows), lists = (...first: number[]) => [Int32Array.from(first), Int32Array.of(0)];
  lazy.compact(lists(1, 2, 5));
  for (const bad of [[3], [1, 1], [2, 0], [-1]]) assert.throws(() => lazy.compact(lists(...bad)), RangeError);
  assert.throws(() => lazy.compact([Int32Array.of(0)]), /2 heads by 1 lists/);
  assert.equal(lazy.settled().length(0), 3);
});
