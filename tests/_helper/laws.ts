/**
 * Laws that eviction policies keep, each a named helper over one case. `core_laws_test.ts` applies them to every policy
 * of the registry; a policy that is exempt from one stands in the law's own list with the reason.
 */
import assert from "node:assert/strict";
import type { Keep } from "../../core/select/budget.ts";
import { type DumpEviction, evictDump, type LayerDump } from "../../core/dump/evict.ts";
import { layerBudgetOf } from "../../core/policy/define.ts";
import type { PolicyEntry } from "../../core/policy/policy.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import type { DumpCase } from "./dumps.ts";

/** A policy in a form that bites on a dozen tokens. */
export interface SmallPolicy {
  /** As registered. */
  readonly name: string;
  readonly text: string;
}

/** What a law needs of either. */
type Named = Pick<SmallPolicy, "text">;
type Dump = Omit<DumpCase, "made">;

/** Parameters that are made small where a policy has them; the second kernel is wider than most prefixes. */
const SETTINGS: readonly Readonly<Record<string, number>>[] = [
  { window: 2, kernel: 3, sinks: 1, chunk: 3, lag: 2 },
  { window: 1, kernel: 9, sinks: 0, chunk: 2, lag: 1 },
  { window: 3, kernel: 1, sinks: 2, chunk: 5, lag: 3 },
];

/** Every policy of the registry in each of the settings. */
export const SMALL_POLICIES: readonly SmallPolicy[] = policies.flatMap((entry) =>
  SETTINGS.map((settings) => ({ name: entry.name, text: smallForm(entry, settings) }))
);

function smallForm(entry: PolicyEntry, settings: Readonly<Record<string, number>>): string {
  const over = entry.over && policies.find(({ name }) => name === entry.over)!;
  const own = entry.parameters
    .filter((each) => each.type !== "text" && settings[each.name] >= (each.min ?? 0))
    .map(({ name }) => `${name}=${settings[name]}`);
  const inside = [...(over ? [smallForm(over, settings)] : []), ...own].join(", ");
  return inside === "" ? entry.name : `${entry.name}(${inside})`;
}

export function evict({ text }: Named, each: Dump, keep: Keep): DumpEviction {
  return evictDump(text, keep, each.shape, each.layers);
}

function size(heads: readonly Int32Array[]): number {
  return heads.reduce((sum, head) => sum + head.length, 0);
}

/** Exactly the budget of its scope; indices ascending, unique, in range. */
export function keepsItsBudget(small: Named, each: Dump, keep: Keep): void {
  const { policy, budget, kept } = evict(small, each, keep);
  for (const head of kept.flat()) {
    head.forEach((index, i) => assert.ok(index > (head[i - 1] ?? -1) && index < each.length, small.text));
  }
  const { allocate } = policy, { fromHeads, uneven } = layerBudgetOf(allocate);
  if (allocate.kind === "model") return assert.equal(size(kept.flat()), budget.total, small.text);
  if (allocate.kind === "cascade" || uneven) {
    // Published uneven budgets need not add up.
    if (policy.arithmetic === "floor") assert.equal(size(kept.flat()), budget.perHead * kept.flat().length, small.text);
    return;
  }
  for (const heads of kept) {
    const rounded: boolean = allocate.kind === "layer" && !fromHeads;
    assert.equal(size(heads), rounded ? budget.perLayer : heads.length * budget.perHead, small.text);
    if (allocate.kind === "layer" || fromHeads) continue;
    for (const head of heads) assert.equal(head.length, budget.perHead, small.text);
  }
}

/** Sinks and window of every head are kept. */
export function keepsTheProtected(small: Named, each: Dump, keep: Keep): void {
  const { policy, budget: { sinks, window, length }, kept } = evict(small, each, keep);
  if (policy.allocate.kind === "all") return;
  for (const head of kept.flat()) {
    const has = new Set(head);
    for (let i = 0; i < sinks; i++) assert.ok(has.has(i), `${small.text} lost sink ${i}`);
    for (let i = length - window; i < length; i++) assert.ok(has.has(i), `${small.text} lost ${i} of the window`);
  }
}

/** Scores have one number per entry, and the inputs stay as they were. */
export function onlyReads(small: Named, each: Dump, keep: Keep): void {
  const before = structuredClone(each.layers);
  const { scores } = evict(small, each, keep);
  assert.deepEqual(each.layers, before);
  for (const layer of scores) assert.equal(layer.length, each.shape.kvHeads * each.length);
}

/** The same answer twice, from the same arrays and from copies. */
export function answersTheSame(small: Named, each: Dump, keep: Keep): void {
  const { kept } = evict(small, each, keep);
  assert.deepEqual(evict(small, each, keep).kept, kept);
  assert.deepEqual(evict(small, { ...each, layers: structuredClone(each.layers) }, keep).kept, kept);
}

/** Everything that stays at the smaller budget stays at the larger one, where both hold sinks and window. */
export function isNested(small: Named, each: Dump, [less, more]: readonly [Keep, Keep]): void {
  const { sinks, window } = resolvePolicy(small.text);
  const before = evict(small, each, less);
  if (before.budget.perHead < sinks + window) return;
  const { kept } = evict(small, each, more);
  before.kept.forEach((heads, layer) =>
    heads.forEach((head, h) => head.forEach((i) => assert.ok(kept[layer][h].includes(i), `${i} goes`)))
  );
}

/** Swapping KV heads, with their queries and Wo's columns, swaps the kept sets. Ties aside: for distinct scores. */
export function followsItsHeads(small: Named, each: Dump, keep: Keep): void {
  const turned = { ...each, layers: each.layers.map((layer) => headsReversed(layer, each)) };
  const kept = evict(small, turned, keep).kept.map((heads) => heads.toReversed());
  assert.deepEqual(kept, evict(small, each, keep).kept);
}

function headsReversed(layer: LayerDump, { shape: { heads, kvHeads, headDim }, length }: Dump): LayerDump {
  const group = heads / kvHeads;
  /** Blocks of `each` floats, one per KV head, in reverse order; repeated over the array. */
  const reversed = (all: Float32Array, each: number) =>
    Float32Array.from(all, (_, i) => {
      const block = Math.floor(i / each) % kvHeads, row = i - i % (each * kvHeads);
      return all[row + (kvHeads - 1 - block) * each + i % each];
    });
  return {
    ...layer,
    queries: reversed(layer.queries, group * layer.queryRows * headDim),
    keys: reversed(layer.keys, length * headDim),
    values: reversed(layer.values, length * headDim),
    wo: reversed(layer.wo!, group * headDim),
    reconstruction: reversed(layer.reconstruction!, length),
    gate: reversed(layer.gate!, length),
    selfGate: reversed(layer.selfGate!, length),
    softTokens: reversed(layer.softTokens!, length),
  };
}

/** Reversing the layers reverses the kept sets. */
export function followsItsLayers(small: Named, each: Dump, keep: Keep): void {
  const kept = evict(small, { ...each, layers: each.layers.toReversed() }, keep).kept.toReversed();
  assert.deepEqual(kept, evict(small, each, keep).kept);
}

/** Values, or Wo, times a power of two in every layer alike: the kept sets stay. */
export function ignoresScale(small: Named, each: Dump, keep: Keep): void {
  const { kept } = evict(small, each, keep);
  for (const name of ["values", "wo"] as const) {
    const layers = each.layers.map((layer) => ({ ...layer, [name]: layer[name]!.map((x) => x * 4) }));
    assert.deepEqual(evict(small, { ...each, layers }, keep).kept, kept, name);
  }
}
