/** The binaries' makers. What Bun's does is tested in tests/smoke/bun.ts. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { DATA_FOLDERS } from "../../runtime/package_data.ts";
import { runChild } from "../../tools/child.ts";
import { workerModules } from "../../tools/compile.ts";
import { ROOT } from "../../tools/repository.ts";
import { skipped } from "../_helper/skip.ts";
import { testFolder } from "../_helper/workbench.ts";

const BY_DENO =
  "deno compile takes its flags, and embeds commands, workers, data and the packages that the command line can reach";
/** Any program stands in for Deno's runtime, which it would have to download: the file it makes does not run. */
const STAND_IN = "/bin/true";

if (process.platform !== "linux") skipped(BY_DENO, "no program that stands in for Deno's runtime", "device");
else {
  Deno.test(BY_DENO, async () => {
    const folder = await testFolder("compile"), output = join(folder, "palisade");
    const args = ["run", "-A", "--no-check", join(ROOT, "tools/compile.ts"), "--target", "deno", "--output", output];
    const { code, stdout, stderr } = await runChild(process.execPath, args, {
      env: { DENORT_BIN: STAND_IN, NO_COLOR: "1" },
      timeout: 200,
    });
    assert.equal(code, 0, stderr);
    assert.match(stdout, /wrote/);
    const made = readFileSync(output), carries = (name: string) => made.includes(name);
    const packages = [...`${stdout}${stderr}`.matchAll(/^│ +[├└]─[─┬] (\S+?)(\/\*|\/[\d.]+\/\*)? \(/gm)].map((
      [, name],
    ) => name);
    assert.ok(packages.includes("onnxruntime-web"), packages.join(" "));
    for (const unused of ["typescript", "bun", "playwright-core", "onnxruntime-node"]) {
      assert.ok(!packages.includes(unused), unused);
    }
    for (const { source } of await workerModules()) assert.ok(carries(source.split("/").at(-1)!), source);
    for (const name of readdirSync(join(ROOT, "cli/commands"))) assert.ok(carries(name), name);
    for (const path of Object.values(DATA_FOLDERS)) assert.ok(carries(path.split("/").at(-1)!), path);
    await rm(output);
  });
}
