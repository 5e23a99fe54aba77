import assert from "node:assert/strict";
import fc from "fast-check";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import {
  type LayerCertificate,
  meanLargestMass,
  outputBound,
  summariseLayer,
} from "../../core/worst_case/certificate.ts";
import { CertificateTracker, type LayerEvidence } from "../../core/worst_case/certificate_tracker.ts";
import { certifyDump } from "../../core/dump/certify.ts";
import { type DumpEviction, evictDump, observeDump } from "../../core/dump/evict.ts";
import { randomSource } from "../../core/measure/random.ts";
import { attentionRows, multiply, outputs } from "../_helper/attention.ts";
import { type DumpCase, dumpCases, FINITE, makeDump, MODERATE } from "../_helper/dumps.ts";
import { holds, holdsAsync } from "../_helper/property.ts";
import { appendDump, byToken } from "../_helper/tiny.ts";

/** The stated rounding of ε, relative to the log-sum-exp: half a float32 ulp is 6e−8. */
const MASS_SLACK = 1.2e-7;
const POLICY = "defensive-risk(window=3, sinks=1)";

/** The largest |log-sum-exp| of a layer's window rows, at least 1. */
function scaleOf({ layers }: DumpCase, { budget, policy }: DumpEviction, layer: number): number {
  const { logSumExp } = observeDump(layers[layer], layer, budget, { ...policy.needs, window: ["logSumExp"] });
  return logSumExp!.reduce((most, each) => Math.max(most, Math.abs(each)), 1);
}

function evicted(each: DumpCase, tokens: number, policy = POLICY): { gone: DumpEviction; seen: LayerCertificate[] } {
  const gone = evictDump(policy, { tokens: Math.min(tokens, each.length) }, each.shape, each.layers);
  return { gone, seen: certifyDump(gone, each.layers) };
}

Deno.test("certifyDump() gives the evicted mass of every window query, from kept keys alone", () => {
  holds(
    fc.property(
      dumpCases(12, MODERATE),
      fc.integer({ min: 1, max: 12 }),
      (each, tokens) => {
        const { gone, seen } = evicted(each, tokens);
        seen.forEach(({ heads, window }, layer) => {
          const rows = attentionRows(each, layer, window), slack = MASS_SLACK * scaleOf(each, gone, layer);
          heads.forEach(({ evictedMass }, g) => {
            evictedMass.forEach((masses, member) => {
              const kept = new Set(gone.kept[layer][g]);
              masses.forEach((mass, t) => {
                const row = rows[g * evictedMass.length + member][t];
                const expected = row.reduce((sum, a, i) => kept.has(i) ? sum : sum + a, 0);
                assert.ok(Math.abs(mass - expected) <= slack, `${mass} for ${expected}`);
                if (row.every((_, i) => kept.has(i))) assert.equal(mass, 0);
              });
            });
          });
        });
      },
    ),
    500,
  );
});

Deno.test("certifyDump() bounds what the output changes by, and what of it goes through Wo, in doubles", () => {
  holds(
    fc.property(dumpCases(12, FINITE), fc.integer({ min: 1, max: 12 }), (each, tokens) => {
      const { gone, seen } = evicted(each, tokens, "random(window=2, sinks=0)");
      seen.forEach((certificate, layer) => {
        const rows = attentionRows(each, layer, certificate.window);
        const wo = each.layers[layer].wo!;
        certificate.heads.forEach(({ evictedMass, valueNorm, projectedNorm }, g) => {
          evictedMass.forEach((masses, member) => {
            const h = g * evictedMass.length + member;
            masses.forEach((_, t) => {
              const kept = new Set(gone.kept[layer][g]);
              const exact = rows[h][t].reduce((sum, a, i) => kept.has(i) ? sum : sum + a, 0);
              const [whole, left] = outputs(each, layer, g, rows[h][t], kept);
              const change = whole.map((o, j) => o - left[j]);
              const norm = Math.hypot(...change), size = Math.hypot(...whole);
              assert.ok(norm <= outputBound(exact, valueNorm) + 1e-9 * (1 + size), `${norm}`);
              const through = multiply(wo, change, h, each.shape).reduce((sum, x) => sum + Math.abs(x), 0);
              const limit = outputBound(exact, projectedNorm![member]);
              assert.ok(through <= limit * (1 + 1e-6) + 1e-9, `${through} for ${limit}`); // norms are float32
            });
          });
        });
      });
    }),
    500,
  );
});

Deno.test("certificates bound what real removal changes, in float32", async () => {
  await holdsAsync(
    fc.asyncProperty(dumpCases(12, MODERATE), fc.integer({ min: 1, max: 12 }), async (each, tokens) => {
      const { gone, seen } = evicted(each, tokens);
      const { heads, headDim } = each.shape;
      using backend = createReferenceBackend();
      for (const [layer, certificate] of seen.entries()) {
        const { window } = certificate, slack = MASS_SLACK * scaleOf(each, gone, layer);
        const queries = byToken(each.layers[layer].queries, heads, headDim, each.length - window, window);
        const rows = appendDump(backend, each.layers[layer], each.shape);
        const before = (await rows.decodeAttention(queries, window)).output;
        rows.compact(gone.kept[layer]);
        const after = (await rows.decodeAttention(queries, window)).output;
        rows.free();
        certificate.heads.forEach(({ evictedMass, valueNorm }, g) =>
          evictedMass.forEach((masses, member) =>
            masses.forEach((mass, t) => {
              const at = (t * heads + g * evictedMass.length + member) * headDim;
              const size = Math.hypot(...before.subarray(at, at + headDim));
              const change = Math.hypot(...before.subarray(at, at + headDim).map((o, j) => o - after[at + j]));
              const limit = outputBound(mass + slack, valueNorm) + 1e-9 + 1e-6 * size;
              assert.ok(change <= limit, `${each.made}: ${change} for ${limit}`);
            })
          )
        );
      }
    }),
    300,
  );
});

Deno.test("CertificateTracker says the same however entries leave: at once, or in steps", () => {
  holds(
    fc.property(dumpCases(12), fc.integer({ min: 0, max: 1e6 }), (each, seed) => {
      const next = randomSource(seed);
      const steps = [0.8, 0.5, 0.7];
      const whole = trackerOf(each);
      const stepwise = trackerOf(each);
      for (const share of steps) {
        const kept = stepwise.positions(0).map((positions) =>
          Int32Array.from(positions.keys()).filter(() => next() < share)
        );
        stepwise.compact(0, kept);
      }
      const left = stepwise.positions(0);
      whole.compact(0, left);
      const keys = left.map((positions) => new Float32Array(positions.length * each.shape.headDim));
      const [a, b] = [whole, stepwise].map((tracker) => tracker.certificate(0, keys));
      // Sums are taken in the order of leaving.
      const rounded = ({ heads, ...rest }: LayerCertificate) => ({
        ...rest,
        heads: heads.map((head) => ({ ...head, riskSum: Math.fround(head.riskSum) })),
      });
      for (const [x, y] of rounded(a).heads.map((head, i) => [head, rounded(b).heads[i]])) {
        assert.ok(Object.is(x.riskSum, y.riskSum) || Math.abs(x.riskSum - y.riskSum) <= 1e-6);
        assert.deepEqual({ ...x, riskSum: 0 }, { ...y, riskSum: 0 });
      }
    }),
    300,
  );
});

function trackerOf(each: DumpCase): CertificateTracker {
  const tracker = new CertificateTracker();
  tracker.add(0, evidenceOf(each));
  return tracker;
}

/** Evidence of the right shape; importances and norms are random. */
function evidenceOf({ shape, length, layers: [{ values, queries }] }: DumpCase): LayerEvidence {
  const window = Math.min(2, length), ofHead = length * shape.headDim;
  const next = randomSource(length);
  const some = (count: number) => Float32Array.from({ length: count }, next);
  return {
    shape,
    length,
    window,
    queries: byToken(queries, shape.heads, shape.headDim, length - window, window),
    logSumExp: some(shape.heads * window),
    importance: some(shape.kvHeads * (length - window)),
    values: Array.from({ length: shape.kvHeads }, (_, g) => values.subarray(g * ofHead, (g + 1) * ofHead)),
    projectedNorms: some(shape.heads * length),
  };
}

Deno.test("a certificate of nothing evicted is 0 everywhere", () => {
  const each = makeDump(3, { length: 20, kvHeads: 2, group: 2, layers: 2 });
  for (const layer of evicted(each, 20).seen) {
    assert.deepEqual(summariseLayer(layer), {
      largestRisk: 0,
      riskSum: 0,
      evictedMass: 0,
      outputBound: 0,
      projectedBound: 0,
    });
  }
});

Deno.test("a certificate over keys that are not finite is NaN, not safe", () => {
  const each = makeDump(3, { length: 20, kvHeads: 1, group: 1, layers: 1 }, "broken");
  const { largestRisk, riskSum, evictedMass, outputBound } = summariseLayer(evicted(each, 8).seen[0]);
  for (const figure of [largestRisk, riskSum, evictedMass, outputBound]) assert.ok(Number.isNaN(figure));
});

Deno.test("an evicted mass that float32 can't tell is NaN, not safe", () => {
  const each = makeDump(3, { length: 20, kvHeads: 1, group: 1, layers: 1 }, "huge");
  const { evictedMass, riskSum } = summariseLayer(evicted(each, 8).seen[0]);
  assert.ok(Number.isNaN(evictedMass) && Number.isFinite(riskSum));
});

Deno.test("certifyDump() judges a policy that observes nothing by the usual window, and counts what of it is gone", () => {
  const each = makeDump(5, { length: 50, kvHeads: 1, group: 2, layers: 1 });
  const { seen: [{ window, heads: [head] }] } = evicted(each, 10, "streaming-llm");
  assert.equal(window, 32);
  assert.deepEqual([head.kept, head.evicted, head.unobserved], [10, 40, 32 - 6]);
  assert.equal(head.evictedMass.length, 2);
});

Deno.test("summariseLayer() adds the bounds after Wo over the heads, for one query at a time", () => {
  const head = (masses: number[], norm: number) => ({
    kept: 1,
    evicted: 1,
    unobserved: 0,
    largestRisk: 0.25,
    riskSum: 0.5,
    evictedMass: [Float64Array.from(masses)],
    valueNorm: { evicted: norm, kept: 1 },
    projectedNorm: [{ evicted: norm, kept: 0 }],
  });
  const layer = { layer: 0, window: 2, heads: [head([0.5, 0], 2), head([0, 0.25], 4)] };
  const { outputBound, projectedBound } = summariseLayer(layer);
  assert.deepEqual([outputBound, projectedBound], [1.5, 1]);
  assert.equal(meanLargestMass([layer]), 0.375);
});

Deno.test("CertificateTracker refuses evidence and keys that don't fit", () => {
  const each = makeDump(3, { length: 6, kvHeads: 2, group: 1, layers: 1 });
  const tracker = trackerOf(each);
  assert.ok(tracker.byteLength > 0);
  assert.throws(() => tracker.certificate(1, []), /know no layer 1/);
  assert.throws(() => tracker.add(0, evidenceOf(each)), /layer 0 to the certificates twice/);
  assert.throws(() => tracker.certificate(0, [new Float32Array(1)]), /want 6,6 rows/);
  assert.throws(() => tracker.compact(0, [Int32Array.of(1, 0), Int32Array.of()]), /not ascending/);
  const { shape, length } = each;
  const bad = { shape, length, window: 2, queries: new Float32Array(1), logSumExp: new Float32Array(4) };
  const rest = { importance: new Float32Array(8), values: [] };
  assert.throws(() => tracker.add(1, { ...bad, ...rest }), /1 queries: want 8/);
  assert.throws(() => tracker.add(1, { ...bad, ...rest, queries: new Float32Array(8) }), /0 heads of values/);
});
