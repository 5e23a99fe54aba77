/** The tokenizer's part of a GGUF's metadata, checked: what is wrong is named by its key. */
import { inputError, type PalisadeError } from "../../../core/errors.ts";
import { type PreTokenizer, preTokenizer } from "./pretokenizers.ts";

/** Metadata as a GGUF reader gives it: numbers, bigints, booleans, strings and arrays of these. */
export type Metadata = ReadonlyMap<string, unknown>;

/** Token types of GGUF (`tokenizer.ggml.token_type`) that matter here. */
const CONTROL = 3;
const USER_DEFINED = 4;

/** The largest vocabularies in use have 262,144 entries. */
const MAX_TOKENS = 1 << 20;
/** The longest tokens in use (runs of spaces) have some 500 characters. */
const MAX_TOKEN_LENGTH = 4096;

/** Control tokens that end an answer in known models, beside the one the file names. */
const END_TOKENS = [
  "<|im_end|>",
  "<|endoftext|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end_of_text|>",
  "<|end|>",
  "<end_of_turn>",
  "</s>",
];

export interface Vocabulary {
  /** Token text by id; for ordinary tokens in the byte alphabet of GPT-2. */
  readonly tokens: readonly string[];
  /** Id by token text. */
  readonly ids: ReadonlyMap<string, number>;
  /** Tokens that steer the model (`<|im_end|>`); only a chat template may write them. */
  readonly control: ReadonlySet<string>;
  /** Tokens of their own in any text, such as runs of spaces in code models. */
  readonly userDefined: ReadonlySet<string>;
  /** Pairs in order of priority, each `left right`. */
  readonly merges: readonly string[];
  readonly preTokenizer: PreTokenizer;
  /** First token of every sequence; undefined when there is none or the model wants none. */
  readonly firstId?: number;
  /** What a chat template sees as `bos_token` and `eos_token`; empty when the file names none. */
  readonly bosText: string;
  readonly eosText: string;
  /** Ids that end an answer. */
  readonly endIds: ReadonlySet<number>;
}

/**
 * Reads and checks the vocabulary.
 *
 * Throws PalisadeError input with `where` = the metadata key: `tokenizer.model` (not byte-level BPE), `tokenizer.pre`
 * (unknown pre-tokenizer), `tokenizer.metadata` (missing, of another type, or out of range).
 */
export function vocabularyOf(metadata: Metadata): Vocabulary {
  checkModel(metadata);
  const tokens = tokensOf(metadata);
  const ids = idsOf(tokens);
  const types = typesOf(metadata, tokens.length);
  const withType = (type: number) => new Set(tokens.filter((_, id) => Number(types[id]) === type));
  const control = withType(CONTROL);
  const pre = preTokenizer(optional(metadata, "tokenizer.ggml.pre", "string"));
  const bosId = tokenId(metadata, "tokenizer.ggml.bos_token_id", tokens.length);
  const eosId = tokenId(metadata, "tokenizer.ggml.eos_token_id", tokens.length);
  const addBos = optional(metadata, "tokenizer.ggml.add_bos_token", "boolean") ?? pre.addBos;
  if (addBos && bosId === undefined) {
    throw refuse("tokenizer.ggml.bos_token_id", "it is missing and sequences have to begin with that token");
  }
  return {
    tokens,
    ids,
    control,
    userDefined: withType(USER_DEFINED),
    merges: mergesOf(metadata, ids),
    preTokenizer: pre,
    firstId: addBos ? bosId : undefined,
    bosText: bosId === undefined ? "" : tokens[bosId],
    eosText: eosId === undefined ? "" : tokens[eosId],
    endIds: endIdsOf(metadata, ids, control, eosId),
  };
}

function refuse(key: string, problem: string): PalisadeError {
  return inputError("tokenizer.metadata", `Can't build the tokenizer from ${key}: ${problem}`, key);
}

function checkModel(metadata: Metadata): void {
  const key = "tokenizer.ggml.model";
  const model = metadata.get(key);
  if (model === "gpt2") return;
  if (typeof model !== "string") throw refuse(key, `it must be a string, not ${kindOf(model)}`);
  throw inputError(
    "tokenizer.model",
    `Can't tokenize for this model: its tokenizer is ${JSON.stringify(model.slice(0, 100))}, and only byte-level BPE ` +
      `("gpt2") is supported, not SentencePiece ("llama"), WordPiece ("bert") or others`,
    key,
  );
}

function kindOf(value: unknown): string {
  if (value === undefined || value === null) return "missing";
  return Array.isArray(value) || ArrayBuffer.isView(value) ? "an array" : `a ${typeof value}`;
}

/** An array or typed array under `key`. */
function arrayOf(metadata: Metadata, key: string): ArrayLike<unknown> {
  const value = metadata.get(key);
  if (Array.isArray(value)) return value;
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return value as unknown as ArrayLike<unknown>;
  throw refuse(key, `it must be an array, not ${kindOf(value)}`);
}

type Optional = { string: string; boolean: boolean };

function optional<T extends keyof Optional>(metadata: Metadata, key: string, type: T): Optional[T] | undefined {
  const value = metadata.get(key);
  if (value === undefined || typeof value === type) return value as Optional[T] | undefined;
  throw refuse(key, `it must be a ${type}, not ${kindOf(value)}`);
}

function tokensOf(metadata: Metadata): string[] {
  const key = "tokenizer.ggml.tokens";
  const tokens = arrayOf(metadata, key);
  if (tokens.length === 0 || tokens.length > MAX_TOKENS) {
    throw refuse(key, `it must have 1 to ${MAX_TOKENS} tokens, not ${tokens.length}`);
  }
  return Array.from(tokens, (token, id) => {
    if (typeof token !== "string") throw refuse(key, `token ${id} must be a string, not ${kindOf(token)}`);
    if (token.length === 0 || token.length > MAX_TOKEN_LENGTH) {
      throw refuse(key, `token ${id} must have 1 to ${MAX_TOKEN_LENGTH} characters, not ${token.length}`);
    }
    return token;
  });
}

function idsOf(tokens: readonly string[]): Map<string, number> {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    if (ids.has(token)) {
      throw refuse("tokenizer.ggml.tokens", `tokens ${ids.get(token)} and ${id} are the same text`);
    }
    ids.set(token, id);
  });
  return ids;
}

function typesOf(metadata: Metadata, count: number): ArrayLike<unknown> {
  const key = "tokenizer.ggml.token_type";
  const types = arrayOf(metadata, key);
  if (types.length !== count) throw refuse(key, `it must have one entry per token (${count}), not ${types.length}`);
  for (let id = 0; id < count; id++) {
    const type = Number(types[id]);
    if (!(Number.isInteger(type) && type >= 0 && type <= 6)) {
      throw refuse(key, `entry ${id} must be a token type from 0 to 6, not ${String(types[id]).slice(0, 100)}`);
    }
  }
  return types;
}

function mergesOf(metadata: Metadata, ids: ReadonlyMap<string, number>): string[] {
  const key = "tokenizer.ggml.merges";
  const merges = arrayOf(metadata, key);
  // Each merge makes a token; more would be repeats.
  if (merges.length > 4 * ids.size) {
    throw refuse(key, `it must have at most four merges per token (${4 * ids.size}), not ${merges.length}`);
  }
  return Array.from(merges, (merge, rank) => {
    if (typeof merge !== "string") throw refuse(key, `merge ${rank} must be a string, not ${kindOf(merge)}`);
    const space = merge.indexOf(" ");
    if (space < 1 || space === merge.length - 1 || merge.includes(" ", space + 1)) {
      throw refuse(key, `merge ${rank} must be two parts with a space between, not ${quote(merge)}`);
    }
    if (!ids.has(merge.replace(" ", ""))) {
      throw refuse(key, `merge ${rank}, ${quote(merge)}, makes a text that is not a token`);
    }
    return merge;
  });
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, 100));
}

function tokenId(metadata: Metadata, key: string, count: number): number | undefined {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  if (typeof value !== "number" && typeof value !== "bigint") {
    throw refuse(key, `it must be a token id, not ${kindOf(value)}`);
  }
  const id = Number(value);
  if (!(Number.isInteger(id) && id >= 0 && id < count)) {
    throw refuse(key, `it must be a token id from 0 to ${count - 1}, not ${value}`);
  }
  return id;
}

function endIdsOf(
  metadata: Metadata,
  ids: ReadonlyMap<string, number>,
  control: ReadonlySet<string>,
  eosId: number | undefined,
): Set<number> {
  const named = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
    .map((key) => tokenId(metadata, key, ids.size));
  const known = END_TOKENS.filter((token) => control.has(token)).map((token) => ids.get(token));
  return new Set([eosId, ...named, ...known].filter((id) => id !== undefined));
}
