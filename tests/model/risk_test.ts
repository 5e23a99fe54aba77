import assert from "node:assert/strict";
import { meanLargestMass, summariseLayer } from "../../core/worst_case/certificate.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { PalisadeError } from "../../core/errors.ts";
import type { OptionName } from "../../core/options.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { certificateReport } from "../../model/certificate_report.ts";
import type { Model } from "../../model/model.ts";
import { contextIds } from "../../model/text/prompt.ts";
import { type LayersOptions, readContext } from "../../model/read/layers.ts";
import type { ReadResult } from "../../model/read/reading.ts";
import { readAtRisk } from "../../model/read/at_risk.ts";
import { resolveRisk } from "../../model/read/risk_options.ts";
import { openContext } from "../../model/session.ts";
import { tinyModel } from "../_helper/workbench.ts";

const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ";

/** One policy of each kind: layers compete, share, or don't; a window or none; rows. */
const POLICIES = [
  "layer-defensive(window=8)",
  "defensive-risk(window=8, sinks=0)",
  "defensive(window=8)",
  "cake(window=8)",
  "snapkv(window=8)",
  "streaming-llm",
  "keydiff",
];

function idsOf(model: Model, repeats = 1): number[] {
  return contextIds(model.frame, model.tokenizer, TEXT.repeat(repeats));
}

function read(model: Model, ids: readonly number[], text: string, tokens: number, more: Partial<LayersOptions> = {}) {
  const policy = resolvePolicy(text);
  const budget = resolveBudget(policy, { tokens }, ids.length, model.config);
  return readContext(model, ids, { policy, budget, outputWeights: weights(model), ...more });
}

function weights(model: Model): (layer: number) => Promise<Float32Array> {
  return (layer) => model.file.readFloat32(`blk.${layer}.attn_output.weight`);
}

function keptOf({ cache }: Pick<ReadResult, "cache">): number[][][] {
  const { layers, kvHeads } = cache.shape;
  return Array.from(
    { length: layers },
    (_, layer) => Array.from({ length: kvHeads }, (_, head) => [...cache.positions(layer, head)]),
  );
}

for (const text of POLICIES) {
  Deno.test(`readAtRisk() with ${text} finds the smallest budget that holds the risk, waiting or not`, async () => {
    await using model = await tinyModel();
    const ids = idsOf(model), policy = resolvePolicy(text);
    const least = Math.max(1, policy.sinks + policy.window);
    for (const risk of [0.05, 0.3]) {
      const results = [];
      for (const maxCacheBytes of [2 ** 30, 1]) {
        const options = { policy, limit: risk, maxCacheBytes, outputWeights: weights(model), explain: true };
        const result = await readAtRisk(model, ids, options);
        using cache = result.cache;
        assert.ok(result.figures.reached <= risk, `${result.figures.reached}`);
        assert.ok(Math.abs(meanLargestMass(result.certificates!) - result.figures.reached) <= 1e-5);
        assert.equal(cache.position, ids.length);
        results.push({ kept: keptOf({ cache }), ...result });
      }
      const [waited, again] = results;
      const { perHead } = waited.budget;
      assert.deepEqual(again.kept, waited.kept);
      assert.deepEqual(again.certificates, waited.certificates);
      assert.deepEqual([again.budget.perHead, again.figures.reached], [perHead, waited.figures.reached]);
      assert.equal(waited.figures.passes, 1);
      if (perHead > least) {
        assert.ok(again.figures.passes >= 2);
        const smaller = await read(model, ids, text, perHead - 1, { explain: true });
        using _ = smaller.cache;
        assert.ok(meanLargestMass(smaller.certificates!) > risk, `${perHead - 1} would do for ${risk}`);
      }
      const same = await read(model, ids, text, perHead);
      using cache = same.cache;
      assert.deepEqual(keptOf({ cache }), waited.kept);
    }
  });
}

Deno.test("readAtRisk() says the true peak: all layers when they wait, one layer and the search when they don't", async () => {
  await using model = await tinyModel();
  const ids = idsOf(model, 3), policy = resolvePolicy("layer-defensive(window=8)");
  const { layers, kvHeads, headDim } = model.config, layerBytes = ids.length * kvHeads * headDim * 8;
  const peak = async (maxCacheBytes: number) => {
    const options = { policy, limit: 0.7, maxCacheBytes, outputWeights: weights(model) };
    const { cache, figures } = await readAtRisk(model, ids, options);
    cache[Symbol.dispose]();
    return figures.peakBytes;
  };
  assert.ok(await peak(layers * layerBytes) >= layers * layerBytes);
  const bounded = await peak(layers * layerBytes - 1);
  assert.ok(bounded >= layerBytes && bounded < layers * layerBytes, `${bounded} of ${layers * layerBytes}`);
});

Deno.test("readAtRisk() gives everything back when it is interrupted", async () => {
  await using model = await tinyModel();
  const before = model.backend.memory().allocatedBytes;
  const controller = new AbortController();
  const onLayer = () => controller.abort();
  const options = { policy: resolvePolicy("snapkv(window=8)"), limit: 0.1, maxCacheBytes: 1 };
  await assert.rejects(
    readAtRisk(model, idsOf(model), {
      ...options,
      outputWeights: weights(model),
      onLayer,
      signal: controller.signal,
    }),
    { name: "AbortError" },
  );
  assert.equal(model.backend.memory().allocatedBytes, before);
});

Deno.test("readContext() with a threshold evicts exactly what is less important", async () => {
  await using model = await tinyModel();
  const ids = idsOf(model), text = "defensive-risk(window=8, sinks=2)", threshold = 0.06;
  const { cache, certificates } = await read(model, ids, text, ids.length, { threshold, explain: true });
  using _ = cache;
  const whole = await read(model, ids, text, ids.length - 1);
  using __ = whole.cache;
  let evicted = 0;
  for (const layer of certificates!) {
    const { largestRisk } = summariseLayer(layer);
    assert.ok(largestRisk < threshold);
    evicted += layer.heads.reduce((sum, head) => sum + head.evicted, 0);
  }
  assert.ok(evicted > 0);
  assert.equal(evicted + cache.entries(), ids.length * model.config.layers * model.config.kvHeads);
  // A threshold just above the largest evicted importance takes that entry out as well; just at it, nothing more.
  const largest = Math.max(...certificates!.map((layer) => summariseLayer(layer).largestRisk));
  const at = await read(model, ids, text, ids.length, { threshold: largest });
  using ___ = at.cache;
  assert.ok(at.cache.entries() > cache.entries());
});

Deno.test("certificates are the same when entries leave while layers come, and when they leave at the end", async () => {
  await using model = await tinyModel();
  const ids = idsOf(model), text = "layer-defensive(window=8)";
  const streamed = await read(model, ids, text, 20, { explain: true });
  using _ = streamed.cache;
  const policy = resolvePolicy(text);
  // The largest risk that is not below what 20 tokens cost makes the search end there.
  const risk = meanLargestMass(streamed.certificates!) * (1 + 1e-4);
  const options = { policy, limit: risk, maxCacheBytes: 2 ** 30, outputWeights: weights(model), explain: true };
  const waited = await readAtRisk(model, ids, options);
  using __ = waited.cache;
  assert.equal(waited.budget.perHead, 20);
  const report = certificateReport(waited.certificates!), other = certificateReport(streamed.certificates!);
  report.layers.forEach(({ heads, ...layer }, i) => {
    const { heads: others, ...same } = other.layers[i];
    heads.forEach((head, h) => {
      assert.ok(Math.abs(head.riskSum - others[h].riskSum) <= 1e-6 * head.riskSum); // summed in the order of leaving
      assert.deepEqual({ ...head, riskSum: 0 }, { ...others[h], riskSum: 0 });
    });
    assert.deepEqual({ ...layer, riskSum: 0 }, { ...same, riskSum: 0 });
  });
});

const REFUSED: [string, Parameters<typeof resolveRisk>[0], string, OptionName[], string, string][] = [
  ["0", { risk: 0 }, "snapkv", [], "input", "risk.range"],
  ["1", { risk: 1 }, "snapkv", [], "input", "risk.range"],
  ["NaN", { risk: NaN }, "snapkv", [], "input", "risk.range"],
  ["a negative threshold", { riskWorst: -0.1 }, "defensive-risk", [], "input", "risk.range"],
  ["half a byte", { risk: 0.1, maxCacheBytes: 0.5 }, "snapkv", [], "input", "risk.range"],
  ["both risks", { risk: 0.1, riskWorst: 0.1 }, "defensive-risk", [], "usage", "risk.exclusive"],
  ["a budget beside it", { risk: 0.1 }, "snapkv", ["keep"], "usage", "risk.exclusive"],
  ["scores that are no importances", { riskWorst: 0.1 }, "snapkv", [], "input", "risk.policy"],
];

for (const [what, settings, policy, others, kind, code] of REFUSED) {
  Deno.test(`resolveRisk() refuses ${what}`, () => {
    assert.throws(() => resolveRisk(settings, resolvePolicy(policy), others), (error) => {
      assert.ok(error instanceof PalisadeError, String(error));
      assert.deepEqual([error.kind, error.code], [kind, code]);
      return true;
    });
  });
}

Deno.test("resolveRisk() takes a risk, a threshold, or neither", () => {
  const policy = resolvePolicy("defensive-risk");
  assert.equal(resolveRisk({}, policy, ["keep"]), undefined);
  assert.deepEqual(resolveRisk({ riskWorst: 0.1 }, policy, []), { kind: "worst", limit: 0.1 });
  const mean = { kind: "mean", limit: 0.1, maxCacheBytes: 2 ** 30 };
  assert.deepEqual(resolveRisk({ risk: 0.1 }, resolvePolicy("snapkv"), []), mean);
});

for (const { name } of policies.filter(({ name }) => !["gate", "judge-q", "kvzap"].includes(name))) {
  Deno.test(`openContext() with ${name} and a risk keeps what the budget it finds keeps`, async () => {
    await using model = await tinyModel();
    using context = await openContext(model, TEXT.repeat(3), { policy: name, risk: 0.1 });
    const { perHead } = context.budget;
    assert.ok(context.risk!.reached! <= 0.1);
    using same = await openContext(model, TEXT.repeat(3), { policy: name, keep: { tokens: perHead }, explain: true });
    assert.deepEqual(keptOf(same), keptOf(context));
    assert.ok(Math.abs(meanLargestMass(same.certificates!) - context.risk!.reached!) <= 1e-5);
  });
}
