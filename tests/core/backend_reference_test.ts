import assert from "node:assert/strict";
import fc from "fast-check";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { pickBackend } from "../../model/device.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { PalisadeError } from "../../core/errors.ts";
import { randomSource } from "../../core/measure/random.ts";
import { naiveSelect } from "../_helper/naive_select.ts";
import { holdsAsync } from "../_helper/property.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 3 };
const ROW = SHAPE.kvHeads * SHAPE.headDim;
const QUERY = SHAPE.heads * SHAPE.headDim;
const HEAD_ROW_BYTES = SHAPE.headDim * 2 * 4;

function floats(next: () => number, count: number): Float32Array {
  return Float32Array.from({ length: count }, () => next() * 4 - 2);
}

/** Rows with `count` random entries per head. */
function filled(backend: Backend<Float32Array>, count: number, seed = 1, reach?: number): LayerRows<Float32Array> {
  const next = randomSource(seed);
  const rows = backend.createRows({ ...SHAPE, reach }, 0);
  rows.append(floats(next, count * ROW), floats(next, count * ROW), count);
  return rows;
}

/** Attention of one query over given rows, in the plainest form. */
function naiveAttention(query: Float32Array, keys: Float32Array, values: Float32Array, visible: number) {
  const d = query.length;
  const logits = Array.from({ length: visible }, (_, i) => {
    let dot = 0;
    for (let j = 0; j < d; j++) dot += query[j] * keys[i * d + j];
    return dot / Math.sqrt(d);
  });
  const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
  const probabilities = logits.map((logit) => Math.exp(logit) / sum);
  const output = Array.from({ length: d }, (_, j) => probabilities.reduce((o, p, i) => o + p * values[i * d + j], 0));
  return { output, probabilities, logSumExp: Math.log(sum) };
}

function close(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  assert.equal(actual.length, expected.length, what);
  for (let i = 0; i < actual.length; i++) {
    assert.ok(Math.abs(actual[i] - expected[i]) < 2e-6, `${what}[${i}]: ${actual[i]}, want ${expected[i]}`);
  }
}

const query = (queries: Float32Array, t: number, head: number) =>
  queries.subarray((t * SHAPE.heads + head) * SHAPE.headDim, (t * SHAPE.heads + head + 1) * SHAPE.headDim);

Deno.test("prefillAttention() is causal attention of the last queries, with all that can be asked", async () => {
  using backend = createReferenceBackend();
  const rows = filled(backend, 7);
  const count = 3;
  const queries = floats(randomSource(2), count * QUERY);
  const all = await rows.prefillAttention(queries, count, { columnSum: true, columnMax: true, logSumExp: true });
  for (let head = 0; head < SHAPE.heads; head++) {
    const { keys, values } = await rows.copyRows(Math.floor(head / 2));
    const sums = new Float64Array(7), maxima = new Float64Array(7);
    for (let t = 0; t < count; t++) {
      const want = naiveAttention(query(queries, t, head), keys, values, 7 - count + t + 1);
      close(query(all.output, t, head), want.output, "output");
      close([all.logSumExp![t * SHAPE.heads + head]], [want.logSumExp], "logSumExp");
      want.probabilities.forEach((p, i) => [sums[i], maxima[i]] = [sums[i] + p, Math.max(maxima[i], p)]);
    }
    close(all.columnSum!.subarray(head * 7, (head + 1) * 7), sums, "columnSum");
    close(all.columnMax!.subarray(head * 7, (head + 1) * 7), maxima, "columnMax");
  }
  const plain = await rows.prefillAttention(queries, count);
  assert.deepEqual(plain.output, all.output);
  assert.deepEqual([plain.columnSum, plain.columnMax, plain.logSumExp], [undefined, undefined, undefined]);
});

Deno.test("a query of rows with a reach sees the last so many up to its own", async () => {
  using backend = createReferenceBackend();
  const length = 9, count = 4, queries = floats(randomSource(2), count * QUERY);
  for (const reach of [1, 3, 6, 20]) {
    const rows = filled(backend, length, 1, reach);
    const { output } = await rows.decodeAttention(queries, count);
    const prefilled = await rows.prefillAttention(queries, count, {
      columnSum: true,
      columnMax: true,
      logSumExp: true,
    });
    assert.deepEqual(prefilled.output, output);
    for (let t = 0; t < count; t++) {
      // Rows of their own that hold what the query reaches and nothing else.
      const end = length - count + t + 1, alone = filled(backend, length);
      const seen = Int32Array.from({ length }, (_, i) => i).subarray(Math.max(0, end - reach), end);
      alone.compact([seen, seen]);
      const one = queries.subarray(t * QUERY, (t + 1) * QUERY), wants = { logSumExp: true } as const;
      const want = await alone.prefillAttention(one, 1, wants);
      assert.deepEqual(output.subarray(t * QUERY, (t + 1) * QUERY), want.output);
      assert.deepEqual(prefilled.logSumExp!.subarray(t * SHAPE.heads, (t + 1) * SHAPE.heads), want.logSumExp);
      const { probabilities } = await alone.decodeAttention(one, 1, { probabilities: true });
      if (t < count - 1) continue;
      const all = (await rows.decodeAttention(queries, count, { probabilities: true })).probabilities!;
      probabilities!.forEach((row, head) => {
        const padded = new Float32Array(length);
        padded.set(row, seen[0]);
        assert.deepEqual(all[head], padded);
      });
    }
    assert.equal(prefilled.columnSum!.filter((sum) => sum === 0).length, SHAPE.heads * Math.max(0, 6 - reach));
  }
});

Deno.test("prefillAttention() in chunks equals prefillAttention() at once", async () => {
  using backend = createReferenceBackend();
  const next = randomSource(3);
  const [keys, values, queries] = [floats(next, 9 * ROW), floats(next, 9 * ROW), floats(next, 9 * QUERY)];
  const whole = backend.createRows(SHAPE, 9);
  whole.append(keys, values, 9);
  const { output } = await whole.prefillAttention(queries, 9);
  const chunked = backend.createRows(SHAPE, 0);
  for (const [first, count] of [[0, 4], [4, 4], [8, 1]]) {
    const part = (all: Float32Array, row: number) => all.subarray(first * row, (first + count) * row);
    chunked.append(part(keys, ROW), part(values, ROW), count);
    assert.deepEqual((await chunked.prefillAttention(part(queries, QUERY), count)).output, part(output, QUERY).slice());
  }
});

Deno.test("decodeAttention() sees exactly the rows that stay, ragged, and causally for several queries", async () => {
  using backend = createReferenceBackend();
  const rows = filled(backend, 9);
  const before = [await rows.copyRows(0), await rows.copyRows(1)];
  const kept = [Int32Array.of(0, 3, 4, 8), Int32Array.of(1, 2, 5, 6, 7, 8)];
  rows.compact(kept);
  assert.deepEqual([rows.length(0), rows.length(1)], [4, 6]);
  const gather = (all: Float32Array, indices: Int32Array) =>
    Float32Array.from([...indices].flatMap((i) => [...all.subarray(i * SHAPE.headDim, (i + 1) * SHAPE.headDim)]));
  const count = 2;
  const queries = floats(randomSource(4), count * QUERY);
  const { output, probabilities } = await rows.decodeAttention(queries, count, { probabilities: true });
  for (let head = 0; head < SHAPE.heads; head++) {
    const kv = Math.floor(head / 2);
    const [keys, values] = [gather(before[kv].keys, kept[kv]), gather(before[kv].values, kept[kv])];
    for (let t = 0; t < count; t++) {
      const want = naiveAttention(query(queries, t, head), keys, values, kept[kv].length - count + t + 1);
      close(query(output, t, head), want.output, "output");
      if (t === count - 1) close(probabilities![head], want.probabilities, "probabilities");
    }
  }
  assert.equal((await rows.decodeAttention(queries, count)).probabilities, undefined);
});

Deno.test("decodeAttention() equals prefillAttention() bit for bit where heads are level", async () => {
  using backend = createReferenceBackend();
  const rows = filled(backend, 6);
  const queries = floats(randomSource(5), 2 * QUERY);
  const [a, b] = [await rows.prefillAttention(queries, 2), await rows.decodeAttention(queries, 2)];
  assert.deepEqual(a.output, b.output);
});

Deno.test("the sums of keys survive large logits", async () => {
  using backend = createReferenceBackend();
  const rows = backend.createRows({ heads: 1, kvHeads: 1, headDim: 1 }, 0);
  rows.append(Float32Array.of(1e4, -1e4), Float32Array.of(3, 5), 2);
  const { output } = await rows.decodeAttention(Float32Array.of(1e4), 1);
  assert.deepEqual([...output], [3]);
});

Deno.test("observe() and valueNorms() give rows and refuse ragged heads", async () => {
  using backend = createReferenceBackend();
  const rows = filled(backend, 6);
  const queries = floats(randomSource(6), 2 * QUERY);
  const seen = await rows.observe(queries, 2, { window: ["mean"], rows: true });
  assert.equal(seen.mean!.length, 2 * 4);
  assert.deepEqual(seen.keys!.subarray(18), (await rows.copyRows(1)).keys);
  assert.deepEqual(seen.values!.subarray(0, 18), (await rows.copyRows(0)).values);
  assert.deepEqual(await rows.observe(queries, 2, {}), {});
  assert.equal((await rows.valueNorms(floats(randomSource(7), 5 * QUERY), 5)).length, 12);
  await assert.rejects(rows.valueNorms(new Float32Array(7), 5), RangeError);
  rows.compact([Int32Array.of(0, 1, 2), Int32Array.of(0, 1)]);
  await assert.rejects(rows.observe(queries, 2, { window: ["mean"] }), /different lengths/);
  await assert.rejects(rows.prefillAttention(queries, 2), /different lengths/);
  await assert.rejects(rows.valueNorms(new Float32Array(5 * QUERY), 5), /different lengths/);
});

Deno.test("select() is the core's selector and rejects what does not fit", async () => {
  using backend = createReferenceBackend();
  const input = { segments: [{ scores: Float32Array.of(3, NaN, 5, 5) }, { scores: Float32Array.of(5, -0) }], count: 3 };
  assert.deepEqual(await backend.select(input), naiveSelect(input));
  await assert.rejects(backend.select({ ...input, count: 7 }), RangeError);
});

Deno.test("memory() counts capacity in steps of 64 rows and gives spare rows back", () => {
  using backend = createReferenceBackend();
  const rows = filled(backend, 200);
  assert.deepEqual([rows.liveBytes, rows.allocatedBytes], [400 * HEAD_ROW_BYTES, 512 * HEAD_ROW_BYTES]);
  rows.compact([Int32Array.from({ length: 10 }, (_, i) => i * 3), Int32Array.from({ length: 150 }, (_, i) => i)]);
  assert.deepEqual([rows.liveBytes, rows.allocatedBytes], [160 * HEAD_ROW_BYTES, (64 + 192) * HEAD_ROW_BYTES]);
  rows.truncate([10, 65]);
  assert.deepEqual([rows.liveBytes, rows.allocatedBytes], [75 * HEAD_ROW_BYTES, (64 + 128) * HEAD_ROW_BYTES]);
  assert.equal(backend.memory().allocatedBytes, rows.allocatedBytes);
  assert.ok(backend.memory().highWaterBytes >= 512 * HEAD_ROW_BYTES);
  const high = backend.memory().highWaterBytes;
  rows.free();
  rows.free();
  assert.deepEqual(backend.memory(), { allocatedBytes: 0, highWaterBytes: high, wasmBytes: 0 });
  assert.throws(() => rows.length(0), /freed/);
  assert.throws(() => rows.append(new Float32Array(ROW), new Float32Array(ROW), 1), /freed/);
});

Deno.test("createRows() reserves what it is told", () => {
  using backend = createReferenceBackend();
  const rows = backend.createRows(SHAPE, 65);
  assert.deepEqual([rows.liveBytes, rows.allocatedBytes], [0, 2 * 128 * HEAD_ROW_BYTES]);
});

Deno.test("rows behave like plain arrays through any appends, compactions and truncations", async () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant("append" as const), count: fc.integer({ min: 1, max: 90 }) }),
    fc.record({ kind: fc.constant("compact" as const), every: fc.integer({ min: 1, max: 4 }) }),
    fc.record({ kind: fc.constant("truncate" as const), drop: fc.integer({ min: 0, max: 70 }) }),
  );
  await holdsAsync(
    fc.asyncProperty(fc.array(step, { maxLength: 12 }), async (steps) => {
      using backend = createReferenceBackend();
      const rows = backend.createRows(SHAPE, 0);
      const model: number[][] = [[], []]; // the first float of each row
      let label = 0;
      for (const each of steps) {
        if (each.kind === "append") {
          const keys = Float32Array.from({ length: each.count * ROW }, () => ++label);
          rows.append(keys, keys.map((x) => -x), each.count);
          for (let t = 0; t < each.count; t++) model.forEach((head, h) => head.push(keys[t * ROW + h * SHAPE.headDim]));
        } else if (each.kind === "compact") {
          const kept = model.map((head, h) => head.flatMap((_, i) => (i + h) % each.every === 0 ? [i] : []));
          rows.compact(kept.map((indices) => Int32Array.from(indices)));
          model.forEach((head, h) => model[h] = kept[h].map((i) => head[i]));
        } else {
          model.forEach((head) => head.length = Math.max(0, head.length - each.drop));
          rows.truncate(model.map(({ length }) => length));
        }
        const rowCount = model[0].length + model[1].length;
        assert.equal(rows.liveBytes, rowCount * HEAD_ROW_BYTES);
        assert.equal(rows.allocatedBytes, backend.memory().allocatedBytes);
        if (each.kind !== "append") assert.ok(rows.allocatedBytes <= (rowCount + 2 * 64) * HEAD_ROW_BYTES);
      }
      for (const [h, head] of model.entries()) {
        const { keys, values } = await rows.copyRows(h);
        assert.deepEqual([...keys].filter((_, i) => i % SHAPE.headDim === 0), head);
        assert.deepEqual(values, keys.map((x) => -x));
      }
    }),
    100,
  );
});

Deno.test("pickBackend() gives the plain backend by name", async () => {
  using backend = await pickBackend("ts");
  assert.equal(backend.name, "ts");
});

Deno.test("pickBackend() gives the kernels by name, and auto takes them", async () => {
  using named = await pickBackend("wasm");
  using auto = await pickBackend("auto");
  assert.deepEqual([named.name, auto.name], ["wasm", "wasm"]);
});

Deno.test("pickBackend() refuses a named backend that can't start; auto goes on and says why", async () => {
  const { instantiate } = WebAssembly;
  WebAssembly.instantiate = (): Promise<never> => Promise.reject(new Error("no vectors here"));
  try {
    await assert.rejects(pickBackend("wasm"), (error) => {
      assert.ok(error instanceof PalisadeError, String(error));
      assert.deepEqual([error.kind, error.code, error.where], ["resources", "backend.missing", "backend"]);
      assert.match(error.message, /no vectors here/);
      return true;
    });
    using auto = await pickBackend("auto");
    assert.equal(auto.name, "ts");
    assert.match(auto.detail, /wasm can't start: .*no vectors here/);
  } finally {
    WebAssembly.instantiate = instantiate;
  }
});
