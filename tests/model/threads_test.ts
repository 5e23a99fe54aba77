/** Threads: the same bits for any number of them, what goes wrong is typed, and nothing is left behind. */
import assert from "node:assert/strict";
import type { AttentionOutputs, Backend, LayerRows } from "../../core/backend/interface.ts";
import { CACHE_TYPES, type CacheType } from "../../core/cache/entry_type.ts";
import type { Tensor } from "../../core/backend/tensor.ts";
import { PalisadeError } from "../../core/errors.ts";
import { randomSource } from "../../core/measure/random.ts";
import type { AttentionShape } from "../../core/shape.ts";
import { ARCHITECTURES, decoderOf, inputsOf } from "../../model/architecture.ts";
import { createWasmEngine, type WasmDenseOptions } from "../../model/dense/wasm/engine.ts";
import { autoThreads, startPool } from "../../model/threads.ts";
import { currentRuntime, type Runtime, type Thread } from "../../runtime/mod.ts";
import { shareQueries } from "../../wasm/threads/guests.ts";
import { shareHeads } from "../../wasm/threads/heads.ts";
import { ThreadPool } from "../../wasm/threads/pool.ts";
import { ROWS } from "../../wasm/threads/rows_service.ts";
import { shareRows, workOf, worthSharing } from "../../wasm/dense/part.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { createThreadedBackend } from "../../wasm/threads/backend.ts";
import { startThreaded } from "../_helper/backends.ts";
import { openTiny, TINY_MODELS } from "../_helper/tiny_models.ts";

const runtime = await currentRuntime();
const { startThread } = runtime;
const THREADS = [2, 3, 4];

function noise(count: number, seed: number): Float32Array {
  const next = randomSource(seed);
  return Float32Array.from({ length: count }, () => (next() + next() + next()) * 2 - 3);
}

function code(wanted: string): (error: unknown) => boolean {
  return (error) => error instanceof PalisadeError && error.code === wanted;
}

/** Everything a backend gives for a small layer, appended, compacted, forked, turned and extended. */
async function everything(backend: Backend, shape: AttentionShape, type: CacheType) {
  const { heads, kvHeads, headDim } = shape, each = kvHeads * headDim, length = 330;
  const rows = backend.createRows(shape, length, type);
  rows.append(noise(length * each, 1), noise(length * each, 2), length);
  const wanted = { columnSum: true, columnMax: true, logSumExp: true };
  const queries = noise(length * heads * headDim, 3);
  const given: unknown[] = [await rows.prefillAttention(queries, length, wanted)];
  const window = ["mean", "variance", "entropy", "pooledMean", "pooledMax", "mass", "logSumExp"] as const;
  given.push(await rows.observe(queries.subarray(0, 9 * heads * headDim), 9, { window, rows: true }));
  given.push(await rows.valueNorms(noise(70 * heads * headDim, 4), 70));
  const kept = Array.from({ length: kvHeads }, (_, h) => Int32Array.from({ length: 40 + 13 * h }, (_, i) => 3 * i + h));
  rows.compact(kept);
  const twin = await rows.clone();
  await rows.rotateKeys(kept.map((list) => list.map((row) => -row)), {
    pairs: "half",
    rotated: headDim,
    frequencies: Float64Array.from({ length: headDim / 2 }, (_, i) => 0.7 ** i),
  });
  for (const each of [rows, twin]) {
    each.append(noise(2 * kvHeads * headDim, 5), noise(2 * kvHeads * headDim, 6), 2);
    given.push(await each.decodeAttention(queries.subarray(0, 2 * heads * headDim), 2, { probabilities: true }));
    each.truncate(kept.map((list) => list.length));
    for (let h = 0; h < kvHeads; h++) given.push(await each.copyRows(h), await each.copyRows(h, Int32Array.of(5, 1)));
    given.push(each.liveBytes, each.allocatedBytes);
    each.free();
  }
  given.push(await backend.select({ segments: [{ scores: noise(500, 7) }], count: 100 }));
  given.push(backend.memory().allocatedBytes);
  return given;
}

/** Rows never come to one thread; or at once and for good. */
const STAYING = { perWait: 0, perMovedFloat: Infinity }, HOMING = { perWait: 1e12, perMovedFloat: 0 };

for (const shape of [{ heads: 9, kvHeads: 3, headDim: 64 }, { heads: 10, kvHeads: 5, headDim: 20 }]) {
  Deno.test(`any number of threads gives the bits of one: ${shape.kvHeads} KV heads of ${shape.headDim}`, async () => {
    using one = await createWasmBackend();
    const every = async (backend: Backend) => {
      const given = [];
      for (const type of CACHE_TYPES) given.push(await everything(backend, shape, type));
      return given;
    };
    const want = await every(one);
    for (const threads of THREADS) {
      for (const cost of [STAYING, HOMING]) {
        using backend = await startThreaded(threads, cost);
        assert.match(backend.detail, new RegExp(`${threads} threads`));
        assert.deepEqual(await every(backend), want, `${threads} threads, ${JSON.stringify(cost)}`);
      }
    }
  });
}

/** What a layer gives while it is read in chunks, as a window layer or a global one, until it is compacted. */
async function reading(backend: Backend, shape: AttentionShape, type: CacheType) {
  const { heads, kvHeads, headDim } = shape, each = kvHeads * headDim, chunks = [256, 256, 70, 5, 300];
  const rows = backend.createRows(shape, 587, type), given: unknown[] = [];
  for (const [i, count] of chunks.entries()) {
    // The last chunk is beyond what was reserved.
    rows.append(noise(count * each, 2 * i), noise(count * each, 2 * i + 1), count);
    const queries = noise(count * heads * headDim, 20 + i);
    const rowWeights = noise(count, 30 + i).map((x) => Math.abs(x) + 0.1);
    // Given back at once, so that the next call gets the same arrays again.
    const take = ({ output, ...extras }: AttentionOutputs<Tensor>) => {
      given.push({ ...extras, output: (output as Float32Array).slice() });
      backend.tensors.free(output);
    };
    take(await rows.prefillAttention(queries, count, { logSumExp: true }));
    take(await rows.prefillAttention(queries, count, { columnMax: true, rowWeights }));
    take(await rows.unmaskedAttention!(queries, count, { columnMax: true, logSumExp: true }));
    if (i === 1) {
      take(await rows.prefillAttention(queries, count, { columnSum: true, logSumExp: true }));
      const kept = Int32Array.from({ length: 400 }, (_, row) => row + 112);
      rows.compact(Array(kvHeads).fill(kept));
    }
  }
  given.push(await rows.observe(noise(9 * heads * headDim, 40), 9, { window: ["mean"] }));
  rows.compact(Array.from({ length: kvHeads }, (_, h) => Int32Array.from({ length: 40 + h }, (_, i) => 3 * i + h)));
  given.push(await rows.decodeAttention(noise(heads * headDim, 41), 1), backend.memory().allocatedBytes);
  rows.free();
  return given;
}

for (
  const shape of [
    { heads: 9, kvHeads: 3, headDim: 64 },
    { heads: 4, kvHeads: 1, headDim: 256, reach: 300 },
    { heads: 10, kvHeads: 5, headDim: 20, nullLogits: noise(10, 50) },
    { heads: 12, kvHeads: 6, headDim: 32 },
  ]
) {
  Deno.test(`a layer that is read gives the bits of one thread: ${shape.kvHeads} KV heads of ${shape.headDim}`, async () => {
    using one = await createWasmBackend();
    for (const type of ["f32", "int8"] as const) {
      const want = await reading(one, shape, type);
      for (const threads of THREADS) {
        using backend = await startThreaded(threads);
        assert.deepEqual(await reading(backend, shape, type), want, `${threads} threads, ${type}`);
        assert.equal(backend.memory().allocatedBytes, 0);
      }
    }
  });
}

Deno.test("queries of a layer that is read go to all threads, and one layer at a time is there twice", async () => {
  const shape = { heads: 4, kvHeads: 1, headDim: 64 }, count = 256;
  using pool = await ThreadPool.start({ threads: 2, startThread });
  const { pool: seen, asked } = watched(pool);
  const backend = await createThreadedBackend(seen);
  const layers = [0, 1].map(() => backend.createRows(shape, 2 * count));
  const held = () => backend.memory().allocatedBytes;
  const once = held() / 2;
  for (const rows of layers) {
    rows.append(noise(count * 64, 1), noise(count * 64, 2), count);
    asked();
    await rows.prefillAttention(noise(count * 256, 3), count);
    assert.deepEqual(asked(), [1]);
    assert.equal(held(), 3 * once);
  }
  await layers[1].decodeAttention(noise(256, 4), 1);
  assert.equal(held(), 2 * once);
  for (const rows of layers) rows.free();
  assert.equal(held(), 0);
});

Deno.test("shareQueries() gives every query to one thread, each about the same number of rows to see", () => {
  for (
    const [count, length, threads, reach] of [[256, 256, 2], [256, 4096, 2], [256, 512, 3, 100], [1, 9, 4], [40, 40, 2]]
  ) {
    const shares = shareQueries(count, length, threads, reach);
    assert.deepEqual(
      shares.flatMap(({ from, to }) => [from, to]).filter((_, i) => i > 0 && i < 2 * threads - 1),
      shares.slice(1).flatMap(({ from }) => [from, from]),
    );
    assert.deepEqual([shares[0].from, shares[threads - 1].to, shares.length], [0, count, threads]);
    const seen = shares.map(({ from, to }) => {
      let sum = 0;
      for (let token = from; token < to; token++) sum += Math.min(reach ?? Infinity, length - count + token + 1);
      return sum;
    });
    const all = seen.reduce((a, b) => a + b);
    if (count >= 256) assert.ok(Math.max(...seen) < 1.15 * all / threads, `${seen}`);
  }
  assert.deepEqual(shareQueries(64, 9, 2, undefined, false), [{ from: 0, to: 32 }, { from: 32, to: 64 }]);
});

/** A pool, and the ranks it was asked since the last look. */
function watched(pool: ThreadPool): { pool: ThreadPool; asked: () => number[] } {
  const asked: number[] = [];
  const proxy = new Proxy(pool, {
    get(target, name) {
      const value = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      return (...all: unknown[]) => {
        if (name === "ask" || name === "askToTake") asked.push(all[0] as number);
        return value.apply(target, all);
      };
    },
  });
  return { pool: proxy, asked: () => asked.splice(0) };
}

Deno.test("rows move to one thread while attention has little to do, and out again, and keep their bits", async () => {
  const shape = { heads: 6, kvHeads: 3, headDim: 64 }, each = 192, few = 50, many = 400;
  using pool = await ThreadPool.start({ threads: 2, startThread });
  const { pool: seen, asked } = watched(pool);
  // A third of 2 · rows · 6 · 64 multiply-adds are another thread's: enough for it from 118 rows on.
  const cost = { perWait: 6e4, perMovedFloat: 0 };
  const backends = [await createWasmBackend(), await createThreadedBackend(seen, cost)];
  for (const type of CACHE_TYPES) {
    const [one, several] = backends.map((backend) => backend.createRows(shape, 0, type));
    const same = async (threads: number) => {
      const call = async (rows: LayerRows) => (await rows.decodeAttention(noise(384, 7), 1)).output;
      await call(several);
      asked();
      assert.deepEqual(await call(several), await call(one));
      assert.equal(asked().length, threads - 1);
      for (let h = 0; h < 3; h++) assert.deepEqual(await several.copyRows(h), await one.copyRows(h));
      assert.equal(several.allocatedBytes, one.allocatedBytes);
      asked();
    };
    const append = (count: number) =>
      [one, several].map((rows) => rows.append(noise(count * each, 1), noise(count * each, 2), count));
    append(few);
    await same(1);
    append(many);
    await same(2);
    const kept = [0, 1, 2].map((h) => Int32Array.from({ length: few + 9 * h }, (_, i) => 3 * i));
    for (const rows of [one, several]) rows.compact(kept);
    await same(1);
    const twins = await Promise.all([one, several].map((rows) => rows.clone()));
    append(1);
    await same(1);
    append(many);
    await same(2);
    const outputs = twins.map((rows) => rows.decodeAttention(noise(384, 8), 1));
    assert.deepEqual(await outputs[1], await outputs[0]);
    for (const rows of [one, several, ...twins]) rows.free();
  }
  assert.equal(backends[1].memory().allocatedBytes, 0);
});

Deno.test("rows for which one thread has no room stay shared out, and go on", async () => {
  const shape = { heads: 4, kvHeads: 4, headDim: 64 }, count = 6000, block = noise(count * 256, 1);
  using pool = await ThreadPool.start({ threads: 4, startThread, kernels: { maximumBytes: 8 << 20 } });
  using own = await createWasmBackend();
  const backend = await createThreadedBackend(pool, HOMING);
  const [want, got] = await Promise.all([own, backend].map(async (each) => {
    const rows = each.createRows(shape, 0);
    rows.append(block, block, count);
    const outputs = [];
    for (let i = 0; i < 2; i++) outputs.push((await rows.decodeAttention(noise(256, 2), 1)).output);
    rows.free();
    return outputs;
  }));
  assert.deepEqual(got, want);
});

/** Everything a dense engine gives for a small model. */
async function steps(
  model: typeof TINY_MODELS[number],
  options: WasmDenseOptions,
): Promise<unknown[]> {
  await using open = await openTiny(model);
  await using engine = await createWasmEngine(open.file, open.config, options);
  const { width, vocabulary, layers } = open.config;
  const given: unknown[] = [engine.embed(Array.from({ length: vocabulary }, (_, id) => id))];
  for (const count of [1, 2, 70]) {
    const hidden = noise(count * width, count);
    for (let layer = 0; layer < layers; layer++) {
      given.push(await engine.qkv(layer, hidden, count));
      const attention = noise(count * inputsOf(open.config, layer).attention, 5);
      given.push(await engine.finish(layer, hidden, attention, count, Array.from({ length: count }, (_, t) => t)));
    }
    given.push(await engine.logits(hidden, count));
  }
  return given;
}

Deno.test("the dense engine over any number of threads gives the bits of one", async () => {
  const precisions = ["float32", "quantised"] as const;
  for (const threads of THREADS) {
    using pool = await ThreadPool.start({ threads, startThread });
    for (const model of TINY_MODELS) {
      for (const precision of precisions) {
        const want = await steps(model, { precision });
        // Every step shared out; some; none.
        for (const workPerWait of [0, 2e4, Infinity]) {
          const what = `${model}, ${precision}, ${threads} threads, shared from ${workPerWait} multiply-adds on`;
          assert.deepEqual(await steps(model, { precision, pool, workPerWait }), want, what);
        }
      }
    }
  }
});

Deno.test("a step that is not worth sharing out asks no other thread, and its weights are held twice", async () => {
  await using open = await openTiny(TINY_MODELS[0]);
  using pool = await ThreadPool.start({ threads: 2, startThread });
  const { pool: seen, asked } = watched(pool);
  const hidden = noise(open.config.width, 1);
  await using alone = await createWasmEngine(open.file, open.config, { pool: seen, workPerWait: Infinity });
  await using shared = await createWasmEngine(open.file, open.config, { pool: seen, workPerWait: 0 });
  assert.ok(alone.weightBytes > shared.weightBytes);
  asked();
  const logits = await alone.logits(hidden, 1);
  assert.deepEqual(asked(), []);
  assert.deepEqual(await shared.logits(hidden, 1), logits);
  assert.deepEqual(asked(), [1]);
});

Deno.test("worthSharing() grows with the rows and the model, and wants more of a step with more waits", () => {
  const lists = (scale: number) => {
    const shape = { layers: 1, heads: 9, kvHeads: 3, headDim: 64, width: scale * 576, feedForward: 1536 };
    const model = { ...shape, vocabulary: 49152, tiedHead: true, settings: {}, has: () => false };
    const { layers: [{ project, finish }], head } = decoderOf(ARCHITECTURES.get("llama")!, model);
    return { work: (list: typeof head) => workOf(list, inputsOf(model)), project, finish, head };
  };
  const from = (list: "project" | "finish" | "head", scale: number) => {
    const { work, [list]: operations } = lists(scale);
    let count = 1;
    while (!worthSharing(work(operations), count)) count++;
    return count;
  };
  for (const list of ["project", "finish", "head"] as const) assert.equal(from(list, 1), 1, list);
  // With less width first the smaller step is better left to one thread, then the larger one.
  assert.deepEqual(([1 / 3, 1 / 6] as const).map((scale) => from("project", scale) > 1), [true, true]);
  assert.deepEqual(([1 / 3, 1 / 6] as const).map((scale) => from("finish", scale) > 1), [false, true]);
  assert.equal(from("project", 8), 1);
  const { work, project, finish, head } = lists(1);
  assert.deepEqual([project, finish, head].map((list) => work(list).waits), [2, 4, 2]);
});

Deno.test("shareHeads() and shareRows() give every head and row to one thread", () => {
  for (let threads = 1; threads < 6; threads++) {
    for (const count of [1, 2, 3, 5, 8, 17, 40, 63, 64, 65]) {
      const heads = shareHeads(count, threads).flatMap(({ first, kvHeads }) =>
        Array.from({ length: kvHeads }, (_, i) => first + i)
      );
      assert.deepEqual(heads, Array.from(Array(count).keys()));
      let next = 0;
      for (let rank = 0; rank < threads; rank++) {
        const { from, to } = shareRows(count, threads, rank);
        assert.ok(from === next && to >= from);
        next = to;
      }
      assert.equal(next, count);
    }
  }
});

Deno.test("a full memory in another thread is a typed error of the next answer, and other rows go on", async () => {
  const shape = { heads: 2, kvHeads: 2, headDim: 64 }, count = 12000;
  using own = await createWasmBackend();
  using pool = await ThreadPool.start({ threads: 2, startThread, kernels: { maximumBytes: 4 << 20 } });
  const backend = await createThreadedBackend({ ...poolOf(pool), kernels: {} } as ThreadPool);
  const rows = backend.createRows(shape, 0), block = noise(count * 128, 1);
  rows.append(block, block, count);
  await assert.rejects(() => rows.decodeAttention(noise(128, 2), 1), code("wasm.memory"));
  assert.throws(() => rows.append(block, block, count), code("wasm.memory"));
  await assert.rejects(rows.copyRows(1), code("wasm.memory"));
  rows.free();
  const [next, same] = [backend, own].map((each) => each.createRows(shape, 0));
  for (const each of [next, same]) each.append(block.subarray(0, 12800), block.subarray(0, 12800), 100);
  const [got, want] = await Promise.all([next, same].map((each) => each.decodeAttention(noise(128, 2), 1)));
  assert.deepEqual(got, want);
});

/** The pool's methods under its own `this`, so that a property can be replaced. */
function poolOf(pool: ThreadPool) {
  return {
    size: pool.size,
    newId: () => pool.newId(),
    tell: pool.tell.bind(pool),
    ask: pool.ask.bind(pool),
    askToTake: pool.askToTake.bind(pool),
    answer: pool.answer.bind(pool),
    answerNow: pool.answerNow.bind(pool),
  };
}

Deno.test("an answer is taken once, before the memory is written again; what goes wrong with that is the call's error", async () => {
  using pool = await ThreadPool.start({ threads: 2, startThread });
  const id = pool.newId(), whole = { heads: 2, kvHeads: 1, headDim: 4, reach: undefined }, events: string[] = [];
  pool.tell(1, ROWS.create, { id, kvHeads: 1, reserve: 4, type: "f32", whole, nullLogits: undefined });
  const made = (name: string) => ({ [Symbol.dispose]: () => void events.push(name) });
  const rows = noise(8, 1);
  pool.tell(1, ROWS.append, { id, keys: rows, values: rows, count: 2 }, { made: made("rows written") });
  const input = { id, queries: noise(8, 2), count: 1, probabilities: false };
  const first = pool.askToTake(1, ROWS.decode, input, ({ output }) => {
    events.push("taken");
    assert.deepEqual(output.length, 8);
    assert.ok(output.buffer instanceof SharedArrayBuffer);
  }, { made: made("queries written") });
  const second = pool.askToTake(1, ROWS.decode, input, () => {
    throw new RangeError("no room for it");
  });
  const third = pool.ask(1, ROWS.decode, input);
  const gone = pool.askToTake(1, ROWS.decode, { ...input, id: id + 1 }, () => void events.push("taken in vain"));
  assert.equal(await pool.answer(1, first), undefined);
  await assert.rejects(pool.answer(1, second), /no room for it/);
  assert.equal((await pool.answer(1, third)).output.length, 8);
  await assert.rejects(pool.answer(1, gone), /No rows/);
  assert.deepEqual(events, ["rows written", "queries written", "taken"]);
});

Deno.test("a thread that dies is a typed error of every later call, also of a call under way", async () => {
  const shape = { heads: 4, kvHeads: 4, headDim: 64 }, count = 4000;
  const threads: Thread[] = [];
  const watched: typeof startThread = (...all) => {
    threads.push(startThread(...all));
    return threads.at(-1)!;
  };
  await using open = await openTiny(TINY_MODELS[0]);
  using pool = await ThreadPool.start({ threads: 3, startThread: watched });
  const backend = await createThreadedBackend(pool);
  const engine = await createWasmEngine(open.file, open.config, { pool, workPerWait: 0 });
  const rows = backend.createRows(shape, 0), block = noise(count * 256, 1);
  rows.append(block, block, count);
  const call = rows.prefillAttention(block, count);
  call.catch(() => {});
  await threads[0].terminate();
  await call.catch((error) => assert.ok(code("threads.ended")(error), String(error)));
  await threads[0].ended;
  await assert.rejects(() => rows.decodeAttention(block.subarray(0, 256), 1), code("threads.ended"));
  await assert.rejects(() => engine.logits(new Float32Array(open.config.width), 1), code("threads.ended"));
  await assert.rejects(rows.copyRows(3), code("threads.ended"));
  rows.free();
  await engine[Symbol.asyncDispose]();
});

Deno.test("startPool() refuses numbers of threads that make no sense, and threads where there are none", async () => {
  for (const threads of [0, -1, 1.5, NaN, 1000]) {
    await assert.rejects(() => startPool(runtime, threads), code("threads.count"));
  }
  const alone: Runtime = { ...runtime, threads: false };
  await assert.rejects(() => startPool(alone, 2), code("threads.unavailable"));
  assert.equal(await startPool(alone, "auto"), undefined);
  assert.equal(await startPool(runtime, 1), undefined);
  assert.equal(autoThreads(alone), 1);
});

Deno.test("autoThreads() takes physical cores, four at most, and logical ones where the others are unknown", () => {
  const counted = (logical: number, physical?: number) =>
    autoThreads({ threads: runtime.threads, cores: () => ({ logical, physical }) });
  assert.deepEqual([counted(2, 1), counted(8, 4), counted(16, 8), counted(3), counted(1, 2)], [1, 4, 4, 3, 1]);
});
