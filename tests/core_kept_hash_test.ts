import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import ts from "typescript";
import { findBun } from "../tools/bun.ts";
import { runChild } from "../tools/child.ts";
import { ROOT } from "../tools/repository.ts";
import { skipped } from "./helper/skip.ts";

const SCRIPT = "tools/kept_hash.ts";
const GOLDEN = join(ROOT, "tests/data/golden");

/** The two lines of `tools/kept_hash.ts` in one runtime. */
async function hashes(command: string, args: readonly string[]): Promise<{ core: string; ts: string }> {
  const { code, stdout, stderr } = await runChild(command, [...args, GOLDEN], { cwd: ROOT, timeout: 120 });
  assert.equal(code, 0, stderr);
  const found = /^core ([0-9a-f]{64})\nts {3}([0-9a-f]{64})\n$/.exec(stdout);
  assert.ok(found, stdout);
  return { core: found[1], ts: found[2] };
}

/** The script and all it imports as JavaScript, for runtimes that can't read TypeScript; returns the folder. */
function compiled(): string {
  const folder = mkdtempSync(join(tmpdir(), "palisade-hash-"));
  const inFolder = (path: string) =>
    readdirSync(join(ROOT, path)).filter((name) => name.endsWith(".ts")).map((name) => join(path, name));
  const reader = ["model/safetensors.ts", "model/gguf/float16.ts"];
  const sources = [...inFolder("core"), ...inFolder("core/policies"), "backend/reference.ts", ...reader, SCRIPT];
  const compilerOptions = {
    module: ts.ModuleKind.ESNext,
    target: ts.ScriptTarget.ES2023,
    rewriteRelativeImportExtensions: true,
  };
  for (const source of [...sources, ...["kept_hash", "safetensors", "tiny"].map((name) => `tests/helper/${name}.ts`)]) {
    const target = join(folder, source.replace(/\.ts$/, ".js"));
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, ts.transpileModule(readFileSync(join(ROOT, source), "utf8"), { compilerOptions }).outputText);
  }
  cpSync(join(ROOT, "package.json"), join(folder, "package.json"));
  return folder;
}

let inDeno: ReturnType<typeof hashes> | undefined;
const here = () => inDeno ??= hashes(process.execPath, ["run", "-A", SCRIPT]);
const bun = await findBun();
const node = (await runChild("node", ["--version"], { timeout: 30 })).code === 0;

Deno.test("the ts backend keeps what core keeps, to the score's last bit", async () => {
  const { core, ts } = await here();
  assert.equal(ts, core);
});

if (!bun) skipped("Bun keeps what Deno keeps, to the score's last bit", "no Bun in node_modules or on PATH", "device");
else {
  Deno.test("Bun keeps what Deno keeps, to the score's last bit", async () => {
    assert.deepEqual(await hashes(bun, [SCRIPT]), await here());
  });
}

if (!node) skipped("Node keeps what Deno keeps, to the score's last bit", "no Node on PATH", "device");
else {
  Deno.test("Node keeps what Deno keeps, to the score's last bit", async () => {
    const folder = compiled();
    try {
      assert.deepEqual(await hashes("node", [join(folder, "tools/kept_hash.js")]), await here());
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
}
