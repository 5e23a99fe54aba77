/** Policies without golden data, against their definitions on numbers small enough to follow. */
import assert from "node:assert/strict";
import { selectLayer } from "../../core/select/allocate.ts";
import { resolveBudget } from "../../core/select/budget.ts";
import { evictDump } from "../../core/dump/evict.ts";
import type { HeadScores, Observation, Policy } from "../../core/policy/policy.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { crossLayerSelection } from "../../core/select/cross_layer.ts";
import { makeDump } from "../_helper/dumps.ts";

const counts = (text: string, tokens: number, layers: number, length = 100) => {
  const dump = makeDump(3, { length, kvHeads: 2, group: 2, layers });
  const { kept } = evictDump(text, { tokens }, dump.shape, dump.layers);
  return kept.map((heads) => heads.map((head) => head.length));
};

Deno.test("pyramidkv lays a falling line through the budget, exact in its sum", () => {
  // 20 of 100 stay, 4 sinks and 6 window: F = 10, so the line goes from 2·10 − 10/5 = 18 to 10/5 = 2.
  assert.deepEqual(counts("pyramidkv(beta=5, window=6)", 20, 5), [[28, 28], [24, 24], [20, 20], [16, 16], [12, 12]]);
  assert.deepEqual(counts("pyramidkv(beta=1, window=6)", 20, 3), [[20, 20], [20, 20], [20, 20]]);
});

Deno.test("pyramidkv lays its line flatter where the first layer has no more to keep", () => {
  // F = 70 of a prefix of 90: 2·70 − 7 is more than that, so 90 … 50.
  assert.deepEqual(counts("pyramidkv(beta=10, window=6)", 80, 3), [[100, 100], [80, 80], [60, 60]]);
});

Deno.test("pyramidkv@reference keeps the published counts", () => {
  const layerCounts = (ratio: number, beta: number, layers: number, length = 100, window = 2) => {
    const { shape, layers: dumps } = makeDump(3, { length, kvHeads: 1, group: 1, layers });
    const text = `pyramidkv@reference(beta=${beta}, window=${window})`;
    return evictDump(text, { ratio }, shape, dumps).kept.map(([head]) => head.length);
  };
  // capacity 2 + 50: last 50/20 = 2.5, first 97.5 → 97.5, 50, 2.5, rounded half to even.
  assert.deepEqual(layerCounts(0.5, 20, 3), [98, 50, 2]);
  // last 20/20 = 1 is below the window: the even budget.
  assert.deepEqual(layerCounts(0.8, 20, 3), [20, 20, 20]);
  // first 2·75 − 3.75 is more than the prefix: 98 … 52.
  assert.deepEqual(layerCounts(0.25, 20, 2), [98, 52]);
});

Deno.test("headkv shares what beta says by head scores, query heads of a group together", () => {
  const scores: HeadScores = [[1, 0, 0, 1], [3, 3, 0, 0]];
  const kept = (text: string, headScores: HeadScores) => {
    const { shape, layers } = makeDump(3, { length: 100, kvHeads: 2, group: 2, layers: 2 });
    const policy = resolvePolicy(text, { headScores: new Map([["a.json", headScores]]) });
    return evictDump(policy, { tokens: 26 }, shape, layers).kept.map((heads) => heads.map((head) => head.length));
  };
  // F = 16 a head: 8 its own, 8 · 4 shared as 1 : 1 : 6 : 0.
  assert.deepEqual(kept("headkv(file=a.json, beta=2, window=6)", scores), [[22, 22], [42, 18]]);
  assert.deepEqual(kept("headkv(file=a.json, beta=2, window=6)", [[1, 1], [6, 0]]), [[22, 22], [42, 18]]);
  assert.deepEqual(kept("headkv(file=a.json, beta=1, window=6)", scores), [[18, 18], [58, 10]]);
  assert.deepEqual(kept("headkv(window=6)", scores), [[26, 26], [26, 26]]);
});

Deno.test("headkv never gives a head more than the context holds", () => {
  const { shape, layers } = makeDump(3, { length: 50, kvHeads: 1, group: 1, layers: 3 });
  const policy = resolvePolicy("headkv(file=a, beta=1, window=1, sinks=0)", {
    headScores: new Map([["a", [[1], [0], [2]]]]),
  });
  const sizes = evictDump(policy, { tokens: 30 }, shape, layers).kept.map(([head]) => head.length);
  assert.deepEqual(sizes, [39, 1, 50]);
});

Deno.test("headkv refuses head scores of another model", () => {
  const { shape, layers } = makeDump(3, { length: 50, kvHeads: 2, group: 2, layers: 2 });
  for (const bad of [[[1, 1, 1, 1]], [[1, 1, 1], [1, 1, 1]], [[1, 1], [1]], []]) {
    const policy = resolvePolicy("headkv(file=a)", { headScores: new Map([["a", bad]]) });
    assert.throws(() => evictDump(policy, { tokens: 40 }, shape, layers), { code: "policy.heads" });
  }
});

/** A policy run on observations made by hand. */
function runOn(policy: Policy, observations: readonly Partial<Observation>[], length: number, tokens: number) {
  const shape = { heads: 1, kvHeads: 1, headDim: 1 };
  const budget = resolveBudget(policy, { tokens }, length, { ...shape, layers: observations.length });
  const scores = observations.map((each, layer) =>
    policy.score({ layer, shape, length, window: budget.window, ...each }, budget)
  );
  const selection = crossLayerSelection(policy, budget);
  scores.forEach((each, layer) => selection?.add(layer, each));
  const kept = scores.map((each, layer) => selection?.kept(layer) ?? selectLayer(policy, budget, each));
  return { scores, kept: kept.map(([head]) => [...head]) };
}

Deno.test("cake splits by entropy and variance, and scores by mean and variance", () => {
  const layer = (entropy: number, variance: number[]) => ({
    mean: Float32Array.of(0.1, 0.2, 0.3, 0.05, 0.05, 0.1, 0.1, 0.1),
    variance: Float32Array.from(variance),
    entropy: Float32Array.of(entropy, entropy),
  });
  const flat = new Array(8).fill(0.01);
  const policy = resolvePolicy("cake(tau1=1, tau2=0.5, gamma=10, kernel=1, window=2, sinks=0)");
  const { scores, kept } = runOn(
    policy,
    [layer(1, flat), layer(3, flat), layer(1, flat.map((v) => v * 1.4142135))],
    10,
    5,
  );
  const total = 8 * 0.01;
  const near = (got: number, want: number) => assert.ok(Math.abs(got / want - 1) < 1e-5, `${got}, want ${want}`);
  near(scores[0].preference!, 2 * total ** 2);
  near(scores[1].preference!, 6 * total ** 2);
  near(scores[2].preference!, 2 * 2 * total ** 2);
  near(scores[0].scores[2], 0.3 + 10 * 0.01);
  // 3 layers × (5 − 2) free entries as 1 : 3 : 2.
  assert.deepEqual(kept.map((head) => head.length), [2 + 2, 2 + 4, 2 + 3]);
  assert.deepEqual(kept[0], [1, 2, 8, 9]);
});

Deno.test("cake splits evenly when no layer's attention moves", () => {
  const still = { mean: new Float32Array(8), variance: new Float32Array(8), entropy: new Float32Array(2) };
  const { kept } = runOn(resolvePolicy("cake(window=2, sinks=0)"), [still, still, still], 10, 5);
  assert.deepEqual(kept.map((head) => head.length), [5, 5, 5]);
});

Deno.test("cake gives layers of a dump unequal shares that meet the budget", () => {
  const { shape, layers } = makeDump(9, { length: 60, kvHeads: 2, group: 2, layers: 6 });
  const { policy, budget, kept } = evictDump("cake(window=8)", { tokens: 20 }, shape, layers);
  const sizes = kept.map(([head]) => head.length);
  assert.ok(new Set(sizes).size > 1, `layers keep ${sizes}`);
  assert.equal(sizes.reduce((a, b) => a + b, 0), 6 * budget.perHead);
  assert.equal(policy.allocate.kind, "cascade");
});

Deno.test("critical keeps half by score and half by score and value norm", () => {
  const scorer: Policy = {
    ...resolvePolicy("random(sinks=0, window=1)"),
    sinks: 0,
    window: 0,
    score: () => ({ scores: Float32Array.of(9, 8, 7, 6, 5, 4, 3, 2) }),
  };
  const norms = Float32Array.of(1, 1, 1, 1, 2, 4, 1, 9);
  const entry = resolvePolicyOver("critical", scorer);
  assert.deepEqual(runOn(entry(0.5), [{ valueNorms: norms }], 8, 4).kept[0], [0, 1, 5, 7]);
  assert.deepEqual(runOn(entry(1), [{ valueNorms: norms }], 8, 4).kept[0], [0, 1, 2, 3]);
  assert.deepEqual(runOn(entry(0), [{ valueNorms: norms }], 8, 4).kept[0], [0, 4, 5, 7]);
  // Where all scores are 0 the norms decide, thanks to the epsilon.
  const blind = resolvePolicyOver("critical", { ...scorer, score: () => ({ scores: new Float32Array(8) }) });
  assert.deepEqual(runOn(blind(0), [{ valueNorms: norms }], 8, 3).kept[0], [4, 5, 7]);
});

Deno.test("chunkkv keeps whole chunks and cuts the last one to its best entries", () => {
  const scorer: Policy = {
    ...resolvePolicy("random(sinks=0, window=1)"),
    sinks: 0,
    window: 0,
    // Chunks of 3 mean 2, 5, 4 and (the rest) 3.
    score: () => ({ scores: Float32Array.of(0, 0, 6, 5, 4, 6, 2, 9, 1, 3) }),
  };
  const kept = (chunk: number, tokens: number) =>
    runOn(resolvePolicyOver("chunkkv", scorer)(chunk), [{}], 10, tokens).kept[0];
  assert.deepEqual(kept(3, 3), [3, 4, 5]);
  assert.deepEqual(kept(3, 6), [3, 4, 5, 6, 7, 8]);
  assert.deepEqual(kept(3, 5), [3, 4, 5, 6, 7]);
  assert.deepEqual(kept(3, 7), [3, 4, 5, 6, 7, 8, 9]);
  assert.deepEqual(kept(1, 3), [2, 5, 7]);
});

Deno.test("chunkkv keeps the same chunks in all heads, and protected entries don't speak for their chunk", () => {
  const { shape, layers } = makeDump(4, { length: 60, kvHeads: 2, group: 1, layers: 1 });
  const { kept: [[one, other]] } = evictDump(
    "chunkkv(knorm(sinks=0, window=1), chunk=5)",
    { tokens: 20 },
    shape,
    layers,
  );
  assert.deepEqual(one.filter((i) => i < 55), other.filter((i) => i < 55));
  // The window, 53 … 59, scores SnapKV's maximum + 1; the chunk it begins in, 50 … 54, must not rise with it.
  const scoresOf = (text: string) => evictDump(text, { tokens: 30 }, shape, layers).scores[0];
  const own = scoresOf("snapkv(window=7)"), chunked = scoresOf("chunkkv(snapkv(window=7), chunk=5)");
  const mean = (at: number) => (own[at] + own[at + 1] + own[at + 2]) / 3;
  assert.ok(Math.abs(chunked[50] - mean(50) - mean(110)) < 1e-6);
});

/** An entry of the registry over a scorer made by hand, by its only parameter. */
function resolvePolicyOver(name: "critical" | "chunkkv", scorer: Policy): (value: number) => Policy {
  return (value) => {
    const [entry] = policies.filter((each) => each.name === name);
    return entry.create({ [entry.parameters[0].name]: value }, "ours", scorer);
  };
}
