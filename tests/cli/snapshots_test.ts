/** `read`, `ask --snapshot`, `ask --snapshots` and `snapshots`, through the whole command line on a tiny model. */
import assert from "node:assert/strict";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { currentRuntime } from "../../runtime/mod.ts";
import { palisade } from "../_helper/io.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("snapshots-cli");
const at = (name: string) => join(folder, name);
const prose = (await readFile(await proseFile(folder), "utf8")).slice(0, 900);
const book = at("book.txt"), grown = at("grown.txt");
await writeFile(book, prose);
await writeFile(grown, `${prose} And then nothing more was heard of the old gates for years.`);

const MODEL = ["--model", TINY_MODEL, "--dense", "web", "--backend", "ts", "--threads", "1"];
const BUDGET = ["--policy", "defensive", "--keep", "25%"];
const ASK = ["--question", "How many?", "--max-tokens", "8"];

async function ok(...parameters: string[]): Promise<string> {
  const { code, out, err } = await palisade(parameters);
  assert.equal(code, 0, err);
  return out;
}
const asked = async (...parameters: string[]) => JSON.parse(await ok("ask", ...MODEL, ...ASK, "--json", ...parameters));

async function refused(code: number, message: RegExp, ...parameters: string[]) {
  const result = await palisade(parameters);
  assert.equal(result.code, code, result.err);
  assert.match(result.err, message);
  assert.equal(result.out, "");
}

Deno.test("read writes a file that ask answers from as if it had read the text", async () => {
  const out = at("book.palisade");
  assert.equal(await ok("read", ...MODEL, ...BUDGET, "--context", book, "--out", out), `${out}\n`);
  assert.equal((await stat(out)).mode & 0o777, 0o600);
  const read = await asked("--context", book, ...BUDGET), restored = await asked("--snapshot", out);
  assert.equal(restored.answer, read.answer);
  assert.deepEqual([read.tokens.reused, restored.tokens.reused], [0, read.tokens.context]);
  assert.deepEqual(restored.cache, { ...read.cache, peakBytes: restored.cache.peakBytes, wasmHighWater: 0 });
  assert.deepEqual([restored.ms.prefill, restored.keep.asked], [0, "fraction 0.25"]);
  assert.ok(restored.ms.restore > 0);
  assert.equal((await asked("--snapshot", out, ...BUDGET)).answer, read.answer, "what it was made with may be said");
  await refused(
    3,
    /the policy differs: defensive, here snapkv/,
    "ask",
    ...MODEL,
    ...ASK,
    "--snapshot",
    out,
    "--policy",
    "snapkv",
  );
  await refused(3, /the budget differs/, "ask", ...MODEL, ...ASK, "--snapshot", out, "--keep", "30%");
  await refused(3, /another salt/, "ask", ...MODEL, ...ASK, "--snapshot", out, "--salt", "x");
  await refused(3, /isn't a snapshot/, "ask", ...MODEL, ...ASK, "--snapshot", book);
  await refused(3, /no such file/, "ask", ...MODEL, ...ASK, "--snapshot", at("none.palisade"));
  // Before a model is looked for, fetched or loaded.
  const missing = ["--model", at("no.gguf")];
  await refused(3, /isn't a snapshot/, "ask", ...missing, ...ASK, "--snapshot", book);
  await refused(3, /isn't a snapshot/, "read", ...missing, "--context", grown, "--append", book, "--out", at("x"));
  await refused(3, /it is no folder/, "read", ...missing, "--context", book, "--snapshots", book);
  await refused(2, /names a place, or auto/, "read", ...missing, "--context", book, "--snapshots", "off");
  await refused(3, /it is no folder/, "ask", ...missing, ...ASK, "--context", book, "--snapshots", book);
  await refused(3, /it is no folder/, "snapshots", "list", "--snapshots", book);
  await refused(3, /without a name/, "snapshots", "list", "--snapshots", "");
  await refused(3, /no\.gguf/, "ask", ...missing, ...ASK, "--snapshot", out);
});

Deno.test("ask wants a text or a snapshot, not both and not neither", async () => {
  await refused(2, /want --context or --snapshot/, "ask", ...MODEL, ...ASK);
  await refused(2, /cannot be used with/, "ask", ...MODEL, ...ASK, "--context", book, "--snapshot", "x");
  await refused(2, /cannot be used with/, "ask", ...MODEL, ...ASK, "--snapshot", "x", "--risk", "0.1");
  await refused(2, /Want a size/, "ask", ...MODEL, ...ASK, "--context", book, "--snapshots-cap", "much");
});

Deno.test("read --append goes on in a text that grew, with what the snapshot was made with", async () => {
  const out = at("grown.palisade");
  await ok("read", ...MODEL, ...BUDGET, "--context", book, "--out", out, "--cache-type", "f16");
  const append = ["read", ...MODEL, "--context", grown, "--append", out, "--out", out, "--json"];
  const report = JSON.parse(await ok(...append));
  assert.ok(report.tokens.reused > 0.8 * report.tokens.context && report.tokens.reused < report.tokens.context);
  assert.deepEqual([report.cache.type, report.policy.name, report.file], ["f16", "defensive", out]);
  assert.equal(report.bytes, (await stat(out)).size);
  const { tokens } = await asked("--snapshot", out);
  assert.equal(tokens.reused, report.tokens.context);
  const other = at("other.txt");
  await writeFile(other, `Once. ${prose}`);
  const before = await readFile(out);
  await refused(3, /the first token that differs/, "read", ...MODEL, "--context", other, "--append", out, "--out", out);
  assert.deepEqual(await readFile(out), before);
});

Deno.test("read --effort best says what it chose, in the report, in the snapshot, and beside other options", async () => {
  const out = at("best.palisade"), best = ["read", ...MODEL, "--context", book, "--effort", "best"];
  const report = JSON.parse(await ok(...best, "--bytes", "1/8", "--out", out, "--json"));
  assert.deepEqual([report.effort.bytes, report.policy.name, report.cache.type], ["1/8", "kvzip", "int4"]);
  assert.equal(report.policy.refit, "both");
  const shown = await ok("snapshots", "show", out);
  assert.match(shown, /^effort +best, for 1\/8 of bytes: kvzip\(/m);
  assert.match(shown, /^refit +biases and values of \d+ of \d+ heads/m);
  assert.match(shown, /^stored as +int4$/m);
  const { state } = JSON.parse(await ok("snapshots", "show", out, "--json"));
  assert.deepEqual(state.done, { effort: report.effort, refit: report.refit });
  const restored = await asked("--snapshot", out);
  assert.deepEqual([restored.effort, restored.tokens.reused], [report.effort, report.tokens.context]);
  await refused(2, /--effort best chooses what --keep says/, ...best, "--keep", "10%", "--out", out);
  await refused(2, /cannot be used with/, ...best, "--append", out, "--out", out);
  await refused(2, /cannot be used with/, "ask", ...MODEL, ...ASK, "--snapshot", out, "--effort", "best");
});

Deno.test("read refuses places that would harm something, before it reads", async () => {
  await refused(3, /it is also read, as the context/, "read", ...MODEL, "--context", book, "--out", book);
  await refused(3, /it is also read, as the model/, "read", ...MODEL, "--context", book, "--out", TINY_MODEL);
  const notes = at("notes.md");
  await writeFile(notes, "mine");
  await refused(3, /not a snapshot/, "read", ...MODEL, "--context", book, "--out", notes);
  assert.equal(await readFile(notes, "utf8"), "mine");
  await refused(2, /--snapshots names a place/, "read", ...MODEL, "--context", book, "--snapshots", "off");
  await refused(3, /no folder|does not exist/, "read", ...MODEL, "--context", book, "--out", at("no/such/place"));
});

Deno.test("ask keeps what it read and finds it again; the commands show, check and remove it", async () => {
  const place = ["--snapshots", at("kept")];
  const first = await asked("--context", book, ...BUDGET, ...place);
  assert.deepEqual([first.tokens.reused, first.snapshot.missed], [0, "no snapshots are kept yet"]);
  const second = await asked("--context", book, ...BUDGET, ...place);
  assert.deepEqual([second.answer, second.tokens.reused], [first.answer, first.tokens.context]);
  const longer = await asked("--context", grown, ...BUDGET, ...place);
  assert.ok(longer.tokens.reused > 0 && longer.tokens.reused < longer.tokens.context);
  const listed = JSON.parse(await ok("snapshots", "list", ...place, "--json"));
  assert.deepEqual(listed.map(({ label }: { label: string }) => label).sort(), ["book.txt", "grown.txt"]);
  assert.match(await ok("snapshots", "list", ...place), /book\.txt .*defensive, fraction 0\.25, f32/);
  const [{ name }] = listed.filter(({ label }: { label: string }) => label === "book.txt");
  assert.equal(second.snapshot.used, name);
  assert.match(await ok("snapshots", "show", name.slice(0, 8), ...place), /^text +book\.txt, [\d,]+ tokens$/m);
  const shown = JSON.parse(await ok("snapshots", "show", name, ...place, "--json"));
  assert.deepEqual([shown.identity.policy, shown.state.tokens], ["defensive", first.tokens.context]);
  assert.equal((await asked("--snapshot", name.slice(0, 8), ...place)).answer, first.answer);
  assert.match(await ok("snapshots", "verify", ...place), /^[0-9a-f]{64}: whole\n[0-9a-f]{64}: whole\n$/);

  const path = join(at("kept"), `${name}.palisade`), bytes = await readFile(path);
  bytes[bytes.length - 700] ^= 4;
  await writeFile(path, bytes);
  const verified = await palisade(["snapshots", "verify", ...place, "--json"]);
  assert.equal(verified.code, 3);
  const bad = JSON.parse(verified.out).filter(({ problem }: { problem: string | null }) => problem !== null);
  assert.deepEqual(bad.map((each: { name: string }) => each.name), [name]);
  assert.match(bad[0].where, /^layer\.\d+$/);
  await refused(3, /there is none of that name/, "snapshots", "rm", "0000", ...place);
  assert.match(await ok("snapshots", "rm", name.slice(0, 6), ...place), /^removed [0-9a-f]{64}, /);
  assert.match(await ok("snapshots", "prune", "--to", "0", ...place), /^removed /);
  assert.equal(await ok("snapshots", "prune", "--to", "1GiB", ...place), "nothing to remove\n");
  assert.match(await ok("snapshots", "list", ...place), /^No snapshots in /);
});

Deno.test("nothing is kept unasked: off, standard input, a cap that is too small", async () => {
  const kept = at("nothing"), place = ["--snapshots", kept];
  const files = async () => await readdir(kept).catch(() => []);
  await asked("--context", book, ...BUDGET);
  await asked("--context", book, ...BUDGET, ...place, "--snapshots-cap", "1kB");
  assert.deepEqual(await files(), []);
  const runtime = await currentRuntime();
  const readText: typeof runtime.readText = (path, options) => runtime.readText(path === "-" ? book : path, options);
  const piped = await palisade(["ask", ...MODEL, ...ASK, ...BUDGET, ...place, "--context", "-"], {
    runtime: { readText },
  });
  assert.equal(piped.code, 0, piped.err);
  assert.deepEqual(await files(), []);
  const told = await palisade(["ask", ...MODEL, ...ASK, ...BUDGET, ...place, "--context", book], { interactive: true });
  assert.match(told.err, /^Kept for next time: .* in .*nothing \(--snapshots off keeps nothing\)$/m);
  assert.equal((await files()).length, 1);
  const again = await palisade(["ask", ...MODEL, ...ASK, ...BUDGET, ...place, "--context", book], {
    interactive: true,
  });
  assert.match(again.err, /^reused +all of them from a snapshot, restored in /m);
  assert.doesNotMatch(again.err, /Kept for next time/);
  await ok("read", ...MODEL, ...BUDGET, "--context", grown, ...place);
  assert.equal((await files()).length, 2, "read keeps what it is told to");
  await refused(4, /too little/, "read", ...MODEL, ...BUDGET, "--context", grown, ...place, "--snapshots-cap", "1kB");
});
