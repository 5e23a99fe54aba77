/** The cap while decoding: never exceeded after any append, whatever the context, the rule and the attention. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { CacheLimit, type LimitOptions, lowWater, type PredictedScores } from "../../core/cache/limit.ts";
import { RaggedCache } from "../../core/cache/ragged.ts";
import { randomSource } from "../../core/measure/random.ts";
import { selectTop } from "../../core/select/select.ts";
import type { KeyRotation } from "../../core/measure/rotation.ts";
import { resolveStepRule, stepRules } from "../../core/rules/registry.ts";
import { SEED } from "../_helper/property.ts";

const SHAPE = { heads: 4, kvHeads: 2, headDim: 4, layers: 2 };
const HEADS = SHAPE.kvHeads * SHAPE.layers;
const ROTATION: KeyRotation = { pairs: "half", rotated: 4, frequencies: Float64Array.of(1, 0.1) };

/** A cache after reading `length` tokens, of which head `i` keeps `lengths[i]`: the first four and the last. */
function contextOf(lengths: readonly number[], length: number): RaggedCache {
  const cache = new RaggedCache(createReferenceBackend(), SHAPE);
  const kept = (n: number) => {
    const rows = Array.from({ length }, (_, i) => i);
    return Int32Array.from(n <= 4 ? rows.slice(length - n) : [...rows.slice(0, 4), ...rows.slice(length - n + 4)]);
  };
  for (let layer = 0; layer < SHAPE.layers; layer++) {
    const floats = new Float32Array(length * SHAPE.kvHeads * SHAPE.headDim);
    cache.append(layer, floats, floats, length, 0);
    cache.compact(layer, lengths.slice(layer * SHAPE.kvHeads, (layer + 1) * SHAPE.kvHeads).map(kept));
  }
  cache.advance(length);
  return cache;
}

function lengthsOf(cache: RaggedCache): number[] {
  return Array.from({ length: HEADS }, (_, i) => cache.length(Math.floor(i / 2), i % 2));
}

function positionsOf(cache: RaggedCache): Int32Array[] {
  return Array.from({ length: HEADS }, (_, i) => cache.positions(Math.floor(i / 2), i % 2));
}

/** Predicted scores that are a function of layer and true position alone, so that a test can say them again. */
function predictedOf(layer: number, head: number, position: number): number {
  return Math.fround(Math.sin((layer * SHAPE.kvHeads + head + 1) * 12.9898 + position * 78.233) * 43758.5453 % 1);
}

/** A gate for `cache`: `hidden` is not looked at, the next tokens' positions are. */
function predicted(cache: RaggedCache): PredictedScores {
  return {
    known: positionsOf(cache).map((positions, i) =>
      Float32Array.from(positions, (at) => predictedOf(Math.floor(i / 2), i % 2, at))
    ),
    score: (layer, _, count) =>
      Promise.resolve(Float32Array.from({ length: count * SHAPE.kvHeads }, (_, i) => {
        return predictedOf(layer, i % SHAPE.kvHeads, cache.seen + Math.floor(i / SHAPE.kvHeads));
      })),
  };
}

/** Appends `count` tokens as `extend()` does, with random attention where the rule wants it. */
async function pass(cache: RaggedCache, limit: CacheLimit, count: number, random: () => number): Promise<void> {
  await limit.makeRoom(count);
  const floats = new Float32Array(count * SHAPE.kvHeads * SHAPE.headDim);
  for (let layer = 0; layer < SHAPE.layers; layer++) {
    await limit.predict(layer, floats, count);
    cache.append(layer, floats, floats, count, cache.position);
    if (!limit.wantsProbabilities) continue;
    const rows = Array.from(
      { length: SHAPE.heads },
      (_, h) => Float32Array.from({ length: cache.length(layer, Math.floor(h / 2)) }, random),
    );
    limit.observe(layer, rows);
  }
  cache.advance(count);
}

const cases = fc.record({
  seed: fc.nat(),
  tokens: fc.integer({ min: 8, max: 60 }),
  shares: fc.array(fc.integer({ min: 1, max: 100 }), { minLength: HEADS, maxLength: HEADS }),
  rule: fc.constantFrom(...stepRules),
  realign: fc.boolean(),
  marker: fc.constantFrom(undefined, 2, 6, 130),
  chunks: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 10, maxLength: 150, size: "max" }),
});

Deno.test("CacheLimit holds the cap after every append, evicts to 90 %, and protected entries survive", async () => {
  let evictions = 0;
  await fc.assert(
    fc.asyncProperty(cases, async ({ seed, tokens, shares, rule, realign, marker, chunks }) => {
      // What a policy may leave under this cap: Σ ≤ low water · heads.
      const least = 5 + (marker === undefined ? 0 : 1);
      const most = lowWater(tokens) * HEADS, scale = most / shares.reduce((a, b) => a + b);
      const lengths = shares.map((share) => Math.max(least, Math.floor(share * scale)));
      if (lengths.reduce((a, b) => a + b) > most) return;
      const cache = contextOf(lengths, Math.max(...lengths) + 10);
      if (realign) await cache.realign(ROTATION);
      const options: LimitOptions = {
        tokens,
        rule,
        predicted: predicted(cache),
        markers: new Set(marker === undefined ? [] : [marker]),
        ...(realign && { realign: ROTATION }),
      };
      const limit = new CacheLimit(cache, options), random = randomSource(seed);
      const context = positionsOf(cache);
      let appended = 0, fed = 0;
      for (const chunk of chunks) {
        const before = limit.figures().evictions, held = cache.entries();
        const count = Math.min(chunk, limit.chunk);
        await pass(cache, limit, count, random);
        appended += count * HEADS;
        fed += count;
        assert.ok(cache.entries() <= tokens * HEADS, `${cache.entries()} entries under a cap of ${tokens} per head`);
        if (limit.figures().evictions > before) {
          const low = cache.entries() - count * HEADS;
          assert.ok(low <= Math.max(0.9 * tokens * HEADS, held - HEADS), `${low} entries after evicting`);
        }
      }
      const figures = limit.figures();
      evictions += figures.evictions;
      assert.equal(figures.evictedEntries, context.flatMap((each) => [...each]).length + appended - cache.entries());
      assert.ok(figures.peakEntries <= tokens * HEADS && figures.peakEntries >= cache.entries());
      positionsOf(cache).forEach((positions, i) => {
        const now = new Set(positions);
        for (const at of context[i]) {
          if (at < 4 || at === marker) assert.ok(now.has(at), `head ${i} lost protected ${at}`);
        }
        for (let back = 1; back <= Math.min(figures.window.used, fed); back++) {
          assert.ok(now.has(cache.seen - back), `head ${i} lost recent ${back}`);
        }
        assert.ok(positions.every((at, row) => row === 0 || at > positions[row - 1]));
      });
      if (realign) assert.equal(cache.position, Math.max(...lengthsOf(cache)));
      else assert.equal(cache.position, cache.seen);
      cache[Symbol.dispose]();
    }),
    { seed: SEED, numRuns: 400 },
  );
  assert.ok(evictions > 1000, `${evictions} evictions`);
});

Deno.test("CacheLimit makes lengths depend on the number of tokens alone, and keeps the context's shares", async () => {
  const seen = new Set<string>();
  for (const rule of stepRules.filter(({ headReduction }) => headReduction !== "none")) {
    const cache = contextOf([50, 20, 30, 40], 60);
    const limit = new CacheLimit(cache, { tokens: 50, rule });
    const course: number[][] = [];
    for (let i = 0; i < 100; i++) {
      await pass(cache, limit, 1, randomSource(i));
      course.push(lengthsOf(cache));
    }
    // 35 per head on average leave 15: every head may grow by 15, and gives up 5 at once.
    assert.deepEqual(course[14], [65, 35, 45, 55]);
    assert.deepEqual(course[15], [61, 31, 41, 51]);
    assert.deepEqual(course[19], [65, 35, 45, 55]);
    assert.equal(limit.figures().evictions, 17);
    seen.add(JSON.stringify(course));
    cache[Symbol.dispose]();
  }
  assert.equal(seen.size, 1);
});

Deno.test("CacheLimit evicts what its rule scores lowest, head by head", async () => {
  const cache = contextOf([20, 20, 20, 20], 20);
  const limit = new CacheLimit(cache, { tokens: 60, rule: resolveStepRule("defensive") });
  // One query head of one KV head looks at entry 10 once; entry 11 gets a little in every step.
  for (let i = 0; i < 41; i++) {
    await limit.makeRoom(1);
    for (let layer = 0; layer < SHAPE.layers; layer++) {
      const floats = new Float32Array(SHAPE.kvHeads * SHAPE.headDim);
      cache.append(layer, floats, floats, 1, cache.position);
      limit.observe(
        layer,
        Array.from({ length: SHAPE.heads }, (_, h) => {
          const row = new Float32Array(cache.length(layer, Math.floor(h / 2)));
          if (i < 40) row.fill(0.1).fill(0.01, 4, 10);
          if (i === 3 && h === 1 && layer === 0) row[10] = 0.9;
          if (i < 40 && !(layer === 0 && h < 2)) row[10] = 0.001;
          return row;
        }),
      );
    }
    cache.advance(1);
  }
  assert.equal(limit.figures().evictions, 1);
  const [first, second] = positionsOf(cache).map((positions) => [...positions].filter((at) => at < 20));
  assert.deepEqual(first, [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
  assert.ok(!second.includes(10), "the head that never needed entry 10 evicts it");
  assert.equal(limit.figures().evictedFromContext, 24);
  cache[Symbol.dispose]();
});

Deno.test("CacheLimit refuses a cap below what is there, and shrinks the window before that", () => {
  const rule = resolveStepRule("h2o");
  const refused = (tokens: number, more: Partial<LimitOptions> = {}) => () =>
    new CacheLimit(contextOf([10, 10, 10, 10], 10), { tokens, rule, ...more });
  assert.throws(refused(10), { code: "max-cache.small", message: /at 10 entries.*at least 11/ });
  assert.throws(refused(7), { code: "max-cache.small" });
  assert.throws(refused(40, { realign: ROTATION, longest: 10 }), { code: "max-cache.small", message: /trained/ });
  const window = (tokens: number, more?: Partial<LimitOptions>) => refused(tokens, more)().figures().window;
  assert.deepEqual(window(11), { asked: 32, used: 6 });
  assert.deepEqual(window(20), { asked: 32, used: 14 });
  assert.deepEqual(window(20, { markers: new Set([7, 11]) }), { asked: 32, used: 12 });
  assert.deepEqual(window(60), { asked: 32, used: 32 });
});

Deno.test("CacheLimit with realign stays below the longest head allowed", async () => {
  const cache = contextOf([40, 10, 10, 10], 40);
  await cache.realign(ROTATION);
  const limit = new CacheLimit(cache, { tokens: 100, rule: resolveStepRule("tova"), realign: ROTATION, longest: 64 });
  const random = randomSource(1);
  let most = 0;
  for (let i = 0; i < 300; i++) {
    await pass(cache, limit, 1, random);
    most = Math.max(most, cache.position);
  }
  assert.equal(most, 64);
  assert.equal(cache.seen, 340);
  cache[Symbol.dispose]();
});

Deno.test("CacheLimit refuses chunks it can't observe", async () => {
  const cache = contextOf([10, 10, 10, 10], 10);
  const attentive = new CacheLimit(cache, { tokens: 100, rule: resolveStepRule("h2o") });
  await assert.rejects(attentive.makeRoom(2), RangeError);
  const recent = new CacheLimit(cache, { tokens: 100, rule: resolveStepRule("streaming-llm") });
  assert.equal(recent.chunk, 10);
  await recent.makeRoom(10);
  await assert.rejects(recent.makeRoom(11), RangeError);
});

Deno.test("CacheLimit with gate keeps what one selection over all scores keeps, however the tokens came", async () => {
  const rule = resolveStepRule("gate");
  const kept = new Set<string>();
  for (const chunks of [[1], [7], [10, 3]]) {
    const cache = contextOf([50, 20, 30, 40], 60), context = positionsOf(cache);
    const limit = new CacheLimit(cache, { tokens: 50, rule, predicted: predicted(cache), markers: new Set([55]) });
    assert.equal(limit.chunk, 5);
    for (let fed = 0, i = 0; fed < 200; i++) {
      const count = Math.min(chunks[i % chunks.length], limit.chunk, 200 - fed);
      await pass(cache, limit, count, () => 0);
      fed += count;
    }
    // Down to the last low-water mark, for the tokens that were there then.
    await limit.makeRoom(5);
    const last = cache.seen;
    positionsOf(cache).forEach((positions, i) => {
      const all = [...context[i], ...Array.from({ length: last - 60 }, (_, t) => 60 + t)];
      const recent = new Set(all.slice(-limit.figures().window.used));
      const scores = Float32Array.from(all, (at) => predictedOf(Math.floor(i / 2), i % 2, at));
      const ends = Uint8Array.from(all, (at) => Number(at < 4 || at === 55 || recent.has(at)));
      const [rows] = selectTop({ segments: [{ scores, protectedEntries: ends }], count: positions.length });
      assert.deepEqual([...positions], [...rows].map((row) => all[row]), `chunks of ${chunks}, head ${i}`);
    });
    kept.add(JSON.stringify(positionsOf(cache).map((each) => [...each])));
    cache[Symbol.dispose]();
  }
  assert.equal(kept.size, 1);
});

Deno.test("CacheLimit with gate refuses to begin without the scores of what is there", () => {
  const cache = contextOf([10, 10, 10, 10], 10), rule = resolveStepRule("gate"), given = predicted(cache);
  const start = (more: Partial<LimitOptions>) => () => new CacheLimit(cache, { tokens: 60, rule, ...more });
  start({ predicted: given })();
  assert.throws(start({}), /Cannot cap by predicted scores: undefined known of 10/);
  assert.throws(
    start({ predicted: { ...given, known: given.known.map((each) => each.subarray(1)) } }),
    /9 known of 10/,
  );
});
