import assert from "node:assert/strict";
import fc from "fast-check";
import { worst } from "../../core/worst_case/certificate.ts";
import { certifyDump } from "../../core/dump/certify.ts";
import { evictDump, splitHeads, windowQueries } from "../../core/dump/evict.ts";
import { largestMasses, smallestBudget } from "../../core/worst_case/risk_budget.ts";
import { keepAbove } from "../../core/select/threshold.ts";
import { dumpCases, evenShare, MODERATE } from "../_helper/dumps.ts";
import { holds, holdsAsync, mask, nastyArray } from "../_helper/property.ts";

Deno.test("smallestBudget() finds what a scan finds, for any risk that falls, however long", async () => {
  const falling = fc.record({
    least: fc.integer({ min: 1, max: 40 }),
    steps: fc.array(evenShare, { minLength: 1, maxLength: 120 }),
    stretch: fc.constantFrom(1, 17, 300),
    limit: fc.integer({ min: 1, max: 999 }).map((thousandths) => thousandths / 1000),
  });
  await holdsAsync(
    fc.asyncProperty(falling, async ({ least, steps, stretch, limit }) => {
      const risks = steps.toSorted((a, b) => b - a);
      const most = least + risks.length * stretch;
      const risk = (n: number) => n === most ? 0 : risks[Math.floor((n - least) / stretch)];
      let rounds = 0;
      const found = await smallestBudget({ least, most }, limit, (tokens) => {
        rounds++;
        assert.ok(tokens.length <= 32 && tokens.every((n, i) => n >= least && n < most && n > (tokens[i - 1] ?? 0)));
        return Promise.resolve(tokens.map(risk));
      });
      let scan = least;
      while (risk(scan) > limit) scan++;
      assert.deepEqual(found, { tokens: scan, risk: risk(scan) });
      assert.ok(rounds <= 4);
    }),
    1_000,
  );
});

Deno.test("smallestBudget() takes a risk that equals the limit, and none that is unknown", async () => {
  const of = (risks: number[]) =>
    smallestBudget(
      { least: 1, most: risks.length + 1 },
      0.5,
      (tokens) => Promise.resolve(tokens.map((n) => risks[n - 1])),
    );
  assert.deepEqual(await of([0.7, 0.5, 0.5]), { tokens: 2, risk: 0.5 });
  assert.deepEqual(await of([NaN, NaN]), { tokens: 3, risk: 0 });
  assert.deepEqual(await of([]), { tokens: 1, risk: 0 });
});

Deno.test("smallestBudget() of a risk that rises and falls ends where it holds and one token less does not", async () => {
  const random = fc.array(evenShare, { minLength: 1, maxLength: 100 });
  await holdsAsync(
    fc.asyncProperty(random, async (risks) => {
      const risk = (n: number) => n > risks.length ? 0 : risks[n - 1];
      const range = { least: 1, most: risks.length + 1 };
      const { tokens } = await smallestBudget(range, 0.3, (list) => Promise.resolve(list.map(risk)));
      assert.ok(risk(tokens) <= 0.3 && (tokens === 1 || risk(tokens - 1) > 0.3));
    }),
    500,
  );
});

Deno.test("largestMasses() is the sum of the certificates' largest masses, for several kept sets at once", () => {
  holds(
    fc.property(dumpCases(12, MODERATE), (each) => {
      const { shape, length, layers: [layer, ...rest] } = each;
      if (rest.length > 0) return; // one layer's worth is enough
      const evictions = [1, Math.ceil(length / 2), length].map((tokens) => {
        return evictDump("snapkv(window=2, sinks=1)", { tokens }, shape, [layer]);
      });
      const window = Math.min(2, length);
      const masses = largestMasses({
        shape,
        length,
        window,
        queries: windowQueries(layer, shape, window),
        keys: splitHeads(layer.keys, shape.kvHeads, length * shape.headDim, "keys"),
      }, evictions.map(({ kept }) => kept[0]));
      evictions.forEach((evicted, c) => {
        if (evicted.budget.window !== window) return; // a window that shrank is judged by fewer queries
        const [{ heads }] = certifyDump(evicted, [layer]);
        const sum = heads.flatMap(({ evictedMass }) => evictedMass.map(worst)).reduce((a, b) => a + b, 0);
        assert.ok(Math.abs(sum - masses[c]) <= 1e-5 * shape.heads, `${each.made}: ${masses[c]} for ${sum}`);
      });
    }),
    1_000,
  );
});

Deno.test("keepAbove() keeps what is protected, unknown, or not below the threshold", () => {
  const layer = fc.integer({ min: 0, max: 6 }).chain((length) =>
    fc.record({ length: fc.constant(length), scores: nastyArray(2 * length), protectedEntries: mask(2 * length) })
  );
  holds(
    fc.property(
      layer,
      fc.integer({ min: -8, max: 8 }).map((quarters) => quarters / 4),
      ({ length, ...scores }, threshold) => {
        const kept = keepAbove(scores, 2, length, threshold);
        kept.forEach((head, h) => {
          for (let i = 0; i < length; i++) {
            const at = h * length + i, goes = scores.scores[at] < threshold && !scores.protectedEntries[at];
            assert.equal(head.includes(i), !goes);
          }
          assert.deepEqual([...head], [...head].sort((a, b) => a - b));
        });
      },
    ),
    1_000,
  );
  const equal = { scores: Float32Array.of(0.5, 0.25) };
  assert.deepEqual(keepAbove(equal, 1, 2, 0.5), [Int32Array.of(0)]);
});
