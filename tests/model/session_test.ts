import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../../core/errors.ts";
import { policies, resolvePolicy } from "../../core/policy/registry.ts";
import { extend } from "../../model/decode/extend.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { contextIds, questionIds, withWords } from "../../model/text/prompt.ts";
import { CHUNK } from "../../model/decode/layer.ts";
import { reportOf } from "../../model/report.ts";
import { openContext } from "../../model/session.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import { anyChunks } from "../_helper/chunks.ts";
import { randomGate } from "../_helper/gate.ts";
import { randomSoftTokens } from "../_helper/soft_tokens.ts";
import { maskedLogits, oracleLogits } from "../_helper/oracle.ts";
import { SPECIAL_MODELS } from "../_helper/tiny_models.ts";

const FOLDER = fileURLToPath(new URL("../data/models/", import.meta.url));
const MODELS = (await readdir(FOLDER)).filter((name) => name.endsWith(".gguf"));
const TEXT = "The keeper counted seventeen stakes, and then she counted them again before the gate was shut. ".repeat(
  4,
);
const QUESTION = "How many stakes?";

async function tiny(name = "llama-plain.gguf", options: Parameters<typeof loadModel>[2] = {}): Promise<Model> {
  const engines = { dense: "web", backend: "ts", precision: "float32", frame: "line", ...options } as const;
  const model = await loadModel(FOLDER + name, await currentRuntime(), engines);
  return { ...model, chunks: () => Promise.resolve(anyChunks(model.config)) };
}

function difference(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  return a.reduce((worst, x, i) => Math.max(worst, Math.abs(x - b[i])), 0);
}

/** The error a promise rejects with. */
async function refusal(promise: Promise<unknown>): Promise<PalisadeError> {
  const error = await promise.then(() => undefined, (reason) => reason);
  assert.ok(error instanceof PalisadeError, `not refused: ${error}`);
  return error;
}

for (const name of MODELS) {
  Deno.test(`extend() gives the logits of transformers on ${name}`, async () => {
    const expected = JSON.parse(await readFile(FOLDER + name.replace(".gguf", ".logits.json"), "utf8")) as {
      ids: number[];
      positions: number[];
      logits: number[][];
    };
    const special = SPECIAL_MODELS.some((model) => name === `${model}.gguf`);
    await using model = await tiny(name, special ? { dense: "wasm" } : {});
    for (const [i, position] of expected.positions.entries()) {
      using context = await openContext(model, "x", { policy: "full" });
      context.cache.trim({ position: 0, lengths: context.cache.mark().lengths.map((heads) => heads.map(() => 0)) });
      const ids = expected.ids.slice(0, position + 1);
      const logits = await extend(model.dense, context.cache, ids);
      const worst = difference(logits, Float32Array.from(expected.logits[i]));
      assert.ok(worst <= 2e-3, `position ${position} differs by ${worst}`);
    }
  });
}

/** What policies need that the tiny models have not. */
function scorers({ config }: Model) {
  return { gate: randomGate(config), softTokens: randomSoftTokens(config) };
}

/** Those that keep to a budget; `kvzap` has tests of its own. */
const BUDGETED = policies.filter(({ name }) => resolvePolicy(name).threshold === undefined);

for (const { name } of BUDGETED) {
  Deno.test(`openContext() with ${name} removes what masking hides, logits within 1e-4`, async () => {
    await using model = await tiny();
    using context = await openContext(model, TEXT, { ...scorers(model), policy: name, keep: "20%" });
    const asked = questionIds(model.frame, model.tokenizer, QUESTION);
    const masked = await maskedLogits(model, context.cache, TEXT, asked, [...Array(model.config.layers).keys()]);
    const worst = difference(await extend(model.dense, context.cache, asked), masked);
    assert.ok(worst <= 1e-4, `differs by ${worst}`);
  });

  Deno.test(`openContext() with ${name} keeps exactly the budget, in ascending positions`, async () => {
    await using model = await tiny();
    using context = await openContext(model, TEXT, { ...scorers(model), policy: name, keep: "30%" });
    const { layers, kvHeads } = model.config;
    const { budget, cache, tokens } = context;
    const even = budget.perHead * kvHeads * layers, all = tokens * layers * kvHeads;
    const expected = { head: even, cascade: even, layer: budget.perLayer * layers, model: budget.total, all };
    assert.equal(cache.entries(), expected[resolvePolicy(name).allocate.kind]);
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < kvHeads; head++) {
        const positions = cache.positions(layer, head);
        assert.ok(positions.every((position, i) => position < tokens && (i === 0 || position > positions[i - 1])));
        assert.equal(positions.length, cache.rows(layer).length(head));
      }
    }
  });

  Deno.test(`openContext() with ${name} at keep 100 % gives the tokens of plain attention`, async () => {
    await using model = await tiny("qwen2-plain.gguf");
    using full = await openContext(model, TEXT, { policy: "full" });
    using context = await openContext(model, TEXT, { ...scorers(model), policy: name, keep: "100%" });
    const plain = await full.ask(QUESTION, { maxTokens: 12 });
    const answer = await context.ask(QUESTION, { maxTokens: 12 });
    assert.deepEqual(answer.ids, plain.ids);
  });
}

Deno.test("openContext() holds at most the budget, one layer and the scores at once", async () => {
  await using model = await tiny();
  const { layers, kvHeads, headDim } = model.config;
  const row = 2 * headDim * 4;
  for (const policy of ["layer-defensive", "defensive", "snapkv", "cake", "pyramidkv"]) {
    using context = await openContext(model, TEXT, { policy, keep: "20%" });
    const { budget, tokens } = context;
    const oneLayer = tokens * kvHeads * row;
    const scores = budget.total * (4 + 1 + 4 + 4);
    const peak = context.cache.bytes().peak;
    assert.ok(peak <= budget.total * row + oneLayer + scores, `${policy}: ${peak}`);
    assert.ok(peak >= oneLayer && peak < tokens * kvHeads * layers * row, `${policy}: ${peak}`);
  }
});

Deno.test("openContext() holds at most 64 spare rows per head after evicting", async () => {
  await using model = await tiny();
  const { layers, kvHeads, headDim } = model.config;
  using context = await openContext(model, TEXT.repeat(3), { policy: "layer-defensive", keep: "20%" });
  const { live, allocated } = context.cache.bytes();
  assert.equal(live, context.cache.entries() * 2 * headDim * 4);
  assert.ok(allocated <= live + 64 * layers * kvHeads * 2 * headDim * 4, `${allocated} of ${live}`);
});

Deno.test("readContext() gives the same cache whatever the chunks it reads in", async () => {
  await using model = await tiny();
  const long = TEXT.repeat(1 + Math.ceil((2 * CHUNK + 7) / contextIds(model.frame, model.tokenizer, TEXT).length));
  using context = await openContext(model, long, { policy: "full", beyondTrained: true });
  assert.ok(context.tokens > 2 * CHUNK);
  const read = contextIds(model.frame, model.tokenizer, long);
  const asked = questionIds(model.frame, model.tokenizer, QUESTION);
  const plain = await oracleLogits(model.dense, [...read, ...asked], 1);
  const worst = difference(await extend(model.dense, context.cache, asked), plain);
  assert.ok(worst <= 1e-3, `differs by ${worst}`);
});

Deno.test("ask() leaves the compressed context as it was, so questions don't see each other", async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { keep: "30%" });
  const before = { bytes: context.cache.bytes().live, entries: context.cache.entries(), at: context.cache.position };
  const first = await context.ask(QUESTION, { maxTokens: 10 });
  await context.ask("Who kept the gate, and why did she count the stakes twice?", { maxTokens: 70 });
  const again = await context.ask(QUESTION, { maxTokens: 10 });
  assert.deepEqual(again.ids, first.ids);
  const after = { bytes: context.cache.bytes().live, entries: context.cache.entries(), at: context.cache.position };
  assert.deepEqual(after, before);
});

Deno.test("ask() samples the same text from the same seed, and streams what it returns", async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { keep: "30%" });
  const options = { maxTokens: 20, temperature: 1.5, topP: 0.95, seed: 7, answerPrefix: "Seven" };
  let streamed = "";
  const first = await context.ask(QUESTION, { ...options, onText: (piece) => streamed += piece });
  const second = await context.ask(QUESTION, options);
  const other = await context.ask(QUESTION, { ...options, seed: 8 });
  assert.equal(first.answer, second.answer);
  assert.equal(streamed, first.answer);
  assert.ok(first.answer.startsWith("Seven"));
  assert.notDeepEqual(other.ids, first.ids);
});

Deno.test("ask() ends at the trained context with finish context, and trims", async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { keep: "30%" });
  const limit = model.config.contextLength;
  const { questionTokens } = await context.ask(QUESTION, { maxTokens: 1 });
  context.cache.advance(limit - questionTokens - context.cache.position - 3);
  const answer = await context.ask(QUESTION, { maxTokens: 50 });
  assert.ok(answer.finish === "context" || answer.finish === "stop", answer.finish);
  assert.ok(answer.ids.length <= 4);
});

Deno.test("ask() gives back what it has when it is interrupted", async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { keep: "30%" });
  const controller = new AbortController();
  let pieces = 0;
  const answer = await context.ask(QUESTION, {
    maxTokens: 200,
    signal: controller.signal,
    onText: () => {
      if (++pieces === 3) controller.abort();
    },
  });
  assert.equal(answer.finish, "interrupted");
  assert.ok(answer.ids.length < 200);
  assert.equal(context.cache.position, context.tokens);
});

Deno.test("openContext() refuses an empty and a too long context", async () => {
  await using model = await tiny();
  assert.equal((await refusal(openContext(model, " \n\t"))).code, "context.empty");
  const long = TEXT.repeat(Math.ceil(model.config.contextLength / 20));
  const error = await refusal(openContext(model, long));
  assert.equal(error.code, "context.too-long");
  assert.match(error.message, new RegExp(`${model.config.contextLength}`));
});

Deno.test("openContext() stops between chunks when it is aborted", async () => {
  await using model = await tiny();
  const controller = new AbortController();
  const reading = openContext(model, TEXT, { signal: controller.signal, onLayer: () => controller.abort() });
  await assert.rejects(reading, { name: "AbortError" });
});

Deno.test("reportOf() counts every entry once", async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { keep: "25%", refit: "none" });
  const answers = [await context.ask(QUESTION, { maxTokens: 3 })];
  const process = { rssBytes: 3e9, peakRssBytes: 4e9 }, told = { keepAsked: "25%", loadMs: 1, memory: process };
  const { cache, tokens, answer, memory } = reportOf(model, context, answers, told);
  const weights = model.dense.weightBytes;
  assert.deepEqual(memory, { rss: 3e9, peakRss: 4e9, weights, cache: cache.allocatedBytes });
  assert.ok(weights > 0);
  const { layers, kvHeads, headDim } = model.config;
  assert.equal(cache.kept + cache.evicted, tokens.context * layers * kvHeads);
  assert.equal(cache.perLayer.reduce((sum, layer) => sum + layer.kept, 0), cache.kept);
  assert.equal(cache.bytes, cache.kept * 2 * headDim * 4);
  assert.equal(cache.fullBytes, tokens.context * layers * kvHeads * 2 * headDim * 4);
  assert.equal(answer, answers[0].answer);
});

Deno.test("reportOf() counts characters the model has no token for", async () => {
  await using model = await tiny();
  using context = await openContext(model, `${TEXT}\uD800 lone`, { policy: "full" });
  const report = reportOf(model, context, [], { keepAsked: "100%", loadMs: 1 });
  assert.ok(report.tokens.replaced >= 1);
});

Deno.test('ask("") goes on from the text itself with the tokens of plain attention', async () => {
  await using model = await tiny("qwen2-plain.gguf");
  using context = await openContext(model, TEXT, { policy: "full", frame: "none" });
  const read = model.tokenizer.encode(TEXT);
  assert.equal(context.tokens, read.length - 1);
  const { ids, questionTokens } = await context.ask("", { maxTokens: 8 });
  assert.equal(questionTokens, 1);
  const logits = await oracleLogits(model.dense, [...read, ...ids.slice(0, -1)], ids.length);
  const { vocabulary } = model.config;
  const greedy = ids.map((_, i) => {
    const row = logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    return row.indexOf(Math.max(...row));
  });
  assert.deepEqual(ids, greedy);
  assert.deepEqual((await context.ask("", { maxTokens: 8 })).ids, ids);
  assert.equal((await context.ask(" and", { maxTokens: 1 })).questionTokens, 1 + model.tokenizer.encode(" and").length);
});

Deno.test('ask("") is refused where the text was read for questions, and of one token', async () => {
  await using model = await tiny();
  using context = await openContext(model, TEXT, { policy: "full" });
  assert.equal((await refusal(context.ask(""))).code, "question.empty");
  assert.equal((await refusal(openContext(model, "x", { policy: "full", frame: "none" }))).code, "context.short");
  assert.equal((await refusal(openContext(model, TEXT, { frame: "nine" }))).code, "frame.unknown");
});

Deno.test("openContext() and ask() put the frame's words around text and question", async () => {
  await using model = await tiny();
  const frame = "Read: {text} Now: {question} So:";
  using context = await openContext(model, TEXT, { policy: "full", frame });
  const given = withWords(model.frame, frame);
  assert.deepEqual(context.frame, given);
  assert.equal(context.tokens, contextIds(given, model.tokenizer, TEXT).length);
  const { questionTokens } = await context.ask(QUESTION, { maxTokens: 1 });
  assert.equal(questionTokens, questionIds(given, model.tokenizer, QUESTION).length);
});
