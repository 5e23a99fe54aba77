/** What crosses into the kernels is checked there: no number from outside traps, hangs or reaches foreign memory. */
import assert from "node:assert/strict";
import { randomSource } from "../../core/measure/random.ts";
import { Kernels } from "../../wasm/module.ts";
import { checkedModule } from "../_helper/backends.ts";

const SEED = 7;
console.log(`border seed ${SEED}`);

const BUILDS = {
  simd128: () => Kernels.start({ simd: "simd128", maximumBytes: 64 << 20 }),
  checked: async () => Kernels.start({ module: await checkedModule(), maximumBytes: 64 << 20 }),
};

const MEMORY = -1, HANDLE = -2, SHAPE = -3, BUFFER = -4;

for (const [build, start] of Object.entries(BUILDS)) {
  Deno.test(`${build}: handles that are not alive are refused`, async () => {
    const { call } = await start();
    const buffer = call.buffer_new(64), rows = call.rows_new(2, 1, 4, 0, 0, 0);
    assert.ok(buffer > 0 && rows > 0);
    assert.equal(call.buffer_free(buffer), 0);
    assert.equal(call.buffer_free(buffer), HANDLE);
    assert.equal(call.buffer_address(buffer), 0);
    const [keys, values] = [call.buffer_new(64), call.buffer_new(64)];
    for (const bad of [buffer, 0, -1, -5, 0x7fffffff, -0x80000000, values]) {
      assert.equal(call.rows_append(rows, bad, values, 1), HANDLE, `keys ${bad}`);
    }
    for (const bad of [0, -1, 0x7fffffff, rows + 1, rows + 65536]) {
      assert.equal(call.rows_append(bad, keys, values, 1), HANDLE, `rows ${bad}`);
    }
    assert.equal(call.rows_append(rows, keys, values, 1), 0);
    assert.equal(call.rows_free(rows), 0);
    assert.equal(call.rows_pages(rows), HANDLE);
  });

  Deno.test(`${build}: buffers too small and shapes out of range are refused`, async () => {
    const { call } = await start();
    assert.equal(call.buffer_new(-1), SHAPE);
    assert.equal(call.buffer_new(0x7fffffff), MEMORY);
    assert.equal(call.buffer_room(-1), SHAPE);
    assert.equal(call.buffer_room(0x7fffffff), MEMORY);
    for (
      const [heads, kvHeads, dim, reserve] of [
        [0, 0, 4, 0],
        [3, 2, 4, 0],
        [2, 0, 4, 0],
        [2, 1, 0, 0],
        [2, 1, 5000, 0],
        [-2, 1, 4, 0],
        [2, 1, 4, -1],
        [1 << 20, 1, 4, 0],
        [2, 1, 4, 0x7fffffff],
      ]
    ) assert.equal(call.rows_new(heads, kvHeads, dim, reserve, 0, 0), SHAPE);
    for (const kind of [-1, 4, 15, 32, 0x7fffffff, -0x80000000]) {
      assert.equal(call.rows_new(2, 1, 4, 0, kind, 0), SHAPE);
    }
    for (const reach of [-1, 0x7fffffff, -0x80000000]) assert.equal(call.rows_new(2, 1, 4, 0, 0, reach), SHAPE);
    assert.equal(call.rows_new(2, 1, 4096, 1 << 28, 0, 0), MEMORY);

    const rows = call.rows_new(2, 1, 4, 0, 0, 0), [a, b, c] = [16, 16, 1 << 12].map((bytes) => call.buffer_new(bytes));
    assert.equal(call.rows_append(rows, a, b, 2), BUFFER);
    assert.equal(call.rows_append(rows, a, b, -1), SHAPE);
    assert.equal(call.rows_append(rows, a, b, 0x7fffffff), SHAPE);
    assert.equal(call.rows_append(rows, a, b, 1), 0);
    assert.equal(call.rows_attend(rows, a, 1, 0, c, -1, -1, -1, -1, 1, -1), BUFFER);
    assert.equal(call.rows_attend(rows, c, 2, 0, a, -1, -1, -1, -1, 1, -1), BUFFER);
    const large = call.buffer_new(1 << 12);
    assert.equal(call.rows_attend(rows, c, 2, 0, large, -1, -1, -1, -1, 1, -1), SHAPE);
    assert.equal(call.rows_attend(rows, c, 1, 1, large, -1, -1, -1, -1, 1, -1), SHAPE);
    assert.equal(call.rows_attend(rows, c, 1, 0, c, -1, -1, -1, -1, 1, -1), HANDLE, "input and output are one buffer");
    assert.equal(call.rows_attend(rows, c, 1, 0, large, -1, a, -1, -1, 1, -1), BUFFER, "column sums");
    assert.equal(call.rows_attend(rows, c, 0, 0, large, -1, -1, -1, -1, 1, -1), SHAPE);
    assert.equal(call.rows_observe(rows, c, 2, 5, -1, -1, -1, -1, -1, -1, -1), SHAPE);
    assert.equal(call.rows_observe(rows, c, 1, 4, -1, -1, -1, -1, -1, -1, -1), SHAPE);
    assert.equal(call.rows_observe(rows, c, 1, 1 << 20 | 1, -1, -1, -1, -1, -1, -1, -1), SHAPE);
    assert.equal(call.rows_norms(rows, a, 2, c), BUFFER);
    assert.equal(call.rows_gram(rows, a, 2, c), BUFFER);
    assert.equal(call.rows_gram_norms(rows, large, -1), HANDLE, "norms are no option");
    assert.equal(call.select_top(c, -1, -1, 5, 6, large), SHAPE);
    assert.equal(call.select_top(c, -1, -1, 2000, 6, large), BUFFER);
    assert.equal(call.rows_copy(rows, 1, -1, 0, c, large), SHAPE);
    assert.equal(call.rows_copy(rows, 0, a, 1 << 20, c, large), BUFFER);
    assert.equal(call.rows_copy(rows, 0, a, -1, c, large), SHAPE);
    assert.equal(call.rows_copy(rows, 0, a, 4, a, large), HANDLE, "list and output are one buffer");
  });

  Deno.test(`${build}: kept rows and lengths are checked before anything moves`, async () => {
    const kernels = await start(), { call } = kernels;
    kernels.withBuffers((buffers) => {
      const rows = call.rows_new(2, 2, 1, 0, 0, 0), floats = () => buffers.from(new Float32Array(200));
      assert.equal(call.rows_append(rows, floats(), floats(), 100), 0);
      const compact = (kept: number[], counts: number[], total = kept.length) =>
        call.rows_compact(rows, buffers.from(Int32Array.from(kept)), total, buffers.from(Int32Array.from(counts)));
      assert.equal(compact([0, 1], [1, 2]), SHAPE);
      assert.equal(compact([0, 1, 2], [1, 1]), SHAPE);
      assert.equal(compact([1, 0], [2, 0]), SHAPE);
      assert.equal(compact([0, 0], [2, 0]), SHAPE);
      assert.equal(compact([-1, 0], [2, 0]), SHAPE);
      assert.equal(compact([0, 100], [1, 1]), SHAPE);
      assert.equal(compact([0, 1], [-1, 3]), SHAPE);
      assert.equal(compact([0, 1], [3, -1]), SHAPE);
      assert.equal(compact([0], [1]), BUFFER);
      assert.equal(compact([0, 1], [1, 1], 0x7fffffff), SHAPE);
      for (const lengths of [[101, 0], [-1, 0]]) {
        assert.equal(call.rows_truncate(rows, buffers.from(Int32Array.from(lengths))), SHAPE);
      }
      assert.equal(call.rows_pages(rows), 4);
      assert.equal(compact([3, 99, 0], [2, 1]), 0);
      assert.equal(call.rows_pages(rows), 2);
    });
  });

  Deno.test(`${build}: dense calls refuse sizes and buffers that don't fit`, async () => {
    const { call } = await start();
    const [weights, x, y] = [2 * 18, 128, 8].map((bytes) => call.buffer_new(bytes));
    const multiply = (
      change: Partial<Record<"kind" | "outputs" | "width" | "count" | "stride" | "offset", number>>,
    ) => {
      const { kind, outputs, width, count, stride, offset } = {
        ...{ kind: 2, outputs: 2, width: 32, count: 1, stride: 2, offset: 0 },
        ...change,
      };
      return call.dense_multiply(weights, kind, outputs, width, 0, x, count, -1, y, stride, offset, 0);
    };
    assert.equal(multiply({}), 0);
    for (const kind of [4, 9, 16, 99, -1]) assert.equal(multiply({ kind }), SHAPE, `kind ${kind}`);
    for (const kind of [10, 11, 12, 13, 14, 23]) {
      assert.equal(multiply({ kind }), SHAPE, `32 weights of kind ${kind}`);
      assert.equal(multiply({ kind, width: 256 }), BUFFER, `256 weights of kind ${kind}`);
    }
    assert.equal(multiply({ kind: 8 }), BUFFER);
    for (const width of [0, 31, 33, -32]) assert.equal(multiply({ width }), SHAPE, `width ${width}`);
    assert.equal(multiply({ width: 1 << 28 }), BUFFER);
    assert.equal(multiply({ outputs: 0 }), SHAPE);
    assert.equal(multiply({ outputs: 3, stride: 3 }), BUFFER);
    assert.equal(multiply({ offset: 1 }), SHAPE);
    assert.equal(multiply({ stride: 1 }), SHAPE);
    assert.equal(multiply({ count: 2 }), BUFFER);
    assert.equal(multiply({ count: 0 }), SHAPE);
    assert.equal(call.dense_multiply(weights, 2, 2, 32, 0, x, 1, -1, x, 2, 0, 0), HANDLE, "input and target are one");
    assert.equal(call.dense_multiply(weights, 2, 2, 32, 0, x, 1, 12345, y, 2, 0, 0), HANDLE, "bias");
    assert.equal(call.dense_norm(x, y, 0, 1, 0, weights), SHAPE);
    assert.equal(call.dense_norm(x, y, 3, 1, 0, weights), BUFFER);
    assert.equal(call.dense_norm(x, y, 2, 0x7fffffff, 0, weights), SHAPE);
    // Heads beyond the row, of no width, or more than there is room for.
    assert.equal(call.dense_head_norm(x, y, 2, 1, 1, 2, 1, 0, weights), SHAPE);
    assert.equal(call.dense_head_norm(x, y, 2, 0, 1, 0, 1, 0, weights), SHAPE);
    assert.equal(call.dense_head_norm(x, y, 4, 0, 0x7fffffff, 2, 1, 0, weights), SHAPE);
    assert.equal(call.dense_head_norm(x, y, 2, 0, 1, 1, 0x7fff, 0, weights), BUFFER);
    assert.equal(call.dense_gate(x, 0, 17, 1, weights), BUFFER);
    assert.equal(call.dense_add(x, y, -1, weights), SHAPE);
    assert.equal(call.dense_add(x, y, 3, weights), BUFFER);
    assert.equal(call.dense_add(x, y, 2, x), HANDLE, "input and sum are one");
    assert.equal(call.gate_scores(weights, y, 0, 2, 0, x, 1, -1), SHAPE);
    assert.equal(call.gate_scores(weights, y, 1, 0, 0, x, 1, -1), SHAPE);
    assert.equal(call.gate_scores(weights, y, 1, 2, 0, x, 1, -1), HANDLE);
    assert.equal(call.gate_scores(weights, y, 1, 2, 0, x, 1, x), HANDLE);
    assert.equal(call.gate_scores(weights, -1, 1, 2, 0, x, 1, y), HANDLE);
    assert.equal(call.gate_scores(weights, 12345, 1, 2, 0, x, 1, y), HANDLE);
    assert.equal(call.dense_gate(x, 0, 0, 1, weights), SHAPE);
    assert.equal(call.solve_symmetric(x, 0, 0, y, 1), SHAPE);
    assert.equal(call.solve_symmetric(x, -1, 0, y, 1), SHAPE);
    assert.equal(call.solve_symmetric(x, 1000, 0, y, 1), BUFFER);
    assert.equal(call.solve_symmetric(x, 1, 0, y, 1000), BUFFER);
    assert.equal(call.solve_symmetric(x, 1, 0, x, 1), HANDLE);
    assert.equal(call.solve_symmetric(x, 1, 0, -1, 1), HANDLE);
    assert.equal(call.solve_symmetric(12345, 1, 0, y, 1), HANDLE);
    assert.equal(call.descend(x, 0, y, weights, -1, 0, 1), SHAPE);
    assert.equal(call.descend(x, 1, y, weights, -1, 0, 1), HANDLE);
    assert.equal(call.descend(x, 1, y, -1, weights, 0, 1), HANDLE);
    assert.equal(call.descend(-1, 1, y, x, weights, 0, 1), HANDLE);
    assert.equal(call.descend(x, 1, y, weights, x, 0, 1), HANDLE, "matrix and work are one");
    assert.equal(call.descend(x, 1000, y, weights, call.buffer_new(16), 0, 1), BUFFER);
  });

  Deno.test(`${build}: no storm of arbitrary calls traps, and the kernels work afterwards`, async () => {
    const { call } = await start(), next = randomSource(SEED);
    const pick = <T>(from: readonly T[]) => from[Math.floor(next() * from.length)];
    const known: number[] = [-1];
    const anything = [0, -1, 1, 2, 3, 5, 8, 63, 64, 65, 1000, 65536, 65537, 0x7fffffff, -0x80000000];
    const names = Object.keys(call).filter((name) => typeof call[name as keyof typeof call] === "function");
    const functions = call as unknown as Record<string, (...numbers: number[]) => number>;
    let accepted = 0;
    for (let i = 0; i < 30000; i++) {
      const name = pick(names);
      const numbers = Array(functions[name].length).fill(0).map(() => next() < 0.5 ? pick(known) : pick(anything));
      if (name === "rows_new" && next() < 0.7) {
        numbers.splice(0, 6, 2, 1, pick([3, 4, 64]), pick([0, 70]), pick([0, 1, 2]), pick([0, 1, 65]));
      }
      if (name === "buffer_new" && next() < 0.9) numbers[0] = pick([0, 16, 4096, 1 << 16]);
      const result = functions[name](...numbers);
      assert.ok(Number.isInteger(result), name);
      if (name.endsWith("_new") && result > 0) known.push(result);
      if (result >= 0) accepted++;
      if (known.length > 60) {
        for (const handle of known.splice(1, 50)) if (call.rows_free(handle) < 0) call.buffer_free(handle);
      }
    }
    console.log(`${accepted} of 30000 calls accepted`);
    assert.ok(accepted > 1000);
    const rows = call.rows_new(1, 1, 4, 0, 0, 0), one = call.buffer_new(16), two = call.buffer_new(16);
    assert.equal(call.rows_append(rows, one, two, 1), 0);
    assert.equal(call.rows_attend(rows, one, 1, 0, two, -1, -1, -1, -1, 1, -1), 0);
  });
}
