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
import type { PlainText } from "./plain_text.ts";
import { TOKEN_TYPE } from "./special_tokens.ts";

/** How SentencePiece writes a space. */
const SPACE = "\u2581";

export interface Pieces {
  /** Text by id. */
  readonly tokens: readonly string[];
  /** Score by id: higher joins first. */
  readonly scores: ArrayLike<number>;
  /** In place of scores: the pairs that join, `left right`, and their place in line (gemma4). */
  readonly ranks?: ReadonlyMap<string, number>;
  /** Type by id, as in `special_tokens.ts`. */
  readonly types: ArrayLike<number>;
  /** A space is put in front of a text (Llama 2, Mistral; not Gemma). */
  readonly spacePrefix: boolean;
}

/** Words whose ids are remembered: a text uses few, again and again. */
const MAX_REMEMBERED = 1 << 16;
const MAX_REMEMBERED_LENGTH = 64;

/** Turns text into ids, and pieces into bytes. Throws PalisadeError input `tokenizer.metadata` where a byte has no piece. */
export class SentencePieceModel implements PlainText {
  readonly #pieces: Pieces;
  /** Id of each text that joining may make: normal and unused pieces. */
  readonly #ids = new Map<string, number>();
  /** Id of each byte, −1 where the model has none. */
  readonly #bytes = new Int32Array(256).fill(-1);
  /** Pieces that stand for themselves wherever their text occurs; longest first. */
  #literal: RegExp | undefined;
  readonly #literalIds = new Map<string, number>();
  /** Where a text can be cut without changing its ids. */
  readonly #cuts: RegExp;
  readonly #remembered = new Map<string, readonly number[]>();

  constructor(pieces: Pieces) {
    this.#pieces = pieces;
    const crossing = new Set<string>();
    pieces.tokens.forEach((token, id) => {
      const type = Number(pieces.types[id]);
      if (type === TOKEN_TYPE.byte) this.#bytes[byteOf(token)] = id;
      else if (type === TOKEN_TYPE.userDefined && token !== "") this.#literalIds.set(token, id);
      else if (type === TOKEN_TYPE.normal || type === TOKEN_TYPE.unused) {
        this.#ids.set(token, id);
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
      let known = this.#remembered.get(word);
      if (known === undefined) {
        known = this.#encodeWord(word);
        if (word.length <= MAX_REMEMBERED_LENGTH) this.#remember(word, known);
      }
      for (const id of known) ids.push(id);
    }
  }

  #remember(word: string, ids: readonly number[]): void {
    if (this.#remembered.size >= MAX_REMEMBERED) this.#remembered.clear();
    this.#remembered.set(word, ids);
  }

  #encodeWord(word: string): number[] {
    const ids: number[] = [];
    new Joining(word, this.#ids, this.#pieces).run((text, made) => this.#emit(text, made, ids));
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

/** One word being joined: a list of symbols linked both ways, and a heap of neighbours that would make a piece. */
class Joining {
  readonly #word: string;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #scores: ArrayLike<number>;
  readonly #ranks: Pieces["ranks"];
  /** Begin and end of each symbol in the word; a symbol that was taken in ends where it begins. */
  readonly #from: Int32Array;
  readonly #to: Int32Array;
  readonly #previous: Int32Array;
  readonly #next: Int32Array;
  readonly #heap: Join[] = [];
  /** What each joined text was made of. */
  readonly #made = new Map<string, readonly [string, string]>();

  constructor(word: string, ids: ReadonlyMap<string, number>, { scores, ranks }: Pick<Pieces, "scores" | "ranks">) {
    this.#ranks = ranks;
    this.#word = word;
    this.#ids = ids;
    this.#scores = scores;
    const starts: number[] = [];
    for (let i = 0; i < word.length; i += word.codePointAt(i)! > 0xffff ? 2 : 1) starts.push(i);
    const count = starts.length;
    this.#from = Int32Array.from(starts);
    this.#to = Int32Array.from(starts, (_, i) => starts[i + 1] ?? word.length);
    this.#previous = Int32Array.from(starts, (_, i) => i - 1);
    this.#next = Int32Array.from(starts, (_, i) => i + 1 < count ? i + 1 : -1);
  }

  run(emit: (text: string, made: ReadonlyMap<string, readonly [string, string]>) => void): void {
    for (let i = 0; i + 1 < this.#from.length; i++) this.#offer(i, i + 1);
    for (let join = pop(this.#heap); join !== undefined; join = pop(this.#heap)) this.#take(join);
    for (let i = 0; i !== -1; i = this.#next[i]) emit(this.#text(i), this.#made);
  }

  #text(symbol: number): string {
    return this.#word.slice(this.#from[symbol], this.#to[symbol]);
  }

  #offer(left: number, right: number): void {
    if (left < 0 || right < 0) return;
    const from = this.#from[left], to = this.#to[right];
    if (this.#ranks) {
      const rank = this.#ranks.get(`${this.#text(left)} ${this.#text(right)}`);
      if (rank !== undefined && this.#ids.has(this.#word.slice(from, to))) {
        push(this.#heap, { left, right, size: to - from, score: -rank });
      }
      return;
    }
    const id = this.#ids.get(this.#word.slice(from, to));
    if (id !== undefined) push(this.#heap, { left, right, size: to - from, score: Number(this.#scores[id]) });
  }

  #take({ left, right, size }: Join): void {
    // Either side has changed since: it was taken in, or has grown.
    if (this.#next[left] !== right || this.#to[left] === this.#from[left]) return;
    if (this.#to[right] - this.#from[left] !== size) return;
    const parts = [this.#text(left), this.#text(right)] as const;
    this.#to[left] = this.#to[right];
    this.#from[right] = this.#to[right];
    this.#next[left] = this.#next[right];
    if (this.#next[right] !== -1) this.#previous[this.#next[right]] = left;
    this.#made.set(this.#text(left), parts);
    this.#offer(this.#previous[left], left);
    this.#offer(left, this.#next[left]);
  }
}

/** Two neighbours that would make a piece. */
interface Join {
  readonly left: number;
  readonly right: number;
  /** UTF-16 units of both when they were offered. */
  readonly size: number;
  readonly score: number;
}

/** The higher score, then the one further left. */
function isBefore(a: Join, b: Join): boolean {
  return a.score > b.score || (a.score === b.score && a.left < b.left);
}

function push(heap: Join[], join: Join): void {
  let at = heap.push(join) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (!isBefore(join, heap[parent])) break;
    heap[at] = heap[parent];
    at = parent;
  }
  heap[at] = join;
}

function pop(heap: Join[]): Join | undefined {
  const first = heap[0], last = heap.pop();
  if (last === undefined || heap.length === 0) return first;
  let at = 0;
  for (let child = 1; child < heap.length; child = 2 * at + 1) {
    if (child + 1 < heap.length && isBefore(heap[child + 1], heap[child])) child++;
    if (!isBefore(heap[child], last)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = last;
  return first;
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
