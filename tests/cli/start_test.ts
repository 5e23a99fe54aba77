/** What Deno reads before the program runs: `--version` and `--help` wait for all of it. */
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { runChild } from "../../tools/child.ts";
import { ROOT } from "../../tools/repository.ts";

interface Module {
  readonly specifier: string;
  readonly dependencies?: readonly { readonly code?: { readonly specifier: string } }[];
}

/** The modules that running `path` reads at once, those of `import()` that Deno can see among them; types are not. */
async function readAtOnce(path: string): Promise<Set<string>> {
  const { code, stdout, stderr } = await runChild(process.execPath, ["info", "--json", path], {
    cwd: ROOT,
    timeout: 60,
  });
  assert.equal(code, 0, stderr);
  const { roots, modules }: { roots: string[]; modules: Module[] } = JSON.parse(stdout);
  const known = new Map(modules.map((each) => [each.specifier, each])), read = new Set<string>();
  for (const waiting = [...roots]; waiting.length > 0;) {
    const next = waiting.pop()!;
    if (read.has(next)) continue;
    read.add(next);
    waiting.push(...(known.get(next)?.dependencies ?? []).flatMap(({ code }) => code?.specifier ?? []));
  }
  return read;
}

Deno.test("no command, kernel or engine is read before a command is named", async () => {
  const read = [...await readAtOnce(join("cli", "main.ts"))];
  assert.ok(read.some((each) => each.endsWith("/cli/list.ts")), "what is listed is read");
  assert.deepEqual(read.filter((each) => /\/(cli\/commands|wasm|gpu|evaluate)\/|onnxruntime/.test(each)), []);
});
