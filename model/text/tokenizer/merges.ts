import { placesFor, type TokenIds } from "./token_ids.ts";

/** Pairs of texts in order of priority: a hash table over their ids. The 151,387 of Qwen 3 take 4 MB. */
export class Merges {
  readonly #ids: TokenIds;
  /** Ids of texts that no token has; those of tokens are below them. */
  readonly #others = new Map<string, number>();
  readonly #tokens: number;
  /** Ids of each pair, and of what it makes. */
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #made: Int32Array;
  /** Ids that pairs make. */
  readonly #makes: Uint8Array;
  /** Rank + 1 at each place; 0: none. */
  readonly #places: Int32Array;

  /** Room for `count` pairs of texts that `tokens` have, by `ids`. */
  constructor(count: number, ids: TokenIds, tokens: number) {
    this.#ids = ids;
    this.#tokens = tokens;
    [this.#left, this.#right, this.#made] = Array.from({ length: 3 }, () => new Int32Array(count));
    this.#makes = new Uint8Array(tokens);
    this.#places = new Int32Array(placesFor(count));
  }

  /**
   * Sets the pair of a rank, which makes the token `made`. One that has a rank keeps the one of `repeated`.
   */
  set(rank: number, left: string, right: string, made: number, repeated: "first" | "last"): void {
    const [l, r] = [left, right].map((text) => this.#ids.get(text) ?? this.#other(text));
    this.#left[rank] = l;
    this.#right[rank] = r;
    this.#made[rank] = made;
    this.#makes[made] = 1;
    const place = this.#placeOf(l, r);
    if (this.#places[place] === 0 || repeated === "last") this.#places[place] = rank + 1;
  }

  /** Whether some pair makes this text. */
  has(text: string): boolean {
    const id = this.#ids.get(text);
    return id !== undefined && this.#makes[id] === 1;
  }

  /** Rank of the neighbours `word[from … middle)` and `word[middle … to)`: the lower joins first. */
  rankOf(word: string, from: number, middle: number, to: number): number | undefined {
    const left = this.#idOf(word, from, middle), right = left < 0 ? -1 : this.#idOf(word, middle, to);
    const found = right < 0 ? 0 : this.#places[this.#placeOf(left, right)];
    return found === 0 ? undefined : found - 1;
  }

  /** The token that the pair of a rank makes. */
  madeBy(rank: number): number {
    return this.#made[rank];
  }

  #idOf(word: string, from: number, to: number): number {
    const id = this.#ids.get(word, from, to);
    if (id !== undefined) return id;
    return this.#others.size === 0 ? -1 : this.#others.get(word.slice(from, to)) ?? -1;
  }

  #other(text: string): number {
    const id = this.#others.get(text) ?? this.#tokens + this.#others.size;
    this.#others.set(text, id);
    return id;
  }

  #placeOf(left: number, right: number): number {
    const mask = this.#places.length - 1, hash = Math.imul(Math.imul(left, 0x9e3779b1) ^ right, 0x85ebca6b);
    let place = (hash ^ hash >>> 15) & mask;
    for (let found = this.#places[place]; found !== 0; found = this.#places[place]) {
      if (this.#left[found - 1] === left && this.#right[found - 1] === right) break;
      place = (place + 1) & mask;
    }
    return place;
  }
}
