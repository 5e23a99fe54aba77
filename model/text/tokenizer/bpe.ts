/** Byte-level BPE over a GGUF's vocabulary; the merging is done by `@huggingface/tokenizers`. */
import { Tokenizer } from "@huggingface/tokenizers";
import { inputError } from "../../../core/errors.ts";
import { byteCharacters, bytesOfToken, codePointsOfLead } from "./byte_alphabet.ts";
import type { PlainText } from "./plain_text.ts";
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

/** The vocabulary as a `tokenizer.json` object. Control tokens are left out, so that no text can become one. */
function definition(vocabulary: Vocabulary, words: BpeWords): object {
  const vocab: Record<string, number> = Object.create(null);
  for (const [token, id] of vocabulary.ids) if (!vocabulary.control.has(token)) vocab[token] = id;
  const { patterns, nfc, wholeWords } = words.preTokenizer;
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
      merges: words.merges.filter((merge) => !vocabulary.control.has(merge.replace(" ", ""))),
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
