/**
 * The words around a text and a question: what stands before the text, between the two, and after the question.
 *
 * They are data, chosen by measurement per architecture (`bench/results/frames.md`). A chat template, where the file
 * has one, goes around them; `model/text/prompt.ts` puts both together.
 */
import { inputError, option } from "../../core/errors.ts";
import { adviceFor } from "../../core/policy/nearest_name.ts";

/** The words around text and question. */
export interface Frame {
  /** A name of {@link FRAMES}, or `custom`. */
  readonly name: string;
  readonly before: string;
  readonly between: string;
  readonly after: string;
}

/** Where the text and the question stand. */
const TEXT = "{text}", QUESTION = "{question}";

/** Reads the text itself, with nothing around it: for going on from a text. */
export const NO_FRAME = "none";
/** What joined text and question first; results of `eval` are made with it. */
export const LINE = "line";

const READ = "Read the text, then answer the question about it.";

/** Frames by name. `none` also leaves out the chat template. */
export const FRAMES: Readonly<Record<string, string>> = {
  [LINE]: `${TEXT}\n${QUESTION}`,
  blank: `${TEXT}\n\n${QUESTION}`,
  question: `${TEXT}\n\nQuestion: ${QUESTION}`,
  answer: `${TEXT}\n\nQuestion: ${QUESTION}\nAnswer:`,
  rule: `${TEXT}\n\n---\n\n${QUESTION}`,
  before: `${READ}\n\n${TEXT}\n\n${QUESTION}`,
  "before-question": `${READ}\n\n${TEXT}\n\nQuestion: ${QUESTION}`,
  "before-answer": `${READ}\n\n${TEXT}\n\nQuestion: ${QUESTION}\nAnswer:`,
  after: `${TEXT}\n\nAnswer this question about the text above: ${QUESTION}`,
  both: `${READ}\n\n${TEXT}\n\nAnswer this question about the text above: ${QUESTION}`,
  [NO_FRAME]: `${TEXT}${QUESTION}`,
};

/** What is taken when nothing is said: in a chat template, and for a model that has none. */
interface Defaults {
  readonly chat: string;
  readonly plain: string;
}

/**
 * By `general.architecture`, where one measures otherwise than `default`: what got the most answers of SmolLM2-135M-Instruct
 * (llama) in its chat template, and of Gemma 3 270M (gemma3), which has none.
 */
const DEFAULTS: Readonly<Record<string, Defaults>> = {
  default: { chat: "both", plain: "before-answer" },
};

/** The frame that an architecture is asked with unless told. */
export function defaultFrame(architecture: unknown, kind: keyof Defaults): Frame {
  const known = typeof architecture === "string" && Object.hasOwn(DEFAULTS, architecture);
  return resolveFrame((known ? DEFAULTS[architecture] : DEFAULTS.default)[kind]);
}

/**
 * A frame by its name, or by its text: `{text}\n\n{question}`.
 * @throws PalisadeError input `frame.unknown`, `frame.syntax` (not one `{text}` and then one `{question}`).
 */
export function resolveFrame(nameOrText: string): Frame {
  if (Object.hasOwn(FRAMES, nameOrText)) return cut(nameOrText, FRAMES[nameOrText]);
  if (/^[\w-]*$/.test(nameOrText)) throw unknown(nameOrText);
  return cut("custom", nameOrText);
}

/** The text that a frame is written as, with `{text}` and `{question}` in their places. */
export function frameText({ before, between, after }: Frame): string {
  return `${before}${TEXT}${between}${QUESTION}${after}`;
}

function cut(name: string, text: string): Frame {
  const [before, rest = "", ...more] = text.split(TEXT);
  const [between, after, ...others] = rest.split(QUESTION);
  if (after === undefined || before.includes(QUESTION) || more.length + others.length > 0) {
    const message = `Can't use the frame ${JSON.stringify(text)}: want ${TEXT} once, and after it ${QUESTION} once`;
    throw inputError("frame.syntax", message, option("frame"));
  }
  return { name, before, between, after };
}

function unknown(name: string) {
  const names = Object.keys(FRAMES), hint = adviceFor(name, names, `known: ${names.join(", ")}`);
  const message = `No frame is called ${JSON.stringify(name)}; ${hint}, or a text with ${TEXT} and ${QUESTION} in it`;
  return inputError("frame.unknown", message, option("frame"));
}
