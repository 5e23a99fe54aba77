/** Places of a hash table for this many entries: a power of two, at most half of them taken. */
export function placesFor(entries: number): number {
  return 2 ** Math.ceil(Math.log2(2 * Math.max(1, entries)));
}

/**
 * Ids by their texts: a hash table of ids over the list of texts, which is there anyway. Of the 262,144 tokens of Gemma 3
 * it takes 2 MB, where a Map takes 7 and twice that while it grows.
 */
export class TokenIds {
  readonly #texts: readonly string[];
  /** Id + 1 at each place; 0: none, and the end of a search; −1: one that was taken out. */
  readonly #places: Int32Array;

  /** Empty; `texts`: by id. */
  constructor(texts: readonly string[]) {
    this.#texts = texts;
    this.#places = new Int32Array(placesFor(texts.length));
  }

  /** Id of a text, or of its characters `from` to `to`. */
  get(text: string, from = 0, to = text.length): number | undefined {
    const found = this.#places[this.#placeOf(text, from, to)];
    return found > 0 ? found - 1 : undefined;
  }

  has(text: string): boolean {
    return this.get(text) !== undefined;
  }

  /** From now on the text of `id` has this id, and no other that it had. */
  add(id: number): void {
    const text = this.#texts[id];
    this.#places[this.#placeOf(text, 0, text.length)] = id + 1;
  }

  delete(text: string): void {
    const place = this.#placeOf(text, 0, text.length);
    if (this.#places[place] > 0) this.#places[place] = -1;
  }

  /** Where the text is, or else the place that it would take. */
  #placeOf(text: string, from: number, to: number): number {
    const mask = this.#places.length - 1;
    // FNV-1a over UTF-16 units; its lower bits are taken, so the upper ones are mixed in.
    let hash = 0x811c9dc5;
    for (let i = from; i < to; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
    let place = (hash ^ hash >>> 15) & mask, left = -1;
    for (let found = this.#places[place]; found !== 0; found = this.#places[place]) {
      if (found > 0) {
        const other = this.#texts[found - 1];
        if (other.length === to - from && text.startsWith(other, from)) return place;
      } else if (left < 0) left = place;
      place = (place + 1) & mask;
    }
    return left < 0 ? place : left;
  }
}
