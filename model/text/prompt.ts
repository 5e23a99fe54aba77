/**
 * The frame a chat template puts around a context and a question, and their token ids.
 *
 * The template sees placeholders only, never a user's text: it is rendered once and cut at them. So a `{{` in a book is
 * inert, a template that trims contents treats all texts alike, and context and question can be tokenised apart: the
 * context is compressed before any question is known.
 */
import { inputError, option, PalisadeError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import { defaultFrame, type Frame, NO_FRAME, resolveFrame } from "./frames.ts";
import { isoDay, type LocalTime, localTime } from "./jinja/strftime.ts";
import { type ChatMessage, renderChats } from "./template.ts";
import { endsThinking, type ThoughtMarks, thoughtMarks } from "./thoughts.ts";
import type { TextPart, TextTokenizer } from "./tokenizer.ts";
import type { Metadata } from "./tokenizer/vocabulary.ts";

/** Sequence: prefix, words before, context, words between, question, words after, suffix, answer. */
export interface ChatFrame {
  /**
   * `chat`: in the file's chat template. `plain`: the file has none, so the words are all there is. `none`: the text
   * alone, to be gone on with.
   */
  readonly kind: "chat" | "plain" | "none";
  /** The words around context and question. */
  readonly words: Frame;
  /** Before the context: what the template writes first, the system text among it. */
  readonly prefix: readonly TextPart[];
  /** After the question, up to where the answer begins. */
  readonly suffix: readonly TextPart[];
  /** Ids of the control token that the template writes after an assistant's turn, if it writes one: it ends an answer. */
  readonly ends: readonly number[];
  /** The day, `2026-03-09`, where the template asks for it; the same for as long as the model is loaded. */
  readonly date?: string;
  /** Where the template knows of thinking: the marks around a thought, and what was asked for. */
  readonly thinking?: ThoughtMarks & {
    /** Thinking was asked for. */
    readonly asked: boolean;
    /** The suffix opens the thought. */
    readonly begun: boolean;
  };
}

export interface FrameOptions {
  /** System text in place of the template's own; control tokens in it are plain text. */
  readonly system?: string;
  /** Lets the model think before it answers, where its template can be told. Default false. */
  readonly think?: boolean;
  /** Words around text and question: a name of `FRAMES`, or a text. Default: the architecture's. */
  readonly frame?: string;
  readonly signal?: AbortSignal;
  /** The time that a template is told. Default now. */
  readonly now?: LocalTime;
}

/** Without a chat template and words for it the answer begins on the line after the question. */
const LINE_BREAK: TextPart = { text: "\n", special: false };

const KEY = "tokenizer.chat_template";

/**
 * The frame of the template in `tokenizer.chat_template`. Without one the prefix is the system text, if any, and a line
 * break, and the suffix a line break, unless the words themselves say how the answer begins.
 *
 * Throws PalisadeError input: `tokenizer.metadata` (the template is not a string), `template.*` as `renderChat`,
 * `template.system` (there is no place for a system text), `template.think` (it knows of no thinking),
 * `template.content` (it doesn't write the user's text once), `frame.*` as `resolveFrame`.
 */
export async function chatFrame(
  metadata: Metadata,
  tokenizer: Pick<TextTokenizer, "bosText" | "eosText" | "encode" | "isControl">,
  runtime: Pick<Runtime, "runSandboxed">,
  options: FrameOptions = {},
): Promise<ChatFrame> {
  const { system, signal, think = false, now = localTime(new Date()) } = options;
  const template = metadata.get(KEY);
  const words = options.frame === undefined
    ? defaultFrame(metadata.get("general.architecture"), template === undefined ? "plain" : "chat")
    : resolveFrame(options.frame);
  if (template !== undefined && typeof template !== "string") {
    throw inputError("tokenizer.metadata", `Can't read ${KEY}: it must be a string, not a ${typeof template}`, KEY);
  }
  if (words.name === NO_FRAME) return textAlone(words, options);
  const marks = thoughtMarks(template ?? "");
  if (think && !marks && !template?.includes("enable_thinking")) throw noThinking(template);
  if (template === undefined) return bareFrame(words, system);
  const places = {
    system: unused("SYSTEM", template),
    user: unused("USER", template),
    assistant: unused("ASSISTANT", template),
  };
  const asked: ChatMessage[] = [
    ...(system === undefined ? [] : [{ role: "system", content: places.system } as const]),
    { role: "user", content: places.user },
  ];
  const shared = { bosToken: tokenizer.bosText, eosToken: tokenizer.eosText, think };
  const [rendered, answered] = await renderChats(template, [
    { ...shared, messages: asked },
    { ...shared, messages: [...asked, { role: "assistant", content: places.assistant }], addGenerationPrompt: false },
  ], { runtime, signal, now });
  if (rendered instanceof PalisadeError) throw rendered;
  const halves = rendered.text.split(places.user);
  if (halves.length !== 2) {
    throw inputError(
      "template.content",
      `Can't use the model's chat template: it writes the user's text ${halves.length - 1} times, not once`,
      KEY,
    );
  }
  if (system !== undefined && !rendered.text.includes(places.system)) {
    throw inputError("template.system", "The model's chat template has no place for a system text", option("system"));
  }
  // Such a template can't be told, but the reply can be begun for it.
  if (marks?.channels && !think) halves[1] += marks.close;
  const [prefix, suffix] = halves.map((half) => parts(half, places.system, system ?? ""));
  return {
    kind: "chat",
    words,
    prefix,
    suffix,
    ends: answered instanceof PalisadeError ? [] : endsOf(answered.text, places.assistant, tokenizer),
    ...(rendered.dated && { date: isoDay(now) }),
    ...(marks && { thinking: { ...marks, asked: think, begun: endsThinking(halves[1], marks) } }),
  };
}

/**
 * The same frame with other words, `none` for none at all.
 * @throws PalisadeError input `frame.*` as `resolveFrame`.
 */
export function withWords(frame: ChatFrame, nameOrText: string): ChatFrame {
  const words = resolveFrame(nameOrText);
  if (words.name === NO_FRAME) return { ...textAlone(words, {}), ends: frame.ends };
  if (frame.kind === "chat") return { ...frame, words };
  return { ...bareFrame(words, undefined), prefix: frame.prefix, ends: frame.ends };
}

function textAlone(words: Frame, { system, think }: FrameOptions): ChatFrame {
  if (system !== undefined) {
    throw inputError("template.system", "A text that is gone on with has no place for a system text", option("system"));
  }
  if (think) {
    throw inputError("template.think", "A text that is gone on with has no place for thinking", option("think"));
  }
  return { kind: "none", words, prefix: [], suffix: [], ends: [] };
}

function noThinking(template: string | undefined): PalisadeError {
  const reason = template === undefined ? "it has no chat template" : "its chat template knows of no thinking";
  return inputError("template.think", `The model can't be told to think: ${reason}`, option("think"));
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

function bareFrame(words: Frame, system: string | undefined): ChatFrame {
  const prefix = system === undefined ? [] : [{
    text: `${system}
`,
    special: false,
  }];
  return { kind: "plain", words, prefix, suffix: words.after === "" ? [LINE_BREAK] : [], ends: [] };
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
  const ids = tokenizer.encodeParts([...frame.prefix, { text: `${frame.words.before}${text}`, special: false }]);
  const { firstId } = tokenizer;
  return firstId === undefined || ids[0] === firstId ? ids : [firstId, ...ids];
}

/**
 * How many tokens at the beginning of a context's `ids` are the frame's: what the template writes first, its system text
 * among it, and the words before the text. Fewer than all: the text has at least one.
 */
export function frameTokens(
  { frame, tokenizer }: { readonly frame: ChatFrame; readonly tokenizer: TextTokenizer },
  ids: ArrayLike<number>,
): number {
  const alone = contextIds(frame, tokenizer, "");
  let i = 0;
  while (i < ids.length - 1 && i < alone.length && ids[i] === alone[i]) i++;
  return i;
}

/**
 * Ids of the words between, the question, the frame's end and the text the answer is to begin with. Without a question,
 * when it stands at the context's end already, there are no words either.
 */
export function questionIds(
  frame: ChatFrame,
  tokenizer: TextTokenizer,
  question: string | undefined,
  answerPrefix = "",
): number[] {
  const { between, after } = frame.words;
  return tokenizer.encodeParts([
    ...(question === undefined ? [] : [{ text: `${between}${question}${after}`, special: false }]),
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
