import assert from "node:assert/strict";
import fc from "fast-check";
import { checkKeep, type Keep, parseKeep, resolveBudget } from "../../core/select/budget.ts";
import { PalisadeError } from "../../core/errors.ts";
import { resolvePolicy } from "../../core/policy/registry.ts";
import { holds } from "../_helper/property.ts";

const MODEL = { heads: 6, kvHeads: 2, headDim: 8, layers: 3 };

function refused(action: () => unknown, code: string, where = "keep"): void {
  assert.throws(action, (error) => {
    assert.ok(error instanceof PalisadeError, String(error));
    assert.deepEqual([error.kind, error.code, error.where], ["input", code, where]);
    return true;
  });
}

const ACCEPTED: [string, Keep][] = [
  ["20%", { fraction: 0.2 }],
  ["0.2", { fraction: 0.2 }],
  [".2", { fraction: 0.2 }],
  ["1.0", { fraction: 1 }],
  ["1.", { fraction: 1 }],
  ["100%", { fraction: 1 }],
  ["12.5%", { fraction: 0.125 }],
  ["1", { tokens: 1 }],
  ["800", { tokens: 800 }],
  ["+800", { tokens: 800 }],
  [" 20% ", { fraction: 0.2 }],
  ["20 %", { fraction: 0.2 }],
  ["007", { tokens: 7 }],
];
for (const [text, keep] of ACCEPTED) {
  Deno.test(`parseKeep() reads "${text}"`, () => assert.deepEqual(parseKeep(text), keep));
}

const UNREADABLE = [
  "",
  " ",
  "abc",
  "1e3",
  "NaN",
  "Infinity",
  "20  %",
  "0x10",
  "1,5",
  "%",
  ".",
  "-",
  "20%%",
  "1.2.3",
  "٣",
];
for (const text of UNREADABLE) {
  Deno.test(`parseKeep() refuses "${text}" as no number`, () => refused(() => parseKeep(text), "keep.syntax"));
}

for (const text of ["0", "-5", "0%", "0.0", "-0.2", "200%", "1.5", "100.1%", "99999999999999999999"]) {
  Deno.test(`parseKeep() refuses "${text}" as out of range`, () => refused(() => parseKeep(text), "keep.range"));
}

Deno.test("parseKeep() never throws anything but a PalisadeError", () => {
  holds(
    fc.property(fc.string(), (text) => {
      try {
        checkKeep(parseKeep(text));
      } catch (error) {
        assert.ok(error instanceof PalisadeError);
      }
    }),
    1000,
  );
});

Deno.test("checkKeep() refuses numbers a program may bring", () => {
  const bad: Keep[] = [{ fraction: NaN }, { fraction: 0 }, { fraction: 1.01 }, { tokens: 0 }, { tokens: 2.5 }, {
    tokens: NaN,
  }];
  for (const keep of [...bad, { ratio: 1 }, { ratio: -0.1 }, { ratio: NaN }]) {
    refused(() => checkKeep(keep), "keep.range");
  }
});

Deno.test("resolveBudget() floors with room for rounding errors", () => {
  const policy = resolvePolicy("layer-defensive");
  const counts = (fraction: number, length: number) => {
    const { perHead, perLayer, total } = resolveBudget(policy, { fraction }, length, MODEL);
    return [perHead, perLayer, total];
  };
  assert.deepEqual(counts(0.2, 300), [60, 120, 360]);
  assert.deepEqual(counts(0.2, 301), [60, 120, 361]);
  assert.deepEqual(counts(0.29, 100), [29, 58, 174]); // 0.29 · 100 = 28.999999999999996
});

Deno.test("resolveBudget() counts heads × n per layer for Ada-KV policies", () => {
  assert.equal(resolveBudget(resolvePolicy("adakv"), { fraction: 0.205 }, 301, MODEL).perLayer, 2 * 61);
  assert.equal(resolveBudget(resolvePolicy("defensive"), { fraction: 0.205 }, 301, MODEL).perLayer, 123);
});

Deno.test("resolveBudget() uses the published arithmetic left to right for @reference", () => {
  const { perHead, perLayer, total } = resolveBudget(
    resolvePolicy("layer-defensive@reference"),
    { ratio: 0.8 },
    300,
    MODEL,
  );
  assert.deepEqual([perHead, perLayer, total], [59, 119, 359]);
});

Deno.test("resolveBudget() multiplies the heads in last for @reference: another order rounds otherwise", () => {
  const model = { ...MODEL, kvHeads: 3 };
  const perLayer = (length: number) =>
    resolveBudget(resolvePolicy("defensive@reference"), { ratio: 0.3 }, length, model).perLayer;
  // 60 · 3 · 0.7 = 125.99999999999999 and 90 · 3 · 0.7 = 189
  assert.deepEqual([perLayer(60), perLayer(90)], [126, 188]);
});

Deno.test("resolveBudget() takes the ratio a user meant from a fraction", () => {
  const policy = resolvePolicy("snapkv@reference");
  for (const [fraction, ratio] of [[0.2, 0.8], [0.9, 0.1], [0.1, 0.9], [0.7, 0.3], [0.05, 0.95]]) {
    for (const length of [97, 100, 300, 513, 1000]) {
      const [a, b] = [{ fraction }, { ratio }].map((keep) => resolveBudget(policy, keep, length, MODEL));
      assert.deepEqual(a, b);
    }
  }
});

Deno.test("resolveBudget() takes a ratio for our policies as well", () => {
  assert.equal(resolveBudget(resolvePolicy("snapkv"), { ratio: 0.9 }, 1000, MODEL).perHead, 100);
});

Deno.test("resolveBudget() counts tokens exactly and caps them at the context", () => {
  for (const name of ["snapkv", "snapkv@reference", "layer-defensive"]) {
    const some = resolveBudget(resolvePolicy(name), { tokens: 40 }, 300, MODEL);
    assert.deepEqual([some.perHead, some.perLayer, some.total], [40, 80, 240]);
    const all = resolveBudget(resolvePolicy(name), { tokens: 5000 }, 300, MODEL);
    assert.deepEqual([all.perHead, all.total, all.fraction], [300, 1800, 1]);
  }
});

Deno.test("resolveBudget() shrinks the window first, then the sinks", () => {
  const policy = resolvePolicy("snapkv");
  const span = (tokens: number) => {
    const { sinks, window, windowAsked } = resolveBudget(policy, { tokens }, 300, MODEL);
    return [sinks, window, windowAsked];
  };
  assert.deepEqual(span(36), [4, 32, 32]);
  assert.deepEqual(span(35), [4, 31, 32]);
  assert.deepEqual(span(5), [4, 1, 32]);
  assert.deepEqual(span(4), [3, 1, 32]);
  assert.deepEqual(span(1), [0, 1, 32]);
});

Deno.test("resolveBudget() never lets a window outgrow a short context", () => {
  for (let length = 1; length < 50; length++) {
    const { sinks, window } = resolveBudget(resolvePolicy("snapkv"), { fraction: 1 }, length, MODEL);
    assert.ok(sinks + window <= length && window >= 1);
  }
});

Deno.test("resolveBudget() keeps all for full, whatever is asked", () => {
  assert.equal(resolveBudget(resolvePolicy("full"), { fraction: 0.001 }, 10, MODEL).total, 60);
});

Deno.test("resolveBudget() refuses no tokens, nothing kept, and a published window as long as the context", () => {
  const ours = resolvePolicy("snapkv"), published = resolvePolicy("snapkv@reference");
  refused(() => resolveBudget(ours, { fraction: 0.2 }, 0, MODEL), "context.empty", "context");
  refused(() => resolveBudget(ours, { fraction: 0.2 }, 4, MODEL), "keep.nothing");
  refused(() => resolveBudget(published, { ratio: 0.5 }, 32, MODEL), "context.short", "context");
  refused(() => resolveBudget(ours, { fraction: 2 }, 4, MODEL), "keep.range");
  assert.equal(resolveBudget(published, { ratio: 0 }, 32, MODEL).perHead, 32);
});
