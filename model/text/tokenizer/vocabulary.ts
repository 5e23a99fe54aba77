/** The tokenizer's part of a GGUF's metadata, checked: what is wrong is named by its key. */
import { inputError, type PalisadeError } from "../../../core/errors.ts";
import type { Notice } from "../../file/notice.ts";
import { Merges } from "./merges.ts";
import { byteCharacters, bytesOfToken } from "./byte_alphabet.ts";
import { type PreTokenizer, preTokenizer } from "./pretokenizers.ts";
import { SentencePieceModel } from "./sentencepiece.ts";
import { type SpecialTokens, specialTokens, TOKEN_TYPE } from "./special_tokens.ts";
import { TokenIds } from "./token_ids.ts";

/** Metadata as a GGUF reader gives it: numbers, bigints, booleans, strings and arrays of these. */
export type Metadata = ReadonlyMap<string, unknown>;

/** The largest vocabularies in use have 262,144 entries. */
const MAX_TOKENS = 1 << 20;
/** The longest tokens in use (runs of spaces) have some 500 characters. */
const MAX_TOKEN_LENGTH = 4096;

/** Byte-level BPE (`tokenizer.ggml.model` = `gpt2`). */
export interface BpeWords {
  readonly kind: "bpe";
  /** Pairs in order of priority. */
  readonly merges: Merges;
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
  readonly ids: Pick<TokenIds, "get" | "has">;
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
  const { ids, odd } = idsOf(tokens, types);
  const { made, addBos, wordsOf } = model === "gpt2"
    ? bpeOf(metadata, tokens, ids)
    : piecesOf(metadata, tokens, ids, types, model);
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
    tokens.filter((text, id) => types[id] === TOKEN_TYPE.userDefined && text !== "" && !special.control.has(text)),
  );
  const words = wordsOf(special.control);
  const read = (text: string, type: number) =>
    special.silent.has(text) || (special.control.has(text) && template.includes(text)) || userDefined.has(text) ||
    isWord(words, text, type) || made.has(text);
  const notices = odd.map((each) => noticeOf(each, tokens, types, read));
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

function bpeOf(metadata: Metadata, tokens: readonly string[], ids: TokenIds): Kind {
  const merges = mergesOf(metadata, tokens, ids, "last");
  const pre = preTokenizer(optional(metadata, "tokenizer.ggml.pre", "string"));
  return {
    made: merges,
    addBos: pre.addBos,
    wordsOf: () => ({ kind: "bpe", merges, preTokenizer: pre }),
  };
}

function piecesOf(
  metadata: Metadata,
  tokens: readonly string[],
  ids: TokenIds,
  types: Uint8Array,
  kind: "llama" | "gemma4",
): Kind {
  const spacePrefix = optional(metadata, "tokenizer.ggml.add_space_prefix", "boolean") ?? kind === "llama";
  const joining = kind === "llama"
    ? { scores: scoresOf(metadata, tokens.length) }
    : { scores: [], ranks: mergesOf(metadata, tokens, ids, "first") };
  const model = new SentencePieceModel({ tokens, ...joining, types, spacePrefix });
  return {
    made: { has: (text) => model.makes(text) },
    addBos: true,
    wordsOf(control) {
      model.exclude(control);
      return { kind: "pieces", model };
    },
  };
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
  // `Float32Array.from` would first make a list of them.
  const floats = new Float32Array(count);
  for (let id = 0; id < count; id++) {
    const score = scores[id];
    if (!Number.isFinite(score)) {
      throw refuse(key, `entry ${id} must be a finite number, not ${String(score).slice(0, 100)}`);
    }
    floats[id] = Number(score);
  }
  return floats;
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

function tokensOf(metadata: Metadata): readonly string[] {
  const key = "tokenizer.ggml.tokens";
  const tokens = arrayOf(metadata, key);
  if (tokens.length === 0 || tokens.length > MAX_TOKENS) {
    throw refuse(key, `it must have 1 to ${MAX_TOKENS} tokens, not ${tokens.length}`);
  }
  for (let id = 0; id < tokens.length; id++) {
    const token = tokens[id];
    if (typeof token !== "string") throw refuse(key, `token ${id} must be a string, not ${kindOf(token)}`);
    if (token.length > MAX_TOKEN_LENGTH) {
      throw refuse(key, `token ${id} must have at most ${MAX_TOKEN_LENGTH} characters, not ${token.length}`);
    }
  }
  return tokens as readonly string[];
}

/** A token that is empty, or has the text of the one `before`, of which `taken` counts. */
interface OddToken {
  readonly id: number;
  readonly before?: number;
  readonly taken?: number;
}

/**
 * Id by text; the empty text has none. Where several tokens are the same text, the one that is not marked as unused counts.
 */
function idsOf(tokens: readonly string[], types: Uint8Array): { ids: TokenIds; odd: OddToken[] } {
  const ids = new TokenIds(tokens), odd: OddToken[] = [];
  tokens.forEach((text, id) => {
    const before = ids.get(text);
    const taken = before === undefined || (!isInUse(types, before) && isInUse(types, id)) ? id : before;
    if (text === "") odd.push({ id });
    else if (before !== undefined) odd.push({ id, before, taken });
    if (text !== "" && taken === id) ids.add(id);
  });
  return { ids, odd };
}

function isInUse(types: Uint8Array, id: number): boolean {
  return ![TOKEN_TYPE.unused, TOKEN_TYPE.unknown].some((type) => type === types[id]);
}

/**
 * Tokens that no text becomes may be empty or share a text: nothing asks for their id. `read` says whether anything
 * becomes such a token.
 */
function noticeOf(
  { id, before, taken }: OddToken,
  tokens: readonly string[],
  types: Uint8Array,
  read: (text: string, type: number) => boolean,
): Notice {
  const text = tokens[id];
  if (before === undefined) return { where: KEY.tokens, text: `token ${id} is empty; no text becomes it` };
  const isRead = [before, id].some((each) => read(text, types[each]));
  if (isInUse(types, before) && isInUse(types, id) && isRead) {
    throw refuse(KEY.tokens, `tokens ${before} and ${id} are the same text, ${quote(text)}`);
  }
  return {
    where: KEY.tokens,
    text: `tokens ${before} and ${id} are the same text, ${quote(text)}; ${taken} is taken`,
  };
}

function typesOf(metadata: Metadata, count: number): Uint8Array {
  const key = "tokenizer.ggml.token_type";
  const given = arrayOf(metadata, key), types = new Uint8Array(count);
  if (given.length !== count) throw refuse(key, `it must have one entry per token (${count}), not ${given.length}`);
  for (let id = 0; id < count; id++) {
    types[id] = Number(given[id]);
    if (types[id] !== Number(given[id]) || types[id] > 6) {
      throw refuse(key, `entry ${id} must be a token type from 0 to 6, not ${String(given[id]).slice(0, 100)}`);
    }
  }
  return types;
}

/** `repeated`: which of two equal pairs counts, as in the reference implementation of each kind. */
function mergesOf(
  metadata: Metadata,
  tokens: readonly string[],
  ids: TokenIds,
  repeated: "first" | "last",
): Merges {
  const key = "tokenizer.ggml.merges";
  const merges = arrayOf(metadata, key);
  // Each merge makes a token; more would be repeats.
  if (merges.length > 4 * tokens.length) {
    throw refuse(key, `it must have at most four merges per token (${4 * tokens.length}), not ${merges.length}`);
  }
  const ranks = new Merges(merges.length, ids, tokens.length);
  for (let rank = 0; rank < merges.length; rank++) {
    const merge = merges[rank];
    if (typeof merge !== "string") throw refuse(key, `merge ${rank} must be a string, not ${kindOf(merge)}`);
    const space = merge.indexOf(" ");
    if (space < 1 || space === merge.length - 1 || merge.includes(" ", space + 1)) {
      throw refuse(key, `merge ${rank} must be two parts with a space between, not ${quote(merge)}`);
    }
    const left = merge.slice(0, space), right = merge.slice(space + 1), made = ids.get(left + right);
    if (made === undefined) {
      throw refuse(key, `merge ${rank}, ${quote(merge)}, makes a text that is not a token`);
    }
    ranks.set(rank, left, right, made, repeated);
  }
  return ranks;
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

function endIdsOf(ids: TokenIds, { ends }: SpecialTokens, { eos, eot, eom }: Named): Set<number> {
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
