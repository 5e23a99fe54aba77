/**
 * Text to token ids and back, from a GGUF's own metadata: byte-level BPE (`tokenizer/bpe.ts`) and SentencePiece
 * (`tokenizer/sentencepiece.ts`).
 *
 * Words used here: a *control token* (`<|im_end|>`) steers the model and may only come from a chat template, never from
 * a user's text. A *part* is a piece of text that says which of the two it is.
 */
import { hold } from "../../runtime/breathe.ts";
import type { Notice } from "../file/notice.ts";
import { ByteLevelBpe } from "./tokenizer/bpe.ts";
import type { PlainText } from "./tokenizer/plain_text.ts";
import { refuseTooMuchText } from "./tokenizer/text_limits.ts";
import { type Metadata, type Vocabulary, vocabularyOf } from "./tokenizer/vocabulary.ts";

/** Characters from which on encoding takes more than a tenth of a second. */
const LONG_TEXT = 50_000;

/** A piece of a sequence. */
export interface TextPart {
  readonly text: string;
  /** True when control tokens written in the text are meant as such; false for anything a user wrote. */
  readonly special: boolean;
}

/** Turns ids into text one by one. */
export interface TextStream {
  /** The text that became certain with this id: never half a character, often empty inside one. */
  push(id: number): string;
  /** What was left: U+FFFD for an unfinished character. The stream can be used anew afterwards. */
  end(): string;
}

/** From texts to token ids and back. */
export interface TextTokenizer {
  /** Number of token ids; ids are 0 … vocabulary − 1. */
  readonly vocabulary: number;
  /** Token every sequence begins with; undefined when the model wants none (`add_bos_token`). */
  readonly firstId: number | undefined;
  /** `bos_token` and `eos_token` as chat templates see them; empty when the file names none. */
  readonly bosText: string;
  readonly eosText: string;
  /** Ids that end an answer. */
  readonly endIds: ReadonlySet<number>;
  /**
   * Ids of a text, in time linear in its length; nothing is added in front. Control tokens written in it are plain
   * text unless `special` is true. Throws PalisadeError input `text.too-large` (16 Mi characters) or
   * `text.endless-word` (1 Mi characters without a space).
   */
  encode(text: string, options?: { readonly special?: boolean }): number[];
  /**
   * Ids of the parts as one text: words reach over the joints, control tokens don't. `continued`: they go on from other
   * text of the sequence, so a vocabulary that begins texts with a space puts none in front.
   */
  encodeParts(parts: readonly TextPart[], options?: { readonly continued?: boolean }): number[];
  /** Characters of `text` this model has no bytes for, and lone surrogates: they are encoded as U+FFFD. */
  countReplaced(text: string): number;
  /** The text of ids, control tokens as they are written. Throws RangeError for an id outside the vocabulary. */
  decode(ids: ArrayLike<number>): string;
  /** A decoder of one answer: gives text as soon as it is whole characters. */
  stream(): TextStream;
  /** Id of a token by its text in the vocabulary, e.g. `<|im_end|>`. */
  idOf(token: string): number | undefined;
  /** True for ids of control tokens, whatever their type in the file: only a chat template writes them. */
  isControl(id: number): boolean;
  /** True for control tokens that are no text, so that an answer is given without them. */
  isSilent(id: number): boolean;
  /** What is odd in the vocabulary and changes nothing. */
  readonly notices: readonly Notice[];
  /** The same tokenizer with more ids that end an answer. */
  endingAt(ids: Iterable<number>): TextTokenizer;
}

/**
 * The tokenizer a model file describes in `tokenizer.ggml.*`.
 *
 * Throws PalisadeError input, `where` = metadata key: `tokenizer.model`, `tokenizer.pre`, `tokenizer.metadata`.
 */
export function tokenizerOf(metadata: Metadata): TextTokenizer {
  return new VocabularyTokenizer(vocabularyOf(metadata));
}

class VocabularyTokenizer implements TextTokenizer {
  readonly #vocabulary: Vocabulary;
  readonly #plain: PlainText;
  /** Any control token; longest first, so that none hides a longer one. */
  readonly #control: RegExp | undefined;

  constructor(vocabulary: Vocabulary, plain: PlainText = plainText(vocabulary)) {
    this.#vocabulary = vocabulary;
    this.#control = anyOf(vocabulary.control);
    this.#plain = plain;
  }

  get vocabulary(): number {
    return this.#vocabulary.tokens.length;
  }
  get firstId(): number | undefined {
    return this.#vocabulary.firstId;
  }
  get bosText(): string {
    return this.#vocabulary.bosText;
  }
  get eosText(): string {
    return this.#vocabulary.eosText;
  }
  get endIds(): ReadonlySet<number> {
    return this.#vocabulary.endIds;
  }
  get notices(): readonly Notice[] {
    return this.#vocabulary.notices;
  }

  encode(text: string, options: { readonly special?: boolean } = {}): number[] {
    return this.encodeParts([{ text, special: options.special ?? false }]);
  }

  encodeParts(parts: readonly TextPart[], { continued = false }: { readonly continued?: boolean } = {}): number[] {
    const ids: number[] = [];
    let plain = "", goesOn = continued;
    const flush = () => {
      if (plain !== "") appendAll(ids, this.#encodePlain(plain, goesOn));
      plain = "";
      goesOn = false;
    };
    for (const piece of parts.flatMap((part) => this.#pieces(part))) {
      if (!piece.control) {
        plain += piece.text;
        continue;
      }
      flush();
      ids.push(this.idOf(piece.text)!);
    }
    flush();
    return ids;
  }

  countReplaced(text: string): number {
    const surrogates = text.match(/\p{Surrogate}/gu)?.length ?? 0;
    return surrogates + this.#plain.countUnencodable(text);
  }

  decode(ids: ArrayLike<number>): string {
    const stream = this.stream();
    let text = "";
    for (let i = 0; i < ids.length; i++) text += stream.push(ids[i]);
    return text + stream.end();
  }

  stream(): TextStream {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      push: (id) => decoder.decode(this.#bytes(id), { stream: true }),
      end: () => decoder.decode(),
    };
  }

  idOf(token: string): number | undefined {
    return this.#vocabulary.ids.get(token);
  }

  isControl(id: number): boolean {
    return this.#vocabulary.control.has(this.#vocabulary.tokens[id]);
  }

  isSilent(id: number): boolean {
    return this.#vocabulary.silent.has(this.#vocabulary.tokens[id]);
  }

  endingAt(ids: Iterable<number>): TextTokenizer {
    return new VocabularyTokenizer({ ...this.#vocabulary, endIds: new Set([...this.endIds, ...ids]) }, this.#plain);
  }

  #bytes(id: number): Uint8Array {
    const token = this.#vocabulary.tokens[id];
    if (token === undefined) {
      throw new RangeError(`Can't decode token ${id}: ids go from 0 to ${this.vocabulary - 1}`);
    }
    const literal = this.#vocabulary.control.has(token) || this.#vocabulary.userDefined.has(token);
    return (literal ? undefined : this.#plain.bytesOf(id)) ?? new TextEncoder().encode(token);
  }

  #pieces(part: TextPart): { text: string; control: boolean }[] {
    if (!part.special || this.#control === undefined) return [{ text: part.text, control: false }];
    // Splitting at a group keeps what matched, at the odd places.
    return part.text.split(this.#control).map((text, i) => ({ text, control: i % 2 === 1 }));
  }

  #encodePlain(text: string, continued: boolean): readonly number[] {
    refuseTooMuchText(text);
    const encode = () => this.#plain.encode(text, { continued });
    return text.length < LONG_TEXT ? encode() : hold(encode);
  }
}

function plainText(vocabulary: Vocabulary): PlainText {
  const { words } = vocabulary;
  return words.kind === "bpe" ? new ByteLevelBpe(vocabulary, words) : words.model;
}

/** Spreading a long array into `push` overflows the stack. */
function appendAll(ids: number[], more: readonly number[]): void {
  for (const id of more) ids.push(id);
}

/** Matches any of `texts` in one group, longest first; undefined when there are none. */
function anyOf(texts: ReadonlySet<string>): RegExp | undefined {
  if (texts.size === 0) return undefined;
  const longestFirst = [...texts].sort((a, b) => b.length - a.length);
  return new RegExp(`(${longestFirst.map((text) => text.replace(/[\\^$.*+?()[\]{}|\/-]/g, "\\$&")).join("|")})`);
}
