import assert from "node:assert/strict";
import { editDistance, nearestName } from "../../core/policy/nearest_name.ts";

Deno.test("editDistance() counts inserted, deleted and replaced characters", () => {
  const cases: [string, string, number][] = [
    ["", "", 0],
    ["", "abc", 3],
    ["kitten", "sitting", 3],
    ["snapkv", "snapkv", 0],
    ["snapkv", "snap-kv", 1],
    ["flaw", "lawn", 2],
  ];
  for (const [a, b, distance] of cases) {
    assert.equal(editDistance(a, b), distance, `${a} → ${b}`);
    assert.equal(editDistance(b, a), distance, `${b} → ${a}`);
  }
});

Deno.test("nearestName() finds a misspelt name, whatever its case", () => {
  const names = ["snapkv", "adakv", "defensive", "layer-defensive"];
  assert.equal(nearestName("snapvk", names), "snapkv");
  assert.equal(nearestName("DEFENSVE", names), "defensive");
  assert.equal(nearestName("layer-defence", names), "layer-defensive");
});

Deno.test("nearestName() stays silent when nothing is near, and takes the first of equals", () => {
  assert.equal(nearestName("banana", ["snapkv", "adakv"]), undefined);
  assert.equal(nearestName("x", []), undefined);
  assert.equal(nearestName("bat", ["cat", "hat"]), "cat");
});

Deno.test("nearestName() answers at once for a name of a million characters", () => {
  assert.equal(nearestName("a".repeat(1_000_000), ["snapkv"]), undefined);
});
