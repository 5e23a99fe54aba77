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

/** Llama 3 and Qwen 2 differ only in how many digits make a word. */
function contractionsFirst(digits: string): string {
  return String
    .raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|${digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
}

const gpt2: PreTokenizer = { patterns: [GPT2], nfc: false, wholeWords: false, addBos: false };
const singleDigits: PreTokenizer = { ...gpt2, patterns: [String.raw`\p{N}`, GPT2] };
const llama3: PreTokenizer = {
  patterns: [contractionsFirst(String.raw`\p{N}{1,3}`)],
  nfc: false,
  wholeWords: true,
  addBos: true,
};
const qwen2: PreTokenizer = {
  patterns: [contractionsFirst(String.raw`\p{N}`)],
  nfc: true,
  wholeWords: false,
  addBos: false,
};

const PRE_TOKENIZERS: ReadonlyMap<string, PreTokenizer> = new Map([
  ["gpt-2", gpt2],
  ["smollm", singleDigits],
  ["starcoder", singleDigits],
  ["qwen2", qwen2],
  ["llama-bpe", llama3],
  ["llama3", llama3],
  ["llama-v3", llama3],
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
