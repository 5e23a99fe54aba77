import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { MUTANTS } from "../../tools/mutant_list.ts";
import { mutated } from "../../tools/mutants.ts";
import { ROOT } from "../../tools/repository.ts";

Deno.test("every mutant fits its source once, changes it, and has tests to kill it", () => {
  assert.ok(MUTANTS.length >= 15);
  assert.equal(new Set(MUTANTS.map(({ name }) => name)).size, MUTANTS.length);
  for (const mutant of MUTANTS) {
    const source = readFileSync(join(ROOT, mutant.file), "utf8");
    const wrong = mutated(source, mutant);
    assert.ok(wrong !== undefined && wrong !== source, mutant.name);
    assert.ok(mutant.tests.length > 0);
    for (const name of mutant.tests) assert.ok(existsSync(join(ROOT, `tests/${name}_test.ts`)), name);
  }
});

Deno.test("mutated() wants its place exactly once", () => {
  const mutant = { name: "", file: "", find: "a", replace: "b", tests: [] };
  assert.equal(mutated("cat", mutant), "cbt");
  assert.equal(mutated("dog", mutant), undefined);
  assert.equal(mutated("papa", mutant), undefined);
});
