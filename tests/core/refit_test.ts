/** Refits and moved queries against PyTorch's numbers, and what a refit promises: never worse where it is judged. */
import assert from "node:assert/strict";
import { boundedLeastSquares, plainProducts, solve, transposed, weigh } from "../../core/refit/linear.ts";
import { type HeadReferences, isHeldOut, type KeptRows, refitHead } from "../../core/refit/refit.ts";
import { isMoved, largestOfGroup, movedMaxima } from "../../core/measure/moved.ts";
import { randomSource } from "../../core/measure/random.ts";
import { algebraOf } from "../../model/gate/fit/algebra.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { assertClose } from "../_helper/close.ts";
import { readSafetensors } from "../_helper/golden.ts";

const golden = await readSafetensors("refit.safetensors");
const SHAPE = { heads: 4, kvHeads: 2, headDim: 8 }, LENGTH = 48;
const ROTATION = {
  pairs: "half",
  rotated: 8,
  frequencies: Float64Array.from({ length: 4 }, (_, j) => 10000 ** (-2 * j / 8)),
} as const;

function data(name: string): Float32Array {
  return golden.get(name)!.data;
}

function floats(count: number, seed: number, scale = 2): Float32Array {
  const random = randomSource(seed);
  return Float32Array.from({ length: count }, () => (random() - 0.5) * scale);
}

/** Every third entry of the first KV head, from the second on. */
function goldenRows(): KeptRows {
  const pick = (all: Float32Array) =>
    Float32Array.from({ length: 14 * 8 }, (_, i) => all[(1 + 3 * Math.floor(i / 8)) * 8 + i % 8]);
  return { keys: pick(data("keys")), values: pick(data("values")) };
}

const REFERENCES: HeadReferences = {
  queries: data("references"),
  outputs: data("outputs"),
  logSumExp: data("log_sum_exp"),
};

Deno.test("movedMaxima() gives PyTorch's maxima of the queries from behind the end", () => {
  const keys = [0, 1].map((head) => data("keys").subarray(head * LENGTH * 8, (head + 1) * LENGTH * 8));
  const input = { shape: SHAPE, queries: data("queries"), keys, length: LENGTH, rotation: ROTATION };
  for (const every of [1, 3]) assertClose(movedMaxima(input, every), data(`moved${every}`), 1e-6, `every ${every}`);
});

Deno.test("isMoved() takes the last query, and one in so many before it", () => {
  const taken = (length: number, every: number) => [...Array(length).keys()].filter((t) => isMoved(t, length, every));
  assert.deepEqual(taken(7, 3), [0, 3, 6]);
  assert.deepEqual(taken(8, 3), [1, 4, 7]);
  assert.deepEqual(taken(3, 9), [2]);
});

Deno.test("largestOfGroup() lets a NaN through", () => {
  const largest = largestOfGroup(Float32Array.of(1, NaN, 3, 2, 0, 5), { heads: 2, kvHeads: 1, headDim: 1 });
  assert.deepEqual([...largest], [2, NaN, 5]);
});

for (const refit of ["values", "both"] as const) {
  Deno.test(`refitHead() of ${refit}, plainly, gives PyTorch's biases and values`, async () => {
    using backend = await createWasmBackend();
    for (const algebra of [undefined, algebraOf(backend)]) {
      const settings = { refit, ridge: 0.05, defensive: false, algebra };
      const got = refitHead(goldenRows(), REFERENCES, 8, settings)!;
      // Sixty gradient steps stand against as many as it takes.
      assertClose(got.bias.map(Math.exp), data(`${refit}_bias`).map(Math.exp), 2e-3, "weights");
      assertClose(got.values, data(`${refit}_values`), 2e-3, "values");
      assert.ok(got.after < got.before);
    }
  });
}

/** How far outputs over the kept rows alone are from what the references got, the mean of the worst part. */
function worst({ keys, values }: KeptRows, bias: Float32Array, { queries, outputs }: HeadReferences): number {
  const errors: number[] = [];
  for (let s = 0; s < outputs.length / 8; s++) {
    const weights = Array.from({ length: keys.length / 8 }, (_, j) => {
      const dot = keys.subarray(8 * j, 8 * j + 8).reduce((sum, k, d) => sum + k * queries[8 * s + d], 0);
      return Math.exp(dot / Math.sqrt(8) + bias[j]);
    });
    const sum = weights.reduce((all, w) => all + w, 0);
    const off = Array.from(
      { length: 8 },
      (_, d) => weights.reduce((all, w, j) => all + w / sum * values[8 * j + d], 0) - outputs[8 * s + d],
    );
    errors.push(Math.hypot(...off));
  }
  return errors.sort((a, b) => b - a).slice(0, 3).reduce((all, error) => all + error, 0);
}

Deno.test("refitHead(), defensively, serves the worst references better, and says by how much", () => {
  const rows = goldenRows(), how = { refit: "both", ridge: 0.3 } as const;
  const got = refitHead(rows, REFERENCES, 8, how)!;
  assert.ok(got.after < got.before);
  const before = worst(rows, new Float32Array(14), REFERENCES);
  assert.ok(worst({ keys: rows.keys, values: got.values }, got.bias, REFERENCES) < before);
  const harder = (mostLeft: number) => refitHead(rows, REFERENCES, 8, { ...how, mostLeft });
  assert.equal(harder(0.01), undefined, "too little is won");
  const plain = refitHead(rows, REFERENCES, 8, { ...how, defensive: false })!;
  assertClose(got.values, plain.values, 1e-6, "what is taken is fitted on all references");
  assertClose(got.bias, plain.bias, 1e-6, "bias");
  const values = refitHead(rows, REFERENCES, 8, { ...how, refit: "values" })!;
  assert.ok(values.bias.every((bias) => bias === 0));
});

Deno.test("refitHead() leaves a head alone where nothing can be won", () => {
  const rows = goldenRows(), few = 6;
  const cut: HeadReferences = {
    queries: REFERENCES.queries.slice(0, few * 8),
    outputs: REFERENCES.outputs.slice(0, few * 8),
    logSumExp: REFERENCES.logSumExp.slice(0, few),
  };
  assert.equal(refitHead(rows, cut, 8, { refit: "both" }), undefined, "too few references");
  const none = { keys: new Float32Array(0), values: new Float32Array(0) };
  assert.equal(refitHead(none, REFERENCES, 8, { refit: "both" }), undefined, "no rows");
  // Outputs that no held-out reference shares with the others: what is learned is noise.
  const noise = { ...REFERENCES, outputs: floats(REFERENCES.outputs.length, 3, 0.01) };
  const still = { keys: rows.keys, values: new Float32Array(14 * 8) };
  assert.equal(refitHead(still, noise, 8, { refit: "both" }), undefined, "noise");
  const broken = { ...REFERENCES, logSumExp: REFERENCES.logSumExp.map(() => NaN) };
  assert.equal(refitHead(rows, broken, 8, { refit: "both" }), undefined, "numbers that are none");
  assert.equal(refitHead(rows, broken, 8, { refit: "both", defensive: false }), undefined);
});

Deno.test("isHeldOut() takes a quarter of the references, of every query head of a group", () => {
  for (const group of [1, 2, 3, 4, 7]) {
    const held = Array.from({ length: 64 * group }, (_, s) => s).filter(isHeldOut);
    assert.equal(held.length, 16 * group);
    assert.equal(new Set(held.map((s) => s % group)).size, group, `group ${group}`);
  }
});

Deno.test("refitHead() refuses shapes that don't fit", () => {
  const rows = goldenRows(), settings = { refit: "both" } as const;
  assert.throws(() => refitHead({ ...rows, values: rows.values.slice(1) }, REFERENCES, 8, settings), RangeError);
  assert.throws(
    () => refitHead(rows, { ...REFERENCES, outputs: REFERENCES.queries.slice(1) }, 8, settings),
    RangeError,
  );
});

Deno.test("plainProducts(), transposed() and weigh() are what they say; the kernels' products agree", async () => {
  using backend = await createWasmBackend();
  for (const [n, m, depth] of [[1, 1, 1], [3, 5, 7], [17, 9, 64], [33, 200, 30]]) {
    const a = floats(n * depth, 1), b = floats(m * depth, 2);
    const got = plainProducts(new Float64Array(a), new Float64Array(b), depth);
    for (const [i, j] of [[0, 0], [n - 1, m - 1]]) {
      const want = a.subarray(i * depth, (i + 1) * depth).reduce((sum, x, k) => sum + x * b[j * depth + k], 0);
      assert.ok(Math.abs(got[i * m + j] - want) < 1e-5);
    }
    assertClose(backend.products!(a, b, depth), got, 1e-5, `${n} × ${m} × ${depth}`);
  }
  assert.throws(() => backend.products!(floats(7, 1), floats(6, 1), 3), RangeError);
  assert.equal(backend.products!(floats(0, 1), floats(6, 1), 3).length, 0);
  const matrix = Float64Array.of(1, 2, 3, 4, 5, 6);
  assert.deepEqual(transposed(matrix, 3), Float64Array.of(1, 4, 2, 5, 3, 6));
  assert.deepEqual(weigh(matrix, Float64Array.of(1, 10, 100)), Float64Array.of(1, 20, 300, 4, 50, 600));
});

for (const n of [1, 2, 3, 4, 5, 7, 8, 9, 31, 64]) {
  Deno.test(`the kernels solve ${n} equations, and descend, as the plain algebra does`, async () => {
    using backend = await createWasmBackend();
    const x = new Float64Array(floats(n * (n + 5), n)), a = plainProducts(x, x, n + 5);
    for (const width of [1, 3, 8, 17]) {
      const b = new Float64Array(floats(n * width, 3)),
        wanted = solve(a, n, 0.5, b)!,
        got = backend.solve!(a, n, 0.5, b)!;
      wanted.forEach((value, i) =>
        assert.ok(Math.abs(value - got[i]) < 1e-9 * (1 + Math.abs(value)), `${width}, ${i}`)
      );
    }
    const b = new Float64Array(floats(n, 4)), start = b.map(Math.abs), how = { least: 1e-3, steps: 60 };
    const wanted = boundedLeastSquares(a, b, start, how), got = backend.boundedLeastSquares!(a, b, start, how);
    wanted.forEach((value, i) => assert.ok(Math.abs(value - got[i]) < 1e-9 * (1 + Math.abs(value)), `${i}`));
  });
}

Deno.test("a backend's algebra multiplies a matrix with itself as with another", async () => {
  using backend = await createWasmBackend();
  for (const n of [1, 127, 128, 129, 300]) {
    const a = new Float64Array(floats(n * 5, n)), { products } = algebraOf(backend);
    assertClose(new Float32Array(products(a, a, 5)), plainProducts(a, a, 5), 1e-5, `${n} rows`);
  }
});

Deno.test("the kernels' algebra refuses what the plain one does", async () => {
  using backend = await createWasmBackend();
  for (const by of [solve, backend.solve!]) {
    assert.equal(by(Float64Array.of(1, 2, 2, 1), 2, 0, new Float64Array(2)), undefined);
    assert.equal(by(Float64Array.of(NaN), 1, 1, new Float64Array(1)), undefined);
    assert.deepEqual(by(new Float64Array(0), 0, 1, new Float64Array(0)), new Float64Array(0));
  }
  const one = new Float64Array(1), how = { least: 0, steps: 1 };
  assert.throws(() => backend.solve!(one, 2, 0, one), RangeError);
  assert.throws(() => backend.solve!(new Float64Array(4), 2, 0, one), RangeError);
  assert.throws(() => backend.boundedLeastSquares!(one, new Float64Array(2), one, how), RangeError);
  assert.throws(() => backend.boundedLeastSquares!(one, one, new Float64Array(2), how), RangeError);
  assert.deepEqual(backend.boundedLeastSquares!(one, one, Float64Array.of(-2), how), Float64Array.of(0));
});

Deno.test("solve() solves, and gives nothing for what has no solution", () => {
  const a = Float64Array.of(4, 1, 1, 3), b = Float64Array.of(1, 0, 2, 5);
  assertClose(solve(a, 2, 0, b)!, [1 / 11, -5 / 11, 7 / 11, 20 / 11], 1e-12, "x");
  assert.equal(solve(Float64Array.of(1, 2, 2, 1), 2, 0, b), undefined, "not positive definite");
  assert.equal(solve(Float64Array.of(NaN, 0, 0, 1), 2, 0, b), undefined);
  assert.equal(solve(a, 2, 0, b.with(0, Infinity)), undefined);
});

Deno.test("boundedLeastSquares() stops at the bound", () => {
  const a = Float64Array.of(2, 0, 0, 1), b = Float64Array.of(4, -3);
  const x = boundedLeastSquares(a, b, Float64Array.of(0, 0), { least: 0.5, steps: 200 });
  assertClose(x, [2, 0.5], 1e-6, "x");
  assert.deepEqual(
    boundedLeastSquares(new Float64Array(1), Float64Array.of(1), Float64Array.of(-1), { least: 2, steps: 9 }),
    Float64Array.of(2),
  );
});
