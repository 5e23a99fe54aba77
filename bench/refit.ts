/**
 * Answers kept with and without a refit, question unseen, a JSON line for each cell.
 *
 *     deno task bench refit --out refit.jsonl [--tasks niah_single_1,niah_multikey_1] [--samples 10] [--first 0]
 *       [--length 1k] [--seed 1] [--keep 20%,10%,5%] [--model FILE] [--references 384]
 *       [--policies kvzip,moved,layer-defensive] [--variants none,both,plain] [--backend auto] [--gate FILE]
 *
 * Variants: `none`; `both` and `values`, defensively; `plain`: both of every head, on all references; `pursuit`, of
 * policies with `refit=pursuit` in their brackets; `both-0.1`: with this ridge; `left-0.7`: both where so much of the
 * worst error is left at most. `--gate`: instead of the model's, and what `self-gate` begins with, else nothing. The
 * references are the replay's where kvzip is among the policies, else moved queries. Samples are those that
 * `palisade eval` makes of the same seed. Tasks are chosen by what the full cache solves, beforehand.
 */
import { appendFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import type { RefitSettings } from "../core/refit/refit.ts";
import { answerBeside, answerFully } from "../evaluate/sweep/answer.ts";
import { forkCache, prefillOnce, pursuedOf, refitFork } from "../evaluate/sweep/shared_prefill.ts";
import { makeSample } from "../evaluate/sweep/sweep.ts";
import { openHaystack } from "../evaluate/tasks/haystack.ts";
import { scoreAnswer } from "../evaluate/tasks/metrics.ts";
import { cellGroups, parseCases, parseLengths } from "../evaluate/sweep/plan.ts";
import { splitList } from "../evaluate/sweep/lists.ts";
import { openTasks } from "../evaluate/tasks/registry.ts";
import type { BackendChoice } from "../model/device.ts";
import { loadGate } from "../model/gate/find.ts";
import { loadModel } from "../model/model.ts";
import { LINE } from "../model/text/frames.ts";
import { contextIds, questionIds } from "../model/text/prompt.ts";
import { pullModel } from "../model/store/store.ts";
import { currentRuntime } from "../runtime/mod.ts";

const option = (otherwise: string) => ({ type: "string", default: otherwise } as const);
const { values } = parseArgs({
  args: process.argv.slice(2),
  options: {
    out: option("refit.jsonl"),
    tasks: option("niah_single_1,niah_multikey_1"),
    samples: option("10"),
    first: option("0"),
    length: option("1k"),
    seed: option("1"),
    keep: option("20%,10%,5%"),
    policies: option("kvzip,moved,layer-defensive"),
    variants: option("none,both,plain"),
    references: option("384"),
    backend: option("auto"),
    model: { type: "string" },
    gate: { type: "string" },
    haystack: { type: "string" },
  },
});

const VARIANTS: Readonly<Record<string, RefitSettings | undefined>> = {
  none: undefined,
  both: { refit: "both" },
  values: { refit: "values" },
  plain: { refit: "both", defensive: false },
  pursuit: { refit: "pursuit" },
  ...Object.fromEntries([0.001, 0.01, 0.1, 1].map((ridge) => [`both-${ridge}`, { refit: "both" as const, ridge }])),
  ...Object.fromEntries([0.9, 0.7].map((part) => [`left-${part}`, { refit: "both" as const, mostLeft: part }])),
};

const variants = splitList(values.variants), unknown = variants.find((name) => !Object.hasOwn(VARIANTS, name));
if (unknown !== undefined) {
  throw new RangeError(`There is no variant "${unknown}": want ${Object.keys(VARIANTS).join(", ")}`);
}

const runtime = await currentRuntime();
const path = values.model ?? await pullModel("smollm2-135m", runtime);
// Refused by loadModel where it is no backend.
const backend = values.backend as BackendChoice;
await using model = await loadModel(path, runtime, { frame: LINE, backend });
const { tokenizer, frame, config: { contextLength } } = model;
const sampling = { seed: Number(values.seed), haystack: await openHaystack(runtime, values.haystack) };
const gate = values.gate === undefined ? undefined : await loadGate(values.gate, runtime);
const cases = parseCases(values.policies, values.keep);
const tasks = await openTasks(splitList(values.tasks), runtime);

const groups = cellGroups(tasks, parseLengths(values.length), Number(values.samples));
for (const group of groups.filter(({ sample }) => sample >= Number(values.first))) {
  const { context, question, answerPrefix, answers, metric, maxNewTokens } = makeSample(model, group, sampling);
  const ids = contextIds(frame, tokenizer, context);
  const asked = questionIds(frame, tokenizer, question, answerPrefix), answering = { maxNewTokens, contextLength };
  using prefill = await prefillOnce(model, ids, cases, { gate, referenceTokens: Number(values.references) });
  const full = await answerFully(model, prefill.cache, asked, answering);
  const line = (cell: object) =>
    appendFileSync(values.out, `${JSON.stringify({ task: group.task.name, sample: group.sample, ...cell })}\n`);
  line({ policy: "full", keep: 1, variant: "none", score: scoreAnswer(metric, full.text, answers), ms: prefill.ms });
  for (const each of prefill.cases) {
    const { kept, policy, keep } = each;
    if (!kept) continue;
    for (const variant of variants) {
      const settings = VARIANTS[variant], start = performance.now();
      const pursued = settings?.refit === "pursuit" ? await pursuedOf(prefill, each, settings) : undefined;
      const pursuitMs = pursued && performance.now() - start;
      using cache = await forkCache(prefill.cache, pursued ?? kept);
      const refit = settings && await refitFork(cache, prefill, settings);
      const moved = pursued?.flat().reduce((sum, rows, i) => sum + differences(rows, kept.flat()[i]), 0);
      const { text, kl } = await answerBeside(model, cache, asked, full, answering);
      const score = scoreAnswer(metric, text, answers);
      line({
        policy: policy.name,
        keep: "fraction" in keep ? keep.fraction : keep,
        variant,
        score,
        kl: kl.mean,
        refit,
        pursuitMs,
        moved,
      });
    }
  }
}

/** Entries that are only in the first. */
function differences(some: Int32Array, others: Int32Array): number {
  const known = new Set(others);
  return some.filter((each) => !known.has(each)).length;
}
