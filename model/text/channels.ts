/**
 * Replies in messages, each on a channel: harmony, the form of gpt-oss.
 *
 *     <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
 *
 * What is on the channel `final` is the answer, everything else was thought. Control tokens alone divide a reply, so words
 * that look like one are text.
 */
import type { ReplyPiece } from "./thoughts.ts";

const ANSWER = "final";
const NONE: ReplyPiece = { thinking: "", answer: "" };

/** Splits a reply as its tokens come. */
export class Channels {
  #state: "header" | "channel" | "message" = "header";
  /** What was said outside of messages since the last one. */
  #aside = "";
  #channel = "";
  /** Messages so far, and whether anything was thought. */
  #messages = 0;
  #thought = false;

  /** Text between control tokens. */
  text(text: string): ReplyPiece {
    if (text === "") return NONE;
    if (this.#state !== "message") {
      this.#aside += text;
      return NONE;
    }
    if (this.#channel === ANSWER) return { thinking: "", answer: text };
    this.#thought = true;
    return { thinking: text, answer: "" };
  }

  /** A control token, as it is written. */
  control(token: string): ReplyPiece {
    if (token === "<|message|>") return this.#begin();
    if (token === "<|channel|>") {
      this.#state = "channel";
      this.#aside = "";
    } else if (token === "<|start|>" || token === "<|end|>") {
      this.#state = "header";
      this.#aside = "";
    }
    return NONE;
  }

  #begin(): ReplyPiece {
    // Behind its name a channel may say what form the message has.
    this.#channel = this.#state === "channel" ? this.#aside.trim().split(/\s/)[0] : ANSWER;
    this.#state = "message";
    this.#aside = "";
    this.#messages++;
    return this.#thought && this.#channel !== ANSWER ? { thinking: "\n\n", answer: "" } : NONE;
  }

  /** Whether the reply goes on behind a token that ends an answer elsewhere: `<|end|>` of what was thought. */
  goesOnBehind(token: string): boolean {
    return token === "<|end|>" && !(this.#state === "message" && this.#channel === ANSWER);
  }

  /** A reply without any message is an answer as it stands. */
  end(): ReplyPiece {
    return this.#messages === 0 ? { thinking: "", answer: this.#aside } : NONE;
  }
}
