/** Bun: the command line from source, and as one executable file. Run by `tools/test.ts`. */
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { findBun } from "../../tools/bun.ts";
import { runChild } from "../../tools/child.ts";
import { compileWithBun, PRODUCT } from "../../tools/compile.ts";
import { repositoryFiles, ROOT } from "../../tools/repository.ts";
import { skipped } from "../_helper/skip.ts";
import { type Cli, commandLine, testCommandLine, testWebGpu } from "./cli.ts";

async function fromSource(env: Record<string, string | undefined> = {}): Promise<Cli> {
  const bun = await findBun();
  assert.ok(bun, "no Bun in node_modules");
  return commandLine(bun, ["run", join(ROOT, "cli/main.ts")], env);
}

testCommandLine("bun", () => fromSource());

testWebGpu("bun", fromSource);

let binary: Promise<string> | undefined;

/** The executable file, in a folder of its own. */
function compiled(): Promise<string> {
  return binary ??= (async () => {
    const path = join(mkdtempSync(join(tmpdir(), "palisade-binary-")), "palisade");
    assert.equal(await compileWithBun(path), undefined);
    return path;
  })();
}

/** What the binary must do without: the product's sources and the packages. */
const HIDDEN = [...new Set((await repositoryFiles()).filter((file) => PRODUCT.test(file)).map(dirname)), "node_modules"]
  .map((path) => join(ROOT, path.split("/")[0])).filter((path, i, all) => path !== ROOT && all.indexOf(path) === i);

/** A shell that hides sources and network, and becomes what it is told. */
const ALONE = [
  ...["--net", "--mount", "sh", "-ec"],
  `for each in ${HIDDEN.map((path) => `'${path}'`).join(" ")}; do
    mount -t tmpfs none "$each"
  done
  exec "$0" "$@"`,
];
const canHide = (await runChild("unshare", [...ALONE, "true"])).code === 0;

const PROOF = "the compiled binary is tested without network, sources and packages";
if (!canHide) skipped(PROOF, "no rights to hide folders from a process (unshare, mount)", "device");
else {
  Deno.test(PROOF, async () => {
    const script = `ls '${join(ROOT, "cli")}' '${join(ROOT, "node_modules")}'; cat /proc/net/dev`;
    const { code, stdout } = await runChild("unshare", [...ALONE, "sh", "-c", script]);
    assert.equal(code, 0);
    const lines = stdout.trim().split("\n").filter((line) => !line.includes("|"));
    assert.deepEqual(lines.map((line) => line.trim().split(":")[0].replace(ROOT, "")), [
      "/cli",
      "",
      "/node_modules",
      "lo",
    ]);
  });
}

testCommandLine("bun, compiled,", async () => {
  const path = await compiled();
  return canHide ? commandLine("unshare", [...ALONE, path]) : commandLine(path);
});
