/** RaggedCache as a state machine: append, evict, trim, fork and realign against plain arrays. */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Backend } from "../../core/backend/interface.ts";
import { healthOf } from "../../core/cache/health.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { type KeyRotation, rotateRows } from "../../core/measure/rotation.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { createWasmBackend } from "../../wasm/backend.ts";
import { assertClose } from "../_helper/close.ts";
import { SEED } from "../_helper/property.ts";

const SHAPE = { heads: 2, kvHeads: 2, headDim: 6, layers: 2 };
const ROW_BYTES = 2 * 4 * SHAPE.headDim;
const ROTATION: KeyRotation = { pairs: "half", rotated: 4, frequencies: Float64Array.of(0.7, 0.01) };
const BACKENDS = { ts: () => Promise.resolve(createReferenceBackend()), wasm: () => createWasmBackend() };

interface Entry {
  readonly id: number;
  readonly at: number;
  logical: number;
}

/** Entries by layer and KV head, and the two counters. */
interface Model {
  heads: Entry[][][];
  position: number;
  seen: number;
  next: number;
}

type Step = fc.AsyncCommand<Model, RaggedCache>;

/** A key before rotation; its value is the negative. */
function plainKey(id: number): Float32Array {
  return Float32Array.from({ length: SHAPE.headDim }, (_, j) => Math.sin(id * 7 + j));
}

function keyAt(id: number, position: number): Float32Array {
  const key = plainKey(id);
  rotateRows(key, SHAPE.headDim, Int32Array.of(position), ROTATION);
  return key;
}

function copyOf(model: Model): Model {
  return structuredClone(model);
}

function append(model: Model, cache: RaggedCache, count: number): void {
  for (let layer = 0; layer < SHAPE.layers; layer++) {
    const keys: number[] = [], values: number[] = [];
    for (let t = 0; t < count; t++) {
      for (let head = 0; head < SHAPE.kvHeads; head++) {
        const id = model.next++;
        model.heads[layer][head].push({ id, at: model.seen + t, logical: model.position + t });
        keys.push(...keyAt(id, model.position + t));
        values.push(...plainKey(id).map((x) => -x));
      }
    }
    cache.append(layer, Float32Array.from(keys), Float32Array.from(values), count, cache.position);
  }
  cache.advance(count);
  model.position += count;
  model.seen += count;
}

async function agree(model: Model, cache: RaggedCache): Promise<void> {
  assert.equal(cache.position, model.position, "position");
  assert.equal(cache.seen, model.seen, "seen");
  let entries = 0;
  for (const [layer, heads] of model.heads.entries()) {
    for (const [h, head] of heads.entries()) {
      entries += head.length;
      assert.equal(cache.length(layer, h), head.length);
      assert.deepEqual([...cache.positions(layer, h)], head.map(({ at }) => at));
      assert.deepEqual([...cache.logicalPositions(layer, h)], head.map(({ logical }) => logical));
      const { keys, values } = await cache.rows(layer).copyRows(h);
      assertClose(keys, head.flatMap(({ id, logical }) => [...keyAt(id, logical)]), 1e-4, "keys");
      assert.deepEqual([...values], head.flatMap(({ id }) => [...plainKey(id).map((x) => -x)]));
    }
  }
  assert.equal(cache.entries(), entries);
  assert.equal(cache.bytes().live, entries * ROW_BYTES);
  assert.ok(cache.bytes().peak >= cache.bytes().live);
}

function evict(model: Model, cache: RaggedCache, keep: readonly number[]): void {
  model.heads.forEach((heads, layer) => {
    const kept = heads.map((head, h) =>
      Int32Array.from(head.keys()).filter((i) => keep[(i * 3 + h + layer) % keep.length] === 1)
    );
    cache.compact(layer, kept);
    model.heads[layer] = heads.map((head, h) => [...kept[h]].map((i) => head[i]));
  });
}

async function realign(model: Model, cache: RaggedCache): Promise<void> {
  await cache.realign(ROTATION);
  const longest = Math.max(...model.heads.flat().map(({ length }) => length));
  for (const head of model.heads.flat()) head.forEach((entry, i) => entry.logical = longest - head.length + i);
  model.position = longest;
}

/** A step from a function: `run` throws or rejects where cache and model part. */
function step(name: string, run: (model: Model, cache: RaggedCache) => void | Promise<void>): Step {
  return { check: () => true, run: async (model, cache) => await run(model, cache), toString: () => name };
}

const keepPattern = fc.array(fc.constantFrom(0, 1), { minLength: 1, maxLength: 7 });
const count = fc.constantFrom(1, 1, 2, 5, 63, 65);

const steps = fc.commands([
  count.map((n) => step(`append ${n}`, (model, cache) => append(model, cache, n))),
  keepPattern.map((keep) => step(`evict ${keep.join("")}`, (model, cache) => evict(model, cache, keep))),
  fc.constant(step("realign", realign)),
  fc.constant(step("settle", (_, cache) => cache.settle())),
  fc.constant(step("read", agree)),
  count.map((n) =>
    step(`try ${n} and trim`, async (model, cache) => {
      const mark = cache.mark();
      append(copyOf(model), cache, n);
      cache.trim(mark);
      await agree(model, cache);
    })
  ),
  fc.tuple(count, keepPattern).map(([n, keep]) =>
    step(`fork, ${n}, ${keep.join("")}`, async (model, cache) => {
      const twinModel = copyOf(model);
      using twin = await cache.fork();
      await agree(twinModel, twin);
      append(twinModel, twin, n);
      evict(twinModel, twin, keep);
      await realign(twinModel, twin);
      append(twinModel, twin, n);
      await agree(twinModel, twin);
      await agree(model, cache);
    })
  ),
], { maxCommands: 20, size: "max" });

for (const [name, start] of Object.entries(BACKENDS)) {
  Deno.test(`${name}: RaggedCache equals plain arrays after any steps`, async () => {
    using backend: Backend = await start();
    await fc.assert(
      fc.asyncProperty(steps, async (commands) => {
        using cache = new RaggedCache(backend, SHAPE);
        const empty = () => Array.from({ length: SHAPE.layers }, () => [[], []] as Entry[][]);
        const model: Model = { heads: empty(), position: 0, seen: 0, next: 1 };
        await fc.asyncModelRun(() => ({ model, real: cache }), commands);
        await agree(model, cache);
      }),
      { seed: SEED, numRuns: 60 },
    );
    assert.equal(backend.memory().allocatedBytes, 0);
  });
}

Deno.test("RaggedCache.realign() closes gaps, right-aligns short heads, and the next token follows", async () => {
  using backend = createReferenceBackend();
  using cache = new RaggedCache(backend, SHAPE);
  const model: Model = { heads: [[[], []], [[], []]], position: 0, seen: 0, next: 1 };
  append(model, cache, 10);
  cache.compact(0, [Int32Array.of(0, 4, 9), Int32Array.of(9)]);
  cache.compact(1, [Int32Array.of(1, 2), Int32Array.of(0, 5)]);
  await cache.realign(ROTATION);
  assert.equal(cache.position, 3);
  assert.equal(cache.seen, 10);
  assert.deepEqual([...cache.logicalPositions(0, 0)], [0, 1, 2]);
  assert.deepEqual([...cache.logicalPositions(0, 1)], [2]);
  assert.deepEqual([...cache.logicalPositions(1, 0)], [1, 2]);
  assert.deepEqual([...cache.positions(1, 1)], [0, 5]);
});

Deno.test("RaggedCache.realign() leaves old keys within 1e-5 of fresh ones after 5,000 moves", async () => {
  using backend = createReferenceBackend();
  using cache = new RaggedCache(backend, SHAPE);
  const model: Model = { heads: [[[], []], [[], []]], position: 0, seen: 0, next: 1 };
  append(model, cache, 20);
  for (let i = 0; i < 5000; i++) {
    append(model, cache, 1);
    // Entry 0 stays for ever; the second oldest goes, from two heads less than from the others.
    evict(model, cache, [1, 0, ...new Array(40).fill(1)]);
    await realign(model, cache);
  }
  for (const [layer, heads] of model.heads.entries()) {
    for (const [h, head] of heads.entries()) {
      const { keys } = await cache.rows(layer).copyRows(h);
      assertClose(keys, head.flatMap(({ id, logical }) => [...keyAt(id, logical)]), 1e-5, "keys");
    }
  }
});

Deno.test("healthOf() finds the largest gap, the sinks and the share kept", async () => {
  using backend = createReferenceBackend();
  using cache = new RaggedCache(backend, SHAPE);
  assert.equal(healthOf(cache, 100).keptFraction, 1);
  append({ heads: [[[], []], [[], []]], position: 0, seen: 0, next: 1 }, cache, 20);
  assert.deepEqual(healthOf(cache, 100), {
    keptFraction: 1,
    largestGap: 0,
    position: 20,
    trained: 100,
    headsWithSinks: 4,
    heads: 4,
  });
  cache.compact(0, [Int32Array.of(0, 1, 2, 3, 12), Int32Array.of(1, 2, 3, 4, 19)]);
  cache.compact(1, [Int32Array.of(0, 1, 3, 4, 19), Int32Array.of(10, 11, 12, 13, 14)]);
  const health = healthOf(cache, 100);
  assert.deepEqual([health.keptFraction, health.largestGap, health.headsWithSinks], [0.25, 14, 1]);
  await cache.realign(ROTATION);
  assert.deepEqual(healthOf(cache, 100), { ...health, position: 5 });
});
