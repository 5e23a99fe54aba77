/** Tasks from the user's own files: `qa:FILE` (SQuAD's JSON) and `jsonl:FILE` (one case a line). */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { isNothing, type MetricName, METRICS } from "./metrics.ts";
import { Draw } from "./draw.ts";
import { fitLength } from "./fit.ts";
import type { Prompt, SampleRequest, Task } from "./interface.ts";

/** Tokens of an answer when a case doesn't say. RULER's qa has 32. */
const MAX_NEW_TOKENS = { qa: 32, jsonl: 64 };

const QA_TASK = "Answer the question based on the given documents. " +
  "Only give me the answer and do not output any other words.";

interface Question {
  readonly question: string;
  readonly answers: readonly string[];
  /** Index of the document that holds the answer. */
  readonly document: number;
}

/**
 * RULER's question answering over the documents of a SQuAD file: the one with the answer among others, as many as fit
 * (NVIDIA/RULER scripts/data/synthetic/qa.py). Questions without an answer are left out.
 * @throws PalisadeError `task.syntax`, `task.empty`, and as `Runtime.readText`.
 */
export async function openQa(runtime: Runtime, file: string): Promise<Task> {
  const text = await runtime.readText(file);
  const { documents, questions } = readSquad(text, file);
  if (questions.length === 0) throw inputError("task.empty", `No question with an answer in ${file}`, file);
  return {
    name: "qa",
    sized: true,
    source: hash(runtime, text),
    file,
    generate(request) {
      const { question, answers, document } = questions[new Draw(request.seed).integer(0, questions.length - 1)];
      const prompt = qaPrompt(request, documents, document, question);
      return { ...prompt, answers, metric: "contains-any", maxNewTokens: MAX_NEW_TOKENS.qa };
    },
  };
}

function qaPrompt(request: SampleRequest, documents: readonly string[], right: number, question: string): Prompt {
  const others = new Draw(request.seed + 1).shuffled(documents.map((_, i) => i).filter((i) => i !== right));
  const build = (n: number): Prompt => {
    const shown = new Draw(request.seed + 2).shuffled([right, ...others.slice(0, n - 1)]);
    const texts = shown.map((at, i) => `Document ${i + 1}:\n${documents[at]}`).join("\n\n");
    return {
      context: `${QA_TASK}\n\nThe following are given documents.\n\n${texts}\n`,
      question: `${QA_TASK}\n\nQuestion: ${question}`,
      answerPrefix: " Answer:",
    };
  };
  const tokens = (prompt: Prompt) => request.promptTokens(prompt) + MAX_NEW_TOKENS.qa;
  return fitLength(build, tokens, { length: request.length, least: 1, most: others.length + 1, task: "qa" });
}

function readSquad(text: string, file: string): { documents: string[]; questions: Question[] } {
  const documents: string[] = [], questions: Question[] = [];
  const root = parse(text, file, "JSON") as { data?: unknown };
  list(root?.data, "data", file).forEach((article, a) => {
    list(field(article, "paragraphs"), `data[${a}].paragraphs`, file).forEach((paragraph, p) => {
      const at = `data[${a}].paragraphs[${p}]`;
      const document = documents.push(someText(field(paragraph, "context"), `${at}.context`, file)) - 1;
      list(field(paragraph, "qas"), `${at}.qas`, file).forEach((qa, q) => {
        const found = readQuestion(qa, `${at}.qas[${q}]`, file, text);
        if (found.answers.length > 0) questions.push({ ...found, document });
      });
    });
  });
  return { documents, questions };
}

function readQuestion(qa: unknown, at: string, file: string, text: string): Omit<Question, "document"> {
  const question = someText(field(qa, "question"), `${at}.question`, file);
  const answers = list(field(qa, "answers") ?? [], `${at}.answers`, file).map((each, i) => {
    const answer = plainText(field(each, "text"), `${at}.answers[${i}].text`, file);
    if (!isNothing("contains-any", answer)) return answer;
    throw nothing(answer, "contains-any", `${file}:${lineOf(text, question)} (${at}.answers[${i}])`);
  });
  return { question, answers: [...new Set(answers)] };
}

/** The line in which a question stands; the first where it isn't written as we would write it. */
function lineOf(text: string, question: string): number {
  const at = text.indexOf(JSON.stringify(question));
  return text.slice(0, Math.max(0, at)).split("\n").length;
}

interface Case extends Prompt {
  readonly answers: readonly string[];
  readonly metric: MetricName;
  readonly maxNewTokens: number;
  readonly where: string;
}

/**
 * The user's cases, line by line `{"context", "question", "answers", "metric"?, "answerPrefix"?, "maxNewTokens"?}`;
 * `answers` is a text or a list of them, `metric` one of `METRICS` (default contains-all). Blank lines are read past.
 * Refused like a context of `ask`: texts that are empty, or hold what UTF-8 text doesn't.
 * @throws PalisadeError `task.syntax`, `task.empty`, and as `Runtime.readText`.
 */
export async function openJsonl(runtime: Runtime, file: string): Promise<Task> {
  const text = await runtime.readText(file);
  const lines = text.split("\n").map((line, i) => ({ line, where: `${file}:${i + 1}` }));
  const cases = lines.filter(({ line }) => line.trim() !== "").map(({ line, where }) => readCase(line, where));
  if (cases.length === 0) throw inputError("task.empty", `No case in ${file}`, file);
  return {
    name: `jsonl:${file.split(/[\\/]/).at(-1)}`,
    sized: false,
    source: hash(runtime, text),
    file,
    available: cases.length,
    generate: ({ index }) => cases[index],
  };
}

function readCase(line: string, where: string): Case {
  const value = parse(line, where, "a JSON object");
  const answers = field(value, "answers");
  const metric = field(value, "metric") ?? "contains-all";
  if (!METRICS.includes(metric as MetricName)) {
    throw inputError("task.syntax", `Unknown metric ${metric} in ${where}: want one of ${METRICS.join(", ")}`, where);
  }
  const maxNewTokens = field(value, "maxNewTokens") ?? MAX_NEW_TOKENS.jsonl;
  if (!Number.isSafeInteger(maxNewTokens) || Number(maxNewTokens) < 1) {
    throw inputError("task.syntax", `Bad maxNewTokens ${maxNewTokens} in ${where}: want a whole number ≥ 1`, where);
  }
  const wanted = (typeof answers === "string" ? [answers] : list(answers, "answers", where))
    .map((each) => plainText(each, "answers[]", where));
  if (wanted.length === 0) throw inputError("task.syntax", `No answers in ${where}: want at least one`, where);
  const empty = wanted.find((each) => isNothing(metric as MetricName, each));
  if (empty !== undefined) throw nothing(empty, metric as MetricName, where);
  return {
    context: someText(field(value, "context"), "context", where),
    question: someText(field(value, "question"), "question", where),
    answerPrefix: plainText(field(value, "answerPrefix") ?? "", "answerPrefix", where),
    answers: wanted,
    metric: metric as MetricName,
    maxNewTokens: Number(maxNewTokens),
    where,
  };
}

function nothing(answer: string, metric: MetricName, where: string): PalisadeError {
  const message = `The expected answer ${JSON.stringify(answer)} in ${where} says nothing: ${metric} would score any ` +
    "answer alike, or only an empty one; want one with words in it";
  return inputError("task.answer", message, where);
}

function parse(text: string, where: string, wanted: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw inputError("task.syntax", `Can't read ${where} as ${wanted}: ${(cause as Error).message}`, where, cause);
  }
}

function field(value: unknown, name: string): unknown {
  return value === null || typeof value !== "object" ? undefined : (value as Record<string, unknown>)[name];
}

function list(value: unknown, name: string, where: string): unknown[] {
  if (Array.isArray(value)) return value;
  throw inputError("task.syntax", `No list ${name} in ${where}`, where);
}

/** A text that a file could hold: `ask` refuses others too. */
function plainText(value: unknown, name: string, where: string): string {
  if (typeof value !== "string") throw inputError("task.syntax", `No text ${name} in ${where}`, where);
  if (value.includes("\0")) throw inputError("text.binary", `A NUL character in ${name} in ${where}`, where);
  if (value.isWellFormed()) return value;
  throw inputError("text.not-utf8", `Half a surrogate pair in ${name} in ${where}: no UTF-8 text has one`, where);
}

/** The same, and not empty. */
function someText(value: unknown, name: string, where: string): string {
  const text = plainText(value, name, where);
  if (text.trim() !== "") return text;
  throw inputError("task.empty-text", `There is no text in ${name} in ${where}`, where);
}

function hash(runtime: Runtime, text: string): string {
  const hasher = runtime.sha256();
  hasher.update(new TextEncoder().encode(text));
  return hasher.digest();
}
