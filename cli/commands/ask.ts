/** `palisade ask`: read a text once, evict, answer every question from what was kept; or from a snapshot. */
import { inputError, option, PalisadeError, say } from "../../core/errors.ts";
import { type Context, insideOf } from "../../model/context.ts";
import { checkQuestions } from "../../model/decode/questions.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import type { LoadOptions, Model } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { checkMadeFor, type RestoreOptions } from "../../model/snapshot/restore.ts";
import type { SnapshotCache } from "../../model/snapshot/cache.ts";
import type { Secret } from "../../model/snapshot/seal/key.ts";
import { NO_FRAME, resolveFrame } from "../../model/text/frames.ts";
import { type Answer, type AskOptions, openContext } from "../../model/session.ts";
import { command } from "../command.ts";
import { ENGINE, startModel } from "../engine.ts";
import { expectedOf } from "../expected.ts";
import { certificateText } from "../print/certificate.ts";
import { EXIT, type Io } from "../io.ts";
import { printJson } from "../json/print.ts";
import { number, type OptionTable, repeated, type Values, whole } from "../options.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { reportText } from "../print/closing_report.ts";
import {
  BUDGET,
  contextOptions,
  idle,
  keepAsked,
  noGate,
  type ParsedReading,
  parseReading,
  readContextText,
  typedFrame,
  WORDS,
} from "../reading.ts";
import { headerOf, PROTECT, SECRET, secretFor } from "../secrets.ts";
import { keepRead, openCache, openNamed, PLACE, SALT } from "../snapshots.ts";

const OPTIONS = {
  context: {
    value: "file",
    help: "the text, UTF-8; - reads standard input",
  },
  snapshot: {
    value: "file",
    help: "instead: what palisade read wrote",
    here: "snapshots",
    conflicts: ["context", "risk", "riskWorst", "maxCacheBytes", "explain", "effort"],
    more: "instead of `--context`: what `palisade read` wrote, or a name of `palisade snapshots list`",
  },
  question: {
    value: "text",
    help: "what to ask; repeat it to ask the same cache more",
    read: repeated,
    required: true,
    more: 'what to ask; repeat it to ask the same compressed context again; `""` goes on from the text',
  },
  ...BUDGET,
  ...PLACE,
  ...ENGINE,
  // Help fits a screen.
  dense: { ...ENGINE.dense, rare: true },
  maxTokens: {
    value: "n",
    help: "longest answer in tokens",
    read: whole(1),
    shown: DEFAULTS.maxTokens,
    more: "longest answer in tokens, thinking included; 2048 with `--think`",
  },
  temperature: {
    value: "t",
    help: "0 is greedy, up to 10",
    read: number(0, 10),
    shown: DEFAULTS.temperature,
    more: "0 takes the likeliest token, up to 10",
  },
  topP: {
    value: "p",
    help: "sample from this share of the mass",
    read: number(0, 1, { above: true }),
    shown: DEFAULTS.topP,
    rare: true,
    more: "sample from this share of the probability, above 0 to 1",
  },
  seed: {
    value: "n",
    help: "seed of the sampler",
    read: whole(0),
    shown: DEFAULTS.seed,
    rare: true,
  },
  answerPrefix: { value: "text", help: "the reply starts with this", rare: true },
  ...WORDS,
  encrypt: {
    ...PROTECT.encrypt,
    help: "encrypt what is kept",
    rare: true,
    more: "encrypts what is kept for next time, by a passphrase or a key",
  },
  cloak: {
    help: "hide keys and values between questions",
    rare: true,
    personal: true,
    more: "keeps keys and values hidden in memory between questions: docs/secrets.md",
  },
  ...SECRET,
  allowLoops: {
    help: "never end an answer that repeats itself",
    rare: true,
    more: "don't end an answer that says one phrase over and over",
  },
  stop: {
    value: "text",
    help: "end an answer where it says this",
    read: repeated,
    rare: true,
    shown: "the next question, without a chat template",
    more: "ends an answer where it says this, which is no part of it; may be repeated; empty for nothing",
  },
  ...SALT,
  json: { help: "print one object with answers and figures" },
} satisfies OptionTable;

type Options = Values<typeof OPTIONS>;

/** `palisade ask`. */
export const askCommand = command({
  options: OPTIONS,
  run: ask,
});

/** Runs the command; returns the exit code. Refusals are thrown. */
async function ask(options: Options, io: Io): Promise<number> {
  const parsed = await parseReading(options, io), { system, think, gate } = options, frame = frameOf(options);
  const text = options.snapshot === undefined ? await readContextText(contextOf(options), io) : undefined;
  const say = (note: string) => io.interactive && !options.quiet && io.err(`${note}\n`);
  const secret = await secretFor(options, io);
  const cache = text === undefined ? undefined : await openCache(options, io);
  await using _store = cache?.store ?? NO_STORE;
  using progress = createProgress(io.interactive && !options.quiet);
  // Open as long as the context: where a device fails the snapshot is read again.
  await using source = text === undefined ? await snapshotSource(options, io) : undefined;
  const header = source && await headerOf(source, io, secret);
  const told = { options, parsed, progress, cache, secret: header?.secret ?? secret }, start = performance.now();
  await using model = await startModel(options, io, progress, {
    ...{ system, think, frame, gate },
    ...(text !== undefined && { expected: expectedIn(text, options, parsed) }),
    // What is of another model is refused before that one's weights are read.
    ...(header && { onHead: async (head) => void await checkMadeFor(head, header.header, restoring(io, told)) }),
  });
  const loadMs = performance.now() - start;
  using context = source ? await restored(model, source, io, told) : await read(model, text!, io, told);
  progress.clear();
  const slow = noGate(context.policy, options.model);
  if (slow && !options.policy && !context.effort && context.reused === 0) say(slow);

  const answers = await askAll(options, io, context);
  const report = reportOf(model, context, answers, {
    keepAsked: text === undefined ? (await insideOf(context).state.facts()).budget : keepAsked(options, context),
    loadMs,
    memory: io.runtime.memory(),
  });
  if (options.json) printJson(io, "ask", report);
  if (report.certificate && !options.json && !options.quiet) io.err(`\n${certificateText(report.certificate)}`);
  if (io.interactive && !options.quiet) io.err(`\n${reportText(report)}`);
  if (answers.some((each) => each.finish === "interrupted")) return EXIT.interrupted;
  if (text !== undefined) {
    await keepRead(cache, context, options.context!, { say, ...(options.encrypt && { encrypt: secret }) });
  }
  return EXIT.ok;
}

/** What text, question and answer will take. */
function expectedIn(text: string, options: Options, { keep }: ParsedReading): LoadOptions["expected"] {
  const { question, think } = options;
  const answerTokens = options.maxTokens ?? (think ? DEFAULTS.thinkingTokens : DEFAULTS.maxTokens);
  return expectedOf(text, { ...options, keep }, { questions: question, answerTokens });
}

const NO_STORE: AsyncDisposable = { [Symbol.asyncDispose]: () => Promise.resolve() };

/** @throws PalisadeError usage `context.missing`. */
function contextOf({ context }: Options): string {
  if (context !== undefined) return context;
  throw new PalisadeError("usage", "context.missing", "There is nothing to ask about: want --context or --snapshot", {
    where: "--context",
  });
}

interface Told {
  readonly options: Options;
  readonly parsed: ParsedReading;
  readonly progress: Progress;
  readonly cache?: SnapshotCache;
  readonly secret?: Secret;
}

/** The context of a text: kept from an earlier reading, or read now. */
async function read(model: Model, text: string, io: Io, told: Told): Promise<Context> {
  const { options, parsed, progress, cache, secret } = told, { cloak } = options;
  const { answerPrefix, positions, beyondTrained, salt } = options, capped = !!parsed.maxCache;
  checkQuestions(model, text, options.question, { answerPrefix, positions, beyondTrained, capped });
  const reading = contextOptions(options, parsed, io, progress);
  return await openContext(model, text, { ...reading, salt, snapshots: cache, secret, cloak });
}

function snapshotSource(options: Options, io: Io): ReturnType<typeof openNamed> {
  if (options.bytes === undefined) return openNamed(options.snapshot!, options, io);
  const message = say`A snapshot keeps what it was read with: give ${option("bytes")} to palisade read`;
  throw new PalisadeError("usage", "bytes.snapshot", message, { where: option("bytes") });
}

/** What a snapshot must be, and how it is restored. */
function restoring(io: Io, { options, parsed, secret }: Told): RestoreOptions {
  const { positions, cacheType, beyondTrained, salt, cloak } = options, frame = frameOf(options);
  return { ...parsed, positions, cacheType, beyondTrained, salt, frame, cloak, signal: io.signal, secret };
}

/** The context of a snapshot. */
async function restored(
  model: Model,
  source: Awaited<ReturnType<typeof openNamed>>,
  io: Io,
  told: Told,
): Promise<Context> {
  told.progress.update("Restoring", 0, 1);
  return await model.restore(source, restoring(io, told));
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
  const typed = typedFrame(frame);
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
      stop: options.stop?.filter((text) => text !== ""),
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
