/**
 * Which words between text and question get the most answers: every frame on 60 natural questions over ten short texts,
 * and on needles, greedy, with the full cache or with what a policy keeps of it.
 *
 *     deno task bench frames [--model NAME|FILE] [--template yes|no] [--frames line,blank,…] [--needles 20]
 *       [--tokens 32] [--threads 1] [--policy full] [--keep 100%] [--joined yes|no] [--out answers.jsonl]
 *
 * `--template no` leaves out the file's chat template, so that the model is asked as a base model is. An answer is right
 * when one of the accepted wordings stands in it, both in lower case, without punctuation, word by word. Answers end at
 * `--tokens` tokens (needles: 24), or when they go round in a circle. A text is read once for all frames that put nothing
 * before it. `--joined yes`: the ten texts are read as one, which all questions are asked about.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { cellGroups, parseLengths } from "../evaluate/sweep/plan.ts";
import { makeSample } from "../evaluate/sweep/sweep.ts";
import { openHaystack } from "../evaluate/tasks/haystack.ts";
import { scoreAnswer } from "../evaluate/tasks/metrics.ts";
import { openTasks } from "../evaluate/tasks/registry.ts";
import { loadModel, type Model } from "../model/model.ts";
import { type Answer, answer } from "../model/decode/answer.ts";
import { openContext } from "../model/session.ts";
import { resolveModel } from "../model/store/store.ts";
import { FRAMES, frameText, NO_FRAME, resolveFrame } from "../model/text/frames.ts";
import { withWords } from "../model/text/prompt.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { isRight } from "./frames/right.ts";
import { TEXTS } from "./frames/texts.ts";

const { values } = parseArgs({
  args: process.argv.slice(2),
  options: {
    model: { type: "string", default: "smollm2-135m" },
    template: { type: "string", default: "yes" },
    frames: { type: "string", default: Object.keys(FRAMES).filter((name) => name !== NO_FRAME).join(",") },
    needles: { type: "string", default: "20" },
    tokens: { type: "string", default: "32" },
    threads: { type: "string", default: "1" },
    policy: { type: "string", default: "full" },
    keep: { type: "string", default: "100%" },
    joined: { type: "string", default: "no" },
    out: { type: "string" },
  },
});

/** What a frame got. */
class Score {
  questions = 0;
  right = 0;
  loops = 0;
  cut = 0;
  tokens = 0;
  needles = 0;
  needleSum = 0;
  readonly byKind = new Map<string, number>();
  /** Whether each question was answered right. */
  readonly all = new Map<string, boolean>();
}

const frames = values.frames.split(",");
const scores = new Map(frames.map((name) => [name, new Score()]));
const out = values.out === undefined ? undefined : openSync(values.out, "w");
const runtime = await currentRuntime();
await using loaded = await loadModel(await resolveModel(values.model, runtime), runtime, {
  threads: Number(values.threads),
});
const bare = { ...loaded.frame, kind: "plain", prefix: [], suffix: [] } as const;
const model: Model = values.template === "yes" ? loaded : { ...loaded, frame: withWords(bare, "line") };

const kept = { policy: values.policy, keep: values.keep };
/** Frames that read the text alike, together. */
const groups = Map.groupBy(frames, (name) => resolveFrame(name).before);

/** Reads a text once for each way of reading, and asks what there is to ask in every frame. */
async function askAll(
  text: string,
  questions: readonly { question: string; answerPrefix?: string; maxTokens: number }[],
  take: (frame: string, question: number, answer: Answer) => void,
): Promise<void> {
  for (const alike of groups.values()) {
    using context = await openContext(model, text, { ...kept, frame: alike[0] });
    for (const name of alike) {
      const framed = { ...model, frame: withWords(model.frame, name) };
      for (const [i, { question, ...options }] of questions.entries()) {
        take(name, i, await answer(framed, context.cache, question, options, context.plan));
      }
    }
  }
}

function note(line: Record<string, unknown>): void {
  if (out !== undefined) writeSync(out, `${JSON.stringify(line)}\n`);
}

const apart = TEXTS.map(({ kind, text, questions }) => ({
  text,
  questions: questions.map((question) => ({ kind, question })),
}));
const joined = { text: TEXTS.map(({ text }) => text).join("\n\n"), questions: apart.flatMap((each) => each.questions) };
for (const { text, questions } of values.joined === "yes" ? [joined] : apart) {
  const asked = questions.map(({ question: [question] }) => ({ question, maxTokens: Number(values.tokens) }));
  await askAll(text, asked, (frame, i, { answer, finish, ids }) => {
    const { kind, question: [question, ...accepted] } = questions[i], score = scores.get(frame)!;
    const right = isRight(answer, accepted);
    score.questions++;
    score.right += Number(right);
    score.all.set(`${kind}: ${question}`, right);
    score.loops += Number(finish === "loop");
    score.cut += Number(finish === "length");
    score.tokens += ids.length;
    score.byKind.set(kind, (score.byKind.get(kind) ?? 0) + Number(right));
    note({ kind, question, frame, right, finish, answer });
  });
  console.error(
    `${questions.at(-1)!.kind}: ${
      [...scores].map(([name, { right, questions }]) => `${name} ${right}/${questions}`).join(" ")
    }`,
  );
}

const NEEDLES = ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue"];
const sampling = { seed: 1, haystack: await openHaystack(runtime, undefined) };
const tasks = await openTasks(NEEDLES, runtime);
const line = { ...model, frame: withWords(model.frame, "line") };
for (const group of cellGroups(tasks, parseLengths("512"), Math.ceil(Number(values.needles) / tasks.length))) {
  const { context, question, answerPrefix, answers, metric } = makeSample(line, group, sampling);
  await askAll(context, [{ question, answerPrefix, maxTokens: 24 }], (frame, _, { answer, finish }) => {
    const said = answer.slice(answerPrefix.length), score = scores.get(frame)!;
    score.needles++;
    score.needleSum += scoreAnswer(metric, said, answers);
    note({ kind: group.task.name, question, frame, score: scoreAnswer(metric, said, answers), finish, answer: said });
  });
  console.error(`${group.task.name} ${group.sample + 1}`);
}
if (out !== undefined) closeSync(out);

/** Questions that only this frame got right, and that only the first frame did. */
function againstFirst({ all }: Score): string {
  const first = scores.get(frames[0])!.all, keys = [...all.keys()];
  const won = keys.filter((key) => all.get(key) && !first.get(key));
  const lost = keys.filter((key) => !all.get(key) && first.get(key));
  return `+${won.length} −${lost.length}`;
}

const kinds = TEXTS.map(({ kind }) => kind);
const columns = ["frame", "right", `against ${frames[0]}`, "loops", "cut", "tokens", "needles", ...kinds, "words"];
const rows = [...scores].map(([name, score]) => [
  name,
  `${score.right} of ${score.questions}`,
  againstFirst(score),
  score.loops,
  score.cut,
  (score.tokens / score.questions).toFixed(1),
  score.needles === 0 ? "" : (score.needleSum / score.needles).toFixed(1),
  ...kinds.map((kind) => score.byKind.get(kind) ?? 0),
  `\`${JSON.stringify(frameText(resolveFrame(name))).slice(1, -1)}\``,
]);
const load = (await import("node:os")).loadavg().map((each) => each.toFixed(1)).join(" ");
console.log(
  `${model.name}, ${loaded.config.architecture}, ${model.frame.kind === "chat" ? "its chat template" : "no template"}`,
);
console.log(`${model.dense.detail}; ${model.backend.detail}; ${runtime.name} ${runtime.version}; load ${load}\n`);
for (const row of [columns, columns.map(() => "---"), ...rows]) console.log(`| ${row.join(" | ")} |`);
