/** Nothing from a model or a file reaches a terminal raw, and widths count columns. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { tableText } from "../../cli/print/table.ts";
import { columns, guarded, padLeft, padRight, shown } from "../../cli/print/terminal.ts";
import { runChild } from "../../tools/child.ts";
import { chainModel, CHATML } from "../_helper/chain_model.ts";
import { palisade } from "../_helper/io.ts";
import { skipped } from "../_helper/skip.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("terminal");
const MODEL = join(folder, "esc.gguf"), CONTEXT = join(folder, "context.txt");
const chain = ["\n", "4\x1b]0;owned\x07", "<|im_start|>", "2", "<|im_end|>"];
await writeFile(MODEL, chainModel({ chain, template: CHATML }));
await writeFile(CONTEXT, "The grey whale rose.");
const ASK = ["ask", "--model", MODEL, "--context", CONTEXT, "--question", "What?", "--policy", "snapkv"];
const EVIL = "\x1b]0;owned\x07";

Deno.test("shown() replaces what a terminal obeys and nothing else", () => {
  for (let code = 0; code < 0x2100; code++) {
    const character = String.fromCharCode(code);
    const control = (code < 0x20 && character !== "\n" && character !== "\t") || (code >= 0x7f && code < 0xa0);
    const turns = (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
    assert.equal(shown(character), control || turns ? "·" : character, `U+${code.toString(16)}`);
  }
  assert.equal(shown("日本 👩‍👩‍👧 é ‏עברית\n\t"), "日本 👩‍👩‍👧 é ‏עברית\n\t");
});

Deno.test("guarded() catches a sequence that comes in pieces, and leaves pipes alone", () => {
  const terminal: string[] = [], pipe: string[] = [];
  for (const piece of ["4\x1b", "]0;ow", "ned\x07", "2\x9b", "31m"]) {
    guarded((text) => terminal.push(text), true)(piece);
    guarded((text) => pipe.push(text), false)(piece);
  }
  assert.equal(terminal.join(""), "4·]0;owned·2·31m");
  assert.equal(pipe.join(""), "4\x1b]0;owned\x072\x9b31m");
});

Deno.test("ask shows a model's ESC and BEL as · on a terminal, and gives a pipe its bytes", async () => {
  const terminal = await palisade(ASK, { terminal: true });
  assert.equal(terminal.out, "4·]0;owned·2\n");
  assert.equal((await palisade(ASK)).out, "4\x1b]0;owned\x072\n");
});

const PSEUDO = "ask in a pseudo-terminal shows them as ·, with its own progress bar beside";
if ((await runChild("python3", ["-c", "import pty"])).code !== 0) skipped(PSEUDO, "no python3 with pty", "device");
else {Deno.test(PSEUDO, async () => {
    const main = fileURLToPath(new URL("../../cli/main.ts", import.meta.url));
    const command = [Deno.execPath(), "run", "-A", "--no-check", main, ...ASK];
    const spawn = `import pty, sys; sys.exit(pty.spawn(${JSON.stringify(command)}) >> 8)`;
    const { code, stdout } = await runChild("python3", ["-c", spawn], { env: { NO_COLOR: "1" }, timeout: 60 });
    assert.equal(code, 0, stdout);
    assert.ok(stdout.includes("4·]0;owned·2\r\n"), JSON.stringify(stdout));
    assert.ok(!stdout.includes("\x1b]") && !stdout.includes("\x07"), JSON.stringify(stdout));
    assert.match(stdout, /Starting the model|Reading, layer/);
  });}

/** Commands that name what they were given, with a name that a terminal would obey. */
const NAMED: [string, string[]][] = [
  ["a context that isn't there", ["ask", "--context", `no${EVIL}.txt`, "--question", "What?"]],
  ["a model that isn't there", [...ASK.slice(0, 2), `no${EVIL}.gguf`, ...ASK.slice(3)]],
  ["an unknown policy", [...ASK.slice(0, -1), `snap${EVIL}`]],
  ["an unknown option", [...ASK, `--no${EVIL}`]],
  ["an unknown command", [`no${EVIL}`]],
  ["results that aren't there", ["report", `no${EVIL}.jsonl`]],
  ["a model that has no name", ["models", "path", `no${EVIL}`]],
  ["a task that isn't there", ["eval", "--tasks", `no${EVIL}`, "--out", join(folder, "out.jsonl")]],
  ["a kind of text", ["calibrate", "--model", MODEL, "--kinds", `no${EVIL}`]],
];

for (const [what, parameters] of NAMED) {
  Deno.test(`${parameters[0].slice(0, 9).replace(/\W/g, "")} names ${what} without steering the terminal`, async () => {
    const { code, out, err } = await palisade(parameters, { terminal: true, interactive: true });
    assert.notEqual(code, 0);
    assert.ok(err.includes("·"), err);
    // deno-lint-ignore no-control-regex
    assert.doesNotMatch(out + err, /[\x00-\x08\x0b-\x1f\x7f-\x9f]/);
  });
}

Deno.test("columns(), padRight() and padLeft() count columns, not characters", () => {
  const widths: [string, number][] = [["abc", 3], ["日本", 4], ["👩‍👩‍👧", 2], ["e\u0301", 1], ["\x1b[31mx", 6], ["", 0]];
  for (const [text, width] of widths) {
    assert.equal(columns(text), width, JSON.stringify(text));
    assert.equal(columns(padRight(text, 8)), 8);
    assert.equal(columns(padLeft(text, 8)), 8);
  }
  assert.equal(padRight("日本日本", 3), "日本日本");
});

Deno.test("tables keep their edges with wide, combined and obeyed characters, and keep these for pipes", () => {
  const names = ["plain", "日本語の模型", "👍 ok", "e\u0301te\u0301", `x${EVIL}`, "\x1b[31mred", "\u202eevil"];
  for (const options of [{}, { widths: [16, 8] }]) {
    const table = tableText(["name", "n"], names.map((name) => [name, "1"]), options);
    const lines = table.split("\n");
    for (const line of lines) assert.equal(columns(line), columns(lines[0]), `${JSON.stringify(line)}`);
    for (const name of names) assert.ok(table.includes(name), JSON.stringify(name));
  }
});
