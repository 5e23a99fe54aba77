/**
 * How text is cut into words before byte-pair merging, by the name a GGUF gives in `tokenizer.ggml.pre`.
 *
 * The expressions are those of the models' own `tokenizer.json` files, in Rust/Oniguruma notation (the tokenizer
 * library rewrites them: `\s` is Unicode white space, `(?i:…)` folds ASCII letters).
 */
import { inputError } from "../../../core/errors.ts";

export interface PreTokenizer {
  /** Applied one after the other; each cuts the pieces of the one before at its matches, nothing is removed. */
  readonly patterns: readonly string[];
  /** True when text is normalised to NFC first. */
  readonly nfc: boolean;
  /** True when a whole word that is a token is taken as it is, whatever the merges would make of it. */
  readonly wholeWords: boolean;
  /** Whether the sequence begins with the BOS token when the file doesn't say (`tokenizer.ggml.add_bos_token`). */
  readonly addBos: boolean;
}

const GPT2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

/** Either form of a contraction that belongs to the word in front of it. */
const CONTRACTION = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)`;
/** Line breaks with the white space in front, white space up to the last space before a word, other white space. */
const SPACES = String.raw`\s*[\r\n]+|\s+(?!\S)|\s+`;

/** Llama 3 and Qwen 2 differ only in how many digits make a word. */
function contractionsFirst(digits: string): string {
  return String.raw`${CONTRACTION}|[^\r\n\p{L}\p{N}]?\p{L}+|${digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|${SPACES}`;
}

/** GPT-4o and Mistral's tekken: a word is cut where small letters go over to capitals, marks count as letters. */
function cutAtCapitals(contraction: string, digits: string): string {
  const upper = String.raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, lower = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`;
  const before = String.raw`[^\r\n\p{L}\p{N}]?`;
  const words = `${before}${upper}*${lower}+${contraction}|${before}${upper}+${lower}*${contraction}`;
  return String.raw`${words}|${digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|${SPACES}`;
}

const gpt2: PreTokenizer = { patterns: [GPT2], nfc: false, wholeWords: false, addBos: false };
const singleDigits: PreTokenizer = { ...gpt2, patterns: [String.raw`\p{N}`, GPT2] };
const threeDigits: PreTokenizer = { ...gpt2, patterns: [contractionsFirst(String.raw`\p{N}{1,3}`)] };
const llama3: PreTokenizer = { ...threeDigits, wholeWords: true, addBos: true };
const qwen2: PreTokenizer = { ...gpt2, patterns: [contractionsFirst(String.raw`\p{N}`)], nfc: true };
const gpt4o: PreTokenizer = { ...gpt2, patterns: [cutAtCapitals(`${CONTRACTION}?`, String.raw`\p{N}{1,3}`)] };
const tekken: PreTokenizer = {
  patterns: [cutAtCapitals("", String.raw`\p{N}`)],
  nfc: false,
  wholeWords: true,
  addBos: true,
};

const PRE_TOKENIZERS: ReadonlyMap<string, PreTokenizer> = new Map([
  ["gpt-2", gpt2],
  ["smollm", singleDigits],
  ["starcoder", singleDigits],
  ["refact", singleDigits],
  ["qwen2", qwen2],
  ["deepseek-r1-qwen", qwen2],
  ["llama-bpe", llama3],
  ["llama3", llama3],
  ["llama-v3", llama3],
  ["lfm2", llama3],
  ["smaug-bpe", threeDigits],
  ["dbrx", threeDigits],
  ["gpt-4o", gpt4o],
  ["tekken", tekken],
]);

/** The names that are supported, for messages and docs. */
export const preTokenizerNames: readonly string[] = [...PRE_TOKENIZERS.keys()];

/**
 * The definition behind a name, `gpt-2` when the file gives none.
 * Throws PalisadeError input `tokenizer.pre` for an unknown name: guessing would give wrong ids without a sign.
 */
export function preTokenizer(name = "gpt-2"): PreTokenizer {
  const found = PRE_TOKENIZERS.get(name);
  if (found === undefined) {
    throw inputError(
      "tokenizer.pre",
      `Can't tokenize for this model: pre-tokenizer ${JSON.stringify(name.slice(0, 100))} is not supported, only ${
        preTokenizerNames.join(", ")
      }`,
      "tokenizer.ggml.pre",
    );
  }
  return found;
}
