/**
 * Answering from a snapshot beside reading the text: time to the first token, file sizes, what saving takes.
 * `deno task bench snapshots [LENGTHS]`, default 4096,8192 tokens of SmolLM2-135M; with `efforts` behind the lengths,
 * what `effort: best` costs beside the defaults.
 */
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { CacheType } from "../core/cache/entry_type.ts";
import { loadModel, type Model } from "../model/model.ts";
import { type Context, type ContextOptions, openContext } from "../model/session.ts";
import { fileSink } from "../model/snapshot/bytes.ts";
import { resolveModel } from "../model/store/store.ts";
import { autoThreads } from "../model/threads.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { openHaystack, proseFrom } from "../evaluate/tasks/haystack.ts";
import { contextIds } from "../model/text/prompt.ts";

const QUESTION = "Who tells the story?";
const KEEPS = ["10%", "20%"], TYPES: readonly CacheType[] = ["f32", "f16", "int8"];
/** Times that a restore is measured; the middle one counts. */
const RUNS = 5;

const runtime = await currentRuntime();
const lengths = (process.argv[2] ?? "4096,8192").split(",").map(Number);
const path = await resolveModel(process.env["PALISADE_MODEL"] ?? "smollm2-135m", runtime, {});
const folder = mkdtempSync(join(tmpdir(), "palisade-bench-"));

/** Prose that is this many tokens long with the frame, or just below. */
async function prose(model: Model, tokens: number): Promise<string> {
  const sentences = proseFrom(await openHaystack(runtime), 300, tokens),
    count = (words: number) =>
      contextIds(model.frame, model.tokenizer, sentences.join(" ").split(" ").slice(0, words).join(" ")).length;
  let least = 1, most = tokens;
  while (least < most) {
    const half = Math.ceil((least + most) / 2);
    if (count(half) <= tokens) least = half;
    else most = half - 1;
  }
  return sentences.join(" ").split(" ").slice(0, least).join(" ");
}

async function load(): Promise<Model> {
  return await loadModel(path, runtime, { backend: "wasm", threads: autoThreads(runtime) });
}

/** Milliseconds until the first token of an answer, question tokens included. */
async function firstToken(context: Context): Promise<number> {
  const start = performance.now();
  await context.ask(QUESTION, { maxTokens: 1 });
  return performance.now() - start;
}

const middle = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1];
const ms = (value: number) => value < 10 ? value.toFixed(1) : String(Math.round(value));

interface Row {
  readonly tokens: number;
  readonly policy: string;
  readonly read: number;
  readonly save: number;
  readonly bytes: number;
  readonly restore: number;
  readonly first: number;
}

async function measure(model: Model, text: string, options: ContextOptions): Promise<Row> {
  const file = join(folder, "one.palisade"), start = performance.now();
  using context = await openContext(model, text, { ...options, beyondTrained: true });
  const read = performance.now() - start, answered = await context.ask(QUESTION, { maxTokens: 8 });
  const saving = performance.now();
  await context.save(fileSink(runtime, file));
  const save = performance.now() - saving, restores: number[] = [], firsts: number[] = [];
  for (let run = 0; run < RUNS; run++) {
    const source = await runtime.openFile(file), began = performance.now();
    using restored = await model.restore(source);
    restores.push(performance.now() - began);
    firsts.push(restores.at(-1)! + await firstToken(restored));
    await source.close();
    const { ids } = await restored.ask(QUESTION, { maxTokens: 8 });
    if (`${ids}` !== `${answered.ids}`) throw new Error(`${JSON.stringify(options)}: another answer after the restore`);
  }
  const policy = context.effort?.policy ?? context.policy.name;
  console.error(`${context.tokens} tokens read by ${policy} in ${ms(read)} ms`);
  const { tokens } = context, bytes = statSync(file).size;
  return { tokens, policy, read, save, bytes, restore: middle(restores), first: middle(firsts) };
}

/** What is measured of a text: the words of its row, and how it is read. */
type Case = readonly [words: readonly string[], options: ContextOptions];

function budgets(length: number): Case[] {
  return KEEPS.flatMap((keep, i) => {
    // How rows are stored changes what a file takes, not what reading does: the shortest text is enough to see it.
    const types = i === 0 && length === lengths[0] ? TYPES : TYPES.slice(0, 1);
    return types.map((cacheType): Case => [[keep, cacheType], { keep, cacheType }]);
  });
}

/** Turns, each in a run of its own, so that what the machine does meanwhile meets all alike. */
function efforts(): Case[] {
  const ways: Case[] = [
    [["fast", "default"], {}],
    [["best", "default"], { effort: "best" }],
    ...["1/8", "1/16"].map((bytes): Case => [["best", bytes], { effort: "best", bytes }]),
  ];
  return [...ways, ...ways];
}

const model = await load();
// Its SHA-256 is asked for once a process, by a gate too; so it is no part of what is measured.
const hashing = performance.now();
await model.identity();
console.log(`model ${model.name}, ${model.backend.detail}, ${model.dense.detail}`);
console.log(`SHA-256 of the model's file, once a process: ${ms(performance.now() - hashing)} ms\n`);
const asked = process.argv[3] === "efforts", head = asked ? "effort | bytes" : "keep | type";
console.log(
  `| tokens | ${head} | read, s | save, ms | file, MB | restore, ms | first token, ms | × reading | policy |`,
);
console.log(`| -----: | --- | --- | ------: | -------: | -------: | ----------: | --------------: | --------: | --- |`);
for (const length of lengths) {
  const text = await prose(model, length);
  for (const [words, options] of asked ? efforts() : budgets(length)) {
    const { tokens, policy, read, save, bytes, restore, first } = await measure(model, text, options);
    const times = Math.round(read / restore);
    console.log(
      `| ${tokens} | ${words.join(" | ")} | ${(read / 1000).toFixed(1)} | ${ms(save)} | ${
        (bytes / 1e6).toFixed(1)
      } | ` +
        `${ms(restore)} | ${ms(first)} | ${times} | ${policy} |`,
    );
  }
}
await model[Symbol.asyncDispose]();
rmSync(folder, { recursive: true });
