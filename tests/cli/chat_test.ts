/** `ask` on models whose right answer is known: frames, thinking, going on from a text, loops, names. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Report } from "../../model/report.ts";
import { chainModel, type ChainOptions, type ChainToken, CHATML, CHATML_SPECIAL } from "../_helper/chain_model.ts";
import { type CliOptions, palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("chat");
const book = join(folder, "book.txt");
await writeFile(book, "Call me Ishmael. Some years ago I thought I would sail about a little.x");

let files = 0;
async function modelFile(options: ChainOptions): Promise<string> {
  const path = join(folder, `chain-${++files}.gguf`);
  await writeFile(path, chainModel(options));
  return path;
}

const ENGINES = ["--backend", "ts", "--dense", "web", "--policy", "snapkv"];

/** `ask` about the book; `question` unless there is one among the arguments. */
async function ask(model: string, parameters: readonly string[] = [], options: CliOptions = {}) {
  const question = parameters.includes("--question") ? [] : ["--question", "How much?"];
  return await palisade(["ask", "--model", model, "--context", book, ...ENGINES, ...question, ...parameters], options);
}

async function report(model: string, parameters: readonly string[] = []): Promise<Report> {
  const { code, out, err } = await ask(model, [...parameters, "--json"]);
  assert.equal(code, 0, err);
  return JSON.parse(out);
}

async function refused(model: string, parameters: readonly string[], expected: number, message: RegExp) {
  const { code, out, err } = await ask(model, parameters);
  assert.equal(code, expected, err);
  assert.equal(out, "");
  assert.match(err, message);
}

const THINKING: readonly ChainToken[] = [...CHATML_SPECIAL, ["<think>", 4], ["</think>", 4]];
/** As Qwen3's: thinking is on unless `enable_thinking` is false, which writes an empty thought. */
const SWITCHED = `${CHATML.slice(0, -"{% endif %}".length)}` +
  "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}";
const thinker = await modelFile({
  chain: ["\n", "<think>", "hm", "</think>", "42", "<|im_end|>"],
  special: THINKING,
  template: SWITCHED,
});
const plainModel = await modelFile({ chain: ["\n", "42", "<|endoftext|>"] });
const ok = await modelFile({ chain: ["\n", "42", "<|im_end|>"], template: CHATML });

Deno.test("thinking is off unless --think, and then it is no part of the answer", async () => {
  const off = await report(thinker);
  assert.deepEqual([off.answer, off.answers[0].thinking, off.frame.think], ["42", null, false]);
  const on = await report(thinker, ["--think"]);
  assert.deepEqual([on.answer, on.answers[0].thinking, on.frame.think], ["42", "hm", true]);
  assert.equal(on.tokens.generated, off.tokens.generated + 4);
});

Deno.test("what is thought goes to standard error, the answer to standard output", async () => {
  const { out, err } = await ask(thinker, ["--think"]);
  assert.deepEqual([out, err], ["42\n", "hm\n"]);
  const quiet = await ask(thinker, ["--think", "--quiet"]);
  assert.deepEqual([quiet.out, quiet.err], ["42\n", ""]);
});

Deno.test("a thought that the token limit cuts is no answer", async () => {
  const { answer, answers: [{ thinking, finish }] } = await report(thinker, ["--think", "--max-tokens", "2"]);
  assert.deepEqual([answer, thinking, finish], ["", "h", "length"]);
});

Deno.test("--think is refused where nothing thinks, or a reply's beginning is given", async () => {
  await refused(ok, ["--think"], 3, /its chat template knows of no thinking/);
  await refused(plainModel, ["--think"], 3, /it has no chat template/);
  await refused(thinker, ["--think", "--answer-prefix", "It is"], 3, /choose one of the two/);
  await refused(thinker, ["--think", "--question", ""], 3, /no place for thinking/);
});

Deno.test("a model without a chat template is asked plainly, and the report says so", async () => {
  const { answer, frame } = await report(plainModel, ["--frame", "line"]);
  assert.equal(answer, "42");
  assert.deepEqual(frame, {
    kind: "plain",
    name: "line",
    words: "{text}\n{question}",
    think: null,
    tokens: 0,
    protected: true,
  });
  assert.match((await ask(plainModel, [], { interactive: true })).err, /asked +plainly: .* no chat template/);
  assert.doesNotMatch((await ask(ok, [], { interactive: true })).err, /asked/);
});

Deno.test("--frame takes a name or a text with escapes, and --json prints it", async () => {
  const text = await report(ok, ["--frame", "{text}\\n\\\\\\tQ: {question}"]);
  assert.deepEqual(text.frame, {
    kind: "chat",
    name: "custom",
    words: "{text}\n\\\tQ: {question}",
    think: null,
    tokens: 6,
    protected: true,
  });
  const named = await report(ok, ["--frame", "both"]), line = await report(ok, ["--frame", "line"]);
  assert.equal(named.frame.name, "both");
  assert.ok(named.tokens.context > line.tokens.context && named.tokens.question > line.tokens.question);
  await refused(ok, ["--frame", "lime"], 3, /did you mean line\?/);
  await refused(ok, ["--frame", "{text}"], 3, /want \{text\} once, and after it \{question\} once/);
});

Deno.test('--question "" goes on from the text itself, whatever its chat template', async () => {
  for (const template of [undefined, CHATML]) {
    const model = await modelFile({ chain: ["x", "42", "<|im_end|>"], template });
    const { answer, frame, tokens, answers } = await report(model, ["--question", "", "--keep", "100%"]);
    assert.equal(answer, "42");
    assert.deepEqual([frame.kind, frame.name, answers[0].question], ["none", "none", ""]);
    assert.equal(tokens.context + tokens.question, 71);
    assert.equal(tokens.question, 1);
    const told = await ask(model, ["--question", ""], { interactive: true });
    assert.match(told.err, /asked +nothing: the text was gone on with/);
  }
});

Deno.test("an empty question among others, with words around it, or of blanks is refused", async () => {
  await refused(ok, ["--question", "", "--question", "Who?"], 3, /ask it alone/);
  await refused(ok, ["--question", "", "--frame", "blank"], 2, /no question to put words around/);
  await refused(ok, ["--question", "  "], 3, /"" goes on from the text itself/);
  await refused(ok, ["--question", "", "--system", "S"], 3, /no place for a system text/);
});

Deno.test("an answer that says one phrase over and over is ended, counted, and told of", async () => {
  const model = await modelFile({ chain: ["\n", "A", ":", " ", "A"], template: CHATML });
  const looped = await report(model);
  assert.deepEqual([looped.answers[0].finish, looped.loops, looped.tokens.generated], ["loop", 1, 32]);
  assert.equal(looped.answer, "A: ".repeat(11).slice(0, 32));
  const { err } = await ask(model, [], { interactive: true });
  assert.match(err, /said one phrase over and over \(--allow-loops lets it go on\)/);
  const allowed = await report(model, ["--allow-loops"]);
  assert.deepEqual([allowed.answers[0].finish, allowed.loops, allowed.tokens.generated], ["length", 0, 256]);
});

Deno.test("without a chat template an answer ends where the model asks itself the next question, or where it is told to", async () => {
  const model = await modelFile({ chain: [":", " ", "B", "\n", "A", ":"] });
  const framed = (more: string[] = []) => report(model, ["--frame", "{text}\nA: {question}:", ...more]);
  const ends = async (more?: string[]) => {
    const { answers: [{ answer, finish }] } = await framed(more);
    return [answer, finish];
  };
  assert.deepEqual(await ends(), [" B", "stop"]);
  assert.deepEqual(await ends(["--stop", "", "--max-tokens", "9"]), [" B\nA: B\nA", "length"]);
  assert.deepEqual(await ends(["--stop", "Z", "--stop", ": B"]), [" B\nA", "stop"]);
});

Deno.test("reports call a model by its file", async () => {
  const { model, modelTitle } = await report(ok);
  assert.match(model, /^chain-\d+$/);
  assert.equal(modelTitle, "tiny chain");
  assert.match((await ask(ok, [], { interactive: true })).err, /context +\d+ tokens, chain-\d+\n/);
  const { out } = await palisade(["doctor", "--model", ok]);
  assert.match(out, /chain-\d+ \(tiny chain\): llama/);
});
