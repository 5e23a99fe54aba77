/**
 * Everything in the tree that is written from tables and types of the program: the tables of docs/policies.md and
 * docs/cli.md, the man pages, and the JSON Schema of what commands print.
 *
 *     deno task docs          writes what is stale, and says what
 *     deno task docs --check  only says it; exit code 1 where there is something
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { askTable, manPages, otherTables } from "./command_pages.ts";
import { withPart } from "./markdown.ts";
import { policyTable } from "./policy_table.ts";
import { repositoryFiles, ROOT } from "./repository.ts";
import { SCHEMA_FILE, schemaText } from "./schema.ts";

/** Parts of pages: the page, the marks around the part, what stands between them. */
const PARTS: readonly [page: string, mark: string, write: () => string | Promise<string>][] = [
  ["docs/policies.md", "policies", policyTable],
  ["docs/cli.md", "ask", askTable],
  ["docs/cli.md", "commands", otherTables],
];

/** Every written file with what it should be, by its path. */
async function written(): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for (const [page, mark, write] of PARTS) {
    files.set(page, withPart(files.get(page) ?? textOf(page)!, mark, await write()));
  }
  files.set(SCHEMA_FILE, schemaText());
  for (const [name, text] of await manPages()) files.set(`man/${name}`, text);
  return files;
}

function textOf(path: string): string | undefined {
  return existsSync(join(ROOT, path)) ? readFileSync(join(ROOT, path), "utf8") : undefined;
}

/** Paths of files that are not what they should be, man pages of commands that are gone among them. */
export async function staleDocs(): Promise<string[]> {
  const files = await written(),
    stale = [...files].filter(([path, text]) => textOf(path) !== text).map(([path]) => path);
  const gone = (await repositoryFiles()).filter((path) => path.startsWith("man/") && !files.has(path));
  return [...stale, ...gone.map((path) => `${path} (its command is gone: remove it)`)];
}

if (import.meta.main) {
  const stale = await staleDocs(), files = await written();
  for (const path of process.argv.includes("--check") ? [] : stale) {
    const text = files.get(path);
    if (text === undefined) continue;
    mkdirSync(join(ROOT, dirname(path)), { recursive: true });
    writeFileSync(join(ROOT, path), text);
  }
  for (const path of stale) console.log(path);
  process.exitCode = stale.length > 0 && process.argv.includes("--check") ? 1 : 0;
}
