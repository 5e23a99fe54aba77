/** `palisade ask`: read a text once, evict, answer every question from what was kept. */
import { parseKeep } from "../../core/select/budget.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { Policy } from "../../core/policy/policy.ts";
import { resolveStepRule } from "../../core/rules/registry.ts";
import type { BackendChoice } from "../../model/device.ts";
import type { DenseChoice } from "../../model/dense/pick.ts";
import { checkQuestions } from "../../model/decode/questions.ts";
import { NO_FRAME, resolveFrame } from "../../model/text/frames.ts";
import { loadModel, type Model } from "../../model/model.ts";
import { reportOf } from "../../model/report.ts";
import { loadPolicy } from "../../model/policy_files/policy_files.ts";
import {
  type Answer,
  type AskOptions,
  type Context,
  type MaxCache,
  openContext,
  type Positions,
} from "../../model/session.ts";
import type { ThreadChoice } from "../../model/threads.ts";
import { certificateText } from "../print/certificate.ts";
import { EXIT, type Io } from "../io.ts";
import { obtainModel } from "../obtain.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { reportText } from "../print/closing_report.ts";

/** Options that every command running a model shares. */
export interface EngineOptions {
  readonly model: string;
  readonly backend: BackendChoice;
  readonly dense: DenseChoice;
  readonly threads: ThreadChoice;
  /** Gate file for the policy `gate`, instead of the one found for the model. */
  readonly gate?: string;
  readonly offline?: boolean;
  readonly quiet?: boolean;
}

export interface AskCommand extends EngineOptions {
  readonly context: string;
  readonly question: readonly string[];
  /** Undefined where `risk` or `riskWorst` takes its place. */
  readonly keep?: string;
  /** Undefined: the library's default, `model/default_policy.ts`. */
  readonly policy?: string;
  readonly risk?: number;
  readonly riskWorst?: number;
  readonly maxCacheBytes?: number;
  readonly explain?: boolean;
  readonly maxCache?: number;
  readonly stepPolicy?: string;
  readonly positions: Positions;
  readonly cacheType: CacheType;
  readonly maxTokens?: number;
  readonly temperature: number;
  readonly topP: number;
  readonly seed: number;
  readonly answerPrefix?: string;
  readonly system?: string;
  readonly think?: boolean;
  readonly frame?: string;
  readonly allowLoops?: boolean;
  readonly beyondTrained?: boolean;
  readonly json?: boolean;
}

/** Runs the command; returns the exit code. Refusals are thrown. */
export async function ask(command: AskCommand, io: Io): Promise<number> {
  const policy = command.policy === undefined ? undefined : await loadPolicy(command.policy, io.runtime);
  const keep = command.keep === undefined ? undefined : parseKeep(command.keep);
  const maxCache = maxCacheOf(command);
  refuseIdle(command, policy, maxCache);
  const frame = frameOf(command);
  const text = await io.runtime.readText(command.context, { signal: io.signal });
  if (text.trim() === "") {
    const where = command.context === "-" ? "standard input" : command.context;
    throw inputError("context.empty", `There is no text in ${where}`, "--context");
  }

  using progress = createProgress(io.interactive && !command.quiet);
  const start = performance.now();
  await using model = await startModel({ ...command, frame }, io, progress);
  const loadMs = performance.now() - start;
  const { answerPrefix, positions, beyondTrained } = command;
  checkQuestions(model, text, command.question, { answerPrefix, positions, beyondTrained, capped: !!maxCache });
  using context = await openContext(model, text, {
    policy,
    keep,
    maxCache,
    risk: command.risk,
    riskWorst: command.riskWorst,
    maxCacheBytes: command.maxCacheBytes,
    explain: command.explain,
    positions: command.positions,
    cacheType: command.cacheType,
    beyondTrained: command.beyondTrained,
    signal: io.signal,
    onLayer: (done, layers) => progress.update("Reading, layer", done, layers),
  });
  progress.clear();
  if (!policy && context.policy.needs.reconstruction && io.interactive && !command.quiet) {
    io.err(`${noGate(command.model)}\n`);
  }

  const answers = await askAll(command, io, context);
  const report = reportOf(model, context, answers, {
    keepAsked: command.keep ??
      (command.risk === undefined ? `risk-worst ${command.riskWorst}` : `risk ${command.risk}`),
    loadMs,
    rssBytes: io.runtime.memory().rssBytes,
  });
  if (command.json) io.out(`${JSON.stringify(report, null, 2)}\n`);
  if (report.certificate && !command.json && !command.quiet) io.err(`\n${certificateText(report.certificate)}`);
  if (io.interactive && !command.quiet) io.err(`\n${reportText(report)}`);
  return answers.some((each) => each.finish === "interrupted") ? EXIT.interrupted : EXIT.ok;
}

/**
 * The frame as it was typed, with its line breaks; `none` for an empty question, which goes on from the text.
 * @throws PalisadeError input `question.empty`, `question.mixed`, `frame.*`; usage `frame.alone`.
 */
function frameOf({ question, frame }: AskCommand): string | undefined {
  const empty = question.filter((each) => each === "").length;
  if (empty === 0 && question.some((each) => each.trim() === "")) {
    const message = 'The question has no text in it; "" goes on from the text itself';
    throw inputError("question.empty", message, "--question");
  }
  const typed = frame?.replace(/\\([nt\\])/g, (_, letter: "n" | "t" | "\\") => ESCAPED[letter]);
  if (typed !== undefined) resolveFrame(typed);
  if (empty === 0) return typed;
  if (empty < question.length) {
    const message = "An empty question goes on from the text itself, which is read otherwise than for a question: " +
      "ask it alone";
    throw inputError("question.mixed", message, "--question");
  }
  if (typed !== undefined && typed !== NO_FRAME) throw idle("frame", "There is no question to put words around");
  return NO_FRAME;
}

const ESCAPED = { n: "\n", t: "\t", "\\": "\\" };

/** Why the default was the slow one, and what makes it the fast one. */
function noGate(model: string): string {
  return `No gate is fitted for this model, so kvzip read the text a second time to find what must stay.\n` +
    `To keep as much in one reading: palisade calibrate --model ${model}`;
}

function maxCacheOf({ maxCache, stepPolicy }: AskCommand): MaxCache | undefined {
  if (maxCache !== undefined) return { tokens: maxCache, rule: stepPolicy && resolveStepRule(stepPolicy) };
  if (stepPolicy !== undefined) throw idle("step-policy", "There is nothing to evict by it without --max-cache");
  return undefined;
}

/** Refuses options that would be read and then do nothing. */
function refuseIdle({ risk, maxCacheBytes, gate }: AskCommand, policy?: Policy, maxCache?: MaxCache): void {
  if (maxCacheBytes !== undefined && risk === undefined) throw idle("max-cache-bytes", "Nothing waits without --risk");
  const rule = maxCache?.rule, asks = !policy || policy.needs.gate || (typeof rule === "object" && rule.predicted);
  if (gate !== undefined && !asks) throw idle("gate", "Nothing asks a gate: add --policy gate or --step-policy gate");
}

function idle(option: string, message: string): PalisadeError {
  return new PalisadeError("usage", `${option}.alone`, message, { where: `--${option}` });
}

/** Finds or fetches the model and starts it, with progress. */
export async function startModel(
  options: EngineOptions & { system?: string; think?: boolean; frame?: string },
  io: Io,
  progress: Progress,
): Promise<Model> {
  try {
    const path = await obtainModel(options.model, io, progress, options);
    return await loadModel(path, io.runtime, {
      backend: options.backend,
      dense: options.dense,
      threads: options.threads,
      system: options.system,
      think: options.think,
      frame: options.frame,
      gate: options.gate,
      signal: io.signal,
      onProgress: (done, total) => progress.update("Starting the model", done, total),
    });
  } finally {
    progress.clear();
  }
}

/** Every question in turn, streamed; stops at the first interruption. */
async function askAll(command: AskCommand, io: Io, context: Context): Promise<Answer[]> {
  const answers: Answer[] = [];
  const many = command.question.length > 1;
  for (const question of command.question) {
    if (many && io.interactive && !command.quiet) io.err(`${answers.length > 0 ? "\n" : ""}> ${question}\n`);
    const answer = await context.ask(question, {
      maxTokens: command.maxTokens,
      temperature: command.temperature,
      topP: command.topP,
      seed: command.seed,
      answerPrefix: command.answerPrefix,
      allowLoops: command.allowLoops,
      signal: io.signal,
      ...(!command.json && streams(io, command.quiet)),
    });
    if (!command.json) io.out("\n");
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
