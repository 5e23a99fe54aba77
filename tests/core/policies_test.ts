import assert from "node:assert/strict";
import fc from "fast-check";
import { selectLayer } from "../../core/select/allocate.ts";
import { type Keep, resolveBudget } from "../../core/select/budget.ts";
import { evictDump, type LayerDump, observeDump } from "../../core/dump/evict.ts";
import type { AttentionShape, ModelShape } from "../../core/shape.ts";
import { adakv } from "../../core/policies/adakv.ts";
import { randomSource } from "../../core/measure/random.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { answersTheSame, keepsItsBudget, keepsTheProtected, onlyReads } from "../_helper/laws.ts";
import { holds } from "../_helper/property.ts";

/** Every policy in our form, with variants of the parameters that stay open to measurement. */
const OURS = [
  ...policies.map(({ name }) => name),
  "random(seed=3, sinks=0, window=1)",
  "snapkv(window=3, kernel=1, sinks=0)",
  "adakv(random)",
  "adakv(layer-defensive, safeguard=1)",
  "critical-adakv(defensive, safeguard=0, first=1)",
  "defensive(norm=tokens, beta=window, forced=none)",
  "layer-defensive(norm=off, beta=none, forced=protect)",
  "kvzip(compete=head, window=3)",
  "self-gate(combine=risk, window=3)",
  "knorm(sinks=0, window=1)",
  "lagkv(lag=3)",
  "lagkv(lag=1, sinks=0)",
  "h2o(normalise=none)",
  "expected-attention(future=3, epsilon=0.01, norm=off)",
  "pyramidkv(beta=1)",
  "pyramidkv(beta=2, window=3, sinks=0)",
  "headkv(beta=1, window=3)",
  "cake(gamma=0, tau1=0.05, tau2=20, window=5)",
  "critical(snapkv)",
  "critical(expected-attention(norm=off), first=0)",
  "critical(pyramidkv, first=1)",
  "chunkkv(snapkv, chunk=20)",
  "chunkkv(headkv(window=4), chunk=3)",
  "adakv(expected-attention)",
  "adakv(h2o)",
  "adakv(pyramidkv(window=4))",
  "critical-adakv(headkv, safeguard=1)",
  "adakv(critical(tova))",
  "gate(combine=risk, norm=heads, compete=layer)",
  "gate(norm=tokens, sinks=0, window=1)",
  "adakv(gate, safeguard=0.5)",
  "defensive-risk(window=3, kernel=1, sinks=0)",
  "layer-defensive(norm=plain, window=4, kernel=255, coverage=1)",
];
const REFERENCE = policies.filter(({ reference }) => reference).map(({ name }) => `${name}@reference`);

interface Case {
  readonly shape: AttentionShape;
  readonly layers: LayerDump[];
  readonly length: number;
}

/** What a hostile dump may hold. */
type Flavour = "plain" | "zero keys" | "equal" | "huge" | "one spike" | "zero values" | "not finite";
const FLAVOURS: Flavour[] = ["plain", "zero keys", "equal", "huge", "one spike", "zero values", "not finite"];

function makeCase(
  seed: number,
  length: number,
  sizes: { kvHeads: number; group: number; layers: number },
  flavour: Flavour = "plain",
): Case {
  const { kvHeads, group, layers } = sizes;
  const shape = { heads: kvHeads * group, kvHeads, headDim: 4 };
  const next = randomSource(seed);
  const floats = (count: number, scale = 1) => Float32Array.from({ length: count }, () => (next() * 4 - 2) * scale);
  const kv = kvHeads * length * 4;
  return {
    shape,
    length,
    layers: Array.from({ length: layers }, (_, layer) => {
      const dump = {
        queries: floats(shape.heads * length * 4, flavour === "huge" ? 1e18 : 1),
        queryRows: length,
        keys: flavour === "zero keys" ? new Float32Array(kv) : floats(kv, flavour === "huge" ? 1e18 : 1),
        values: flavour === "zero values" ? new Float32Array(kv) : floats(kv),
        wo: floats(8 * shape.heads * 4, 1 + layer),
        reconstruction: floats(kvHeads * length),
        gate: floats(kvHeads * length),
        selfGate: new Float32Array(kvHeads * length),
        softTokens: new Float32Array(kvHeads * length),
        rotation: { pairs: "half" as const, rotated: 4, frequencies: Float64Array.of(1, 0.01) },
      };
      dump.softTokens.set(dump.reconstruction.toReversed());
      dump.selfGate.set(dump.gate.toReversed());
      if (flavour === "equal") { for (const array of [dump.queries, dump.keys, dump.values]) array.fill(0.5); }
      if (flavour === "one spike") dump.keys.fill(100, 8, 12);
      if (flavour === "not finite") [NaN, Infinity, -Infinity].forEach((bad, i) => dump.keys[(i * 7) % kv] = bad);
      return dump;
    }),
  };
}

const cases = fc.record({
  seed: fc.integer({ min: 0, max: 1e9 }),
  length: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 30, max: 60 })),
  kvHeads: fc.integer({ min: 1, max: 3 }),
  group: fc.integer({ min: 1, max: 2 }),
  layers: fc.integer({ min: 1, max: 3 }),
  flavour: fc.constantFrom(...FLAVOURS),
  percent: fc.integer({ min: 1, max: 100 }),
  tokens: fc.boolean(),
}).map(({ seed, length, flavour, percent, tokens, ...sizes }) => {
  const whole = Math.max(1, Math.floor(length * percent / 100));
  const keep: Keep = tokens ? { tokens: whole } : { fraction: Math.max(1 / length, percent / 100) };
  return { ...makeCase(seed, length, sizes, flavour), keep };
});

for (const text of OURS) {
  Deno.test(`${text} meets its budget exactly, keeps sinks and window, on any input`, () => {
    holds(
      fc.property(cases, ({ keep, ...each }) => {
        keepsItsBudget({ text }, each, keep);
        keepsTheProtected({ text }, each, keep);
      }),
      60,
    );
  });

  Deno.test(`${text} leaves its inputs alone and answers the same twice`, () => {
    const each = makeCase(11, 50, { kvHeads: 2, group: 2, layers: 2 });
    onlyReads({ text }, each, { fraction: 0.4 });
    answersTheSame({ text }, each, { fraction: 0.4 });
  });

  Deno.test(`${text} gives scores of [kvHeads, L] and no NaN on short contexts (Q4)`, () => {
    for (const length of [1, 2, 3, 5, 31, 32, 33, 34, 37, 40]) {
      for (const tokens of [1, 2, 4, 5, Math.ceil(length * 0.2), length - 1, length]) {
        if (tokens < 1 || tokens > length) continue;
        const each = makeCase(length, length, { kvHeads: 2, group: 1, layers: 2 });
        keepsItsBudget({ text }, each, { tokens });
        keepsTheProtected({ text }, each, { tokens });
        for (const scores of evictDump(text, { tokens }, each.shape, each.layers).scores) {
          assert.equal(scores.length, 2 * length);
          assert.ok(!scores.some(Number.isNaN), `${text} at L ${length}`);
        }
      }
    }
  });
}

for (const text of REFERENCE) {
  Deno.test(`${text} meets the published budget exactly on any context beyond its window`, () => {
    holds(
      fc.property(cases, fc.integer({ min: 1, max: 9 }), ({ keep: _, ...each }, tenths) => {
        const keep = { ratio: tenths / 10 };
        if (each.length <= resolvePolicy(text).window || Math.trunc(each.length * (1 - keep.ratio)) < 1) return;
        keepsItsBudget({ text }, each, keep);
      }),
      60,
    );
  });
}

Deno.test("defensive@reference forces nearly all of a short prompt, as published (Q4), and ours does not", () => {
  const { shape, layers, length } = makeCase(3, 100, { kvHeads: 1, group: 1, layers: 1 });
  const forced = (text: string) => {
    const { scores } = evictDump(text, { ratio: 0.8 }, shape, layers);
    const top = Math.max(...scores[0]);
    return scores[0].subarray(0, length - 32).reduce((count, score) => count + (score === top ? 1 : 0), 0);
  };
  assert.ok(forced("defensive@reference(coverage=1)") >= 50); // cap = trunc(68 · 0.2 − 32) = −18: all but 18 may be forced
  assert.ok(forced("defensive(coverage=1)") <= 1);
});

Deno.test("layer-defensive keeps what defensive keeps when there is one layer", () => {
  holds(
    fc.property(cases, ({ shape, layers, length, keep }) => {
      const one = layers.slice(0, 1);
      if (length < 2) return;
      for (const mode of ["", "(forced=protect, beta=window)"]) {
        const [a, b] = ["defensive", "layer-defensive"].map((name) => evictDump(name + mode, keep, shape, one).kept);
        assert.deepEqual(a, b);
      }
    }),
    100,
  );
});

Deno.test("the defensive policies don't change when all values or the output projection are scaled", () => {
  const { shape, layers } = makeCase(21, 60, { kvHeads: 2, group: 2, layers: 3 });
  const scaled = (name: "values" | "wo") => layers.map((dump) => ({ ...dump, [name]: dump[name]!.map((x) => x * 8) }));
  for (const text of ["defensive", "layer-defensive", "defensive@reference", "layer-defensive(norm=tokens)"]) {
    const { kept } = evictDump(text, { fraction: 0.3 }, shape, layers);
    for (const name of ["values", "wo"] as const) {
      assert.deepEqual(evictDump(text, { fraction: 0.3 }, shape, scaled(name)).kept, kept, `${text}, ${name}`);
    }
  }
});

Deno.test("adakv makes every head sure of its safeguard, however low its scores", () => {
  const model: ModelShape = { heads: 2, kvHeads: 2, headDim: 1, layers: 1 };
  // Head 0 scores 10 … 19, head 1 scores 0 … 9.
  const scores = Float32Array.from({ length: 20 }, (_, i) => i < 10 ? 10 + i : i - 10);
  const scorer = { ...resolvePolicy("snapkv"), score: () => ({ scores }) };
  const kept = (safeguard: number) => {
    const policy = adakv.create({ safeguard }, "ours", scorer);
    const budget = resolveBudget(policy, { tokens: 5 }, 10, model);
    const observation = { layer: 0, shape: model, length: 10, window: 1 };
    return selectLayer(policy, budget, policy.score(observation, budget)).map((head) => [...head]);
  };
  assert.deepEqual(kept(0), [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], []]);
  assert.deepEqual(kept(0.4), [[2, 3, 4, 5, 6, 7, 8, 9], [8, 9]]);
  assert.deepEqual(kept(0.59), [[2, 3, 4, 5, 6, 7, 8, 9], [8, 9]]);
  assert.deepEqual(kept(1), [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]]);
});

Deno.test("the defensive policies rank floored entries by their risk before the floor", () => {
  const shape = { heads: 1, kvHeads: 1, headDim: 1 };
  // The mean, 0.3, floors the first three alike.
  const pooledMax = Float32Array.of(0.1, 0.2, 0.05, 0.85), mean = pooledMax;
  for (const name of ["defensive", "layer-defensive"]) {
    const policy = resolvePolicy(`${name}(norm=off, forced=none, window=1, sinks=0)`);
    const budget = resolveBudget(policy, { tokens: 3 }, 5, { ...shape, layers: 1 });
    const scores = policy.score({ layer: 0, shape, length: 5, window: 1, pooledMax, mean }, budget);
    assert.deepEqual([...selectLayer({ allocate: { kind: "layer" } }, budget, scores)[0]], [1, 3, 4], name);
  }
});

Deno.test("random follows its seed and differs between layers", () => {
  const { shape, layers } = makeCase(1, 100, { kvHeads: 1, group: 1, layers: 2 });
  const kept = (text: string) => evictDump(text, { fraction: 0.5 }, shape, layers).kept;
  assert.deepEqual(kept("random(seed=9)"), kept("random(seed=9)"));
  assert.notDeepEqual(kept("random(seed=9)"), kept("random(seed=10)"));
  assert.notDeepEqual(kept("random")[0], kept("random")[1]);
});

Deno.test("streaming-llm keeps the first four and the most recent", () => {
  const { shape, layers } = makeCase(1, 20, { kvHeads: 1, group: 1, layers: 1 });
  for (const text of ["streaming-llm", "streaming-llm@reference"]) {
    assert.deepEqual([...evictDump(text, { tokens: 7 }, shape, layers).kept[0][0]], [0, 1, 2, 3, 17, 18, 19]);
  }
  assert.deepEqual([...evictDump("streaming-llm", { tokens: 2 }, shape, layers).kept[0][0]], [0, 19]);
});

Deno.test("kvzip keeps the best scores over all layers, its uniform variants those of each layer or head", () => {
  const { shape, layers, length } = makeCase(41, 20, { kvHeads: 2, group: 1, layers: 2 });
  const [low, high] = layers.map((dump, layer) => ({ ...dump, reconstruction: dump.keys.slice(0, 40).fill(layer) }));
  const sizes = (text: string) =>
    evictDump(text, { tokens: 10 }, shape, [low, high]).kept.map((heads) => heads.map((head) => head.length));
  assert.deepEqual(sizes("kvzip(sinks=0)"), [[0, 0], [length, length]]);
  assert.deepEqual(sizes("kvzip(sinks=3)"), [[3, 3], [length, 14]]);
  assert.deepEqual(sizes("kvzip(compete=layer, sinks=0)"), [[20, 0], [20, 0]]);
  assert.deepEqual(sizes("kvzip(compete=head)"), [[10, 10], [10, 10]]);
});

Deno.test("gate(combine=risk) is never below what the gate or the risk says", () => {
  const { shape, layers } = makeCase(43, 50, { kvHeads: 2, group: 2, layers: 1 });
  const of = (text: string) => evictDump(text, { tokens: 40 }, shape, layers).scores[0];
  const [alone, both, risk] = ["gate", "gate(combine=risk, window=32)", "defensive(norm=off, forced=none)"].map(of);
  both.forEach((score, i) => {
    assert.ok(score >= Math.fround(Math.exp(alone[i])));
    if (i % 50 < 18) assert.equal(score, Math.max(Math.fround(Math.exp(alone[i])), risk[i]));
  });
});

Deno.test("gate refuses to stream what needs the whole context", () => {
  assert.equal(resolvePolicy("gate(read=stream)").evicts, "early");
  assert.equal(resolvePolicy("gate").evicts, "late");
  for (const late of ["combine=risk", "norm=plain"]) {
    assert.throws(() => resolvePolicy(`gate(read=stream, ${late})`), { code: "policy.value" });
  }
});

Deno.test("judge-q keeps the neighbours of what soft tokens attend to, per head", () => {
  const { shape, layers: [dump] } = makeCase(3, 40, { kvHeads: 2, group: 1, layers: 1 });
  const softTokens = new Float32Array(80).fill(0.001);
  softTokens[10] = softTokens[40 + 20] = 1;
  const { kept, scores } = evictDump("judge-q(window=2, sinks=1)", { tokens: 8 }, shape, [{ ...dump, softTokens }]);
  assert.deepEqual(kept[0].map((head) => [...head]), [[0, 8, 9, 10, 11, 12, 38, 39], [0, 18, 19, 20, 21, 22, 38, 39]]);
  assert.ok(Math.abs(scores[0][8] - 1.004 / 5) < 1e-6);
});

Deno.test("full keeps everything", () => {
  const { shape, layers } = makeCase(1, 9, { kvHeads: 2, group: 1, layers: 1 });
  const { kept } = evictDump("full", { tokens: 1 }, shape, layers);
  assert.deepEqual(kept[0].map((head) => head.length), [9, 9]);
});

Deno.test("keep 100 % keeps everything under every policy", () => {
  const { shape, layers } = makeCase(1, 40, { kvHeads: 2, group: 1, layers: 2 });
  for (const text of [...OURS, ...REFERENCE]) {
    const { kept } = evictDump(text, { fraction: 1 }, shape, layers);
    assert.ok(kept.flat().every((head) => head.length === 40), text);
  }
});

Deno.test("evictDump() takes a resolved policy and gives rows to policies that ask for them", () => {
  const { shape, layers, length } = makeCase(1, 40, { kvHeads: 2, group: 1, layers: 1 });
  const policy = { ...resolvePolicy("random"), needs: { rows: true } };
  assert.equal(evictDump(policy, { tokens: 36 }, shape, layers).kept[0][0].length, 36);
  const budget = resolveBudget(policy, { tokens: 36 }, length, { ...shape, layers: 1 });
  assert.equal(observeDump(layers[0], 0, budget, policy.needs).keys, layers[0].keys);
});

Deno.test("evictDump() refuses dumps that don't fit", () => {
  const { shape, layers: [dump] } = makeCase(1, 40, { kvHeads: 2, group: 1, layers: 1 });
  const run = (change: Partial<LayerDump>, policy = "defensive") =>
    evictDump(policy, { fraction: 0.9 }, shape, [{ ...dump, ...change }]);
  assert.throws(() => run({ gate: undefined }, "gate"), /Dump has 0 gate scores: want 2 heads × 40/);
  assert.throws(() => run({ reconstruction: new Float32Array(4) }, "kvzip"), /Dump has 4 reconstruction scores/);
  assert.throws(() => run({ softTokens: undefined }, "judge-q"), /Dump has 0 softTokens scores/);
  assert.throws(() => run({ values: new Float32Array(3) }), /Dump values have 3 floats: want 320/);
  assert.throws(() => run({ wo: undefined }), /no output projection/);
  assert.throws(
    () => run({ queryRows: 8, queries: new Float32Array(64) }),
    /8 queries: want at least the window of 32/,
  );
  assert.throws(() => run({ queries: new Float32Array(64) }), /Dump queries/);
  assert.throws(() => evictDump("snapkv", { fraction: 0.5 }, shape, []), /no tokens/);
  const late = { queryRows: 36, queries: new Float32Array(2 * 36 * 4) };
  assert.throws(() => run(late, "h2o"), /36 queries: the policy needs those of all 40 tokens/);
  assert.throws(() => run(late, "expected-attention"), /those of all 40 tokens/);
  assert.throws(() => run({ rotation: undefined }, "expected-attention"), /no rotation/);
});

Deno.test("selectLayer() refuses a policy whose layers compete", () => {
  const model: ModelShape = { heads: 1, kvHeads: 1, headDim: 1, layers: 1 };
  const policy = resolvePolicy("layer-defensive");
  const budget = resolveBudget(policy, { tokens: 1 }, 2, model);
  assert.throws(() => selectLayer(policy, budget, { scores: new Float32Array(2) }), /can't be decided alone/);
});

Deno.test("self-gate keeps what scores highest, raised by the risk where that is asked for and seen", () => {
  const { shape, layers: [dump] } = makeCase(3, 40, { kvHeads: 2, group: 2, layers: 1 });
  const selfGate = new Float32Array(80).fill(-9);
  selfGate[10] = selfGate[40 + 20] = -1;
  const { kept } = evictDump("self-gate(sinks=1, compete=head)", { tokens: 2 }, shape, [{ ...dump, selfGate }]);
  assert.deepEqual(kept, [[Int32Array.of(0, 10), Int32Array.of(0, 20)]]);
  const raised = evictDump("self-gate(combine=risk, window=2)", { tokens: 8 }, shape, [{ ...dump, selfGate }]);
  assert.ok(raised.scores[0].every((score, i) => score >= Math.fround(Math.exp(selfGate[i]))));
  assert.ok(raised.scores[0].some((score, i) => score > 10 * Math.exp(selfGate[i])));
  assert.throws(() => resolvePolicy("self-gate(combine=risk)"), { code: "policy.value" });
});
