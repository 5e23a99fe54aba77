/** Step rules against a recomputation from the whole history, and what a compacted state must still know. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { randomSource } from "../../core/measure/random.ts";
import type { StepRule } from "../../core/rules/rule.ts";
import { DEFAULT_STEP_RULE, resolveStepRule, stepRules } from "../../core/rules/registry.ts";
import { RuleState } from "../../core/rules/state.ts";
import { assertClose } from "../_helper/close.ts";
import { holds } from "../_helper/property.ts";

/** All an entry ever received: one list per query head of the group. */
interface History {
  readonly received: number[][];
  /** What was predicted when it came. */
  readonly predicted: number;
}

/** What a rule's score should be, from the history alone. */
const TWINS: Record<string, (entries: readonly History[]) => number[]> = {
  "streaming-llm": (entries) => entries.map((_, i) => i),
  h2o: (entries) => entries.map((each) => sum(groupMeans(each))),
  "h2o-normalised": (entries) => entries.map((each) => mean(groupMeans(each))),
  tova: (entries) => entries.map((each) => groupMeans(each).at(-1) ?? 0),
  roco: (entries) => {
    const means = entries.map((each) => mean(groupMeans(each)));
    const spread = entries.map((each, i) =>
      Math.sqrt(mean(groupMeans(each).map((p) => (p - means[i]) * (p - means[i]))))
    );
    const spared = new Set(
      [...spread.keys()].sort((a, b) => spread[b] - spread[a]).slice(0, Math.floor(0.3 * entries.length)),
    );
    return means.map((each, i) => spared.has(i) ? each + 1 : each);
  },
  "fixed-point": (entries) => entries.map((_, i) => i),
  gate: (entries) => entries.map((each) => each.predicted),
  defensive: (entries) => entries.map((each) => Math.max(0, ...each.received.flat())),
};

function groupMeans({ received }: History): number[] {
  return received.map((group) => mean(group));
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : sum(values) / values.length;
}

/** A softmax row of `entries` numbers. */
function row(entries: number, random: () => number): Float32Array {
  const weights = Float32Array.from({ length: entries }, () => random() ** 8 + 1e-6);
  const total = sum([...weights]);
  return weights.map((weight) => weight / total);
}

/** Some steps, some evictions: the state and the history beside it. */
function play(rule: StepRule, seed: number, steps: number, group: number) {
  const random = randomSource(seed), state = new RuleState(rule);
  const predict = () => Math.fround(random() * 10 - 8);
  let entries: History[] = Array.from({ length: 5 }, () => ({ received: [], predicted: predict() }));
  if (rule.predicted) state.remember(Float32Array.from(entries, (each) => each.predicted));
  for (let step = 0; step < steps; step++) {
    entries.push({ received: [], predicted: predict() });
    if (rule.predicted) state.remember(Float32Array.of(entries.at(-1)!.predicted));
    const rows = Array.from({ length: group }, () => row(entries.length, random));
    state.update(rows);
    entries.forEach(({ received }, i) => received.push(rows.map((each) => each[i])));
    if (step % 7 === 6) {
      const kept = Int32Array.from(entries.keys()).filter(() => random() < 0.7);
      state.compact(kept);
      entries = [...kept].map((i) => entries[i]);
    }
  }
  return { state, entries };
}

for (const rule of stepRules) {
  Deno.test(`${rule.name} scores as its recomputation from the whole history does`, () => {
    assert.ok(TWINS[rule.name], `no twin of ${rule.name}`);
    holds(
      fc.property(fc.nat(), fc.integer({ min: 0, max: 40 }), fc.integer({ min: 1, max: 3 }), (seed, steps, group) => {
        const { state, entries } = play(rule, seed, steps, group);
        if (steps === 0) state.fit(entries.length);
        assertClose(state.scores(), TWINS[rule.name](entries), 1e-6, rule.name);
      }),
      100,
    );
  });

  Deno.test(`${rule.name} gives no NaN for entries never seen, and none for numbers that are none`, () => {
    const state = new RuleState(rule);
    state.fit(3);
    assert.deepEqual([...state.scores()].map(Number.isFinite), [true, true, true]);
    state.update([Float32Array.of(NaN, Infinity, -Infinity, 1), Float32Array.of(0.5, 0, 0, 0)]);
    for (const score of state.scores()) assert.ok(Number.isFinite(score), `${score}`);
  });

  Deno.test(`${rule.name} holds the same bytes however long it runs at one length`, () => {
    const state = new RuleState(rule), random = randomSource(3);
    const bytes = new Set<number>();
    for (let step = 0; step < 300; step++) {
      state.update([row(state.length + 1, random)]);
      if (state.length === 80) state.compact(Int32Array.from({ length: 72 }, (_, i) => i));
      if (step >= 80) bytes.add(state.byteLength);
    }
    assert.equal(bytes.size, 1);
  });
}

Deno.test("roco keeps what varies most whatever its mean, and takes equal rows for not varying at all", () => {
  const state = new RuleState(resolveStepRule("roco"));
  // Entry 0 is steady and high, 1 steady and low, 2 rare and sharp, 3 steady at a number whose square rounds.
  for (let step = 0; step < 30; step++) state.update([Float32Array.of(0.5, 0.01, step === 9 ? 0.3 : 0, 0.1)]);
  const scores = state.scores();
  assert.ok(scores[2] > 1 && scores[0] > scores[3] && scores[3] > scores[1] && scores[0] < 1);
});

Deno.test("defensive remembers one spike that the means forget", () => {
  const [mean, worst] = ["h2o-normalised", "defensive"].map((name) => new RuleState(resolveStepRule(name)));
  for (let step = 0; step < 100; step++) {
    const spike = step === 3 ? 0.9 : 0;
    for (const state of [mean, worst]) state.update([Float32Array.of(spike, 0.05)]);
  }
  assert.ok(worst.scores()[0] > worst.scores()[1]);
  assert.ok(mean.scores()[0] < mean.scores()[1]);
});

Deno.test("fixed-point lets go of one place before the context's end, step by step", () => {
  const rule = resolveStepRule("fixed-point"), state = new RuleState(rule, 40);
  // What deleting index 15 whenever there are more than 40 leaves of 40 of the context and 30 new ones.
  const left = Array.from({ length: 40 }, (_, i) => i);
  for (let next = 40; next < 70; next++) {
    left.push(next);
    left.splice(15, 1);
  }
  state.fit(70);
  const scores = state.scores(), order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a]);
  assert.deepEqual(order.slice(0, 40).sort((a, b) => a - b), left);
});

Deno.test("RuleState.fit() forgets what was dropped", () => {
  const state = new RuleState(resolveStepRule("h2o"));
  state.update([Float32Array.of(0.25, 0.75)]);
  state.fit(1);
  state.fit(2);
  assert.deepEqual([...state.scores()], [0.25, 0]);
});

Deno.test("RuleState refuses rows and indices that don't fit", () => {
  const state = new RuleState(resolveStepRule("h2o"));
  state.update([Float32Array.of(0.25, 0.75)]);
  assert.throws(() => state.update([Float32Array.of(1)]), RangeError);
  assert.throws(() => state.update([Float32Array.of(1, 0), Float32Array.of(1, 0, 0)]), RangeError);
  assert.throws(() => state.compact(Int32Array.of(2)), RangeError);
  assert.throws(() => state.compact(Int32Array.of(1, 0)), RangeError);
  assert.throws(() => state.fit(-1), RangeError);
});

Deno.test("resolveStepRule() knows the default and suggests a near name", () => {
  assert.equal(resolveStepRule(DEFAULT_STEP_RULE).name, "defensive");
  assert.throws(() => resolveStepRule("defensiv"), { code: "step-policy.unknown", message: /did you mean defensive/ });
  assert.throws(() => resolveStepRule("xyzzy"), /there are streaming-llm/);
});
