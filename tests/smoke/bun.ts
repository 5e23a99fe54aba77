/** Bun: the command line from source, and as one executable file. Run by `tools/test.ts`. */
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findBun } from "../../tools/bun.ts";
import { compileWithBun } from "../../tools/compile.ts";
import { ROOT } from "../../tools/repository.ts";
import { type Cli, commandLine, testCommandLine, testWebGpu } from "./cli.ts";

async function fromSource(env: Record<string, string | undefined> = {}): Promise<Cli> {
  const bun = await findBun();
  assert.ok(bun, "no Bun in node_modules");
  return commandLine(bun, ["run", join(ROOT, "cli/main.ts")], env);
}

testCommandLine("bun", () => fromSource());

testWebGpu("bun", fromSource);

testCommandLine("bun, compiled,", async () => {
  const folder = mkdtempSync(join(tmpdir(), "palisade-binary-"));
  const binary = join(folder, "palisade");
  assert.equal(await compileWithBun(binary), undefined);
  return commandLine(binary);
});
