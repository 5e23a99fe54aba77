/**
 * What the defensive policies promise about the worst case, against brute force over all subsets and allocations.
 * Inputs that are not finite have no smallest loss and stay out; what policies do with them is in `core_laws_test.ts`.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { certifyDump } from "../../core/dump/certify.ts";
import { type DumpEviction, evictDump, observeDump } from "../../core/dump/evict.ts";
import { type DumpCase, dumpCases, evenShare, FINITE, makeDump } from "../_helper/dumps.ts";
import { observationFor } from "../../core/measure/window.ts";
import { pooledRows } from "../_helper/pooled_rows.ts";
import { holds } from "../_helper/property.ts";
import { cheapest, costOf, type Costs, type Losable } from "../_helper/subsets.ts";

const SETTINGS = "window=2, kernel=3, sinks=1";
const RISK = `defensive-risk(${SETTINGS})`;
/** Sums of the same doubles in another order. */
const SUM_SLACK = 1e-12;

/** Cases with at most a dozen entries outside sinks and window, and a budget between nothing and all. */
const small = fc.tuple(dumpCases(12, FINITE, 5), evenShare)
  .filter(([{ shape: { kvHeads }, length, layers }]) => kvHeads * layers.length * Math.max(0, length - 3) <= 12)
  .map(([each, share]) => ({ each, tokens: 1 + Math.round(share * (each.length - 1)) }));

/** Random attention, large enough for gaps. */
const medium = fc.record({
  each: fc.integer({ min: 0, max: 1e9 }).map((seed) => makeDump(seed, { length: 16, kvHeads: 2, group: 2, layers: 2 })),
  tokens: fc.integer({ min: 4, max: 15 }),
});

function evict(policy: string, { each, tokens }: { each: DumpCase; tokens: number }): DumpEviction {
  return evictDump(policy, { tokens }, each.shape, each.layers);
}

/** Entries that are neither sinks nor window, and which of them are gone. */
function losable({ budget, kept }: DumpEviction, cost: (layer: number, kvHead: number, position: number) => number) {
  const all: Losable[] = [], gone: Losable[] = [];
  kept.forEach((heads, layer) =>
    heads.forEach((head, kvHead) => {
      const stays = new Set(head);
      for (let position = budget.sinks; position < budget.length - budget.window; position++) {
        const entry = { layer, kvHead, position, cost: cost(layer, kvHead, position) };
        all.push(entry);
        if (!stays.has(position)) gone.push(entry);
      }
    })
  );
  return { all, gone };
}

/** max_j I[j, i] of every layer, `[kvHeads, N]`. */
function risks(each: DumpCase, { budget, policy }: DumpEviction): Float32Array[] {
  return each.layers.map((dump, layer) => {
    const needs = { window: ["pooledMax"] as const, kernel: policy.needs.kernel };
    return observeDump(dump, layer, budget, needs).pooledMax!;
  });
}

function assertOptimal({ all, gone }: { all: Losable[]; gone: Losable[] }, what: string): void {
  const best = cheapest(all, gone.length), paid = costOf(gone);
  assert.ok(paid.largest <= best.largest, `${what}: largest ${paid.largest}, possible ${best.largest}`);
  assert.ok(paid.sum <= best.sum * (1 + SUM_SLACK), `${what}: sum ${paid.sum}, possible ${best.sum}`);
}

Deno.test("defensive-risk evicts the smallest largest risk and the smallest sum, over all subsets and allocations", () => {
  holds(
    fc.property(small, (input) => {
      const evicted = evict(RISK, input);
      const risk = risks(input.each, evicted), prefix = evicted.budget.length - evicted.budget.window;
      assertOptimal(losable(evicted, (layer, head, i) => risk[layer][head * prefix + i]), input.each.made);
    }),
    10_000,
  );
});

for (const name of ["defensive", "layer-defensive"]) {
  const text = `${name}(${SETTINGS})`;
  Deno.test(`${name} is optimal for its own effective score, over all subsets it may choose from`, () => {
    holds(
      fc.property(small, (input) => {
        const evicted = evict(text, input), { length } = input.each;
        const { all, gone } = losable(evicted, (layer, head, i) => evicted.scores[layer][head * length + i]);
        const pools = name === "defensive" ? input.each.layers.map((_, layer) => layer) : [undefined];
        for (const pool of pools) {
          const inPool = (entry: Losable) => pool === undefined || entry.layer === pool;
          assertOptimal({ all: all.filter(inPool), gone: gone.filter(inPool) }, input.each.made);
        }
      }),
      10_000,
    );
  });
}

for (const text of [RISK, `defensive(${SETTINGS})`, `layer-defensive(${SETTINGS})`, `snapkv(${SETTINGS})`]) {
  Deno.test(`no observed row, and no convex mix of rows, loses more than the certificate of ${text}`, () => {
    holds(
      fc.property(
        small,
        fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 4, maxLength: 4 }),
        (input, mix) => {
          const evicted = evict(text, input);
          for (const { layer, window, heads } of certifyDump(evicted, input.each.layers)) {
            const rows = pooledRows(
              input.each,
              layer,
              window,
              observationFor(evicted.policy, evicted.budget).needs.kernel!,
            );
            heads.forEach(({ riskSum, largestRisk }, g) => {
              const stays = new Set(evicted.kept[layer][g]);
              const losses = rows[g].map((row) => row.reduce((sum, x, i) => stays.has(i) ? sum : sum + x, 0));
              const limit = riskSum * (1 + 1e-6) + 1e-9; // observed importances are float32
              for (const loss of losses) assert.ok(loss <= limit, `${input.each.made}: ${loss} of ${riskSum}`);
              const weights = losses.map((_, j) => mix[j % 4]), total = weights.reduce((a, b) => a + b, 0);
              if (total > 0) {
                const mixed = losses.reduce((sum, loss, j) => sum + loss * weights[j] / total, 0);
                assert.ok(mixed <= limit);
              }
              for (const row of rows[g]) {
                row.forEach((x, i) => assert.ok(stays.has(i) || x <= largestRisk * (1 + 1e-6) + 1e-9));
              }
            });
          }
        },
      ),
      name(text) === "defensive-risk" ? 10_000 : 2_000,
    );
  });
}

/** What `policy` pays over what the bare risk pays at the same budget; 1 when both pay nothing. */
function gaps(policy: string, input: { each: DumpCase; tokens: number }): Costs {
  const [own, best] = [policy, RISK].map((text) => {
    const evicted = evict(text, input);
    const risk = risks(input.each, evicted), prefix = evicted.budget.length - evicted.budget.window;
    return costOf(losable(evicted, (layer, head, i) => risk[layer][head * prefix + i]).gone);
  });
  const ratio = (a: number, b: number) => a <= b ? 1 : a / b;
  return { largest: ratio(own.largest, best.largest), sum: ratio(own.sum, best.sum) };
}

for (const name of ["defensive", "layer-defensive"]) {
  Deno.test(`${name}'s certificate is never below the optimal one, and the gap is measured`, () => {
    const sums: number[] = [];
    const worst = { largest: 1, sum: 1 };
    holds(
      fc.property(medium, (input) => {
        const { largest, sum } = gaps(`${name}(${SETTINGS})`, input);
        assert.ok(largest >= 1 && sum >= 1);
        sums.push(sum);
        worst.largest = Math.max(worst.largest, largest);
        worst.sum = Math.max(worst.sum, sum);
      }),
      2_000,
    );
    sums.sort((a, b) => a - b);
    const [median, high] = [0.5, 0.95].map((share) => sums[Math.floor(share * (sums.length - 1))].toFixed(3));
    const most = `${worst.sum.toPrecision(3)}, of the largest risk ${worst.largest.toPrecision(3)}`;
    console.log(`${name} / optimal certificate, random attention: median ${median}, 95 % ${high}, most ${most}`);
    assert.ok(worst.sum > 1 && worst.largest > 1);
  });
}

Deno.test("layer-defensive can pay more than the optimal certificate: a value without weight hides a risk", () => {
  const each = makeDump(1, { length: 8, kvHeads: 2, group: 1, layers: 1 });
  // Head 0 holds the attention; its values are nearly nothing next to head 1's, so its entries go first.
  each.layers[0].values.fill(1e-3, 0, 8 * 2);
  const { sum, largest } = gaps(`layer-defensive(${SETTINGS}, forced=none)`, { each, tokens: 5 });
  assert.ok(sum > 1.05 && largest > 1.05, `${sum}, ${largest}`);
});

function name(text: string): string {
  return text.split("(")[0];
}
