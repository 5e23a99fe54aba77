/**
 * Byte-level BPE over a GGUF's vocabulary. `@huggingface/tokenizers` normalises and cuts text into words; words are merged
 * here, as the library's own tables of SmolLM2's 49,152 tokens and their merges take 14 MB.
 */
import { Tokenizer } from "@huggingface/tokenizers";
import { inputError } from "../../../core/errors.ts";
import { byteCharacters, bytesOfToken, codePointsOfLead } from "./byte_alphabet.ts";
import { Joining, type JoinScore } from "./joining.ts";
import type { PlainText } from "./plain_text.ts";
import { RememberedWords } from "./remembered_words.ts";
import type { BpeWords, Vocabulary } from "./vocabulary.ts";

export class ByteLevelBpe implements PlainText {
  readonly #tokens: readonly string[];
  readonly #bpe: Tokenizer;
  /** Characters with a byte that has no token. */
  readonly #unencodable: RegExp | undefined;

  constructor(vocabulary: Vocabulary, words: BpeWords) {
    this.#tokens = vocabulary.tokens;
    this.#unencodable = unencodable(vocabulary);
    this.#bpe = new Tokenizer(definition(vocabulary, words), { tokenizer_class: "GPT2Tokenizer" });
    const merging = new Merging(vocabulary, words), model = this.#bpe.model!;
    model.tokens_to_ids = merging as unknown as typeof model.tokens_to_ids;
    model.encode = (words) => words.flatMap((word) => merging.tokensOf(word));
  }

  encode(text: string): readonly number[] {
    const encodable = this.#unencodable === undefined ? text : text.replace(this.#unencodable, "\ufffd");
    return this.#bpe.encode(encodable, { add_special_tokens: false }).ids;
  }

  countUnencodable(text: string): number {
    return this.#unencodable === undefined ? 0 : text.match(this.#unencodable)?.length ?? 0;
  }

  bytesOf(id: number): Uint8Array | undefined {
    return bytesOfToken(this.#tokens[id]);
  }
}

/** Words to tokens, and the ids of these, without any control token. */
class Merging {
  readonly #vocabulary: Vocabulary;
  readonly #wholeWords: boolean;
  readonly #scoreOf: JoinScore;
  readonly #remembered = new RememberedWords<readonly string[]>();

  constructor(vocabulary: Vocabulary, { merges, preTokenizer }: BpeWords) {
    const control = new Set(Array.from(vocabulary.control, (text) => vocabulary.ids.get(text)));
    this.#vocabulary = vocabulary;
    this.#wholeWords = preTokenizer.wholeWords;
    this.#scoreOf = (word, from, middle, to) => {
      const rank = merges.rankOf(word, from, middle, to);
      return rank === undefined || control.has(merges.madeBy(rank)) ? undefined : -rank;
    };
  }

  /** Id of a token, as the library asks for it. */
  get(token: string): number | undefined {
    return this.#vocabulary.control.has(token) ? undefined : this.#vocabulary.ids.get(token);
  }

  /** What a word of the byte alphabet becomes; bytes that no token has are left out. */
  tokensOf(word: string): readonly string[] {
    return this.#remembered.of(word, (word) => {
      if (this.#wholeWords && this.get(word) !== undefined) return [word];
      const tokens: string[] = [];
      new Joining(word, this.#scoreOf).run((text) => {
        if (this.get(text) !== undefined) tokens.push(text);
      });
      return tokens;
    });
  }
}

/** What the library does, as a `tokenizer.json` object without tables. */
function definition(vocabulary: Vocabulary, words: BpeWords): object {
  const { patterns, nfc } = words.preTokenizer;
  const splits = patterns.map((pattern) => ({
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  }));
  return {
    model: { type: "BPE", vocab: {}, merges: [] },
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
