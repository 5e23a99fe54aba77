/**
 * RoCo's statistics and first victims against EasyKV's arithmetic (DRSY/EasyKV, easykv/easykv.py; Ren and Zhu 2024, arXiv
 * 2402.06262), written down anew, on the queries and keys of the golden models.
 *
 * EasyKV: group mean first; s and q are sums of probabilities and of their squares, c counts the queries that could see
 * the slot; the standard deviation is √(q/c − (s/c)²). The 30 % of the budget with the largest deviation and the last 10
 * slots are spared, and of the others the smallest mean goes.
 */
import assert from "node:assert/strict";
import { resolveStepRule } from "../../core/rules/registry.ts";
import { RuleState } from "../../core/rules/state.ts";
import { assertClose } from "../_helper/close.ts";
import { readSafetensors } from "../_helper/golden.ts";

/** Queries that play the part of generated tokens, and slots that EasyKV never evicts. */
const STEPS = 60, RECENT = 10;

/** What one slot of a head has received. */
interface Slot {
  s: number;
  q: number;
  c: number;
}

/** Softmax rows of a group at one position, over all keys up to it: `[group][position + 1]`. */
function rowsAt(q: Float32Array, k: Float32Array, length: number, kvHead: number, position: number): Float32Array[] {
  const dim = 8, group = 3;
  return Array.from({ length: group }, (_, g) => {
    const query = ((kvHead * group + g) * length + position) * dim;
    const logits = Array.from({ length: position + 1 }, (_, i) => {
      let sum = 0;
      for (let j = 0; j < dim; j++) sum += q[query + j] * k[(kvHead * length + i) * dim + j];
      return sum / Math.sqrt(dim);
    });
    const most = Math.max(...logits), weights = logits.map((logit) => Math.exp(logit - most));
    const total = weights.reduce((a, b) => a + b, 0);
    return Float32Array.from(weights, (weight) => weight / total);
  });
}

function deviation({ s, q, c }: Slot): number {
  return Math.sqrt(Math.max(0, q / c - (s / c) ** 2));
}

for (const length of [97, 300]) {
  Deno.test(`roco's statistics and order are EasyKV's on the golden queries and keys, L = ${length}`, async () => {
    const golden = await readSafetensors(`tiny-L${length}.safetensors`);
    for (let layer = 0; layer < 3; layer++) {
      const q = numbers(golden, `layers/${layer}/q`), k = numbers(golden, `layers/${layer}/k`);
      for (let kvHead = 0; kvHead < 2; kvHead++) check(q, k, length, kvHead);
    }
  });
}

function check(q: Float32Array, k: Float32Array, length: number, kvHead: number): void {
  const state = new RuleState(resolveStepRule("roco")), slots: Slot[] = [];
  for (let position = length - STEPS; position < length; position++) {
    const rows = rowsAt(q, k, length, kvHead, position);
    state.update(rows);
    while (slots.length <= position) slots.push({ s: 0, q: 0, c: 0 });
    slots.forEach((slot, i) => {
      const p = rows.reduce((sum, row) => sum + row[i], 0) / rows.length;
      slot.s += p;
      slot.q += p * p;
      slot.c++;
    });
  }
  // Above 1 stand the spared; below it the mean itself.
  const scores = state.scores(), means = slots.map(({ s, c }) => s / c);
  assertClose(scores.map((score) => score > 1 ? score - 1 : score), means, 1e-5, "means");
  const spared = scores.reduce((count, score) => count + (score > 1 ? 1 : 0), 0);
  assert.equal(spared, Math.floor(0.3 * length));
  // EasyKV's victim with a budget of all slots but one, the last 10 aside, is the lowest score of ours among the same.
  const deviations = slots.map((slot, i) => i >= length - RECENT ? 1e9 : deviation(slot));
  const candidates = [...slots.keys()].sort((a, b) => deviations[a] - deviations[b]).slice(0, length - spared - RECENT);
  const victim = candidates.reduce((best, i) => means[i] < means[best] ? i : best);
  const unprotected = [...slots.keys()].filter((i) => i < length - RECENT);
  const ours = unprotected.reduce((best, i) => scores[i] < scores[best] ? i : best);
  assert.equal(ours, victim);
}

function numbers(golden: Awaited<ReturnType<typeof readSafetensors>>, name: string): Float32Array {
  const tensor = golden.get(name);
  assert.ok(tensor, `${name}: there is ${[...golden.keys()].slice(0, 8)}`);
  return Float32Array.from(tensor.data);
}
