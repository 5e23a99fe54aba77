/** Bun: the command line from source, and as one executable file. Run by `tools/test.ts`. */
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findBun } from "../../tools/bun.ts";
import { compileWithBun } from "../../tools/compile.ts";
import { ROOT } from "../../tools/repository.ts";
import { commandLine, testCommandLine } from "./cli.ts";

testCommandLine("bun", async () => {
  const bun = await findBun();
  assert.ok(bun, "no Bun in node_modules");
  return commandLine(bun, ["run", join(ROOT, "cli/main.ts")]);
});

testCommandLine("bun, compiled,", async () => {
  const folder = mkdtempSync(join(tmpdir(), "palisade-binary-"));
  const binary = join(folder, "palisade");
  assert.equal(await compileWithBun(binary), undefined);
  return commandLine(binary);
});
