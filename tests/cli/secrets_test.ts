/** Secret snapshots through the whole command line on a tiny model: keys, passphrases, and who is asked when. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { SecretLine } from "../../cli/secret_prompt.ts";
import { type CliOptions, palisade } from "../_helper/io.ts";
import { skipped } from "../_helper/skip.ts";
import { proseFile, testFolder, TINY_MODEL } from "../_helper/workbench.ts";

const folder = await testFolder("secrets-cli");
const at = (name: string) => join(folder, name);
const prose = (await readFile(await proseFile(folder), "utf8")).slice(0, 900);
const book = at("book.txt"), key = at("my.key"), other = at("other.key"), phrase = at("phrase.txt");
await writeFile(book, prose);
await writeFile(phrase, "seventeen stakes\nwhat follows is no part of it\n");

const MODEL = ["--model", TINY_MODEL, "--dense", "web", "--backend", "ts", "--threads", "1"];
const READ = ["read", ...MODEL, "--policy", "defensive", "--keep", "25%", "--context", book];
const ASK = ["ask", ...MODEL, "--question", "How many?", "--max-tokens", "8", "--json"];

async function ok(parameters: readonly string[], options?: CliOptions) {
  const { code, out, err } = await palisade(parameters, options);
  assert.equal(code, 0, err);
  return { out, err };
}
const answered = async (more: readonly string[], options?: CliOptions) =>
  JSON.parse((await ok([...ASK, ...more], options)).out).answer as string;

async function refused(code: number, message: RegExp, parameters: readonly string[], options?: CliOptions) {
  const result = await palisade(parameters, options);
  assert.equal(result.code, code, result.err);
  assert.match(result.err, message);
}

/** A variable for as long as some work takes. */
async function withVariable<T>(name: string, value: string, work: () => Promise<T>): Promise<T> {
  const before = Deno.env.get(name);
  Deno.env.set(name, value);
  try {
    return await work();
  } finally {
    if (before === undefined) Deno.env.delete(name);
    else Deno.env.set(name, before);
  }
}

Deno.test("a key is made once, for its owner alone", async () => {
  assert.equal((await ok(["snapshots", "key", key])).out, `${key}\n`);
  assert.equal((await stat(key)).mode & 0o777, 0o600);
  assert.match(await readFile(key, "utf8"), /^[0-9a-f]{64}\n$/);
  await refused(3, /a key is never replaced/, ["snapshots", "key", key]);
  await ok(["snapshots", "key", other]);
});

Deno.test("what read seals or cloaks by a key, ask opens by it and by no other", async () => {
  const plain = await answered(["--context", book, "--policy", "defensive", "--keep", "25%"]);
  for (const [name, ...how] of [["sealed", "--encrypt"], ["cloaked", "--cloak"], ["both", "--encrypt", "--cloak"]]) {
    const out = at(`${name}.palisade`), snapshot = ["--snapshot", out];
    await ok([...READ, ...how, "--key-file", key, "--out", out]);
    assert.equal((await stat(out)).mode & 0o777, 0o600);
    assert.equal(await answered([...snapshot, "--key-file", key]), plain, name);
    assert.equal(await answered([...snapshot, "--key-file", key, "--cloak"]), plain, `${name}, cloaked in memory`);
    await refused(3, /the key is not the one it was/, [...ASK, ...snapshot, "--key-file", other]);
    await refused(3, /by a key file/, [...ASK, ...snapshot, "--passphrase-file", phrase]);
    await refused(3, /--key-file, --passphrase-file or PALISADE_PASSPHRASE/, [...ASK, ...snapshot]);
    assert.match((await ok(["snapshots", "show", out, "--key-file", key])).out, /book\.txt/);
    assert.match((await ok(["snapshots", "verify", out, "--key-file", key])).out, /: whole/);
    await refused(3, /--key-file/, ["snapshots", "show", out]);
  }
});

Deno.test("a passphrase comes from a file, from the environment, or from who sits there; once where it is wanted", async () => {
  const out = at("worded.palisade"), snapshot = ["--snapshot", out];
  await ok([...READ, "--encrypt", "--passphrase-file", phrase, "--out", out]);
  const answer = await answered([...snapshot, "--passphrase-file", phrase]);
  assert.equal(await withVariable("PALISADE_PASSPHRASE", "seventeen stakes", () => answered(snapshot)), answer);
  const { err } = await ok([...ASK, ...snapshot], { typed: ["seventeen stakes"] });
  assert.equal(err, "Passphrase of the snapshot: ");
  await refused(3, /the passphrase is not the one/, [...ASK, ...snapshot], { typed: ["sixteen stakes"] });
  await refused(3, /is empty/, [...ASK, ...snapshot], { typed: [""] });
  await writeFile(at("empty.txt"), "\nseventeen stakes");
  await refused(3, /its first line is empty/, [...ASK, ...snapshot, "--passphrase-file", at("empty.txt")]);
  await refused(2, /cannot be used with/, [...ASK, ...snapshot, "--key-file", key, "--passphrase-file", phrase]);
});

Deno.test("a new passphrase is typed twice, before anything is read", async () => {
  const out = at("typed.palisade");
  const { err } = await ok([...READ, "--encrypt", "--out", out], { typed: ["one stake", "one stake"] });
  assert.equal(err, "Passphrase for the snapshot: The same again: ");
  await ok([...ASK, "--snapshot", out], { typed: ["one stake"] });
  const none = at("none.palisade");
  await refused(2, /differ/, [...READ, "--encrypt", "--out", none], { typed: ["one stake", "two stakes"] });
  await refused(2, /nobody to ask/, [...READ, "--encrypt", "--out", none]);
  await refused(3, /is no key: .* it has 900 bytes|is no key/, [
    ...READ,
    "--encrypt",
    "--key-file",
    book,
    "--out",
    none,
  ]);
  await refused(2, /add --encrypt/, [...READ, "--key-file", key, "--out", none]);
  await refused(3, /no such file/, [...READ, "--encrypt", "--key-file", at("lost.key"), "--out", none]);
  await refused(3, /also read, as the key/, [...READ, "--encrypt", "--key-file", key, "--out", key]);
  assert.ok(!existsSync(none));
});

Deno.test("a text that grew is read on behind a secret snapshot", async () => {
  const grown = at("grown.txt"), out = at("both.palisade");
  await writeFile(grown, `${prose} And then nothing more was heard of the old gates for years.`);
  const append = ["read", ...MODEL, "--context", grown, "--append", out, "--out", at("longer.palisade"), "--json"];
  const report = JSON.parse((await ok([...append, "--encrypt", "--key-file", key])).out);
  assert.ok(report.tokens.reused > 0.8 * report.tokens.context);
  await answered(["--snapshot", at("longer.palisade"), "--key-file", key]);
  await refused(3, /--key-file/, append);
  await refused(3, /is not the one/, [...append, "--key-file", other]);
});

Deno.test("ask --encrypt keeps what it read sealed, and finds it by the same key alone", async () => {
  const place = at("kept"),
    context = ["--context", book, "--policy", "defensive", "--keep", "25%", "--snapshots", place];
  const reused = async (...more: string[]) =>
    JSON.parse((await ok([...ASK, ...context, ...more])).out).tokens.reused as number;
  assert.equal(await reused("--encrypt", "--key-file", key), 0);
  assert.ok(await reused("--key-file", key) > 0);
  assert.ok(await reused("--encrypt", "--key-file", key) > 0);
  assert.match((await ok(["snapshots", "list", "--snapshots", place])).out, / secret /);
  const [listed] = JSON.parse((await ok(["snapshots", "list", "--snapshots", place, "--json"])).out);
  assert.deepEqual([listed.secret, listed.label], [true, null]);
  assert.equal(await reused("--key-file", other), 0, "it is passed over, and read anew");
});

Deno.test("a line that is typed can be corrected, and given up", () => {
  const line = new SecretLine();
  assert.equal(line.take("ab\x7fcé"), undefined);
  assert.equal(line.text, "acé");
  assert.equal(line.take("\x15x\x1by\b"), undefined);
  assert.equal(line.text, "x");
  assert.equal(line.take("z\rnever"), "enter");
  assert.equal(line.text, "xz");
  for (const key of ["\x03", "\x04"]) assert.equal(new SecretLine().take(`a${key}`), "cancel");
});

// ---------------------------------------------------------------- a real terminal

const MAIN = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));
const SCRIPT = "/usr/bin/script";

/** Runs palisade on a terminal of its own; `answers` are typed when their questions stand there. */
function onTerminal(parameters: readonly string[], answers: readonly [RegExp, string][]) {
  const command = [Deno.execPath(), "run", "-A", "--no-check", MAIN, ...parameters];
  const quoted = command.map((part) => `'${part.replaceAll("'", `'\\''`)}'`).join(" ");
  const child = spawn(SCRIPT, ["-qefc", quoted, "/dev/null"], { stdio: ["pipe", "pipe", "ignore"] });
  let shown = "", next = 0;
  return new Promise<{ code: number | null; shown: string }>((resolve) => {
    child.stdout.on("data", (data) => {
      shown += data;
      if (next < answers.length && answers[next][0].test(shown)) child.stdin.write(answers[next++][1]);
    });
    child.once("close", (code) => resolve({ code, shown }));
  });
}

const ON_TERMINAL = "on a terminal the passphrase is asked for and not shown, and Ctrl-C gives up";
if (!existsSync(SCRIPT)) skipped(ON_TERMINAL, "no script(1), which makes a terminal", "file");
else {
  Deno.test({
    name: ON_TERMINAL,
    sanitizeResources: false,
    sanitizeOps: false,
    async fn() {
      const out = at("worded.palisade"), show = ["snapshots", "show", out];
      const { code, shown } = await onTerminal(show, [[
        /Passphrase of the snapshot: $/,
        "seventeen steakk\x7f\x7f\x7f\x7fakes\r",
      ]]);
      assert.equal(code, 0, shown);
      assert.match(shown, /book\.txt/);
      assert.ok(!shown.includes("seventeen") && !shown.includes("akes"), shown);
      const given = await onTerminal(show, [[/Passphrase of the snapshot: $/, "seven\x03"]]);
      assert.equal(given.code, 130, given.shown);
      assert.ok(!given.shown.includes("seven"), given.shown);
    },
  });
}
