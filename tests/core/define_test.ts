/** What a policy's declarations promise: the types of what it is given, and that what it asks for is there. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { definePolicy, defineWrapper } from "../../core/policy/define.ts";
import { KERNEL, SINKS, WINDOW } from "../../core/policy/parameters.ts";
import type { Budget, Observation, PolicyEntry } from "../../core/policy/policy.ts";
import { ROOT } from "../../tools/repository.ts";

const BUDGET: Budget = {
  length: 3,
  model: { heads: 1, kvHeads: 1, headDim: 1, layers: 1 },
  fraction: 2 / 3,
  perHead: 2,
  perLayer: 2,
  total: 2,
  sinks: 1,
  window: 1,
  windowAsked: 1,
};
const OBSERVATION: Observation = { layer: 0, shape: BUDGET.model, length: 3, window: 1 };
const floats = (...values: number[]) => Float32Array.from(values);

/** Fails to compile unless the types are the same. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

Deno.test("definePolicy() types values by their declarations and observations by what is needed", () => {
  const made = definePolicy({
    name: "made-up",
    parameters: [
      WINDOW,
      { ...KERNEL, default: 3 },
      { name: "share", type: "number", default: 0.5 },
      { name: "by", type: "text", default: "one", choices: ["one", "two"] },
      { name: "file", type: "text", default: "none" },
    ],
    needs: ({ by }) => ({
      window: ["mean", "mass"],
      rows: true,
      ...(by === "two" && { valueNorms: "l1", columnSum: true }),
    }),
    allocate: ({ by }) => by === "one" ? { kind: "head" } : { kind: "model" },
    score: (observation, _, values) => {
      same<typeof values.window, number>(true);
      same<typeof values.share, number>(true);
      same<typeof values.by, "one" | "two">(true);
      same<typeof values.file, string>(true);
      same<typeof observation.mean, Float32Array>(true);
      same<typeof observation.mass, Float32Array>(true);
      same<typeof observation.keys, Float32Array>(true);
      same<typeof observation.valueNorms, Float32Array | undefined>(true);
      same<typeof observation.columnSum, Float32Array | undefined>(true);
      // @ts-expect-error: it was not asked for.
      assert.equal(observation.pooledMax, undefined);
      // @ts-expect-error: it was not declared.
      assert.equal(values.sinks, undefined);
      return { scores: observation.mean };
    },
  });
  const values = { window: 1, kernel: 3, share: 0.5, by: "one", file: "none" };
  const policy = made.create(values, "ours");
  const measured = { mean: floats(1, 2, 3), mass: floats(1), keys: floats(1, 1, 1), values: floats(1, 1, 1) };
  assert.deepEqual([...policy.score({ ...OBSERVATION, ...measured }, BUDGET).scores], [1, 2, 3]);
  assert.deepEqual(made.create({ ...values, by: "two" }, "ours").needs, {
    window: ["mean", "mass"],
    rows: true,
    valueNorms: "l1",
    columnSum: true,
  });
});

const plain = definePolicy({
  name: "plain",
  parameters: [{ ...WINDOW, oursOnly: true }, { ...SINKS, oursOnly: true }, {
    name: "by",
    type: "text",
    default: "one",
    choices: ["one", "two"],
    oursOnly: true,
  }],
  reference: true,
  needs: { window: ["mean"] },
  allocate: { kind: "head", uneven: true },
  score: ({ mean }, _, { window, by }) => ({ scores: mean.map((each) => each + window + (by === "one" ? 0 : 100)) }),
});
const OURS = { window: 1, sinks: 1, by: "two" };

Deno.test("definePolicy() fills in name, ends, arithmetic and protection by the mode", () => {
  const observation = { ...OBSERVATION, mean: floats(1, 2, 3) };
  const ours = plain.create(OURS, "ours"), published = plain.create({}, "reference");
  assert.deepEqual([ours.name, ours.arithmetic, ours.sinks, ours.window], ["plain", "floor", 1, 1]);
  assert.deepEqual([ours.meaning, ours.evicts, ours.parameters], [{ kind: "order" }, "late", OURS]);
  const scored = ours.score(observation, BUDGET);
  assert.deepEqual([[...scored.scores], [...scored.protectedEntries!]], [[102, 103, 104], [1, 0, 1]]);
  assert.deepEqual([published.name, published.arithmetic], ["plain@reference", "reference"]);
  assert.deepEqual([published.sinks, published.window, published.parameters], [0, 0, {}]);
  assert.deepEqual(published.score(observation, BUDGET), { scores: floats(1, 2, 3) });
});

const doubled = defineWrapper({
  name: "doubled",
  parameters: [],
  over: "plain",
  needs: { valueNorms: "l1" },
  allocate: { kind: "layer", fromHeads: true },
  rescore: ({ scores }, { valueNorms }) => ({ scores: scores.map((each, i) => each * valueNorms[i]) }),
});

Deno.test("defineWrapper() takes over the scorer's needs, ends and unevenness, and protects nothing", () => {
  const policy = doubled.create({}, "reference", plain.create(OURS, "ours"));
  assert.deepEqual(policy.needs, { window: ["mean"], valueNorms: "l1" });
  assert.deepEqual(policy.allocate, { kind: "layer", fromHeads: true, uneven: true });
  // It has no published form, so it is what it always is.
  assert.deepEqual([policy.name, policy.arithmetic, policy.sinks, policy.window], ["doubled", "floor", 1, 1]);
  const observation = { ...OBSERVATION, mean: floats(1, 2, 3), valueNorms: floats(2, 3, 4) };
  assert.deepEqual(policy.score(observation, BUDGET), { scores: floats(204, 309, 416) });
  assert.throws(() => doubled.create({}, "ours"), /doubled without a scorer/);
});

Deno.test("a policy refuses an observation that lacks what it asked for", () => {
  const score = (entry: PolicyEntry, observation: Partial<Observation>) => () =>
    entry.create(OURS, "ours", plain.create(OURS, "ours")).score({ ...OBSERVATION, ...observation }, BUDGET);
  assert.throws(score(plain, {}), /Cannot score for plain: mean was not measured/);
  assert.throws(score(doubled, { mean: floats(1, 2, 3) }), /Cannot score for doubled: valueNorms was not measured/);
});

Deno.test("no policy turns a value into another type, nor vouches for an observation", () => {
  const folder = join(ROOT, "core/policies");
  for (const name of readdirSync(folder)) {
    const found = shortcuts(
      ts.createSourceFile(name, readFileSync(join(folder, name), "utf8"), ts.ScriptTarget.Latest),
    );
    assert.deepEqual(found, [], `${name} has ${found}: let its parameters and needs say the type`);
  }
});

Deno.test("shortcuts() finds what it is to find", () => {
  const found = (text: string) => shortcuts(ts.createSourceFile("x.ts", text, ts.ScriptTarget.Latest));
  assert.deepEqual(found("const a = Number(values.x) + b!.c, d = String(e), f = g as Scope;"), [
    "Number(values.x)",
    "b!",
    "String(e)",
    "g as Scope",
  ]);
  assert.deepEqual(found("const a = b !== c && !d; // as, Number(x), e!"), []);
});

/** Conversions and assertions in a file, in order. */
function shortcuts(file: ts.SourceFile): string[] {
  const found: string[] = [];
  const visit = (node: ts.Node): void => {
    const converts = ts.isCallExpression(node) && ["Number", "String"].includes(node.expression.getText(file));
    if (converts || ts.isNonNullExpression(node) || ts.isAsExpression(node)) found.push(node.getText(file));
    ts.forEachChild(node, visit);
  };
  visit(file);
  return found;
}
