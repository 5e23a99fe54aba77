/**
 * What a model thinks before it answers, told apart from the answer.
 *
 * Models that think write it between two marks at the very beginning of their reply; the marks are those of their chat
 * template. What looks like a mark later on is text.
 */

/** The marks around a thought. */
export interface ThoughtMarks {
  readonly open: string;
  readonly close: string;
  /** The marks are control tokens of a reply in messages (`channels.ts`). */
  readonly channels?: true;
}

/** A piece of a reply; either part may be empty. */
export interface ReplyPiece {
  readonly thinking: string;
  readonly answer: string;
}

/** Qwen, DeepSeek, SmolLM3 and others; Magistral; gpt-oss. */
const MARKS: readonly ThoughtMarks[] = [
  { open: "<think>", close: "</think>" },
  { open: "[THINK]", close: "[/THINK]" },
  { open: "<|channel|>analysis<|message|>", close: "<|channel|>final<|message|>", channels: true },
];

/** The marks that a chat template writes or looks for; undefined when it knows of no thinking. */
export function thoughtMarks(template: string): ThoughtMarks | undefined {
  return MARKS.find(({ open, close }) => template.includes(open) || template.includes(close));
}

/** True when a prompt ends inside a thought, so that the reply goes on with it. */
export function endsThinking(prompt: string, { open, close }: ThoughtMarks): boolean {
  return prompt.lastIndexOf(open) > prompt.lastIndexOf(close);
}

/** Splits a reply as it comes, whatever pieces it comes in. */
export class Thoughts {
  readonly #marks: ThoughtMarks;
  /** What is not decided yet: white space, or the beginning of a mark. */
  #pending = "";
  #state: "start" | "inside" | "between" | "answer";

  /** `begun`: the prompt opened the thought. */
  constructor(marks: ThoughtMarks, begun: boolean) {
    this.#marks = marks;
    this.#state = begun ? "inside" : "start";
  }

  /** What became certain with this piece. */
  push(piece: string): ReplyPiece {
    this.#pending += piece;
    let thinking = "";
    if (this.#state === "start") this.#begin();
    if (this.#state === "inside") thinking = this.#think();
    if (this.#state === "between") this.#pending = this.#pending.trimStart();
    if (this.#state === "between" && this.#pending !== "") this.#state = "answer";
    return { thinking, answer: this.#state === "answer" ? this.#take(this.#pending.length) : "" };
  }

  /** What was left. */
  end(): ReplyPiece {
    const rest = this.#take(this.#pending.length);
    return this.#state === "inside" ? { thinking: rest, answer: "" } : { thinking: "", answer: rest };
  }

  #begin(): void {
    const { open } = this.#marks, said = this.#pending.trimStart();
    if (said.startsWith(open)) {
      this.#pending = said.slice(open.length);
      this.#state = "inside";
    } else if (!open.startsWith(said)) this.#state = "answer";
  }

  /** The part of the thought that can't belong to the closing mark. */
  #think(): string {
    const { close } = this.#marks, at = this.#pending.indexOf(close);
    if (at < 0) return this.#take(this.#pending.length - overlap(this.#pending, close));
    const thinking = this.#take(at);
    this.#take(close.length);
    this.#state = "between";
    return thinking;
  }

  #take(length: number): string {
    const taken = this.#pending.slice(0, length);
    this.#pending = this.#pending.slice(length);
    return taken;
  }
}

/** Length of the longest end of `text` that `mark` begins with. */
function overlap(text: string, mark: string): number {
  for (let length = Math.min(text.length, mark.length - 1); length > 0; length--) {
    if (mark.startsWith(text.slice(-length))) return length;
  }
  return 0;
}
