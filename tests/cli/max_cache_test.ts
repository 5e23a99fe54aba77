/** `ask` with a cap and re-rotation, through the whole command line on a tiny model. */
import assert from "node:assert/strict";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { stepRules } from "../../core/rules/registry.ts";
import { palisade } from "../_helper/io.ts";

const MODEL = fileURLToPath(new URL("../data/models/llama-plain.gguf", import.meta.url));
const folder = await mkdtemp(join(tmpdir(), "palisade-cap-"));
const book = join(folder, "book.txt");
await writeFile(
  book,
  "She counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(4),
);
const ASK = ["ask", "--context", book, "--question", "How many?", "--model", MODEL, "--dense", "web"];

Deno.test("ask --max-cache --json reports the cap, the positions and the health", async () => {
  const cap = ["--keep", "80%", "--max-cache", "60", "--step-policy", "h2o", "--positions", "rerotate"];
  const { code, out, err } = await palisade([...ASK, ...cap, "--max-tokens", "50", "--json"]);
  assert.equal(code, 0, err);
  const report = JSON.parse(out);
  assert.equal(report.positions, "rerotate");
  assert.equal(report.maxCache.asked, 60);
  assert.equal(report.maxCache.rule, "h2o");
  assert.equal(report.maxCache.keepCapped, true);
  assert.ok(report.maxCache.evictions >= 1);
  assert.ok(report.health.position <= report.health.trained);
  assert.ok(report.health.keptFraction > 0 && report.health.keptFraction < 1);
});

Deno.test("ask --max-cache says on the terminal what the cap did", async () => {
  const options = { interactive: true };
  const { code, err } = await palisade([...ASK, "--keep", "80%", "--max-cache", "40", "--max-tokens", "50"], options);
  assert.equal(code, 0, err);
  assert.match(err, /^health .*largest gap .*position .*trained.*first tokens in 4 of 4 heads$/m);
  assert.match(
    err,
    /^cap +40 entries per head.*evicted by defensive.*less than --keep asked.*protected instead of 32$/m,
  );
});

Deno.test("ask --json without a cap has no maxCache", async () => {
  const { out } = await palisade([...ASK, "--max-tokens", "2", "--json"]);
  const report = JSON.parse(out);
  assert.equal(report.maxCache, null);
  assert.equal(report.positions, "true");
});

Deno.test("ask --help-all lists what --help leaves out, and no more", async () => {
  const flags = (text: string) => new Set(text.match(/--[a-z-]+/g));
  const [short, long] = [await palisade(["ask", "--help"]), await palisade(["ask", "--help-all"])];
  assert.equal(long.code, 0);
  const more = [...flags(long.out)].filter((flag) => !flags(short.out).has(flag));
  for (const flag of ["--step-policy", "--positions", "--top-p", "--system"]) assert.ok(more.includes(flag), flag);
  assert.match(short.out, /--help-all/);
  for (const line of long.out.split("\n")) assert.ok(line.length <= 80, line);
});

Deno.test("policies --steps lists every step rule", async () => {
  const [table, json] = [await palisade(["policies", "--steps"]), await palisade(["policies", "--steps", "--json"])];
  assert.deepEqual(JSON.parse(json.out).map(({ name }: { name: string }) => name), stepRules.map(({ name }) => name));
  for (const { name } of stepRules) assert.match(table.out, new RegExp(`│ ${name} +│`));
});
