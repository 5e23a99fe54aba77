/** LayerRows as a state machine: any order of append, compact, truncate and read equals plain arrays, in every type. */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Backend, LayerRows } from "../../core/backend/interface.ts";
import { StoredRows } from "../../core/backend/stored_rows.ts";
import { CACHE_TYPES, type CacheType, entryBytes, partsOf } from "../../core/cache/entry_type.ts";
import { PalisadeError } from "../../core/errors.ts";
import { ALL_BACKENDS } from "../_helper/backends.ts";
import { SEED } from "../_helper/property.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 5 };
/** Bytes of an entry as the backend may pad it: rows are rounded up to 16 bytes. */
const PADDED_BYTES: Readonly<Record<string, number>> = { f32: 64, f16: 32, int8: 40, int4: 128 };

/** One number per row stands for its key; the value is its negative. */
interface Model {
  readonly heads: number[][];
  next: number;
}

type Step = fc.AsyncCommand<Model, LayerRows>;

function floats(rows: readonly number[]): Float32Array {
  return Float32Array.from(
    { length: rows.length * SHAPE.headDim },
    (_, i) => rows[Math.floor(i / SHAPE.headDim)] * 8 + i % SHAPE.headDim,
  );
}

/** As rows of this type hold it. */
function asStored(all: Float32Array, type: CacheType): Float32Array {
  const rows = new StoredRows(SHAPE.headDim, partsOf(type).keys, "keys"), count = all.length / SHAPE.headDim;
  rows.resize(count, 0);
  rows.set(0, all);
  return rows.floats(count);
}

class Append implements Step {
  readonly count: number;
  constructor(count: number) {
    this.count = count;
  }
  check = () => true;
  // deno-lint-ignore require-await
  async run(model: Model, rows: LayerRows): Promise<void> {
    const ids = Array.from({ length: this.count * SHAPE.kvHeads }, () => model.next++);
    rows.append(floats(ids), floats(ids).map((x) => -x), this.count);
    ids.forEach((id, i) => model.heads[i % SHAPE.kvHeads].push(id));
  }
  toString = () => `append ${this.count}`;
}

class Compact implements Step {
  readonly keep: readonly number[];
  constructor(keep: readonly number[]) {
    this.keep = keep;
  }
  check = () => true;
  // deno-lint-ignore require-await
  async run(model: Model, rows: LayerRows): Promise<void> {
    const kept = model.heads.map((head, h) =>
      Int32Array.from(head.keys()).filter((i) => this.keep[(i * 3 + h) % this.keep.length] === 1)
    );
    rows.compact(kept);
    kept.forEach((list, h) => model.heads[h] = [...list].map((i) => model.heads[h][i]));
    const most = kept.reduce((sum, list) => sum + (list.length + 64) * PADDED_BYTES[rows.type], 0);
    assert.ok(rows.allocatedBytes <= most, "at most 64 spare rows per head");
  }
  toString = () => `compact ${this.keep.join("")}`;
}

class Truncate implements Step {
  readonly drop: readonly number[];
  constructor(drop: readonly number[]) {
    this.drop = drop;
  }
  check = () => true;
  // deno-lint-ignore require-await
  async run(model: Model, rows: LayerRows): Promise<void> {
    const lengths = model.heads.map((head, h) => Math.max(0, head.length - this.drop[h]));
    rows.truncate(lengths);
    model.heads.forEach((head, h) => head.length = lengths[h]);
  }
  toString = () => `drop ${this.drop}`;
}

class Refuse implements Step {
  check = () => true;
  async run(model: Model, rows: LayerRows): Promise<void> {
    assert.throws(() => rows.compact([Int32Array.of(model.heads[0].length), Int32Array.of()]), RangeError);
    assert.throws(() => rows.compact([Int32Array.of()]), RangeError);
    assert.throws(() => rows.truncate(model.heads.map((head) => head.length + 1)), RangeError);
    assert.throws(() => rows.append(new Float32Array(9), new Float32Array(10), 1), RangeError);
    await assert.rejects(rows.copyRows(SHAPE.kvHeads), RangeError);
    for (const bad of [-1, model.heads[1].length]) {
      await assert.rejects(rows.copyRows(1, Int32Array.of(bad)), RangeError);
    }
    if (rows.type === "f32") return;
    const numbers = new Float32Array(10), bad = new Float32Array(10).fill(rows.type === "f16" ? 65520 : NaN, 7, 8);
    const refused = (error: unknown) => error instanceof PalisadeError && error.code === "cache-type.range";
    assert.throws(() => rows.append(numbers, bad, 1), refused);
    assert.throws(() => rows.append(bad, numbers, 1), refused);
  }
  toString = () => "refuse";
}

class Read implements Step {
  check = () => true;
  async run(model: Model, rows: LayerRows): Promise<void> {
    let live = 0;
    for (const [h, head] of model.heads.entries()) {
      assert.equal(rows.length(h), head.length);
      const { keys, values } = await rows.copyRows(h);
      assert.deepEqual(keys, asStored(floats(head), rows.type));
      assert.deepEqual(values, asStored(floats(head).map((x) => -x), rows.type));
      const wanted = Int32Array.from(head.keys()).filter((i) => i % 3 === 1).reverse();
      const some = await rows.copyRows(h, wanted);
      assert.deepEqual(some.keys, asStored(floats([...wanted].map((i) => head[i])), rows.type));
      assert.deepEqual(some.values, some.keys.map((x) => -x));
      live += head.length * entryBytes(SHAPE.headDim, rows.type);
    }
    assert.equal(rows.liveBytes, live);
    assert.ok(rows.allocatedBytes >= live);
  }
  toString = () => "read";
}

const steps = fc.commands([
  fc.constantFrom(1, 1, 2, 63, 64, 65, 130).map((count) => new Append(count)),
  fc.array(fc.constantFrom(0, 1), { minLength: 1, maxLength: 7 }).map((keep) => new Compact(keep)),
  fc.array(fc.constantFrom(0, 1, 2, 64, 100), { minLength: 2, maxLength: 2 }).map((drop) => new Truncate(drop)),
  fc.constant(new Refuse()),
  fc.constant(new Read()),
], { maxCommands: 30, size: "max" });

for (const { name, slow, start } of ALL_BACKENDS) {
  for (const type of CACHE_TYPES) {
    Deno.test(`${name}, ${type}: rows equal plain arrays after any steps`, async () => {
      using backend: Backend = await start();
      await fc.assert(
        fc.asyncProperty(steps, fc.constantFrom(0, 1, 100), async (commands, reserve) => {
          const rows = backend.createRows(SHAPE, reserve, type);
          try {
            const model = () => ({ model: { heads: [[], []], next: 1 }, real: rows });
            await fc.asyncModelRun(model, commands);
          } finally {
            rows.free();
          }
        }),
        { seed: SEED, numRuns: slow ? 12 : type === "f32" ? 60 : 20 },
      );
      assert.equal(backend.memory().allocatedBytes, 0);
    });
  }
}
