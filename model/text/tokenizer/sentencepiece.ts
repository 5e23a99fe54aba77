/**
 * SentencePiece's BPE (Kudo and Richardson 2018, arXiv 1808.06226) over the pieces and scores that a GGUF stores
 * (`tokenizer.ggml.model` = `llama`): the neighbours whose joint text is the piece of the highest score are joined,
 * leftmost first among equals, until no joint text is a piece. What is left and no piece becomes its UTF-8 bytes.
 *
 * Gemma 4's files (`tokenizer.ggml.model` = `gemma4`) have the list of pairs instead of scores; the first one in it joins
 * first.
 *
 * Written here and not taken from `@huggingface/tokenizers`: that library wants a list of merges, which for Gemma's
 * 262,144 pieces would first have to be made from the scores (some 500,000 pairs, 2.5 s and 300 MB at each start).
 */
import { inputError, type PalisadeError } from "../../../core/errors.ts";
import { Joining, type JoinScore } from "./joining.ts";
import type { Merges } from "./merges.ts";
import type { PlainText } from "./plain_text.ts";
import { RememberedWords } from "./remembered_words.ts";
import { TOKEN_TYPE } from "./special_tokens.ts";
import { TokenIds } from "./token_ids.ts";

/** How SentencePiece writes a space. */
const SPACE = "\u2581";

export interface Pieces {
  /** Text by id. */
  readonly tokens: readonly string[];
  /** Score by id: higher joins first. */
  readonly scores: ArrayLike<number>;
  /** In place of scores: the pairs that join, and their place in line (gemma4). */
  readonly ranks?: Merges;
  /** Type by id, as in `special_tokens.ts`. */
  readonly types: ArrayLike<number>;
  /** A space is put in front of a text (Llama 2, Mistral; not Gemma). */
  readonly spacePrefix: boolean;
}

/** Turns text into ids, and pieces into bytes. Throws PalisadeError input `tokenizer.metadata` where a byte has no piece. */
export class SentencePieceModel implements PlainText {
  readonly #pieces: Pieces;
  /** Id of each text that joining may make: normal and unused pieces. */
  readonly #ids: TokenIds;
  readonly #scoreOf: JoinScore;
  /** Id of each byte, −1 where the model has none. */
  readonly #bytes = new Int32Array(256).fill(-1);
  /** Pieces that stand for themselves wherever their text occurs; longest first. */
  #literal: RegExp | undefined;
  readonly #literalIds = new Map<string, number>();
  /** Where a text can be cut without changing its ids. */
  readonly #cuts: RegExp;
  readonly #remembered = new RememberedWords<readonly number[]>();

  constructor(pieces: Pieces) {
    this.#pieces = pieces;
    this.#ids = new TokenIds(pieces.tokens);
    this.#scoreOf = joinScore(pieces, this.#ids);
    const crossing = new Set<string>();
    pieces.tokens.forEach((token, id) => {
      const type = Number(pieces.types[id]);
      if (type === TOKEN_TYPE.byte) this.#bytes[byteOf(token)] = id;
      else if (type === TOKEN_TYPE.userDefined && token !== "") this.#literalIds.set(token, id);
      else if (type === TOKEN_TYPE.normal || type === TOKEN_TYPE.unused) {
        this.#ids.add(id);
        // Few pieces have a space mark inside, and this is asked of all.
        if (token.indexOf(SPACE, 1) < 0) return;
        for (const [, before] of token.matchAll(/([^\u2581])\u2581/gu)) crossing.add(before);
      }
    });
    const missing = this.#bytes.indexOf(-1);
    if (missing >= 0) throw noByte(missing);
    this.#literal = anyOf([...this.#literalIds.keys()]);
    this.#cuts = cutsBeside(crossing);
  }

  /** Whether joining makes a piece of this text when it stands alone. */
  makes(text: string): boolean {
    const ids = this.encode(text, { continued: true });
    return ids.length === 1 && this.#pieces.tokens[ids[0]] === text;
  }

  /** From now on no text becomes one of these tokens. */
  exclude(tokens: Iterable<string>): void {
    for (const token of tokens) {
      this.#ids.delete(token);
      this.#literalIds.delete(token);
    }
    this.#literal = anyOf([...this.#literalIds.keys()]);
    this.#remembered.clear();
  }

  /**
   * Ids of a text. `continued`: it goes on from other text, so no space is put in front. Lone surrogates count as
   * U+FFFD. Time is linear in the text's length for words of bounded length.
   */
  encode(text: string, { continued = false }: { readonly continued?: boolean } = {}): number[] {
    const ids: number[] = [];
    let start = this.#pieces.spacePrefix && !continued;
    // Splitting at a group keeps what matched, at the odd places.
    const parts = this.#literal === undefined ? [text] : text.split(this.#literal);
    parts.forEach((part, i) => {
      if (part === "") return;
      if (i % 2 === 1) ids.push(this.#literalIds.get(part)!);
      else this.#encodeRun(`${start ? " " : ""}${part.toWellFormed()}`.replaceAll(" ", SPACE), ids);
      start = false;
    });
    return ids;
  }

  /** Every byte has a piece, so nothing is lost. */
  countUnencodable(): number {
    return 0;
  }

  /** The bytes of a piece; undefined for what is written as it stands (control and user-defined pieces). */
  bytesOf(id: number): Uint8Array | undefined {
    const token = this.#pieces.tokens[id], type = Number(this.#pieces.types[id]);
    if (type === TOKEN_TYPE.byte) return Uint8Array.of(byteOf(token));
    if (type === TOKEN_TYPE.control || type === TOKEN_TYPE.userDefined) return undefined;
    return new TextEncoder().encode(token.replaceAll(SPACE, " "));
  }

  #encodeRun(run: string, ids: number[]): void {
    for (const word of run.split(this.#cuts)) {
      for (const id of this.#remembered.of(word, (word) => this.#encodeWord(word))) ids.push(id);
    }
  }

  #encodeWord(word: string): number[] {
    const ids: number[] = [];
    new Joining(word, this.#scoreOf).run((text, made) => this.#emit(text, made, ids));
    return ids;
  }

  /** Appends the ids of one joined text; an unused piece goes back to the two that made it. */
  #emit(text: string, made: ReadonlyMap<string, readonly [string, string]>, ids: number[]): void {
    const id = this.#ids.get(text);
    if (id !== undefined && Number(this.#pieces.types[id]) !== TOKEN_TYPE.unused) return void ids.push(id);
    const parts = made.get(text);
    if (parts !== undefined) return parts.forEach((part) => this.#emit(part, made, ids));
    for (const byte of new TextEncoder().encode(text)) ids.push(this.#bytes[byte]);
  }
}

/** By ranks where there are some, else by scores; only what makes a piece of `ids` joins. */
function joinScore({ scores, ranks }: Pieces, ids: TokenIds): JoinScore {
  if (!ranks) {
    return (word, from, _, to) => {
      const id = ids.get(word, from, to);
      return id === undefined ? undefined : Number(scores[id]);
    };
  }
  return (word, from, middle, to) => {
    const rank = ranks.rankOf(word, from, middle, to);
    return rank === undefined || ids.get(word, from, to) === undefined ? undefined : -rank;
  };
}

function noByte(byte: number): PalisadeError {
  const name = `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
  return inputError(
    "tokenizer.metadata",
    `Can't build the tokenizer from tokenizer.ggml.tokens: there is no piece ${name} for texts that have no other`,
    "tokenizer.ggml.tokens",
  );
}

/** The byte of `<0x0A>`; NaN for any other form. */
export function byteOf(token: string): number {
  return /^<0x[0-9A-Fa-f]{2}>$/.test(token) ? parseInt(token.slice(3, 5), 16) : NaN;
}

/**
 * Matches nothing, at places in front of a space mark that no piece reaches over: joining a text there and joining its
 * two sides give the same. `crossing`: characters behind which some piece goes on with a space mark.
 */
function cutsBeside(crossing: ReadonlySet<string>): RegExp {
  const kept = [...crossing].map((character) => `\\u{${character.codePointAt(0)!.toString(16)}}`).join("");
  return new RegExp(`(?<=[^\\u2581${kept}])(?=\\u2581)`, "u");
}

function anyOf(texts: readonly string[]): RegExp | undefined {
  if (texts.length === 0) return undefined;
  const longestFirst = [...texts].sort((a, b) => b.length - a.length);
  return new RegExp(`(${longestFirst.map((text) => text.replace(/[\\^$.*+?()[\]{}|\/-]/g, "\\$&")).join("|")})`);
}
