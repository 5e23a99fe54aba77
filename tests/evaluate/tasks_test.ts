import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PalisadeError } from "../../core/errors.ts";
import { openHaystack } from "../../evaluate/tasks/haystack.ts";
import { type MetricName, METRICS } from "../../evaluate/tasks/metrics.ts";
import { openTasks, rulerTasks } from "../../evaluate/tasks/registry.ts";
import type { Prompt, Sample, Task } from "../../evaluate/tasks/interface.ts";
import { sampleSeed } from "../../evaluate/tasks/draw.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { testFolder } from "../_helper/workbench.ts";

const runtime = await currentRuntime();
const haystack = await openHaystack(runtime);
const folder = await testFolder("tasks");

/** A word is a token here: enough to see lengths, and independent of any tokenizer. */
function wordCount(text: string): number {
  return text.split(/\s+/).filter((word) => word !== "").length;
}

function promptWords({ context, question, answerPrefix }: Prompt): number {
  return wordCount(context) + wordCount(question) + wordCount(answerPrefix);
}

function draw(task: Task, options: { length?: number; seed?: number; index?: number } = {}): Sample {
  const { length = 1024, seed = 1, index = 0 } = options;
  return task.generate({
    length,
    index,
    seed: sampleSeed(seed, task.name, length, index),
    haystack,
    promptTokens: promptWords,
    textTokens: wordCount,
  });
}

const taskNamed = (name: string) => rulerTasks.find((task) => task.name === name)!;

Deno.test("rulerTasks are RULER's eleven synthetic tasks with its answer lengths", () => {
  const tokens = Object.fromEntries(rulerTasks.map((task) => [task.name, draw(task).maxNewTokens]));
  assert.deepEqual(tokens, {
    niah_single_1: 128,
    niah_single_2: 128,
    niah_single_3: 128,
    niah_multikey_1: 128,
    niah_multikey_2: 128,
    niah_multikey_3: 128,
    niah_multivalue: 128,
    niah_multiquery: 128,
    vt: 30,
    cwe: 120,
    fwe: 50,
  });
});

for (const task of rulerTasks) {
  for (const length of [800, 1024, 4096]) {
    Deno.test(`${task.name} fills ${length} tokens, answer included, and never more`, () => {
      for (let index = 0; index < 5; index++) {
        const sample = draw(task, { length, index });
        const used = promptWords(sample) + sample.maxNewTokens;
        assert.ok(used <= length, `${used}`);
        assert.ok(used > length - 60, `only ${used}`);
      }
    });
  }

  Deno.test(`${task.name} is the same for the same seed and another for another`, () => {
    assert.deepEqual(draw(task), draw(task));
    assert.notEqual(draw(task).context, draw(task, { seed: 2 }).context);
    assert.notEqual(draw(task).context, draw(task, { index: 1 }).context);
  });

  Deno.test(`${task.name} has its answers in the context and not in the question`, () => {
    for (let index = 0; index < 10; index++) {
      const sample = draw(task, { index });
      assert.ok(sample.answers.length > 0);
      assert.equal(new Set(sample.answers).size, sample.answers.length);
      for (const answer of sample.answers) {
        assert.ok(sample.context.includes(answer), answer);
        assert.ok(!sample.question.includes(answer), answer);
      }
    }
  });
}

Deno.test("niah tasks hide exactly the needles RULER hides", () => {
  const needles = (
    name: string,
  ) => [...draw(taskNamed(name)).context.matchAll(/One of the special magic (numbers|uuids) for (\S+) is: (\S+)\./g)];
  const shape = (name: string) => {
    const found = needles(name);
    return [found.length, new Set(found.map((each) => each[2])).size];
  };
  assert.deepEqual(shape("niah_single_1"), [1, 1]);
  assert.deepEqual(shape("niah_single_3"), [1, 1]);
  assert.deepEqual(shape("niah_multikey_1"), [4, 4]);
  assert.deepEqual(shape("niah_multivalue"), [4, 1]);
  assert.deepEqual(shape("niah_multiquery"), [4, 4]);
  const lines = needles("niah_multikey_2").length;
  assert.equal(lines, draw(taskNamed("niah_multikey_2")).context.split("\n").length - 1);
  for (const [, type, key, value] of needles("niah_multikey_3")) {
    assert.equal(type, "uuids");
    for (const uuid of [key, value]) {
      assert.match(uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    }
  }
});

Deno.test("niah tasks ask in RULER's words, one needle and many", () => {
  const one = draw(taskNamed("niah_single_1"));
  const key = /for (\S+) is: /.exec(one.context)![1];
  assert.ok(
    one.context.startsWith("A special magic number is hidden within the following text. Make sure to memorize"),
  );
  assert.equal(one.question, `What is the special magic number for ${key} mentioned in the provided text?`);
  assert.equal(one.answerPrefix, ` The special magic number for ${key} mentioned in the provided text is`);
  const many = draw(taskNamed("niah_multiquery"));
  assert.match(
    many.question,
    /^What are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned in the provided text\?$/,
  );
  assert.match(many.answerPrefix, / mentioned in the provided text are$/);
});

Deno.test("niah_multiquery lists the answers of the keys in the order they are asked", () => {
  const { context, question, answers } = draw(taskNamed("niah_multiquery"));
  const keys = /for (.*) mentioned/.exec(question)![1].replace(" and ", " ").split(", ");
  assert.deepEqual(keys.map((key) => new RegExp(`for ${key} is: (\\d+)`).exec(context)![1]), answers);
});

Deno.test("vt hides one chain of four hops that leads to the value asked for", () => {
  const { context, question, answers } = draw(taskNamed("vt"));
  const value = /value (\d+)/.exec(question)![1];
  const asked = context.slice(context.lastIndexOf("Memorize and track"));
  const [first, ...rest] = answers;
  assert.equal(answers.length, 5);
  assert.ok(asked.includes(`VAR ${first} = ${value}`));
  rest.forEach((name, i) => assert.ok(asked.includes(`VAR ${name} = VAR ${answers[i]}`), name));
  assert.equal(context.split("Memorize and track").length - 1, 2, "one worked example");
});

Deno.test("cwe repeats ten words as often as RULER does", () => {
  for (const [length, common, uncommon] of [[1024, 6, 1], [4096, 30, 3]]) {
    const { context, answers } = draw(taskNamed("cwe"), { length });
    const asked = context.slice(context.lastIndexOf("Below is a numbered list"));
    const counts = new Map<string, number>();
    for (const [, word] of asked.matchAll(/\d+\. (\S+)/g)) counts.set(word, (counts.get(word) ?? 0) + 1);
    const often = [...counts].filter(([, count]) => count === common).map(([word]) => word);
    assert.deepEqual(often.sort(), [...answers].sort());
    assert.ok([...counts].every(([word, count]) => answers.includes(word) || count === uncommon));
  }
});

Deno.test("fwe's answers are the three most frequent words after the dots", () => {
  const { context, answers } = draw(taskNamed("fwe"), { length: 4096 });
  const counts = new Map<string, number>();
  for (const word of context.slice(context.indexOf("words. ") + 7).split(" ")) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const order = [...counts].sort((a, b) => b[1] - a[1]).map(([word]) => word);
  assert.deepEqual(order.slice(0, 4), ["...", ...answers]);
});

Deno.test("a task refuses a length too small for it", () => {
  for (const task of rulerTasks) {
    assert.throws(() => draw(task, { length: 100 }), (error) => {
      assert.ok(error instanceof PalisadeError);
      assert.equal(error.code, "length.too-small");
      assert.match(error.message, /100 tokens: the shortest takes \d+/);
      return true;
    }, task.name);
  }
});

async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `not refused: ${error}`);
  return error;
}

async function fileOf(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

Deno.test("openTasks() knows ruler, refuses what is in it beside it and suggests the nearest name", async () => {
  assert.equal((await openTasks(["ruler"], runtime)).length, 11);
  assert.equal((await refusal(openTasks(["vt", "ruler", "cwe"], runtime))).code, "list.repeated");
  const error = await refusal(openTasks(["niah_singel_1"], runtime));
  assert.equal(error.code, "task.unknown");
  assert.match(error.message, /niah_single_1/);
});

Deno.test("qa puts the right document among others of a SQuAD file", async () => {
  const paragraphs = Array.from({ length: 30 }, (_, i) => ({
    context: `Town ${i} has a wall of ${i + 100} stakes.`,
    qas: [{ question: `How many stakes has town ${i}?`, answers: i === 3 ? [] : [{ text: `${i + 100}` }] }],
  }));
  const file = await fileOf("squad.json", JSON.stringify({ data: [{ title: "walls", paragraphs }] }));
  const [qa] = await openTasks([`qa:${file}`], runtime);
  for (let index = 0; index < 10; index++) {
    const sample = draw(qa, { length: 250, index });
    const town = /town (\d+)\?/.exec(sample.question)![1];
    assert.ok(sample.context.includes(`Town ${town} has a wall of ${sample.answers[0]} stakes.`));
    assert.ok(sample.context.includes("Document 2:"), "more than one document");
    assert.equal(sample.metric, "contains-any");
    assert.notEqual(town, "3");
    assert.ok(promptWords(sample) + 32 <= 250);
  }
});

Deno.test("jsonl gives the cases of a file as they are", async () => {
  const file = await fileOf(
    "own.jsonl",
    '{"context":"It is 5.","question":"What?","answers":"5"}\n\n' +
      '{"context":"c","question":"q","answers":["a","b"],"metric":"edit","maxNewTokens":3,"answerPrefix":"So"}\n',
  );
  const [task] = await openTasks([`jsonl:${file}`], runtime);
  assert.equal(task.available, 2);
  assert.equal(task.sized, false);
  const first = { context: "It is 5.", question: "What?", answerPrefix: "", answers: ["5"] };
  assert.deepEqual(draw(task), { ...first, metric: "contains-all", maxNewTokens: 64, where: `${file}:1` });
  assert.deepEqual([draw(task, { index: 1 }).metric, draw(task, { index: 1 }).where], ["edit", `${file}:3`]);
});

/** Bad files: name, text, task prefix, code, what the message says. */
const BAD: [string, string, string, string, RegExp][] = [
  ["broken.json", "{", "qa", "task.syntax", /broken\.json/],
  ["nodata.json", "{}", "qa", "task.syntax", /data/],
  ["noanswer.json", '{"data":[]}', "qa", "task.empty", /noanswer\.json/],
  ["broken.jsonl", '{"context":"c","question":"q","answers":"a"}\n{', "jsonl", "task.syntax", /broken\.jsonl:2/],
  ["noquestion.jsonl", '{"context":"c","answers":"a"}', "jsonl", "task.syntax", /question/],
  ["noanswers.jsonl", '{"context":"c","question":"q","answers":[]}', "jsonl", "task.syntax", /answers/],
  [
    "metric.jsonl",
    '{"context":"c","question":"q","answers":"a","metric":"bleu"}',
    "jsonl",
    "task.syntax",
    /bleu.*rouge/,
  ],
  ["tokens.jsonl", '{"context":"c","question":"q","answers":"a","maxNewTokens":0}', "jsonl", "task.syntax", /≥ 1/],
  ["empty.jsonl", "\n", "jsonl", "task.empty", /empty\.jsonl/],
  [
    "blank.jsonl",
    '\n \t\n{"context":" ","question":"q","answers":"a"}',
    "jsonl",
    "task.empty-text",
    /context.*blank\.jsonl:3/,
  ],
  ["noq.jsonl", '{"context":"c","question":"\\n","answers":"a"}', "jsonl", "task.empty-text", /question.*noq\.jsonl:1/],
  ["nul.jsonl", '{"context":"a\\u0000b","question":"q","answers":"a"}', "jsonl", "text.binary", /nul\.jsonl:1/],
  ["half.jsonl", '{"context":"a\\ud800b","question":"q","answers":"a"}', "jsonl", "text.not-utf8", /half\.jsonl:1/],
  [
    "noanswer2.json",
    '{"data":[{"paragraphs":[\n{"context":"c","qas":[{"question":"q","answers":[{"text":" "}]}]}]}]}',
    "qa",
    "task.answer",
    /noanswer2\.json:2 \(data\[0\]\.paragraphs\[0\]\.qas\[0\]\.answers\[0\]\)/,
  ],
];

for (const [name, text, prefix, code, message] of BAD) {
  Deno.test(`openTasks() refuses ${prefix}:${name} and says where`, async () => {
    const error = await refusal(openTasks([`${prefix}:${await fileOf(name, text)}`], runtime));
    assert.equal(error.code, code);
    assert.match(error.message, message);
  });
}

/** What is nothing to each metric, and what is little and yet something. */
const NOTHING: Record<MetricName, { empty: string[]; fine: string[] }> = {
  "contains-all": { empty: ["", " \n", "\u200b"], fine: ["the", "!", "0"] },
  "contains-any": { empty: ["", "\t"], fine: ["a"] },
  exact: { empty: ["", "The", "...", "a, an"], fine: ["the end", "ü"] },
  "token-f1": { empty: ["", "an", "-"], fine: ["-1"] },
  "rouge-l": { empty: ["", "a the"], fine: ["42"] },
  edit: { empty: ["", "  "], fine: ["."] },
};

for (const metric of METRICS) {
  Deno.test(`jsonl refuses a reference that ${metric} normalises to nothing, and says where`, async () => {
    const { empty, fine } = NOTHING[metric];
    const open = async (answers: string[]) => {
      const line = { context: "c", question: "q", answers, metric };
      const file = await fileOf(
        `${metric}.jsonl`,
        `\n${JSON.stringify({ ...line, answers: ["x"] })}\n${JSON.stringify(line)}\n`,
      );
      return await openTasks([`jsonl:${file}`], runtime);
    };
    for (const nothing of empty) {
      const error = await refusal(open(["right", nothing]));
      assert.deepEqual([error.kind, error.code], ["input", "task.answer"]);
      assert.match(error.message, new RegExp(`${metric}\\.jsonl:3`));
    }
    assert.equal((await open(fine))[0].available, 2);
  });
}

Deno.test("openHaystack() refuses a text without sentences", async () => {
  const error = await refusal(openHaystack(runtime, await fileOf("short.txt", "One. Two.")));
  assert.equal(error.code, "haystack.short");
});
