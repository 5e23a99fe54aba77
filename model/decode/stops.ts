/** Ends a reply where it says one of some texts: a model that isn't tuned for chats goes on with a question of its own. */
import { inputError, option } from "../../core/errors.ts";
import type { ChatFrame } from "../text/prompt.ts";

/**
 * What ends a reply unless told: without a chat template, the words that the frame has before a question, `Question:` at
 * the begin of a line, if there are any.
 */
export function stopsOf({ kind, words: { between } }: Pick<ChatFrame, "kind" | "words">): readonly string[] {
  const line = between.trimEnd().split("\n").at(-1)!;
  return kind === "plain" && /\p{L}/u.test(line) && between.includes("\n") ? [`\n${line}`] : [];
}

/** @throws PalisadeError input `stop.empty`. */
export function checkStops(stops: readonly string[]): void {
  if (!stops.includes("")) return;
  throw inputError("stop.empty", "An empty text can't end an answer: want texts, or an empty list", option("stop"));
}

/** Looks for the texts in a reply that comes in pieces. */
export class StopWatch {
  readonly #stops: readonly string[];
  /** White space, and what may be the begin of a stop. */
  #held = "";
  #stopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Whether one of them was said. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Takes a piece; gives what belongs to the reply for certain. White space before a stop does not. */
  push(text: string): string {
    if (this.#stopped) return "";
    const held = this.#held + text;
    const found = this.#stops.map((stop) => held.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#stopped = true;
      this.#held = "";
      return held.slice(0, Math.min(...found)).trimEnd();
    }
    const sure = this.#stops.length === 0 ? held.length : held.slice(0, this.#unsureFrom(held)).trimEnd().length;
    this.#held = held.slice(sure);
    return held.slice(0, sure);
  }

  /** What was held back, when no more comes. */
  end(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Where the longest end of a text begins that is the begin of a stop. */
  #unsureFrom(text: string): number {
    const longest = Math.max(...this.#stops.map(({ length }) => length)) - 1;
    for (let at = Math.max(0, text.length - longest); at < text.length; at++) {
      if (this.#stops.some((stop) => stop.startsWith(text.slice(at)))) return at;
    }
    return text.length;
  }
}
