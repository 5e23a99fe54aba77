/** A reply as it is decoded: ids to text, thought and answer apart, loops and stops noticed. */
import type { Model } from "../model.ts";
import { Channels } from "../text/channels.ts";
import { type ReplyPiece, Thoughts } from "../text/thoughts.ts";
import type { TextStream } from "../text/tokenizer.ts";
import { LoopWatch } from "./loops.ts";
import { stopsOf, StopWatch } from "./stops.ts";

export interface ReplyOptions {
  /** Called with each piece of the answer as it is decoded, the prefix first. */
  readonly onText?: (text: string) => void;
  /** Called with each piece of what the model thinks before it answers. */
  readonly onThinking?: (text: string) => void;
  /** Lets an answer go round in a circle up to the token limit. Default false. */
  readonly allowLoops?: boolean;
  /**
   * Texts that end the answer and are no part of it, nor is white space before them. Default: without a chat template the
   * frame's words before the next question, if any; `[]` for none.
   */
  readonly stop?: readonly string[];
}

/** One reply. */
export class Reply {
  readonly #tokenizer: Model["tokenizer"];
  readonly #options: ReplyOptions;
  readonly #stream: TextStream;
  readonly #loops: LoopWatch | undefined;
  readonly #stops: StopWatch;
  readonly #thoughts: Thoughts | undefined;
  /** Where the reply comes in messages that nobody has begun. */
  readonly #channels: Channels | undefined;
  #answer = "";
  #thinking = "";

  /** `prefix` is what the answer begins with; a reply that has one doesn't think first. */
  constructor({ tokenizer, frame }: Pick<Model, "tokenizer" | "frame">, prefix: string, options: ReplyOptions) {
    this.#tokenizer = tokenizer;
    this.#options = options;
    this.#stream = tokenizer.stream();
    this.#loops = options.allowLoops ? undefined : new LoopWatch((ids) => tokenizer.decode(ids));
    this.#stops = new StopWatch(options.stop ?? stopsOf(frame));
    const marks = prefix === "" ? frame.thinking : undefined;
    this.#thoughts = marks && !marks.channels ? new Thoughts(marks, marks.begun) : undefined;
    this.#channels = marks?.channels && marks.asked ? new Channels() : undefined;
    this.#give({ thinking: "", answer: prefix });
  }

  /** Takes the next id; says why the reply is to end, if it is: it goes round in a circle, or said a stop. */
  add(id: number): "loop" | "stop" | undefined {
    if (this.#channels && this.#tokenizer.isControl(id)) {
      // A character that a token cuts short is text of what was before it.
      this.#emit(this.#channels.text(this.#stream.end()));
      this.#emit(this.#channels.control(this.#tokenizer.decode([id])));
    } else if (!this.#tokenizer.isSilent(id)) this.#push(this.#stream.push(id));
    if (this.#stops.stopped) return "stop";
    return this.#loops?.push(id) ? "loop" : undefined;
  }

  /** Whether the reply goes on behind an id that ends answers. */
  goesOnBehind(id: number): boolean {
    return this.#channels?.goesOnBehind(this.#tokenizer.decode([id])) ?? false;
  }

  /** What is left of an unfinished character or mark. */
  end(): void {
    this.#push(this.#stream.end());
    const rest = (this.#channels ?? this.#thoughts)?.end();
    if (rest) this.#emit(rest);
    this.#give({ thinking: "", answer: this.#stops.end() });
  }

  get answer(): string {
    return this.#answer;
  }

  /** Without white space around it; empty when there was none. */
  get thinking(): string {
    return this.#thinking.trim();
  }

  #push(text: string): void {
    this.#emit(this.#channels?.text(text) ?? this.#thoughts?.push(text) ?? { thinking: "", answer: text });
  }

  #emit({ thinking, answer }: ReplyPiece): void {
    this.#give({ thinking, answer: this.#stops.push(answer) });
  }

  #give({ thinking, answer }: ReplyPiece): void {
    this.#thinking += thinking;
    this.#answer += answer;
    if (thinking !== "") this.#options.onThinking?.(thinking);
    if (answer !== "") this.#options.onText?.(answer);
  }
}
