/** `palisade ask`: read a text once, evict, answer every question from what was kept. */
import { parseKeep } from "../../core/select/budget.ts";
import { CACHE_TYPES } from "../../core/cache/entry_type.ts";
import { inputError, option, PalisadeError } from "../../core/errors.ts";
import type { Policy } from "../../core/policy/policy.ts";
import { resolveStepRule } from "../../core/rules/registry.ts";
import { POSITIONS } from "../../model/decode/answer.ts";
import { checkQuestions } from "../../model/decode/questions.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { reportOf } from "../../model/report.ts";
import { NO_FRAME, resolveFrame } from "../../model/text/frames.ts";
import { loadPolicy } from "../../model/policy_files/policy_files.ts";
import { type Answer, type AskOptions, type Context, type MaxCache, openContext } from "../../model/session.ts";
import { command } from "../command.ts";
import { DEFAULT_KEEP, DEFAULT_POLICY, ENGINE, startModel } from "../engine.ts";
import { certificateText } from "../print/certificate.ts";
import { EXIT, type Io } from "../io.ts";
import { number, type OptionTable, repeated, share, type Values, whole } from "../options.ts";
import { createProgress } from "../print/progress.ts";
import { reportText } from "../print/closing_report.ts";

const OPTIONS = {
  context: { value: "file", help: "the text, UTF-8; - reads standard input", required: true },
  question: {
    value: "text",
    help: "what to ask; repeat it to ask the same cache more",
    read: repeated,
    required: true,
  },
  keep: { value: "amount", help: "what stays: 20%, or tokens per head", shown: DEFAULT_KEEP },
  policy: { value: "name", help: "see: palisade policies", shown: DEFAULT_POLICY },
  risk: {
    value: "share",
    help: "instead of --keep: largest loss of attention, mean",
    read: share,
    conflicts: ["keep", "riskWorst", "maxCache"],
    rare: true,
  },
  riskWorst: {
    value: "share",
    help: "instead: evict what is less important",
    read: share,
    conflicts: ["keep", "maxCache"],
    rare: true,
  },
  maxCacheBytes: {
    value: "n",
    help: "may wait for --risk",
    read: whole(1),
    shown: `${DEFAULTS.maxCacheBytes / 2 ** 30} GiB`,
    rare: true,
  },
  explain: { help: "print what eviction can have cost at worst", rare: true },
  maxCache: { value: "n", help: "cap while answering, tokens per head", read: whole(1) },
  stepPolicy: { value: "name", help: "its rule, see policies --steps", shown: DEFAULTS.stepRule, rare: true },
  positions: {
    value: "mode",
    help: "kept keys stay or close up",
    choices: POSITIONS,
    shown: DEFAULTS.positions,
    rare: true,
  },
  cacheType: { value: "type", help: "keys and values", choices: CACHE_TYPES, shown: DEFAULTS.cacheType },
  ...ENGINE,
  maxTokens: { value: "n", help: "longest answer in tokens", read: whole(1), shown: DEFAULTS.maxTokens },
  temperature: { value: "t", help: "0 is greedy, up to 10", read: number(0, 10), shown: DEFAULTS.temperature },
  topP: {
    value: "p",
    help: "sample from this share of the mass",
    read: number(0, 1, { above: true }),
    shown: DEFAULTS.topP,
    rare: true,
  },
  seed: { value: "n", help: "seed of the sampler", read: whole(0), shown: DEFAULTS.seed },
  answerPrefix: { value: "text", help: "the reply starts with this", rare: true },
  system: { value: "text", help: "system prompt instead of the template's own", rare: true },
  think: { help: "let the model think first", rare: true },
  frame: { value: "name|text", help: "words around text and question", rare: true },
  allowLoops: { help: "never end an answer that repeats itself", rare: true },
  gate: { value: "file", help: "for policy gate: see palisade calibrate", rare: true },
  beyondTrained: { help: "allow more context than the model was trained on", rare: true },
  json: { help: "print one object with answers and figures" },
} satisfies OptionTable;

type Options = Values<typeof OPTIONS>;

/** `palisade ask`. */
export const askCommand = command({
  name: "ask",
  summary: "answer questions about a text, evicted",
  options: OPTIONS,
  run: ask,
});

/** Runs the command; returns the exit code. Refusals are thrown. */
async function ask(options: Options, io: Io): Promise<number> {
  const policy = options.policy === undefined ? undefined : await loadPolicy(options.policy, io.runtime);
  const keep = options.keep === undefined ? undefined : parseKeep(options.keep);
  const maxCache = maxCacheOf(options);
  refuseIdle(options, policy, maxCache);
  const frame = frameOf(options), { system, think, gate } = options;
  const text = await io.runtime.readText(options.context, { signal: io.signal });
  if (text.trim() === "") {
    const where = options.context === "-" ? "standard input" : options.context;
    throw inputError("context.empty", `There is no text in ${where}`, option("context"));
  }

  using progress = createProgress(io.interactive && !options.quiet);
  const start = performance.now();
  await using model = await startModel(options, io, progress, { system, think, frame, gate });
  const loadMs = performance.now() - start;
  const { answerPrefix, positions, beyondTrained } = options;
  checkQuestions(model, text, options.question, { answerPrefix, positions, beyondTrained, capped: !!maxCache });
  using context = await openContext(model, text, {
    policy,
    keep,
    maxCache,
    risk: options.risk,
    riskWorst: options.riskWorst,
    maxCacheBytes: options.maxCacheBytes,
    explain: options.explain,
    positions: options.positions,
    cacheType: options.cacheType,
    beyondTrained: options.beyondTrained,
    signal: io.signal,
    onLayer: (done, layers) => progress.update("Reading, layer", done, layers),
  });
  progress.clear();
  if (!policy && context.policy.needs.reconstruction && io.interactive && !options.quiet) {
    io.err(`${noGate(options.model)}\n`);
  }

  const answers = await askAll(options, io, context);
  const report = reportOf(model, context, answers, {
    keepAsked: keepAsked(options),
    loadMs,
    memory: io.runtime.memory(),
  });
  if (options.json) io.out(`${JSON.stringify(report, null, 2)}\n`);
  if (report.certificate && !options.json && !options.quiet) io.err(`\n${certificateText(report.certificate)}`);
  if (io.interactive && !options.quiet) io.err(`\n${reportText(report)}`);
  return answers.some((each) => each.finish === "interrupted") ? EXIT.interrupted : EXIT.ok;
}

/**
 * The frame as it was typed, with its line breaks; `none` for an empty question, which goes on from the text.
 * @throws PalisadeError input `question.empty`, `question.mixed`, `frame.*`; usage `frame.alone`.
 */
function frameOf({ question, frame }: Options): string | undefined {
  const empty = question.filter((each) => each === "").length;
  if (empty === 0 && question.some((each) => each.trim() === "")) {
    const message = 'The question has no text in it; "" goes on from the text itself';
    throw inputError("question.empty", message, option("question"));
  }
  const typed = frame?.replace(/\\([nt\\])/g, (_, letter: "n" | "t" | "\\") => ESCAPED[letter]);
  if (typed !== undefined) resolveFrame(typed);
  if (empty === 0) return typed;
  if (empty < question.length) {
    const message = "An empty question goes on from the text itself, which is read otherwise than for a question: " +
      "ask it alone";
    throw inputError("question.mixed", message, option("question"));
  }
  if (typed !== undefined && typed !== NO_FRAME) throw idle("frame", "There is no question to put words around");
  return NO_FRAME;
}

const ESCAPED = { n: "\n", t: "\t", "\\": "\\" };

/** What said how much stays. */
function keepAsked({ keep, risk, riskWorst }: Options): string {
  if (risk !== undefined) return `risk ${risk}`;
  return riskWorst === undefined ? keep ?? DEFAULTS.keep : `risk-worst ${riskWorst}`;
}

/** Why the default was the slow one, and what makes it the fast one. */
function noGate(model: string): string {
  return `No gate is fitted for this model, so kvzip read the text a second time to find what must stay.\n` +
    `To keep as much in one reading: palisade calibrate --model ${model}`;
}

function maxCacheOf({ maxCache, stepPolicy }: Options): MaxCache | undefined {
  if (maxCache !== undefined) return { tokens: maxCache, rule: stepPolicy && resolveStepRule(stepPolicy) };
  if (stepPolicy !== undefined) throw idle("step-policy", "There is nothing to evict by it without --max-cache");
  return undefined;
}

/** Refuses options that would be read and then do nothing. */
function refuseIdle({ risk, maxCacheBytes, gate }: Options, policy?: Policy, maxCache?: MaxCache): void {
  if (maxCacheBytes !== undefined && risk === undefined) throw idle("max-cache-bytes", "Nothing waits without --risk");
  const rule = maxCache?.rule, asks = !policy || policy.needs.gate || (typeof rule === "object" && rule.predicted);
  if (gate !== undefined && !asks) throw idle("gate", "Nothing asks a gate: add --policy gate or --step-policy gate");
}

function idle(option: string, message: string): PalisadeError {
  return new PalisadeError("usage", `${option}.alone`, message, { where: `--${option}` });
}

/** Every question in turn, streamed; stops at the first interruption. */
async function askAll(options: Options, io: Io, context: Context): Promise<Answer[]> {
  const answers: Answer[] = [];
  const many = options.question.length > 1;
  for (const question of options.question) {
    if (many && io.interactive && !options.quiet) io.err(`${answers.length > 0 ? "\n" : ""}> ${question}\n`);
    const answer = await context.ask(question, {
      maxTokens: options.maxTokens,
      temperature: options.temperature,
      topP: options.topP,
      seed: options.seed,
      answerPrefix: options.answerPrefix,
      allowLoops: options.allowLoops,
      signal: io.signal,
      ...(!options.json && streams(io, options.quiet)),
    });
    if (!options.json) io.out("\n");
    answers.push(answer);
    if (answer.finish === "interrupted") break;
  }
  return answers;
}

/** Answers go to standard output as they are decoded, what the model thinks first to standard error. */
function streams(io: Io, quiet = false): Pick<AskOptions, "onText" | "onThinking"> {
  let thinking = false;
  return {
    onText(piece) {
      if (thinking) io.err("\n");
      thinking = false;
      io.out(piece);
    },
    ...(!quiet && {
      onThinking(piece) {
        thinking = true;
        io.err(piece);
      },
    }),
  };
}
