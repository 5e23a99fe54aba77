/**
 * Text to token ids and back, from a GGUF's own metadata. Byte-level BPE; the merging is done by
 * `@huggingface/tokenizers`.
 *
 * Words used here: a *control token* (`<|im_end|>`) steers the model and may only come from a chat template, never from
 * a user's text. A *part* is a piece of text that says which of the two it is.
 */
import { Tokenizer } from "@huggingface/tokenizers";
import { inputError } from "../../core/errors.ts";
import type { Notice } from "../file/notice.ts";
import { byteCharacters, bytesOfToken, codePointsOfLead } from "./tokenizer/byte_alphabet.ts";
import { refuseTooMuchText } from "./tokenizer/text_limits.ts";
import { type Metadata, type Vocabulary, vocabularyOf } from "./tokenizer/vocabulary.ts";

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
  /** Ids of the parts as one text: words reach over the joints, control tokens don't. */
  encodeParts(parts: readonly TextPart[]): number[];
  /** Characters of `text` this model has no bytes for, and lone surrogates: they are encoded as U+FFFD. */
  countReplaced(text: string): number;
  /** The text of ids, control tokens as they are written. Throws RangeError for an id outside the vocabulary. */
  decode(ids: ArrayLike<number>): string;
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
  return new BpeTokenizer(vocabularyOf(metadata));
}

class BpeTokenizer implements TextTokenizer {
  readonly #vocabulary: Vocabulary;
  readonly #bpe: Tokenizer;
  /** Any control token; longest first, so that none hides a longer one. */
  readonly #control: RegExp | undefined;
  /** Characters with a byte that has no token. */
  readonly #unencodable: RegExp | undefined;

  constructor(vocabulary: Vocabulary, bpe?: Tokenizer) {
    this.#vocabulary = vocabulary;
    this.#unencodable = unencodable(vocabulary);
    this.#control = anyOf(vocabulary.control);
    this.#bpe = bpe ?? new Tokenizer(definition(vocabulary), { tokenizer_class: "GPT2Tokenizer" });
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

  encodeParts(parts: readonly TextPart[]): number[] {
    const ids: number[] = [];
    let plain = "";
    for (const piece of parts.flatMap((part) => this.#pieces(part))) {
      if (!piece.control) {
        plain += piece.text;
        continue;
      }
      appendAll(ids, this.#encodePlain(plain));
      plain = "";
      ids.push(this.idOf(piece.text)!);
    }
    appendAll(ids, this.#encodePlain(plain));
    return ids;
  }

  countReplaced(text: string): number {
    const surrogates = text.match(/\p{Surrogate}/gu)?.length ?? 0;
    const others = this.#unencodable === undefined ? 0 : text.match(this.#unencodable)?.length ?? 0;
    return surrogates + others;
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
    return new BpeTokenizer({ ...this.#vocabulary, endIds: new Set([...this.endIds, ...ids]) }, this.#bpe);
  }

  #bytes(id: number): Uint8Array {
    const token = this.#vocabulary.tokens[id];
    if (token === undefined) {
      throw new RangeError(`Can't decode token ${id}: ids go from 0 to ${this.vocabulary - 1}`);
    }
    const literal = this.#vocabulary.control.has(token) || this.#vocabulary.userDefined.has(token);
    return (literal ? undefined : bytesOfToken(token)) ?? new TextEncoder().encode(token);
  }

  #pieces(part: TextPart): { text: string; control: boolean }[] {
    if (!part.special || this.#control === undefined) return [{ text: part.text, control: false }];
    // Splitting at a group keeps what matched, at the odd places.
    return part.text.split(this.#control).map((text, i) => ({ text, control: i % 2 === 1 }));
  }

  #encodePlain(text: string): number[] {
    refuseTooMuchText(text);
    const encodable = this.#unencodable === undefined ? text : text.replace(this.#unencodable, "\ufffd");
    return this.#bpe.encode(encodable, { add_special_tokens: false }).ids;
  }
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

/** The vocabulary as a `tokenizer.json` object. Control tokens are left out, so that no text can become one. */
function definition(vocabulary: Vocabulary): object {
  const vocab: Record<string, number> = Object.create(null);
  for (const [token, id] of vocabulary.ids) if (!vocabulary.control.has(token)) vocab[token] = id;
  const { patterns, nfc, wholeWords } = vocabulary.preTokenizer;
  const splits = patterns.map((pattern) => ({
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  }));
  return {
    model: {
      type: "BPE",
      vocab,
      merges: vocabulary.merges.filter((merge) => !vocabulary.control.has(merge.replace(" ", ""))),
      ignore_merges: wholeWords,
    },
    added_tokens: [...vocabulary.userDefined].map((content) => ({
      content,
      id: vocabulary.ids.get(content),
      special: false,
      normalized: false,
    })),
    normalizer: nfc ? { type: "NFC" } : null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [...splits, { type: "ByteLevel", add_prefix_space: false, use_regex: false }],
    },
    post_processor: null,
    decoder: null,
  };
}

/**
 * Matches the characters whose first UTF-8 byte has no token. SmolLM2, for one, never saw some control characters and
 * unassigned planes; left alone, the library would drop them without a word.
 */
function unencodable(vocabulary: Vocabulary): RegExp | undefined {
  const missing = byteCharacters.flatMap((character, byte) => vocabulary.ids.has(character) ? [] : [byte]);
  const needed = missing.find((byte) => byte === 0x0a || (byte >= 0x20 && byte < 0x7f) || isReplacementByte(byte));
  if (needed !== undefined) {
    throw inputError(
      "tokenizer.metadata",
      `Can't build the tokenizer from tokenizer.ggml.tokens: there is no token for the byte 0x${needed.toString(16)}`,
      "tokenizer.ggml.tokens",
    );
  }
  const ranges = missing.map(codePointsOfLead).filter((range) => range !== undefined);
  if (ranges.length === 0) return undefined;
  const escape = (codePoint: number) => `\\u{${codePoint.toString(16)}}`;
  return new RegExp(`[${ranges.map(([first, last]) => `${escape(first)}-${escape(last)}`).join("")}]`, "gu");
}

/** Bytes that every model must have: those that go on a character, and U+FFFD itself (EF BF BD). */
function isReplacementByte(byte: number): boolean {
  return (byte >= 0x80 && byte < 0xc0) || byte === 0xef;
}
