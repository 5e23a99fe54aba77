/** No output of any command harms a file that isn't ours. */
import assert from "node:assert/strict";
import { link, mkdir, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Command } from "commander";
import { buildProgram } from "../../cli/program.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { palisade, quietIo } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("outputs");
const runtime = await currentRuntime();
const at = (name: string) => join(folder, name);

const CASE = JSON.stringify({ context: "The sum is 42.", question: "What is the sum?", answers: "42" });
const FILES: Record<string, string | Uint8Array> = {
  "model.gguf": chainModel({ chain: ["\n", "42", "<|im_end|>"], template: CHATML }),
  "book.txt": "Call me Ishmael. Some years ago I thought I would sail about a little.",
  "cases.jsonl": CASE,
  "prose.txt": Array.from({ length: 30 }, (_, i) => `Stake ${i} stands.`).join(" "),
  "gate": "no gate, but nobody looks",
  "dump.safetensors": "no dump",
  "scores.json": "[[1]]",
  "squad.json": "{}",
};
for (const [name, content] of Object.entries(FILES)) await writeFile(at(name), content);
const ENGINES = ["--backend", "ts", "--dense", "web"];
const EVAL = [
  ...["eval", "--tasks", `jsonl:${at("cases.jsonl")}`, "--models", at("model.gguf")],
  ...["--policies", "full,snapkv", "--keep", "50%", ...ENGINES],
];
const made = await palisade([...EVAL, "--out", at("results.jsonl")]);
assert.equal(made.code, 0, made.err);

interface OutputCase {
  /** The command without its output. */
  readonly parameters: readonly string[];
  /** Names of all files that it reads. */
  readonly inputs: readonly string[];
}

const REPORT: OutputCase = { parameters: ["report", at("results.jsonl")], inputs: ["results.jsonl"] };

/** Every option that names a file to be written. */
const OUTPUTS: Record<string, OutputCase> = {
  "eval --out": {
    parameters: [
      ...["eval", "--tasks", `jsonl:${at("cases.jsonl")},qa:${at("squad.json")},vt`, "--haystack", at("prose.txt")],
      ...["--gate", at("gate"), "--models", at("model.gguf"), "--policies", `full,headkv(file=${at("scores.json")})`],
    ],
    inputs: ["cases.jsonl", "squad.json", "prose.txt", "gate", "model.gguf", "scores.json"],
  },
  "report --html": REPORT,
  "report --csv": REPORT,
  "read --out": {
    parameters: [
      ...["read", "--context", at("book.txt"), "--model", at("model.gguf")],
      ...["--policy", `headkv(file=${at("scores.json")})`],
    ],
    inputs: ["book.txt", "model.gguf", "scores.json"],
  },
  "show --html": {
    parameters: [
      ...["show", "--context", at("book.txt"), "--model", at("model.gguf")],
      ...["--policy", `headkv(file=${at("scores.json")})`],
    ],
    inputs: ["book.txt", "model.gguf", "scores.json"],
  },
  "evict --write": {
    parameters: [
      "evict",
      at("dump.safetensors"),
      "--policy",
      `headkv(file=${at("scores.json")})`,
      "--gate",
      at("gate"),
    ],
    inputs: ["dump.safetensors", "scores.json", "gate"],
  },
  "calibrate --out": {
    parameters: ["calibrate", "--text", at("book.txt"), "--model", at("model.gguf")],
    inputs: ["book.txt", "model.gguf"],
  },
};

/** Options that take a file or a list with files in it, and only read it. */
const READ = new Set([
  ...["ask --context", "ask --model", "ask --gate", "ask --snapshot", "read --context", "read --model", "read --gate"],
  // Replaced on purpose, when the new one is whole: tests/cli/snapshots_test.ts.
  ...["read --append"],
  ...["demo --model", "show --context", "show --model"],
  ...["eval --tasks", "eval --length", "eval --policies", "eval --keep", "eval --models", "eval --gate"],
  ...[
    "eval --haystack",
    "worker --model",
    "doctor --model",
    "calibrate --text",
    "calibrate --model",
    "calibrate --kinds",
    "evict --gate",
    "cell --model",
    "snapshots verify --passphrase-file",
    "snapshots verify --key-file",
    "snapshots show --passphrase-file",
    "snapshots show --key-file",
    "read --passphrase-file",
    "read --key-file",
    "ask --passphrase-file",
    "ask --key-file",
  ],
]);

/** What the value of an option is called when it is no file. */
const NO_FILE = new Set(
  "text how kind amount list i/n name name|text share n mode type t p when place size what url seconds task#n policy part=name theta"
    .split(
      " ",
    ).map((
      name,
    ) => `<${name}>`),
);

function optionsOf(command: Command, path: readonly string[] = []): { name: string; value: string }[] {
  const own = command.options.flatMap(({ flags, long }) => {
    const value = /[<[].*$/.exec(flags)?.[0];
    return value === undefined ? [] : [{ name: [...path, long].join(" "), value }];
  });
  return [...own, ...command.commands.flatMap((each) => optionsOf(each, [...path, each.name()]))];
}

Deno.test("every option that takes a file is known as an input or tested here as an output", async () => {
  const files = optionsOf(await buildProgram(await quietIo(), true, () => {})).filter(({ name, value }) =>
    !NO_FILE.has(value) && !name.endsWith(" --config")
  );
  for (const { name, value } of files) {
    assert.ok(READ.has(name) || name in OUTPUTS, `${name} ${value}: add it to READ or OUTPUTS of this test`);
  }
  for (const name of Object.keys(OUTPUTS)) assert.ok(files.some((each) => each.name === name), `${name} is gone`);
});

/** What is in the folder, with contents. */
async function snapshot(): Promise<Map<string, string>> {
  const names = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  const paths = names.map((entry) => join(entry.parentPath, entry.name)).sort();
  return new Map(await Promise.all(paths.map(async (path) => [path, await readFile(path, "hex")] as const)));
}

/** Runs a command that must be refused: with nothing changed, nothing left, and no file read but `mayRead`. */
async function refused(parameters: readonly string[], option: string, mayRead?: string): Promise<string> {
  const before = await snapshot(), read: string[] = [];
  const { code, out, err } = await palisade(parameters, {
    runtime: {
      openFile(path) {
        read.push(path);
        return runtime.openFile(path);
      },
      readText(path, options) {
        read.push(path);
        return runtime.readText(path, options);
      },
    },
  });
  assert.equal(code, 3, err);
  assert.equal(out, "");
  assert.ok(err.includes(option), err);
  assert.deepEqual(await snapshot(), before);
  assert.deepEqual(read.filter((path) => path !== mayRead), []);
  return err;
}

/** Other names of a file in the folder. */
async function aliasesOf(name: string): Promise<string[]> {
  await mkdir(at("links"), { recursive: true });
  const soft = at(`links/soft-${name}`), hard = at(`links/hard-${name}`), twice = at(`links/twice-${name}`);
  for (const path of [soft, hard, twice]) await rm(path, { force: true });
  await symlink(at(name), soft);
  await symlink(soft, twice);
  await link(at(name), hard);
  return [at(name), `${folder}/./${name}`, `${folder}/links/../${name}`, soft, twice, hard];
}

/** Files that people have. */
const FOREIGN: readonly (string | Uint8Array)[] = [
  "notes without a last line break",
  "notes\nof two lines\n",
  CASE,
  `${CASE}\n`,
  '{"id":"not-a-hash","format":1',
  '{"name":"palisade"}\n',
  '{"id":"a","score":1}\n{"id":"b","score":2}\n',
  "a,b\r\n1,2\r\n",
  "<!doctype html>\n<html><head><title>palisade: mine</title></head></html>\n",
  new Uint8Array([0xff, 0xfe, 0x61, 0, 0x62, 0, 0x0a, 0]),
  new Uint8Array(100),
];

for (const [name, { parameters, inputs }] of Object.entries(OUTPUTS)) {
  const option = name.split(" ")[1];

  Deno.test(`${name} refuses every file that the command reads, by whatever name`, async () => {
    for (const input of inputs) {
      for (const alias of await aliasesOf(input)) {
        assert.match(await refused([...parameters, option, alias], option), /it is also read, as /);
      }
    }
  });

  Deno.test(`${name} refuses a file of another kind and leaves it as it is`, async () => {
    for (const content of FOREIGN) {
      await writeFile(at("theirs"), content);
      assert.match(await refused([...parameters, option, at("theirs")], option, at("theirs")), /theirs/);
      for (const alias of (await aliasesOf("theirs")).slice(3)) {
        await refused([...parameters, option, alias], option, alias);
      }
    }
    await rm(at("theirs"));
    await rm(at("links"), { recursive: true });
  });

  Deno.test(`${name} refuses a folder, a place in no folder, and an empty name`, async () => {
    for (const path of [folder, at("no/such/file"), at("book.txt/file"), ""]) {
      await refused([...parameters, option, path], path);
    }
  });
}

Deno.test("calibrate --out refuses a file of another kind where its state would be", async () => {
  await writeFile(at("new.gate.state"), "the state of affairs");
  const parameters = [...OUTPUTS["calibrate --out"].parameters, "--out", at("new.gate")];
  await refused(parameters, "new.gate.state", at("new.gate.state"));
  await rm(at("new.gate.state"));
});

Deno.test("report refuses two outputs that are one file", async () => {
  await refused(["report", at("results.jsonl"), "--csv", at("both"), "--html", `${folder}/./both`], "both");
});

Deno.test("eval leaves a file alone that is called like its lock", async () => {
  await writeFile(at("deno.lock"), '{ "version": "5" }\n');
  const { code, err } = await palisade([...EVAL, "--out", at("deno")]);
  assert.equal(code, 3);
  assert.match(err, /deno\.lock, which is a file of another kind/);
  assert.equal(await readFile(at("deno.lock"), "utf8"), '{ "version": "5" }\n');
});

Deno.test("outputs of ours are written again, through links too, and nothing else is left", async () => {
  const show = ["show", "--context", at("book.txt"), "--model", at("model.gguf"), "--policy", "snapkv", ...ENGINES];
  const report = ["report", at("results.jsonl"), "--csv", at("table.csv"), "--html", at("page.html")];
  await symlink(at("table.csv"), at("linked.csv"));
  const runs = [EVAL.concat("--out", at("results.jsonl")), show.concat("--html", at("shown.html")), report];
  for (let round = 0; round < 2; round++) {
    for (const parameters of [...runs, ["report", at("results.jsonl"), "--csv", at("linked.csv")]]) {
      const { code, err } = await palisade(parameters);
      assert.equal(code, 0, err);
    }
  }
  const names = (await readdir(folder)).sort();
  assert.deepEqual(names.filter((name) => !(name in FILES)), [
    ...["deno.lock", "linked.csv", "page.html", "results.jsonl", "shown.html", "table.csv"],
  ]);
  assert.match(await readFile(at("table.csv"), "utf8"), /^model,protocol,length,task,policy/);
  assert.equal(await readFile(at("linked.csv"), "utf8"), await readFile(at("table.csv"), "utf8"));
});

Deno.test("a file that ends in the midst of a result goes on, one that begins otherwise doesn't", async () => {
  const [first] = (await readFile(at("results.jsonl"), "utf8")).split("\n");
  for (const length of [1, 6, 20, 60, first.length]) {
    await writeFile(at("torn.jsonl"), `${first}\n${first.slice(0, length)}`);
    const { code, err } = await palisade([...EVAL, "--out", at("torn.jsonl")]);
    assert.equal(code, 0, err);
    assert.match(err, /1 cells computed.*1 were there/);
  }
  await writeFile(at("torn.jsonl"), `${first}\nremember the milk`);
  await refused([...EVAL, "--out", at("torn.jsonl")], "--out", at("torn.jsonl"));
});
