/** Policies of neighbours against their published formulas, computed apart by `tools/make_policy_goldens.py`. */
import assert from "node:assert/strict";
import { evictDump, observeDump } from "../../core/dump/evict.ts";
import { createReferenceBackend } from "../../core/backend/reference.ts";
import { observeRows } from "../../core/backend/observe_rows.ts";
import { dropErrors } from "../../core/measure/drop_errors.ts";
import { softmaxRow } from "../../core/measure/attention.ts";
import { randomSource } from "../../core/measure/random.ts";
import { queriesBeforeRotation, queriesToCome, QueryStatistics } from "../../core/measure/query_statistics.ts";
import { direction } from "../../core/policies/qfilter.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { readSafetensors } from "../_helper/golden.ts";
import { appendDump, byToken, TINY_ROTATION, TINY_SHAPE, tinyLayers } from "../_helper/tiny.ts";

const LENGTH = 97, { heads, kvHeads, headDim } = TINY_SHAPE;
const golden = await readSafetensors("neighbours-L97.safetensors");
const layers = tinyLayers(await readSafetensors("tiny-L97.safetensors"), LENGTH);

/** Asserts that scores, `[kvHeads, L]`, are a golden's, whose columns begin at `first`. */
function assertGolden(scores: Float32Array, name: string, first: number): void {
  const { data, shape: [, columns] } = golden.get(name)!;
  const most = Math.max(...data.map(Math.abs));
  for (let head = 0; head < kvHeads; head++) {
    for (let i = 0; i < columns; i++) {
      const off = Math.abs(scores[head * LENGTH + first + i] - data[head * columns + i]);
      assert.ok(off <= 1e-5 * most, `${name}, head ${head}, entry ${first + i}: off by ${off}`);
    }
  }
}

/** Where a golden's columns begin in a head's scores. */
const FIRST: Readonly<Record<string, number>> = { dropkv: 0, rkv: 0, capkv: 4, qfilter: 0, triattention: 0 };

for (const [name, first] of Object.entries(FIRST)) {
  Deno.test(`${name} scores as its published formula`, () => {
    const { scores } = evictDump(name, { fraction: 0.4 }, TINY_SHAPE, layers);
    scores.forEach((layer, l) => assertGolden(layer, `${name}/${l}`, first));
  });
}

for (const [name, first] of Object.entries({ "expected-attention": 4, qfilter: 0, triattention: 0 })) {
  Deno.test(`${name} goes by what was calibrated as by queries of its own`, () => {
    const policy = resolvePolicy(`${name}(statistics=calibrated)`), { needs } = policy;
    const budget = resolveBudget(policy, { fraction: 0.4 }, LENGTH, { ...TINY_SHAPE, layers: 3 });
    const calibrated = new QueryStatistics(TINY_SHAPE, LENGTH, 4, needs.pairStatistics && TINY_ROTATION);
    const queries = queriesBeforeRotation(layers[0].queries, TINY_SHAPE, TINY_ROTATION);
    calibrated.add(queries, 0, LENGTH, heads * headDim);
    const { future } = (needs.queryStatistics ?? needs.pairStatistics)!;
    const toCome = { future, next: LENGTH, magnitude: 1 };
    layers.forEach(({ keys, values }, layer) => {
      const seen = queriesToCome(calibrated.means(), TINY_SHAPE, TINY_ROTATION, toCome);
      const { scores } = policy.score(
        { layer, shape: TINY_SHAPE, length: LENGTH, window: 0, keys, values, ...seen },
        budget,
      );
      assertGolden(scores, `${name}, calibrated/${layer}`, first);
    });
    // By itself it keeps others.
    const own = evictDump(name, { fraction: 0.4 }, TINY_SHAPE, layers).scores[1];
    assert.ok(
      golden.get(`${name}, calibrated/1`)!.data.some((x, i) => Math.abs(x - own[i + first]) > 1e-3 * Math.abs(x)),
    );
    assert.throws(() => evictDump(policy, { fraction: 0.4 }, TINY_SHAPE, layers), /no calibrated statistics/);
  });
}

Deno.test("a drop error is what attention's output loses when the entry goes", () => {
  const next = randomSource(5), floats = (count: number) => Float32Array.from({ length: count }, () => next() * 4 - 2);
  const shape = { heads: 2, kvHeads: 1, headDim: 4 }, length = 9, window = 2;
  const queries = floats(window * 8), keys = floats(length * 4), values = floats(length * 4);
  const errors = dropErrors({ shape, queries, window, keys: [keys], values: [values], length });
  const output = (head: number, t: number, without: number) => {
    const row = new Float64Array(length), sum = new Float64Array(4), visible = length - window + t + 1;
    softmaxRow({ vector: queries, offset: (t * 2 + head) * 4 }, keys, 4, visible, row);
    const rest = 1 - (without < 0 ? 0 : row[without]);
    for (let i = 0; i < visible; i++) {
      if (i !== without) { for (let d = 0; d < 4; d++) sum[d] += row[i] / rest * values[i * 4 + d]; }
    }
    return sum;
  };
  for (let entry = 0; entry < length - window; entry++) {
    let lost = 0;
    for (const head of [0, 1]) {
      for (let t = 0; t < window; t++) {
        const before = output(head, t, -1);
        lost += output(head, t, entry).reduce((sum, x, d) => sum + (x - before[d]) ** 2, 0) / 2;
      }
    }
    assert.ok(Math.abs(errors[entry] - lost) < 1e-4 * (1 + lost), `entry ${entry}: ${errors[entry]} for ${lost}`);
  }
});

Deno.test("observeRows() measures drop errors over any backend's rows, and gives rows only where asked", async () => {
  using backend = createReferenceBackend();
  const policy = resolvePolicy("dropkv"),
    budget = resolveBudget(policy, { fraction: 0.5 }, LENGTH, {
      ...TINY_SHAPE,
      layers: 3,
    });
  const rows = appendDump(backend, layers[1], TINY_SHAPE);
  const queries = byToken(layers[1].queries, heads, headDim, LENGTH - budget.window, budget.window);
  const { tensors } = backend;
  const seen = await observeRows(tensors, rows, queries, budget.window, policy.needs);
  assert.deepEqual(seen.dropErrors, observeDump(layers[1], 1, budget, policy.needs).dropErrors);
  assert.equal(seen.keys, undefined);
  const both = await observeRows(tensors, rows, queries, budget.window, { ...policy.needs, rows: true });
  assert.equal(both.keys?.length, kvHeads * LENGTH * headDim);
  rows.free();
});

Deno.test("qfilter's direction is one of length 1 along the mean, also where the mean is no part of it", () => {
  const shape = { heads: 1, kvHeads: 1, headDim: 2 }, base = { layer: 0, shape, length: 1, window: 0 };
  const steep = direction(
    { ...base, queryMean: Float32Array.of(1, 0), queryCovariance: Float32Array.of(0, 0, 0, 9) },
    0,
  );
  assert.ok(Math.abs(Math.abs(steep[1]) - 1) < 1e-6);
  const behind = direction(
    { ...base, queryMean: Float32Array.of(-2, 0), queryCovariance: Float32Array.of(1, 0, 0, 0) },
    0,
  );
  assert.ok(Math.abs(behind[0] + 1) < 1e-6);
  const none = direction({ ...base, queryMean: new Float32Array(2), queryCovariance: new Float32Array(4) }, 0);
  assert.deepEqual([...none], [0, 0]);
});

Deno.test("rkv keeps the latest of copies", () => {
  const each = { ...layers[0], keys: layers[0].keys.slice() };
  // Entries 20 … 39 of each head are one key.
  for (let head = 0; head < kvHeads; head++) {
    for (let i = 20; i < 40; i++) {
      const at = (head * LENGTH + 20) * headDim;
      each.keys.copyWithin((head * LENGTH + i) * headDim, at, at + headDim);
    }
  }
  const { scores: [scores] } = evictDump("rkv(mix=0, alike=0.999)", { fraction: 0.3 }, TINY_SHAPE, [each]);
  for (let head = 0; head < kvHeads; head++) {
    const copies = [...scores.subarray(head * LENGTH + 20, head * LENGTH + 40)];
    assert.equal(copies.indexOf(Math.max(...copies)), 19, `head ${head}`);
  }
});
