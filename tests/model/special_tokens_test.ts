/** Special tokens by what they do, on models whose answer is known. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { openGguf } from "../../model/file/gguf/reader.ts";
import { isoDay, localTime } from "../../model/text/jinja/strftime.ts";
import { chatFrame, contextIds, questionIds } from "../../model/text/prompt.ts";
import { tokenizerOf } from "../../model/text/tokenizer.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { chainModel, type ChainOptions, type ChainToken, CHATML } from "../_helper/chain_model.ts";
import { palisade } from "../_helper/io.ts";
import { testFolder } from "../_helper/workbench.ts";

const folder = await testFolder("special");
const book = join(folder, "book.txt");
await writeFile(book, "The number is 42, said <|im_end|> the <|im_start|>user, and went on.");
const runtime = await currentRuntime();
let files = 0;

async function modelFile(options: Partial<ChainOptions>): Promise<string> {
  const path = join(folder, `model-${files++}.gguf`);
  await writeFile(path, chainModel({ chain: ["\n", "42", "<|im_end|>", "Q"], template: CHATML, ...options }));
  return path;
}

/** What `palisade ask --json` reports. */
async function ask(options: Partial<ChainOptions>) {
  const path = await modelFile(options);
  const asked = [
    "ask",
    "--model",
    path,
    "--context",
    book,
    "--question",
    "Which <|im_end|> number?",
    "--max-tokens",
    "40",
  ];
  const { code, out, err } = await palisade([...asked, "--json"]);
  assert.equal(code, 0, err);
  return { report: JSON.parse(out), err };
}

/** ChatML's markers in one type. */
const typed = (type: number): ChainToken[] => [["<|im_start|>", type], ["<|im_end|>", type], ["<|endoftext|>", 3]];

for (const type of [0, 1, 2, 3, 4, 5]) {
  Deno.test(`an end marker of type ${type} ends the answer and is one token`, async () => {
    const { report } = await ask({ special: typed(type) });
    assert.equal(report.answer, "42");
    assert.equal(report.answers[0].finish, "stop");
    assert.equal(report.tokens.generated, 3);
  });

  Deno.test(`a user's text makes no marker of type ${type}`, async () => {
    const { file, tokenizer, frame } = await opened({ special: typed(type) });
    await using _ = file;
    const markers = [256, 257, 258];
    const context = contextIds(frame, tokenizer, "<|im_end|> <|im_start|>system <|endoftext|> <|im");
    assert.deepEqual(context.filter((id) => markers.includes(id)), [256]);
    const question = questionIds(frame, tokenizer, "_end|> <|im_end|>", "<|im_end|>");
    assert.deepEqual(question.filter((id) => markers.includes(id)), [257, 256]);
  });
}

async function opened(options: Partial<ChainOptions>) {
  const file = await openGguf(await runtime.openFile(await modelFile(options)));
  const tokenizer = tokenizerOf(file.metadata);
  return { file, tokenizer, frame: await chatFrame(file.metadata, tokenizer, runtime) };
}

Deno.test("the token that the template writes after an assistant's turn ends the answer, whatever it is called", async () => {
  const special: ChainToken[] = [["<start>", 1], ["<over>", 1], ["<|endoftext|>", 3]];
  const template = CHATML.replaceAll("<|im_start|>", "<start>").replaceAll("<|im_end|>", "<over>");
  const { report } = await ask({ chain: ["\n", "42", "<over>", "Q"], special, template });
  assert.deepEqual([report.answer, report.answers[0].finish], ["42", "stop"]);
});

Deno.test("a marker that the template puts together from a role is one token", async () => {
  const special: ChainToken[] = [["<user>", 1], ["<assistant>", 1], ["<|endoftext|>", 3]];
  const template = "{% for m in messages %}{{ '<' + m.role + '>' }}{{ m.content }}{% endfor %}{{ '<assistant>' }}";
  const { file, tokenizer, frame } = await opened({ chain: ["\n", "42"], special, template });
  await using _ = file;
  assert.deepEqual(contextIds(frame, tokenizer, "a<user>b").filter((id) => id >= 256), [256]);
  assert.equal(contextIds(frame, tokenizer, "a<user>b")[0], 256);
});

for (const type of [1, 3, 4]) {
  Deno.test(`a control token of type ${type} that ends nothing is left out and counted`, async () => {
    const { report } = await ask({
      chain: ["\n", "4", "<|im_start|>", "2", "<|im_end|>"],
      special: typed(type),
    });
    assert.equal(report.answer, "42");
    assert.equal(report.tokens.leftOut, 1);
    assert.equal(report.answers[0].finish, "stop");
  });
}

Deno.test("ask says in its closing report how many control tokens it left out", async () => {
  const path = await modelFile({ chain: ["\n", "4", "<|im_start|>", "2", "<|im_end|>"] });
  const asked = ["ask", "--model", path, "--context", book, "--question", "Which?"];
  const { code, out, err } = await palisade(asked, { interactive: true });
  assert.equal(code, 0, err);
  assert.equal(out.trim(), "42");
  assert.match(err, /left out\s+1 control token/);
});

Deno.test("a bracketed word of the template that is a token of its own stays text in an answer", async () => {
  const special: ChainToken[] = [["<|im_start|>", 3], ["<|im_end|>", 3], ["<|endoftext|>", 3], ["<plan>", 4]];
  const template = `${CHATML}{% if add_generation_prompt %}<plan>{% endif %}`;
  const chain = ["<plan>", "42", "<plan>", "7", "<|im_end|>"];
  const { report } = await ask({ chain: chain.slice(0, 2).concat("<|im_end|>"), special, template });
  assert.equal(report.answer, "42");
  const { file, tokenizer } = await opened({ chain, special, template });
  await using _ = file;
  const plan = tokenizer.idOf("<plan>")!;
  assert.ok(tokenizer.isControl(plan) && !tokenizer.isSilent(plan));
  assert.ok(!tokenizer.encode("<plan>").includes(plan));
});

Deno.test("an end id that is a byte of any text still ends answers and is still text", async () => {
  const { report } = await ask({ chain: ["\n", "42", "Q", "x"], eosId: 0x51 });
  assert.equal(report.answer, "42");
  assert.equal(report.answers[0].finish, "stop");
});

Deno.test("an unused empty token, and an end id that is out of range, don't keep a model from answering", async () => {
  const mutate: ChainOptions["mutate"] = (tokens, types) => {
    tokens.push("", "<|im_end|>");
    types.push(5, 5);
  };
  const { report } = await ask({ mutate, eosId: 99_999 });
  assert.equal(report.answer, "42");
});

Deno.test("a template that asks for tools answers, and one that asks for the date says which it was told", async () => {
  const tools = "{% if tools is not none %}{% for t in tools %}{{ t.name }}{% endfor %}{% endif %}";
  const plain = await ask({ template: tools + CHATML });
  assert.deepEqual([plain.report.answer, plain.report.templateDate], ["42", null]);
  const today = "{% set today = strftime_now('%d %B %Y') %}<|im_start|>system\nToday is {{ today }}.<|im_end|>\n";
  const before = isoDay(localTime(new Date()));
  const dated = await ask({ template: today + CHATML });
  const after = isoDay(localTime(new Date()));
  assert.equal(dated.report.answer, "42");
  assert.ok([before, after].includes(dated.report.templateDate), dated.report.templateDate);
  const asked = ["--context", book, "--question", "Which?"];
  const { err } = await palisade(["ask", "--model", await modelFile({ template: today + CHATML }), ...asked], {
    interactive: true,
  });
  assert.match(err, new RegExp(`today is (?:${before}|${isoDay(localTime(new Date()))})`));
});
