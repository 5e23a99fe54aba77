/** C6 for sweeps: whatever kills `eval`, and whatever the disk then lost, it goes on with at most one cell to do again. */
import assert from "node:assert/strict";
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { readResults, type ResultLine, RESULTS, ResultsFile } from "../../evaluate/results/results.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { checkOutputs } from "../../runtime/output.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { DyingHost, LOSSES } from "../_helper/dying_host.ts";
import { testFolder } from "../_helper/workbench.ts";

const runtime = await currentRuntime(), folder = await testFolder("eval-crash"), path = join(folder, "results.jsonl");
/** Lines of more than two blocks of a disk. */
const LINES = ["a", "b", "c"].map((letter) => {
  return { id: letter.repeat(32), format: 1, answer: letter.repeat(1100) } as unknown as ResultLine;
});
const TEXT = LINES.map((line) => `${JSON.stringify(line)}\n`);

/** A sweep: looks at its place, opens the file, and appends what is not there. */
async function sweep(runtime: Runtime): Promise<void> {
  await checkOutputs(runtime, [{ path, where: "--out", kind: RESULTS }], []);
  await using results = await ResultsFile.open(runtime, path);
  for (const line of LINES) if (!results.has(line.id)) await results.append(line);
}

async function beginsWithZeros(): Promise<boolean> {
  return (await readFile(path).catch(() => undefined))?.[0] === 0;
}

/** What a sweep may find: nothing; some lines; a line torn, or in blocks, by an earlier death. */
const BEGINNINGS: readonly (string | undefined)[] = [
  undefined,
  "",
  TEXT[0],
  TEXT[0] + TEXT[1].slice(0, 300),
  TEXT[0] + TEXT[1].slice(0, 300) + "\0".repeat(700),
  TEXT[0] + "\0".repeat(512 - TEXT[0].length % 512) + TEXT[1].slice(512 - TEXT[0].length % 512),
  TEXT[0] + "\0".repeat(600),
];

Deno.test("C6: eval dies at any step, the disk loses what it may, and the next run has at most one cell to do again", async () => {
  let deaths = 0;
  for (const [i, beginning] of BEGINNINGS.entries()) {
    for (const loss of LOSSES) {
      for (let last = 0, done = false; !done; last++) {
        const title = `beginning ${i}, ${loss}, after ${last} steps`;
        await rm(path, { force: true });
        if (beginning !== undefined) await writeFile(path, beginning);
        const before = beginning === undefined ? 0 : (await readResults(runtime, path)).lines.length;
        const dying = await DyingHost.of(runtime, path, last);
        done = await Promise.race([sweep(dying.runtime).then(() => true), dying.death.then(() => false)]);
        if (!done) deaths++;
        await dying.lose(loss);
        if (await beginsWithZeros()) {
          // The very first line: the file may be anybody's, so it is refused, and stays.
          await assert.rejects(sweep(runtime), { code: "output.foreign" }, title);
          continue;
        }
        const there = await readResults(runtime, path).catch((error) => {
          if (error.code === "file.not-found") return { lines: [], torn: false };
          throw error;
        });
        const count = there.lines.length - before;
        assert.ok(count >= dying.synced && count <= dying.begun, `${title}: ${count} of ${dying.begun}`);
        assert.ok(dying.begun - count <= 1, `${title}: more than one cell is lost`);
        await sweep(runtime).catch((error) => assert.fail(`${title}: ${error}`));
        assert.equal(await readFile(path, "utf8"), TEXT.join(""), title);
        const { duplicates, torn } = await readResults(runtime, path);
        assert.deepEqual([duplicates, torn, await readdir(folder)], [0, false, ["results.jsonl"]], title);
      }
    }
  }
  assert.ok(deaths > 300, `${deaths}`);
});
