import assert from "node:assert/strict";
import fc from "fast-check";
import { PalisadeError } from "../../core/errors.ts";
import { nearestName } from "../../core/policy/nearest_name.ts";
import { randomSource } from "../../core/measure/random.ts";
import { describePolicies } from "../../core/policy/about.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { holds } from "../_helper/property.ts";

function refused(text: string, code: string, message: RegExp): void {
  assert.throws(() => resolvePolicy(text), (error) => {
    assert.ok(error instanceof PalisadeError, String(error));
    assert.deepEqual([error.kind, error.code, error.where], ["input", code, "policy"]);
    assert.match(error.message, message);
    return true;
  });
}

const described = describePolicies();

for (const [i, { name, reference, parameters }] of policies.entries()) {
  Deno.test(`policies has a complete line for ${name}`, () => {
    const about = described[i];
    assert.equal(about.name, name);
    assert.ok(about.summary && about.paper && about.source);
    assert.doesNotMatch(about.summary, /\.$/);
    assert.equal(about.reference !== undefined, reference === true);
    for (const [j, each] of parameters.entries()) {
      assert.ok(about.parameters[j].help, each.name);
      if (each.type === "text") assert.ok(!each.choices || each.choices.includes(each.default));
      else assert.ok(each.default >= (each.min ?? -Infinity) && each.default <= (each.max ?? Infinity));
    }
    assert.equal(resolvePolicy(name).name, name);
    if (reference) assert.equal(resolvePolicy(`${name}@reference`).name, `${name}@reference`);
  });
}

Deno.test("resolvePolicy() fills in every default", () => {
  assert.deepEqual(resolvePolicy("snapkv").parameters, { window: 32, kernel: 5, sinks: 4 });
  assert.deepEqual(resolvePolicy("snapkv@reference").parameters, { window: 32, kernel: 5 });
  assert.deepEqual(resolvePolicy("adakv").parameters, {
    scorer: "snapkv",
    window: 32,
    kernel: 5,
    sinks: 4,
    safeguard: 0.2,
  });
});

Deno.test("resolvePolicy() reads parameters, with blanks anywhere", () => {
  const policy = resolvePolicy("  snapkv ( window = 16 , kernel=7,sinks=0 ) ");
  assert.deepEqual([policy.window, policy.sinks, policy.parameters.kernel], [16, 0, 7]);
  assert.deepEqual(resolvePolicy("snapkv()").parameters, resolvePolicy("snapkv").parameters);
  assert.equal(resolvePolicy("defensive(coverage=.5)").parameters.coverage, 0.5);
});

Deno.test("resolvePolicy() puts a scorer into another policy", () => {
  const policy = resolvePolicy("adakv(defensive(window=8), safeguard=0.5)");
  assert.deepEqual([policy.name, policy.allocate.kind, policy.window], ["adakv(defensive)", "layer", 8]);
  assert.deepEqual([policy.parameters.scorer, policy.parameters.safeguard, policy.parameters.norm], [
    "defensive",
    0.5,
    "heads",
  ]);
  assert.deepEqual(policy.needs, resolvePolicy("defensive(window=8)").needs);
});

Deno.test("resolvePolicy() gives the scorer the mode of the outer policy", () => {
  const policy = resolvePolicy("adakv@reference(streaming-llm)");
  assert.deepEqual([policy.name, policy.parameters.scorer], [
    "adakv@reference(streaming-llm)",
    "streaming-llm@reference",
  ]);
  assert.equal(resolvePolicy("adakv@reference(snapkv@reference)").name, "adakv@reference(snapkv)");
  refused("adakv(snapkv@reference)", "policy.reference", /Cannot mix snapkv@reference into ours.*character 7/);
});

Deno.test("resolvePolicy() suggests the nearest name", () => {
  refused("layer-defencive", "policy.unknown", /did you mean layer-defensive\?.*character 1/);
  refused("adakv(snapvk)", "policy.unknown", /did you mean snapkv\?.*character 7/);
  refused("quantum", "policy.unknown", /there are full, random/);
});

Deno.test("resolvePolicy() points at the character that can't be read", () => {
  const broken: [string, number][] = [["", 1], ["   ", 4], ["snapkv(", 8], [
    "snapkv(window=",
    15,
  ]];
  broken.push(["snapkv)", 7], ["snapkv(window=3", 16], ["snapkv(window=3,)", 17], ["snapkv@", 8], ["snapkv@ours", 8]);
  broken.push(["snapkv window", 8], ["adakv(snapkv, snapkv)", 15], ["snapkv(window==3)", 15], ["!", 1]);
  for (const [text, at] of broken) refused(text, "policy.syntax", new RegExp(`character ${at} of`));
  refused("a".repeat(1001), "policy.syntax", /1001 characters/);
  refused("adakv(".repeat(20), "policy.syntax", /at most 8 policies/);
});

Deno.test("resolvePolicy() refuses parameters that are unknown, set twice, or not for this form", () => {
  refused("snapkv(windw=3)", "policy.parameter", /windw of snapkv: there is window, kernel, sinks.*character 8/);
  refused("snapkv(window=3, window=4)", "policy.parameter", /set twice.*character 18/);
  refused("snapkv@reference(sinks=3)", "policy.parameter", /sinks of snapkv@reference/);
  refused("full(a=1)", "policy.parameter", /there is none/);
});

Deno.test("resolvePolicy() refuses values outside their range", () => {
  for (const value of ["0", "-1", "1.5", "65537", "abc", "1e3", "--2", "1.2.3"]) {
    refused(`snapkv(window=${value})`, "policy.value", /want an integer from 1 to 65536.*character 8/);
  }
  refused("snapkv(kernel=4)", "policy.value", /want an odd integer from 1 to 255/);
  refused("defensive(coverage=1.1)", "policy.value", /want a number from 0 to 1/);
  refused("defensive(norm=both)", "policy.value", /want one of heads, tokens, plain, off/);
});

Deno.test("resolvePolicy() refuses scorers where they make no sense", () => {
  refused("snapkv(full)", "policy.scorer", /snapkv takes no policy.*character 8/);
  refused("adakv(full)", "policy.scorer", /it scores nothing.*character 7/);
  refused("adakv(critical-adakv)", "policy.scorer", /both have a parameter safeguard/);
  refused("full@reference", "policy.reference", /full has no @reference form/);
});

Deno.test("resolvePolicy() answers any text with a policy or a PalisadeError", () => {
  const part = fc.constantFrom(
    "snapkv",
    "adakv",
    "@reference",
    "(",
    ")",
    ",",
    "=",
    "window",
    "3",
    " ",
    "-",
    ".",
    "é",
    "\n",
  );
  holds(
    fc.property(fc.oneof(fc.string(), fc.array(part).map((parts) => parts.join(""))), (text) => {
      try {
        assert.ok(resolvePolicy(text).name);
      } catch (error) {
        assert.ok(error instanceof PalisadeError, String(error));
      }
    }),
    2000,
  );
});

Deno.test("nearestName() finds small slips and nothing far away", () => {
  const names = ["snapkv", "adakv", "layer-defensive"];
  assert.equal(nearestName("SnapKV", names), "snapkv");
  assert.equal(nearestName("adak", names), "adakv");
  assert.equal(nearestName("zzzzzz", names), undefined);
  assert.equal(nearestName("a".repeat(5000), names), undefined);
});

Deno.test("randomSource() gives one stream per seed, in [0, 1) and even", () => {
  const draw = (seed: number, count: number) => {
    const next = randomSource(seed);
    return Array.from({ length: count }, next);
  };
  assert.deepEqual(draw(7, 5), draw(7, 5));
  assert.notDeepEqual(draw(7, 5), draw(8, 5));
  assert.notDeepEqual(draw(7, 5), draw(7 + 2 ** 32, 5));
  const many = draw(1, 20_000);
  assert.ok(many.every((value) => value >= 0 && value < 1));
  assert.ok(Math.abs(many.reduce((a, b) => a + b, 0) / many.length - 0.5) < 0.01);
  for (const seed of [NaN, 0.5, Infinity]) assert.throws(() => randomSource(seed), RangeError);
  assert.doesNotThrow(() => randomSource(-3));
});

Deno.test("randomSource() gives these numbers in every runtime", () => {
  const next = randomSource(42);
  assert.deepEqual([next(), next(), next()], FIRST_OF_42);
});

const FIRST_OF_42 = [0.15377165265745885, 0.018084542542176507, 0.5348906284683476];
