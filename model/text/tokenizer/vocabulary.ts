/** The tokenizer's part of a GGUF's metadata, checked: what is wrong is named by its key. */
import { inputError, type PalisadeError } from "../../../core/errors.ts";
import type { Notice } from "../../file/notice.ts";
import { byteCharacters, bytesOfToken } from "./byte_alphabet.ts";
import { type PreTokenizer, preTokenizer } from "./pretokenizers.ts";
import { SentencePieceModel } from "./sentencepiece.ts";
import { type SpecialTokens, specialTokens, TOKEN_TYPE } from "./special_tokens.ts";

/** Metadata as a GGUF reader gives it: numbers, bigints, booleans, strings and arrays of these. */
export type Metadata = ReadonlyMap<string, unknown>;

/** The largest vocabularies in use have 262,144 entries. */
const MAX_TOKENS = 1 << 20;
/** The longest tokens in use (runs of spaces) have some 500 characters. */
const MAX_TOKEN_LENGTH = 4096;

/** Byte-level BPE (`tokenizer.ggml.model` = `gpt2`). */
export interface BpeWords {
  readonly kind: "bpe";
  /** Pairs in order of priority, each `left right`. */
  readonly merges: readonly string[];
  readonly preTokenizer: PreTokenizer;
}

/** SentencePiece's BPE (`tokenizer.ggml.model` = `llama`, `gemma4`). */
export interface PieceWords {
  readonly kind: "pieces";
  readonly model: SentencePieceModel;
}

export interface Vocabulary {
  /** Token text by id; ordinary tokens in the byte alphabet of GPT-2, or with SentencePiece's mark for a space. */
  readonly tokens: readonly string[];
  /** Id by token text; the empty text has none. */
  readonly ids: ReadonlyMap<string, number>;
  /** Tokens that steer the model (`<|im_end|>`); only a chat template may write them. */
  readonly control: ReadonlySet<string>;
  /** Those of `control` that are left out of an answer. */
  readonly silent: ReadonlySet<string>;
  /** Tokens of their own in any text, such as runs of spaces in code models. */
  readonly userDefined: ReadonlySet<string>;
  /** How plain text becomes tokens. */
  readonly words: BpeWords | PieceWords;
  /** First token of every sequence; undefined when there is none or the model wants none. */
  readonly firstId?: number;
  /** What a chat template sees as `bos_token` and `eos_token`; empty when the file names none. */
  readonly bosText: string;
  readonly eosText: string;
  /** Ids that end an answer. */
  readonly endIds: ReadonlySet<number>;
  /** What is odd in the metadata and changes nothing. */
  readonly notices: readonly Notice[];
}

const KEY = {
  tokens: "tokenizer.ggml.tokens",
  bos: "tokenizer.ggml.bos_token_id",
  eos: "tokenizer.ggml.eos_token_id",
  eot: "tokenizer.ggml.eot_token_id",
  eom: "tokenizer.ggml.eom_token_id",
} as const;

/**
 * Reads and checks the vocabulary.
 *
 * Throws PalisadeError input with `where` = the metadata key: `tokenizer.model` (neither byte-level BPE nor
 * SentencePiece), `tokenizer.pre` (unknown pre-tokenizer), `tokenizer.metadata` (missing, of another type, or out of range).
 */
export function vocabularyOf(metadata: Metadata): Vocabulary {
  const model = modelOf(metadata);
  const tokens = tokensOf(metadata);
  const types = typesOf(metadata, tokens.length);
  const { made, addBos, wordsOf } = model === "gpt2"
    ? bpeOf(metadata, tokens)
    : piecesOf(metadata, tokens, types, model);
  const named = namedIds(metadata, tokens.length);
  const template = String(metadata.get("tokenizer.chat_template") ?? "");
  const special = specialTokens({
    tokens,
    types,
    made,
    named: new Set(Object.values(named).filter((id) => typeof id === "number")),
    template,
  });
  const userDefined = new Set(
    tokens.filter((text, id) =>
      Number(types[id]) === TOKEN_TYPE.userDefined && text !== "" && !special.control.has(text)
    ),
  );
  const words = wordsOf(special.control);
  const read = (text: string, type: number) =>
    special.silent.has(text) || (special.control.has(text) && template.includes(text)) || userDefined.has(text) ||
    isWord(words, text, type) || made.has(text);
  const { ids, notices } = idsOf(tokens, types, read);
  const beginsWithBos = optional(metadata, "tokenizer.ggml.add_bos_token", "boolean") ?? addBos;
  const ends = endIdsOf(ids, special, named);
  checkNamed(metadata, named, { addBos: beginsWithBos, ends, notices, count: tokens.length });
  const textOf = (id: NamedId) => typeof id === "number" ? tokens[id] : "";
  return {
    tokens,
    ids,
    control: special.control,
    silent: special.silent,
    userDefined,
    words,
    firstId: beginsWithBos && typeof named.bos === "number" ? named.bos : undefined,
    bosText: textOf(named.bos),
    eosText: textOf(named.eos),
    endIds: ends,
    notices,
  };
}

/** What a kind of vocabulary has of its own. */
interface Kind {
  /** Texts that joining makes of ordinary text, beside the tokens that `isWord` tells. */
  readonly made: Pick<ReadonlySet<string>, "has">;
  /** Whether sequences begin with the BOS token when the file doesn't say. */
  readonly addBos: boolean;
  /** The rest, once it is known which tokens steer: text never becomes one of them. */
  wordsOf(control: ReadonlySet<string>): BpeWords | PieceWords;
}

function bpeOf(metadata: Metadata, tokens: readonly string[]): Kind {
  const merges = mergesOf(metadata, new Set(tokens));
  const pre = preTokenizer(optional(metadata, "tokenizer.ggml.pre", "string"));
  return {
    made: new Set(merges.map((merge) => merge.replace(" ", ""))),
    addBos: pre.addBos,
    wordsOf: () => ({ kind: "bpe", merges, preTokenizer: pre }),
  };
}

function piecesOf(
  metadata: Metadata,
  tokens: readonly string[],
  types: ArrayLike<unknown>,
  kind: "llama" | "gemma4",
): Kind {
  const spacePrefix = optional(metadata, "tokenizer.ggml.add_space_prefix", "boolean") ?? kind === "llama";
  const joining = kind === "llama"
    ? { scores: scoresOf(metadata, tokens.length) }
    : { scores: [], ranks: ranksOf(mergesOf(metadata, new Set(tokens))) };
  const model = new SentencePieceModel({ tokens, ...joining, types: Uint8Array.from(types, Number), spacePrefix });
  return {
    made: { has: (text) => model.makes(text) },
    addBos: true,
    wordsOf(control) {
      model.exclude(control);
      return { kind: "pieces", model };
    },
  };
}

/** The place of each pair, the first where one is there twice. */
function ranksOf(merges: readonly string[]): ReadonlyMap<string, number> {
  const ranks = new Map<string, number>();
  merges.forEach((merge, rank) => {
    if (!ranks.has(merge)) ranks.set(merge, rank);
  });
  return ranks;
}

/** Whether plain text may become a token that no joining makes. */
function isWord(words: BpeWords | PieceWords, text: string, type: number): boolean {
  if (words.kind === "pieces") return type === TOKEN_TYPE.normal || type === TOKEN_TYPE.byte;
  const whole = words.preTokenizer.wholeWords && type === TOKEN_TYPE.normal && bytesOfToken(text) !== undefined;
  return BYTES.has(text) || whole;
}

function scoresOf(metadata: Metadata, count: number): Float32Array {
  const key = "tokenizer.ggml.scores";
  const scores = arrayOf(metadata, key);
  if (scores.length !== count) throw refuse(key, `it must have one entry per token (${count}), not ${scores.length}`);
  return Float32Array.from(scores, (score, id) => {
    if (Number.isFinite(score)) return Number(score);
    throw refuse(key, `entry ${id} must be a finite number, not ${String(score).slice(0, 100)}`);
  });
}

const BYTES: ReadonlySet<string> = new Set(byteCharacters);

function refuse(key: string, problem: string): PalisadeError {
  return inputError("tokenizer.metadata", `Can't build the tokenizer from ${key}: ${problem}`, key);
}

function modelOf(metadata: Metadata): "gpt2" | "llama" | "gemma4" {
  const key = "tokenizer.ggml.model";
  const model = metadata.get(key);
  if (model === "gpt2" || model === "llama" || model === "gemma4") return model;
  if (typeof model !== "string") throw refuse(key, `it must be a string, not ${kindOf(model)}`);
  throw inputError(
    "tokenizer.model",
    `Can't tokenize for this model: its tokenizer is ${JSON.stringify(model.slice(0, 100))}, and only byte-level BPE ` +
      `("gpt2") and SentencePiece's BPE ("llama", "gemma4") are supported, not WordPiece ("bert"), Unigram ("t5") or others`,
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
    if (token.length > MAX_TOKEN_LENGTH) {
      throw refuse(key, `token ${id} must have at most ${MAX_TOKEN_LENGTH} characters, not ${token.length}`);
    }
    return token;
  });
}

/**
 * Id by text. Tokens that no text becomes may be empty or share a text: nothing asks for their id. Where several are
 * the same text, the one that is not marked as unused counts; `read` says whether anything becomes such a token.
 */
function idsOf(
  tokens: readonly string[],
  types: ArrayLike<unknown>,
  read: (text: string, type: number) => boolean,
): { ids: Map<string, number>; notices: Notice[] } {
  const ids = new Map<string, number>(), notices: Notice[] = [];
  const inUse = (id: number) => ![TOKEN_TYPE.unused, TOKEN_TYPE.unknown].some((type) => type === Number(types[id]));
  tokens.forEach((text, id) => {
    const before = ids.get(text);
    if (text === "") {
      notices.push({ where: KEY.tokens, text: `token ${id} is empty; no text becomes it` });
    } else if (before === undefined) {
      ids.set(text, id);
    } else {
      if (inUse(before) && inUse(id) && (read(text, Number(types[before])) || read(text, Number(types[id])))) {
        throw refuse(KEY.tokens, `tokens ${before} and ${id} are the same text, ${quote(text)}`);
      }
      if (!inUse(before) && inUse(id)) ids.set(text, id);
      notices.push({
        where: KEY.tokens,
        text: `tokens ${before} and ${id} are the same text, ${quote(text)}; ${ids.get(text)} is taken`,
      });
    }
  });
  return { ids, notices };
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

function mergesOf(metadata: Metadata, tokens: ReadonlySet<string>): string[] {
  const key = "tokenizer.ggml.merges";
  const merges = arrayOf(metadata, key);
  // Each merge makes a token; more would be repeats.
  if (merges.length > 4 * tokens.size) {
    throw refuse(key, `it must have at most four merges per token (${4 * tokens.size}), not ${merges.length}`);
  }
  return Array.from(merges, (merge, rank) => {
    if (typeof merge !== "string") throw refuse(key, `merge ${rank} must be a string, not ${kindOf(merge)}`);
    const space = merge.indexOf(" ");
    if (space < 1 || space === merge.length - 1 || merge.includes(" ", space + 1)) {
      throw refuse(key, `merge ${rank} must be two parts with a space between, not ${quote(merge)}`);
    }
    if (!tokens.has(merge.replace(" ", ""))) {
      throw refuse(key, `merge ${rank}, ${quote(merge)}, makes a text that is not a token`);
    }
    return merge;
  });
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, 100));
}

/** An id that the metadata name; the value itself where no token has that id. */
type NamedId = number | { readonly wrong: string } | undefined;
type Named = Readonly<Record<"bos" | "eos" | "eot" | "eom", NamedId>>;

function namedIds(metadata: Metadata, count: number): Named {
  const of = (name: keyof Named) => namedId(metadata, KEY[name], count);
  return { bos: of("bos"), eos: of("eos"), eot: of("eot"), eom: of("eom") };
}

function namedId(metadata: Metadata, key: string, count: number): NamedId {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  if (typeof value !== "number" && typeof value !== "bigint") {
    throw refuse(key, `it must be a token id, not ${kindOf(value)}`);
  }
  const id = Number(value);
  return Number.isInteger(id) && id >= 0 && id < count ? id : { wrong: String(value) };
}

function endIdsOf(ids: ReadonlyMap<string, number>, { ends }: SpecialTokens, { eos, eot, eom }: Named): Set<number> {
  const known = [...ends].map((text) => ids.get(text));
  return new Set([eos, eot, eom, ...known].filter((id) => typeof id === "number"));
}

/** An id that is out of range matters only where nothing else does its work. */
function checkNamed(
  metadata: Metadata,
  named: Named,
  has: { addBos: boolean; ends: ReadonlySet<number>; notices: Notice[]; count: number },
): void {
  for (const [name, id] of Object.entries(named) as [keyof Named, NamedId][]) {
    const key = KEY[name];
    if (name === "bos" && id === undefined && has.addBos) {
      throw refuse(key, "it is missing and sequences have to begin with that token");
    }
    if (typeof id !== "object") continue;
    if (name === "bos" ? has.addBos : has.ends.size === 0) {
      throw refuse(key, `it must be a token id from 0 to ${has.count - 1}, not ${metadata.get(key)}`);
    }
    const others = name === "bos" ? "sequences begin without it" : `answers end at ${[...has.ends].join(", ")}`;
    has.notices.push({ where: key, text: `there is no token ${id.wrong}; ${others}` });
  }
}
