/**
 * The frame a chat template puts around a context and a question, and their token ids.
 *
 * The template sees placeholders only, never a user's text: it is rendered once and cut at them. So a `{{` in a book is
 * inert, a template that trims contents treats all texts alike, and context and question can be tokenised apart: the
 * context is compressed before any question is known.
 */
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { isoDay, type LocalTime, localTime } from "./jinja/strftime.ts";
import { type ChatMessage, renderChats } from "./template.ts";
import type { TextPart, TextTokenizer } from "./tokenizer.ts";
import type { Metadata } from "./tokenizer/vocabulary.ts";

/** Sequence: prefix, context, line break, question, suffix, answer. */
export interface ChatFrame {
  /** Before the context: what the template writes first, the system text among it. */
  readonly prefix: readonly TextPart[];
  /** After the question, up to where the answer begins. */
  readonly suffix: readonly TextPart[];
  /** Ids of the control token that the template writes after an assistant's turn, if it writes one: it ends an answer. */
  readonly ends: readonly number[];
  /** The day, `2026-03-09`, where the template asks for it; the same for as long as the model is loaded. */
  readonly date?: string;
}

export interface FrameOptions {
  /** System text in place of the template's own; control tokens in it are plain text. */
  readonly system?: string;
  readonly signal?: AbortSignal;
  /** The time that a template is told. Default now. */
  readonly now?: LocalTime;
}

/** A model without a chat template goes on from the text: the answer begins on the line after the question. */
const BARE: ChatFrame = { prefix: [], suffix: [{ text: "\n", special: false }], ends: [] };

const KEY = "tokenizer.chat_template";

/**
 * The frame of the template in `tokenizer.chat_template`. Without one the prefix is the system text, if any, and a line
 * break, and the suffix a line break.
 *
 * Throws PalisadeError input: `tokenizer.metadata` (the template is not a string), `template.*` as `renderChat`,
 * `template.system` (it has no place for a system text), `template.content` (it doesn't write the user's text once).
 */
export async function chatFrame(
  metadata: Metadata,
  tokenizer: Pick<TextTokenizer, "bosText" | "eosText" | "encode" | "isControl">,
  runtime: Pick<Runtime, "runSandboxed">,
  options: FrameOptions = {},
): Promise<ChatFrame> {
  const { system, signal, now = localTime(new Date()) } = options;
  const template = metadata.get(KEY);
  if (template === undefined) return bareFrame(system);
  if (typeof template !== "string") {
    throw inputError("tokenizer.metadata", `Can't read ${KEY}: it must be a string, not a ${typeof template}`, KEY);
  }
  const marks = {
    system: unused("SYSTEM", template),
    user: unused("USER", template),
    assistant: unused("ASSISTANT", template),
  };
  const asked: ChatMessage[] = [
    ...(system === undefined ? [] : [{ role: "system", content: marks.system } as const]),
    { role: "user", content: marks.user },
  ];
  const shared = { bosToken: tokenizer.bosText, eosToken: tokenizer.eosText };
  const [rendered, answered] = await renderChats(template, [
    { ...shared, messages: asked },
    { ...shared, messages: [...asked, { role: "assistant", content: marks.assistant }], addGenerationPrompt: false },
  ], { runtime, signal, now });
  if (rendered instanceof PalisadeError) throw rendered;
  const halves = rendered.text.split(marks.user);
  if (halves.length !== 2) {
    throw inputError(
      "template.content",
      `Can't use the model's chat template: it writes the user's text ${halves.length - 1} times, not once`,
      KEY,
    );
  }
  if (system !== undefined && !rendered.text.includes(marks.system)) {
    throw inputError("template.system", "The model's chat template has no place for a system text", "--system");
  }
  const [prefix, suffix] = halves.map((half) => parts(half, marks.system, system ?? ""));
  const ends = answered instanceof PalisadeError ? [] : endsOf(answered.text, marks.assistant, tokenizer);
  return { prefix, suffix, ends, ...(rendered.dated && { date: isoDay(now) }) };
}

/** A template that refuses a finished turn, or ends it by text, says nothing. */
function endsOf(
  answered: string,
  mark: string,
  tokenizer: Pick<TextTokenizer, "encode" | "isControl">,
): number[] {
  const after = answered.includes(mark) ? answered.split(mark).at(-1)!.trimStart() : "";
  return tokenizer.encode(after, { special: true }).slice(0, 1).filter((id) => tokenizer.isControl(id));
}

function bareFrame(system: string | undefined): ChatFrame {
  return system === undefined ? BARE : { ...BARE, prefix: [{ text: `${system}\n`, special: false }] };
}

/** A word that doesn't occur in the template; letters and digits only, so that no filter changes it. */
function unused(name: string, template: string): string {
  for (let n = 0;; n++) {
    const word = `PALISADE${name}${n}PLACE`;
    if (!template.includes(word)) return word;
  }
}

/** Template text around the system text wherever it stands. */
function parts(rendered: string, mark: string, system: string): TextPart[] {
  return rendered.split(mark)
    .flatMap((text, i) => [...(i > 0 ? [{ text: system, special: false }] : []), { text, special: true }])
    .filter((part) => part.text !== "");
}

/**
 * Ids of the frame's beginning and the context, with the first token the model wants, unless the template wrote it.
 * Only the template's control tokens are control tokens: see `controlPositions`.
 */
export function contextIds(frame: ChatFrame, tokenizer: TextTokenizer, text: string): number[] {
  const ids = tokenizer.encodeParts([...frame.prefix, { text, special: false }]);
  const { firstId } = tokenizer;
  return firstId === undefined || ids[0] === firstId ? ids : [firstId, ...ids];
}

/**
 * Ids of a line break, the question, the frame's end and the text the answer is to begin with. Without a question, when
 * it stands at the context's end already, there is no line break either.
 */
export function questionIds(
  frame: ChatFrame,
  tokenizer: TextTokenizer,
  question: string | undefined,
  answerPrefix = "",
): number[] {
  return tokenizer.encodeParts([
    ...(question === undefined ? [] : [{ text: `\n${question}`, special: false }]),
    ...frame.suffix,
    { text: answerPrefix, special: false },
  ], { continued: true });
}

/** Positions of the template's control tokens among `ids`, ascending: what a policy may want to protect. */
export function controlPositions(ids: ArrayLike<number>, tokenizer: Pick<TextTokenizer, "isControl">): number[] {
  const positions: number[] = [];
  for (let i = 0; i < ids.length; i++) if (tokenizer.isControl(ids[i])) positions.push(i);
  return positions;
}
