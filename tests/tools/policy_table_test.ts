import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { policies } from "../../core/policy/registry.ts";
import { policyTable, tableIn, withTable } from "../../tools/policy_table.ts";
import { ROOT } from "../../tools/repository.ts";

Deno.test("docs/policies.md has the table of the registry (deno run -A tools/policy_table.ts --write)", () => {
  assert.equal(tableIn(readFileSync(join(ROOT, "docs/policies.md"), "utf8")), policyTable());
});

Deno.test("policyTable() has one line for each policy, with its parameters", () => {
  const [, , ...lines] = policyTable().split("\n");
  assert.equal(lines.length, policies.length);
  policies.forEach(({ name, parameters }, i) => {
    assert.ok(lines[i].startsWith(`| \`${name}`));
    for (const each of parameters) assert.ok(lines[i].includes(`\`${each.name}=${each.default}\``));
  });
});

Deno.test("withTable() puts the table between the markers and nowhere else", () => {
  const text = withTable("a\n<!-- policies -->\nold\n<!-- /policies -->\nb", "| x |");
  assert.equal(text, "a\n<!-- policies -->\n\n| x |\n\n<!-- /policies -->\nb");
  assert.equal(tableIn(text), "| x |");
  assert.throws(() => withTable("a", "b"), RangeError);
});
