/** `--snapshots` as the address of a server, through the whole command line on a tiny model. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { palisade } from "../_helper/io.ts";
import { findRedis, freePort, startRedis } from "../_helper/redis.ts";
import { skipped } from "../_helper/skip.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("stores-cli"), book = join(folder, "book.txt"), key = join(folder, "my.key");
await writeFile(book, (await readFile(await proseFile(folder), "utf8")).slice(0, 900));
const CONTEXT = ["--model", TINY_MODEL, "--dense", "web", "--backend", "ts", "--threads", "1", "--context", book];
const BUDGET = ["--policy", "defensive", "--keep", "25%"];
const ASK = ["ask", ...CONTEXT, ...BUDGET, "--question", "How many?", "--max-tokens", "4", "--json"];

async function ok(...parameters: string[]): Promise<string> {
  const { code, out, err } = await palisade(parameters);
  assert.equal(code, 0, err);
  return out;
}

const program = await findRedis(), ON_A_SERVER = "what is read is kept on a server, found there, listed and removed";
if (program === undefined) skipped(ON_A_SERVER, "no redis-server and no way to install it");
else {
  Deno.test(ON_A_SERVER, async () => {
    await using server = await startRedis(program);
    await ok("snapshots", "key", key);
    for (const secret of [[], ["--encrypt", "--key-file", key]]) {
      const place = ["--snapshots", server.url],
        name = (await ok("read", ...CONTEXT, ...BUDGET, ...place, ...secret)).trim();
      const { tokens } = JSON.parse(await ok(...ASK, ...place, ...secret.slice(1)));
      assert.deepEqual([tokens.reused, tokens.context > 256], [tokens.context, true]);
      const [listed] = JSON.parse(await ok("snapshots", "list", ...place, "--json"));
      assert.deepEqual([listed.name, listed.secret], [name, secret.length > 0]);
      assert.match(await ok("snapshots", "verify", name, ...place, ...secret.slice(1)), /: whole/);
      await ok("snapshots", "rm", name, ...place);
      assert.deepEqual(JSON.parse(await ok("snapshots", "list", ...place, "--json")), []);
    }
  });
}

Deno.test("a server that isn't there, and an address of none, are refused by --snapshots", async () => {
  const away = await palisade([...ASK, "--snapshots", `redis://127.0.0.1:${await freePort()}`]);
  assert.deepEqual([away.code, JSON.parse(away.out).error.code], [4, "store.unreachable"]);
  assert.match(away.err, /--snapshots: Can't reach redis:\/\/127/);
  for (const place of ["gopher://there", "redis://h/x", "s3://NO"]) {
    const { code, err } = await palisade([...ASK, "--snapshots", place]);
    assert.equal(code, 3, err);
    assert.match(err, /--snapshots: /);
  }
});
