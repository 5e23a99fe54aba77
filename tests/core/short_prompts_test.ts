/** Prompts on which published code fails or keeps nonsense: one test for each way, and what ours does instead. */
import assert from "node:assert/strict";
import { PalisadeError } from "../../core/errors.ts";
import { evictDump, type LayerDump } from "../../core/dump/evict.ts";
import type { Keep } from "../../core/select/budget.ts";
import { makeDump } from "../_helper/dumps.ts";

const SIZES = { kvHeads: 2, group: 2, layers: 2 };

function keptOf(text: string, length: number, keep: Keep, change: (dump: LayerDump) => LayerDump = (dump) => dump) {
  const { shape, layers } = makeDump(17, { length, ...SIZES });
  const { kept, scores, budget } = evictDump(text, keep, shape, layers.map(change));
  for (const row of scores) assert.ok(!row.some(Number.isNaN), `${text} scores NaN at L ${length}`);
  return { kept: kept.map((heads) => heads.map((head) => [...head])), scores, budget };
}

/** Every head of every layer keeps these. */
function allKeep(kept: readonly number[][][], positions: readonly number[]): void {
  for (const head of kept.flat()) for (const i of positions) assert.ok(head.includes(i), `${head} lacks ${i}`);
}

Deno.test("a context no longer than the window is read, where published code asserts", () => {
  for (const text of ["snapkv", "pyramidkv", "cake", "headkv", "critical", "chunkkv", "adakv", "defensive-risk"]) {
    for (const length of [2, 5, 31, 32, 33]) {
      const { kept, budget } = keptOf(text, length, { tokens: Math.ceil(length / 2) });
      assert.equal(kept.flat(2).length, 4 * budget.perHead, `${text} at L ${length}`);
      assert.ok(budget.window < budget.windowAsked);
      allKeep(kept, [length - 1]);
    }
  }
  for (const text of ["snapkv@reference", "pyramidkv@reference"]) {
    assert.throws(
      () => keptOf(text, 32, { ratio: 0.5 }),
      (error) => error instanceof PalisadeError && error.code === "context.short",
    );
  }
});

Deno.test("a budget below the window shrinks the window, where snapkv@reference cuts into it at random places", () => {
  const ours = keptOf("snapkv", 100, { ratio: 0.8 });
  assert.deepEqual([ours.budget.sinks, ours.budget.window], [4, 16]);
  allKeep(ours.kept, [0, 1, 2, 3, 84, 99]);
  const published = keptOf("snapkv@reference", 100, { ratio: 0.8 });
  assert.ok(published.kept.flat().every((head) => head.length === 19 && head.every((i) => i >= 68)));
});

Deno.test("defensive does not force entries on a short prompt (Q4: the published cap is negative)", () => {
  const top = (text: string) => {
    const { scores } = keptOf(text, 100, { ratio: 0.8 });
    const prefix = scores[0].subarray(0, 68), most = Math.max(...scores[0]);
    return prefix.filter((score) => score === most).length;
  };
  assert.ok(top("defensive@reference(coverage=1)") >= 50);
  assert.ok(top("defensive(coverage=1)") <= 1);
});

Deno.test("rows without any attention on the prefix count 0, where published code divides by 0 (Q7)", () => {
  // The window's queries look at the window only: e^−200 of the rest is 0 in float32.
  const { shape, layers } = makeDump(17, { length: 40, kvHeads: 1, group: 1, layers: 1 });
  const away = layers.map((dump) => {
    const keys = dump.keys.map((_, i) => i < 2 * 36 ? -1000 : 1000);
    return { ...dump, queries: dump.queries.map(() => 1), keys };
  });
  for (
    const text of ["defensive(window=4)", "layer-defensive(window=4)", "defensive-risk(window=4)", "cake(window=4)"]
  ) {
    const { kept, scores } = evictDump(text, { tokens: 10 }, shape, away);
    assert.equal(kept[0][0].length, 10);
    assert.ok(!scores[0].some(Number.isNaN), text);
  }
});

Deno.test("expected-attention reads a context of sinks only, where published code asserts", () => {
  for (const text of ["expected-attention", "expected-attention@reference"]) {
    for (const length of [2, 3, 4, 5]) {
      const { kept } = keptOf(text, length, { tokens: length - 1 });
      assert.equal(kept.flat(2).length, 4 * (length - 1), `${text} at L ${length}`);
    }
  }
});

Deno.test("streaming-llm and lagkv keep the last token of a context of sinks only", () => {
  for (const text of ["streaming-llm", "lagkv"]) {
    for (const length of [2, 3, 4]) allKeep(keptOf(text, length, { tokens: 1 }).kept, [length - 1]);
  }
});

Deno.test("lagkv keeps the most recent of a context shorter than two chunks", () => {
  const { kept } = keptOf("lagkv(window=1)", 200, { tokens: 50 });
  const recent = Array.from({ length: 46 }, (_, i) => 154 + i);
  for (const head of kept.flat()) assert.deepEqual(head, [0, 1, 2, 3, ...recent]);
});

Deno.test("lagkv scores channels without a range, where published code divides by 0", () => {
  // Still keys say nothing, so the values alone rank; so they do where the keys are the same as they.
  const still = (dump: LayerDump) => ({ ...dump, keys: dump.keys.map(() => 0.5) });
  const same = (dump: LayerDump) => ({ ...dump, keys: dump.values });
  for (const text of ["lagkv(lag=8)", "lagkv@reference(lag=8)"]) {
    const [a, b] = [still, same].map((change) => keptOf(text, 60, { ratio: 0.5 }, change).scores);
    assert.deepEqual(a, b, text);
  }
});

Deno.test("lagkv below its sinks and last chunk keeps the latest of what all scores 1", () => {
  const { kept } = keptOf("lagkv(lag=8)", 60, { tokens: 10 });
  for (const head of kept.flat()) assert.deepEqual(head, [0, 1, 2, 3, 54, 55, 56, 57, 58, 59]);
});

Deno.test("pyramidkv reads a model of one layer, where published code divides by 0", () => {
  const { shape, layers } = makeDump(17, { length: 80, kvHeads: 2, group: 1, layers: 1 });
  for (const text of ["pyramidkv", "pyramidkv@reference"]) {
    const { kept } = evictDump(text, { ratio: 0.5 }, shape, layers);
    assert.deepEqual(kept[0].map((head) => head.length), [40, 40], text);
  }
});

Deno.test("pyramidkv and cake split nothing but what sinks and window leave, where published budgets go negative", () => {
  for (const text of ["pyramidkv", "cake", "headkv"]) {
    const { kept, budget } = keptOf(text, 100, { tokens: 20 });
    assert.equal(budget.sinks + budget.window, 20);
    for (const head of kept.flat()) assert.equal(head.length, 20, text);
  }
});

Deno.test("critical keeps what its scorer protects whatever the value norms, where a float mask overflows", () => {
  const worthless = (dump: LayerDump) => {
    const values = dump.values.map((value, i) => i % 80 < 8 || i % 80 >= 72 ? 0 : value * 1e30);
    return { ...dump, values };
  };
  const { kept } = keptOf("critical(snapkv(window=4), first=0)", 40, { tokens: 12 }, worthless);
  allKeep(kept, [0, 1, 2, 3, 36, 37, 38, 39]);
});

Deno.test("chunkkv of a context shorter than a chunk keeps what the scorer keeps", () => {
  const inner = keptOf("knorm(sinks=0, window=1)", 15, { tokens: 6 }).kept;
  assert.deepEqual(keptOf("chunkkv(knorm(sinks=0, window=1), chunk=20)", 15, { tokens: 6 }).kept, inner);
});

Deno.test("a context of one token is kept by every form", () => {
  for (const text of ["h2o", "tova", "knorm", "keydiff", "lagkv", "expected-attention", "cake", "chunkkv(h2o)"]) {
    assert.deepEqual(keptOf(text, 1, { fraction: 1 }).kept, [[[0], [0]], [[0], [0]]]);
  }
});
