/** Addresses, variables and values that don't decode: a refusal that names them, never a stack. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";
import { writeFile } from "node:fs/promises";

const folder = await testFolder("undecodable");
const book = join(folder, "book.txt"), model = join(folder, "ok.gguf");
await writeFile(book, "It is 42.");
await writeFile(model, chainModel({ chain: ["\n", "42", "<|im_end|>"], template: CHATML }));

const ADDRESSES: [string, RegExp][] = [
  ["redis://user:se%zzcret@host", /password has a % that begins no escape/],
  ["redis://us%ff:secret@host", /username has a %/],
  ["redis://user:%00secret@host", /password has a NUL/],
  ["redis://user:secret@host:99999", /ports end at 65535/],
  ["redis://user:secret@host:0", /no port 0/],
  ["redis://user:secret@%zz", /host/],
  ["redis://user:secret@h\u00f6st", /ASCII/],
  ["redis://user:secret@host/1?db=2", /nothing may follow/],
  ["redis://user:secret@host/1#2", /nothing may follow/],
];

for (const [address, message] of ADDRESSES) {
  Deno.test(`worker and eval refuse --queue ${address} and show no password`, async () => {
    for (const command of [["worker"], ["eval", "--out", join(folder, "out.jsonl")]]) {
      const { code, err } = await palisade([...command, "--queue", address]);
      assert.equal(code, 2, err);
      assert.match(err, message);
      assert.match(err, /--queue/);
      assert.doesNotMatch(err, /cret|unexpected failure/);
    }
  });
}

const ASK = ["ask", "--context", book, "--question", "q", "--model", model];
const VALUES: [string, string[]][] = [
  ["--context", ["ask", "--context", "a\0b", "--question", "q"]],
  ["--question", ["ask", "--context", book, "--question", "q", "--question", "half \ud83d"]],
  ["--answer-prefix", [...ASK, "--answer-prefix", "\udc00"]],
  ["--system", [...ASK, "--system", "\0"]],
  ["--model", ["ask", "--context", book, "--question", "q", "--model", "m\0.gguf"]],
  ["--tasks", ["eval", "--out", join(folder, "o"), "--tasks", "jsonl:\ud800"]],
  ["--out", ["eval", "--out", "o\0"]],
  ["--out", ["calibrate", "--out", "o\0"]],
  ["--text", ["calibrate", "--text", "\0"]],
  ["--html", ["show", "--context", book, "--html", "\0"]],
  ["--policy", ["show", "--context", book, "--policy", 'headkv(file="\0")']],
  ["<results>", ["report", "fine.jsonl", "\0"]],
  ["<name>", ["models", "pull", "\ud800"]],
];

for (const [name, parameters] of VALUES) {
  Deno.test(`${parameters[0]} refuses a value of ${name} that no text can have`, async () => {
    const { code, out, err } = await palisade(parameters);
    assert.deepEqual([code, out], [2, ""], err);
    assert.ok(err.includes(`Can't read the value of ${name}`), err);
  });
}

Deno.test("an environment variable that is no UTF-8 is refused by its name", () => {
  const main = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));
  const command = `PALISADE_CACHE=$(printf '/x\\377') exec "$RUNTIME" run -A --no-check "$MAIN" models list`;
  const env = { ...process.env, RUNTIME: Deno.execPath(), MAIN: main };
  const { status, stderr, stdout } = spawnSync("sh", ["-c", command], { encoding: "utf8", env });
  assert.deepEqual([status, stdout], [3, ""], stderr);
  // The runtime may say something of its own first.
  assert.match(stderr, /^palisade: Can't read the environment variable PALISADE_CACHE: its value is not UTF-8/m);
});

Deno.test("HF_ENDPOINT that fetch can't take is refused by its name, without its password", async () => {
  for (
    const [value, shown] of [["htp://x", "htp"], ["https://%zz", "%zz"], ["https://ada:secret@hub.example", "user"]]
  ) {
    const environment = (name: string) => ({ HF_ENDPOINT: value, PALISADE_CACHE: join(folder, "cache") })[name];
    const { code, err } = await palisade(["models", "pull", "smollm2-135m"], { runtime: { environment } });
    assert.equal(code, 3, err);
    assert.match(err, new RegExp(`HF_ENDPOINT is .*${shown}.*http or https`));
    assert.doesNotMatch(err, /secret/);
  }
});
