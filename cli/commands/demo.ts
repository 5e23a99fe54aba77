/**
 * `palisade demo`: the main job on real texts, four ways side by side.
 *
 * Facts of the form "The special magic number for NAME is NUMBER." are hidden in a chapter at places drawn from the
 * seed, the chapter is read and evicted WITHOUT the questions, and every question is asked of what is left. Answers
 * come from the model and are shown as they fall, hits and misses alike.
 */
import { parseKeep } from "../../core/select/budget.ts";
import { type HiddenFact, hideFacts } from "../../evaluate/tasks/facts.ts";
import { demoTexts } from "./demo_texts.ts";
import type { Model } from "../../model/model.ts";
import { type Report, reportOf } from "../../model/report.ts";
import { type Answer, openContext } from "../../model/session.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { command } from "../command.ts";
import { ENGINE, startModel } from "../engine.ts";
import { expectedOf } from "../expected.ts";
import { formatBytes, formatCount, formatMs, formatShare } from "../print/format.ts";
import { EXIT, type Io } from "../io.ts";
import type { DemoRun } from "../json/outputs.ts";
import { printJson } from "../json/print.ts";
import { type OptionTable, type Values, whole } from "../options.ts";
import { padRight } from "../print/terminal.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { tableText } from "../print/table.ts";

const OPTIONS = {
  seed: { value: "n", help: "seed of the hidden facts and where they are hidden", read: whole(0), preset: 1 },
  questions: { value: "n", help: "questions per text, 3 to 8", read: whole(3, 8), preset: 3 },
  keep: { value: "amount", help: "what stays where something is evicted", preset: DEFAULTS.keep },
  json: { help: "print one object with all answers and figures" },
  ...ENGINE,
} satisfies OptionTable;

type DemoOptions = Values<typeof OPTIONS>;

/** `palisade demo`. */
export const demoCommand = command({
  options: OPTIONS,
  run: demo,
});

/** Baseline first; the last is what `ask` takes when nothing is said. */
const POLICIES = ["full", "snapkv", "layer-defensive", undefined] as const;
/** Enough for a seven-digit number and the full stop. */
const MAX_TOKENS = 16;

/** One policy on one text. */
interface Run {
  readonly text: string;
  readonly facts: readonly HiddenFact[];
  readonly report: Report;
  readonly answers: readonly Answer[];
}

/** Runs the command; returns the exit code. */
async function demo(options: DemoOptions, io: Io): Promise<number> {
  parseKeep(options.keep);
  using progress = createProgress(io.interactive && !options.quiet);
  const texts = await demoTexts(io.runtime);
  const say = options.json ? () => {} : io.out;
  const start = performance.now();
  // The first run of each text keeps all of it.
  const longest = texts.map(({ text }) => text).reduce((a, b) => a.length > b.length ? a : b);
  const expected = expectedOf(longest, { keep: { fraction: 1 } });
  await using model = await startModel(options, io, progress, { expected });
  const loadMs = performance.now() - start;
  say(`${model.name}; kernels ${model.backend.detail}; dense ${model.dense.detail}\n`);

  const runs: Run[] = [];
  for (const [index, { title, text }] of texts.entries()) {
    const { context, facts } = hideFacts(text, { count: options.questions, seed: options.seed + index });
    say(`\n${title}, with ${facts.length} facts hidden at places drawn from seed ${options.seed + index}\n`);
    const here: Run[] = [];
    for (const policy of POLICIES) {
      here.push(await runPolicy(model, policy, options, { title, context, facts }, { io, progress, loadMs }));
    }
    say(`${runsTable(here)}\n`);
    runs.push(...here);
  }
  say(`\n${summaryOf(runs)}`);
  if (options.json) printJson(io, "demo", runs.map(plainRun));
  return EXIT.ok;
}

async function runPolicy(
  model: Model,
  policy: string | undefined,
  options: DemoOptions,
  sample: { title: string; context: string; facts: readonly HiddenFact[] },
  { io, progress, loadMs }: { io: Io; progress: Progress; loadMs: number },
): Promise<Run> {
  const keep = policy === "full" ? "100%" : options.keep;
  using context = await openContext(model, sample.context, {
    policy,
    keep,
    signal: io.signal,
    onLayer: (done, layers) => progress.update(`${policy ?? "default policy"}: reading, layer`, done, layers),
  });
  const answers: Answer[] = [];
  for (const { question, answerPrefix } of sample.facts) {
    progress.update(`${context.policy.name}: answering`, answers.length, sample.facts.length);
    answers.push(await context.ask(question, { answerPrefix, maxTokens: MAX_TOKENS, signal: io.signal }));
    io.signal.throwIfAborted();
  }
  progress.clear();
  const report = reportOf(model, context, answers, {
    keepAsked: keep,
    loadMs,
    memory: io.runtime.memory(),
  });
  return { text: sample.title, facts: sample.facts, report, answers };
}

/** What the model said after the prefix it was given, in one line. */
function replyOf(answer: Answer, fact: HiddenFact): string {
  return answer.answer.slice(fact.answerPrefix.length).replace(/\s+/g, " ").trim();
}

function isHit(answer: Answer, fact: HiddenFact): boolean {
  return replyOf(answer, fact).includes(fact.answer);
}

function hitsOf(run: Run): number {
  return run.facts.filter((fact, i) => isHit(run.answers[i], fact)).length;
}

/** Rows: one per question, then the figures; columns: one per policy. */
function runsTable(runs: readonly Run[]): string {
  const figure = (name: string, of: (report: Report) => string) => [name, ...runs.map((run) => of(run.report))];
  const rows = [
    ...runs[0].facts.map((fact, i) => [
      `${fact.key}? (${fact.answer})`,
      ...runs.map((run) => `${isHit(run.answers[i], fact) ? "hit " : "miss"}  ${replyOf(run.answers[i], fact)}`),
    ]),
    ["hits", ...runs.map((run) => `${hitsOf(run)} of ${run.facts.length}`)],
    figure(
      "kept entries",
      ({ cache: { evicted }, keep: { entries } }) =>
        `${formatCount(entries)} (${formatShare(entries, entries + evicted)})`,
    ),
    figure("cache bytes", ({ cache }) => formatBytes(cache.bytes)),
    figure("peak cache bytes, reading", ({ cache }) => formatBytes(cache.peakBytes)),
    figure("reading + evicting", ({ ms }) => `${formatMs(ms.prefill)} + ${formatMs(ms.evict)}`),
    figure("time per token", ({ ms }) => formatMs(ms.decodePerToken)),
  ];
  return tableText(["", ...runs.map(labelOf)], rows, { widths: [28, 22, 22, 22, 22] });
}

function labelOf({ report }: Run): string {
  return report.policy.name === "full" ? "full cache" : `${report.policy.name} ${report.keep.asked}`;
}

function summaryOf(runs: readonly Run[]): string {
  const lines = [...new Set(runs.map(labelOf))].map((label) => {
    const mine = runs.filter((run) => labelOf(run) === label);
    const hits = mine.reduce((sum, run) => sum + hitsOf(run), 0);
    const asked = mine.reduce((sum, run) => sum + run.facts.length, 0);
    const kept = mine.reduce((sum, run) => sum + run.report.cache.bytes, 0);
    return `${padRight(label, 22)} ${hits} of ${asked} answers, ${formatBytes(kept / mine.length)} of cache per text`;
  });
  return `${
    lines.join("\n")
  }\n\nA few questions are an illustration, not a measurement: --seed and --questions draw others.\n`;
}

function plainRun(run: Run): DemoRun {
  const facts = run.facts.map((fact, i) => ({
    ...fact,
    reply: replyOf(run.answers[i], fact),
    hit: isHit(run.answers[i], fact),
  }));
  return { text: run.text, policy: run.report.policy.name, hits: hitsOf(run), facts, report: run.report };
}
