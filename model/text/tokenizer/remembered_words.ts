const MOST = 1 << 16;
const MOST_CHARACTERS = 64;

/** What was made of words: a text uses few, again and again. */
export class RememberedWords<T> {
  readonly #words = new Map<string, T>();

  /** What `make` gives, or gave before. */
  of(word: string, make: (word: string) => T): T {
    let known = this.#words.get(word);
    if (known === undefined) {
      known = make(word);
      if (word.length <= MOST_CHARACTERS) this.#remember(word, known);
    }
    return known;
  }

  clear(): void {
    this.#words.clear();
  }

  #remember(word: string, made: T): void {
    if (this.#words.size >= MOST) this.#words.clear();
    this.#words.set(word, made);
  }
}
