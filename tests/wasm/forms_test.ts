/** Two forms of products: the same bits, and the faster one is taken. */
import assert from "node:assert/strict";
import { randomSource } from "../../core/measure/random.ts";
import { rowBytesOf, TENSOR_TYPES } from "../../model/file/tensor_types.ts";
import { FormTrial } from "../../wasm/dense/forms.ts";
import { BYTE_INPUT_TYPES, Stored } from "../../wasm/dense/products.ts";
import { Kernels } from "../../wasm/module.ts";
import { randomRows } from "../_helper/random_rows.ts";

/** What is taken where a unit of work takes so many milliseconds in both forms, the first calls ten times as many. */
function takenOf(first: number, second: number): { taken: boolean | undefined; calls: number; seconds: number } {
  let clock = 0, calls = 0, seconds = 0;
  const trial = new FormTrial(() => clock);
  // A layer's matrices, again and again.
  for (const works = [6, 2, 2, 6, 32, 16]; trial.taken === undefined && calls < 1000; calls++) {
    const work = works[calls % works.length];
    const got = trial.run(work, (form) => {
      if (form) seconds++;
      clock += work * (form ? second : first) * (calls < 20 ? 10 : 1);
      return form;
    });
    assert.equal(typeof got, "boolean");
  }
  const { taken } = trial;
  if (taken !== undefined) assert.equal(trial.run(1, (form) => form), taken, "it stays");
  return { taken, calls, seconds };
}

Deno.test("the faster of two forms is taken, the first where they are alike", () => {
  for (const [first, second, want] of [[1, 0.8, true], [1, 1.2, false], [1, 1, false], [1, 0.98, false]] as const) {
    const { taken, calls, seconds } = takenOf(first, second);
    assert.equal(taken, want, `${first} and ${second}`);
    assert.ok(calls <= 120, `${calls} calls`);
    assert.ok(Math.abs(2 * seconds - calls) <= 10, `${seconds} of ${calls} in the second form`);
  }
});

Deno.test("a clock that stands still takes the first", () => {
  const trial = new FormTrial(() => 0);
  for (let i = 0; i < 200; i++) trial.run(1, () => {});
  assert.equal(trial.taken, false);
});

for (const simd of ["simd128", "auto"] as const) {
  for (const type of [...TENSOR_TYPES.values()].filter(({ id }) => BYTE_INPUT_TYPES.includes(id))) {
    Deno.test(`${simd}: products with ${type.name} have the same bits in both forms`, async () => {
      const kernels = await Kernels.start({ simd }), next = randomSource(type.id + 7);
      for (const [blocks, outputs, count] of [[1, 1, 1], [3, 8, 2], [4, 19, 4], [9, 11, 13]]) {
        const width = blocks * Math.max(type.block, 32), rows = randomRows(type, outputs * width, next);
        assert.equal(rows.length, outputs * rowBytesOf(type, width));
        const weights = new Stored(kernels, rows.length);
        weights.view(0, rows.length).set(rows);
        weights.weave(type.id, width);
        const x = Float32Array.from({ length: count * width }, () => 2 * next() - 1);
        const products = (arithmetic: number) =>
          kernels.withBuffers((buffers) => {
            const { handle } = weights, inputs = buffers.from(x), out = buffers.zeros(4 * count * outputs);
            const shape = [handle, type.id, outputs, width] as const, to = [-1, out, outputs, 0, 0] as const;
            kernels.check(kernels.call.dense_multiply(...shape, arithmetic, inputs, count, ...to), "multiply");
            return buffers.read(out, new Float32Array(count * outputs));
          });
        assert.deepEqual(products(2), products(0), `${outputs} × ${width}, ${count} rows`);
        weights.free();
      }
    });
  }
}

Deno.test("an arithmetic that doesn't exist is refused", async () => {
  const kernels = await Kernels.start(), weights = new Stored(kernels, 144);
  kernels.withBuffers((buffers) => {
    const x = buffers.zeros(4 * 256), out = buffers.zeros(4);
    for (const arithmetic of [-1, 3]) {
      assert.ok(kernels.call.dense_multiply(weights.handle, 12, 1, 256, arithmetic, x, 1, -1, out, 1, 0, 0) < 0);
    }
  });
  weights.free();
});
