/** The kernels' memory: reused layer after layer, and a typed refusal when it is full. */
import assert from "node:assert/strict";
import type { Backend } from "../../core/backend/interface.ts";
import { PalisadeError } from "../../core/errors.ts";
import { createWasmBackend } from "../../wasm/backend.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 64 };
const EACH = SHAPE.kvHeads * SHAPE.headDim;
const MIB = 2 ** 20;

/** Appends a whole layer in chunks, as a prefill does. */
async function fill(backend: Backend, length: number) {
  const rows = backend.createRows(SHAPE, length);
  for (let first = 0; first < length; first += 512) {
    const count = Math.min(512, length - first);
    rows.append(new Float32Array(count * EACH), new Float32Array(count * EACH), count);
    await rows.prefillAttention(new Float32Array(8 * 256), 8, { columnSum: true });
  }
  return rows;
}

function everyNth(length: number, n: number): Int32Array[] {
  return Array.from(
    { length: SHAPE.kvHeads },
    (_, h) => Int32Array.from({ length: length / n - h }, (_, i) => i * n + h),
  );
}

Deno.test("layer-major prefill reuses freed pages: the memory grows by what is kept, not by layers", async () => {
  using backend = await createWasmBackend();
  const length = 4096, layer = length * EACH * 8;
  const first = await fill(backend, length);
  const layers = [first];
  const afterFirst = backend.memory().wasmBytes;
  let kept = 0;
  for (let index = 1; index < 24; index++) {
    layers.at(-1)!.compact(everyNth(length, 4));
    kept += layers.at(-1)!.allocatedBytes;
    // Earlier layers lose more, as in a joint selection.
    if (index > 1) {
      const older = layers.at(-2)!, before = older.allocatedBytes;
      older.compact(everyNth(older.length(1), 8));
      kept -= before - older.allocatedBytes;
    }
    layers.push(await fill(backend, length));
    const { wasmBytes, allocatedBytes } = backend.memory();
    assert.equal(allocatedBytes, kept + layer);
    assert.ok(wasmBytes - afterFirst <= kept + MIB, `layer ${index}: ${wasmBytes - afterFirst} for ${kept} kept`);
  }
  for (const rows of layers) rows.free();
  const { allocatedBytes, highWaterBytes, wasmBytes } = backend.memory();
  assert.equal(allocatedBytes, 0);
  assert.ok(
    highWaterBytes <= kept + 2 * layer && wasmBytes <= highWaterBytes + 6 * MIB,
    `${wasmBytes} ${highWaterBytes}`,
  );
});

Deno.test("a full memory is a typed error, leaves the rows as they were, and the next request works", async () => {
  using backend = await createWasmBackend({ maximumBytes: 16 * MIB });
  const full = (error: unknown) =>
    error instanceof PalisadeError && error.kind === "resources" && error.code === "wasm.memory";
  const rows = backend.createRows(SHAPE, 0), block = new Float32Array(2000 * EACH).fill(1);
  rows.append(block, block, 2000);
  const before = backend.memory().allocatedBytes;
  const large = new Float32Array(20000 * EACH);
  assert.throws(() => rows.append(large, large, 20000), full);
  assert.throws(() => backend.createRows(SHAPE, 100000), full);
  assert.equal(rows.length(0), 2000);
  assert.equal(backend.memory().allocatedBytes, before);
  const { output } = await rows.decodeAttention(new Float32Array(256).fill(1), 1);
  assert.ok(output.every((x) => Math.abs(x - 1) < 1e-6));
  await assert.rejects(backend.select({ segments: [{ scores: new Float32Array(1 << 23) }], count: 5 }), full);
  rows.append(block, block, 2000);
  assert.equal(rows.length(1), 4000);
  rows.free();
});

Deno.test("createWasmBackend() refuses a memory below 2 MiB or above 4 GiB, and a module that is none", async () => {
  for (const maximumBytes of [0, 1000, -1, NaN, 2 ** 33]) {
    await assert.rejects(createWasmBackend({ maximumBytes }), RangeError);
  }
  const broken = createWasmBackend({ module: new Uint8Array([0, 97, 115, 109]) });
  await assert.rejects(broken, (error) => error instanceof PalisadeError && error.code === "wasm.start");
});
