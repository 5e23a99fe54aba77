/**
 * Samples of an evaluation with what we keep and answer, a JSON line each, for `bench/peers/torch_answers.py`.
 *
 *     deno task bench answers --out ours.jsonl [--tasks niah_multikey_1,niah_single_1] [--samples 30]
 *       [--first 0] [--length 1k] [--seed 1] [--keep 20%] [--haystack FILE] [--dense web] [--precision float32]
 *       [--policies full,snapkv@reference,defensive@reference,layer-defensive@reference]
 *
 * A line holds the token ids of context and question, the expected answers, and per policy the kept positions
 * (`[layers][kvHeads]`) and the answer. Samples are those that `palisade eval` makes of the same seed.
 */
import { openSync, writeSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { answerBeside, answerFully } from "../evaluate/sweep/answer.ts";
import { forkCache, type KeptCase, prefillOnce } from "../evaluate/sweep/shared_prefill.ts";
import { makeSample } from "../evaluate/sweep/sweep.ts";
import { openHaystack } from "../evaluate/tasks/haystack.ts";
import { scoreAnswer } from "../evaluate/tasks/metrics.ts";
import { cellGroups, parseCases, parseLengths } from "../evaluate/sweep/plan.ts";
import { splitList } from "../evaluate/sweep/lists.ts";
import { openTasks } from "../evaluate/tasks/registry.ts";
import type { DenseChoice, DensePrecision } from "../model/dense/pick.ts";
import { loadModel } from "../model/model.ts";
import { LINE } from "../model/text/frames.ts";
import { contextIds, questionIds } from "../model/text/prompt.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

const option = (otherwise: string) => ({ type: "string", default: otherwise } as const);
const { values } = parseArgs({
  args: process.argv.slice(2),
  options: {
    out: option("answers.jsonl"),
    tasks: option("niah_multikey_1,niah_single_1"),
    samples: option("30"),
    first: option("0"),
    length: option("1k"),
    seed: option("1"),
    keep: option("20%"),
    policies: option("full,snapkv@reference,defensive@reference,layer-defensive@reference"),
    haystack: { type: "string" },
    dense: option("auto"),
    precision: option("auto"),
  },
});

const runtime = await currentRuntime();
const loading = { frame: LINE, dense: values.dense as DenseChoice, precision: values.precision as DensePrecision };
await using model = await loadModel(await pullModel("smollm2-135m", runtime), runtime, loading);
const { tokenizer, frame, config: { contextLength, kvHeads, layers } } = model;
const sampling = { seed: Number(values.seed), haystack: await openHaystack(runtime, values.haystack) };
const cases = parseCases(values.policies, values.keep);
const tasks = await openTasks(splitList(values.tasks), runtime);
const out = openSync(values.out, "w");

const groups = cellGroups(tasks, parseLengths(values.length), Number(values.samples));
for (const group of groups.filter(({ sample }) => sample >= Number(values.first))) {
  const { context, question, answerPrefix, answers, metric, maxNewTokens } = makeSample(model, group, sampling);
  const ids = contextIds(frame, tokenizer, context);
  const asked = questionIds(frame, tokenizer, question, answerPrefix);
  const answering = { maxNewTokens, contextLength };
  using prefill = await prefillOnce(model, ids, cases);
  const full = await answerFully(model, prefill.cache, asked, answering);

  const answer = async ({ kept }: KeptCase) => {
    if (kept === undefined) return full;
    using cache = await forkCache(prefill.cache, kept);
    return await answerBeside(model, cache, asked, full, answering);
  };
  const everything = Array.from({ length: layers }, () => Array.from({ length: kvHeads }, () => [...ids.keys()]));
  const cells = [];
  for (const each of prefill.cases) {
    const { ids, text } = await answer(each);
    const kept = each.kept?.map((heads) => heads.map((head) => [...head])) ?? everything;
    cells.push({ policy: each.policy.name, kept, ids, text, score: scoreAnswer(metric, text, answers) });
  }
  const line = {
    task: group.task.name,
    sample: group.sample,
    keep: cases.at(-1)!.keep,
    prompt: { context, question, answerPrefix },
    context: ids,
    question: asked,
    answers,
    maxNewTokens,
    endIds: [...tokenizer.endIds],
    cells,
  };
  writeSync(out, JSON.stringify(line) + "\n");
  console.log(
    `${group.task.name} ${group.sample}: ${cells.map(({ policy, score }) => `${policy} ${score}`).join(", ")}`,
  );
}
console.log(`${model.dense.detail}; ${model.backend.detail}`);
