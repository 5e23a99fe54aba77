import assert from "node:assert/strict";
import { policies } from "../../core/policy/registry.ts";
import { stepRules } from "../../core/rules/registry.ts";
import { allCommands } from "../../cli/list.ts";
import { flagOf } from "../../cli/options.ts";
import { withCommon } from "../../cli/parse.ts";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { askTable, manPages, otherTables } from "../../tools/command_pages.ts";
import { staleDocs } from "../../tools/docs.ts";
import { markdownTable, partIn, withPart } from "../../tools/markdown.ts";
import { policyTable } from "../../tools/policy_table.ts";
import { ROOT } from "../../tools/repository.ts";

Deno.test("tables and man pages are those of the program (deno task docs)", async () => {
  assert.deepEqual(await staleDocs(), []);
});

Deno.test("policyTable() has one line for each policy, with its parameters", () => {
  const [, , ...lines] = policyTable().split("\n");
  assert.equal(lines.length, policies.length);
  policies.forEach(({ name, parameters }, i) => {
    assert.ok(lines[i].startsWith(`| \`${name}`));
    for (const each of parameters) assert.ok(lines[i].includes(`\`${each.name}=${each.default}\``));
  });
});

Deno.test("every option of every command is in docs/cli.md and in its man page, with default and variable", async () => {
  const page = `${await askTable()}\n${await otherTables()}`, manual = await manPages();
  for (const command of await allCommands()) {
    const text = manual.get(`palisade-${command.name}.1`)!.replaceAll("\\-", "-").replaceAll("\\fR", "");
    for (const member of command.members ?? [command]) {
      for (const [name, { preset }] of Object.entries(withCommon(member).options)) {
        assert.ok(text.includes(`.B ${flagOf(name)}`), `${command.name} ${name}`);
        assert.ok(page.includes(`\`${flagOf(name)}`) || ["color", "config"].includes(name), name);
        if (preset !== undefined && name !== "color") {
          assert.ok(text.includes(`Default: ${preset}.`), `${name} ${preset}`);
        }
      }
    }
  }
  assert.match(manual.get("palisade-ask.1")!, /Variable: \\fBPALISADE_KEEP\\fR/);
});

Deno.test("docs/cli.md has every step rule", () => {
  const rules = [...readFileSync(join(ROOT, "docs/cli.md"), "utf8").matchAll(/^\| `([a-z][a-z0-9-]*)` +\| [^|]*\|$/gm)];
  assert.deepEqual(rules.map(([, name]) => name), stepRules.map(({ name }) => name));
});

Deno.test("withPart() puts a part between its marks and nowhere else", () => {
  const text = withPart("a\n<!-- x -->\nold\n<!-- /x -->\nb", "x", markdownTable(["a|b"], [["c"]]));
  assert.equal(text, "a\n<!-- x -->\n\n| a\\|b |\n| ---- |\n| c    |\n\n<!-- /x -->\nb");
  assert.equal(partIn(text, "x"), "| a\\|b |\n| ---- |\n| c    |");
  assert.throws(() => withPart("a", "x", "b"), RangeError);
});
