/**
 * JSON as strict readers take it: nothing is said twice, texts are whole, numbers are exact. `JSON.parse` lets the last of
 * two equal names win, half a surrogate pair pass, and `1.0` be 1, where other readers of the same file see something else.
 *
 * Objects are maps, so no name means anything to this side. Entries of the outer object are given as they are read: what
 * is not kept is not held.
 */

/** A value. Numbers that are no plain whole ones up to 2^53 − 1 are NaN. */
export type Json = null | boolean | number | string | readonly Json[] | ReadonlyMap<string, Json>;

/** Deepest nesting. */
const MAX_DEPTH = 8;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const WORDS: readonly (readonly [string, Json])[] = [["true", true], ["false", false], ["null", null]];
const QUOTE = 0x22, BACKSLASH = 0x5c;

/**
 * Reads a text that is one object, from its first character on; blanks may follow.
 * @throws SyntaxError, with the place; what `entry` throws.
 */
export function readObject(text: string, entry: (name: string, value: Json) => void): void {
  const reader = new Reader(text);
  reader.object(1, entry);
  reader.end();
}

class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  object(depth: number, entry: (name: string, value: Json) => void): void {
    this.#expect("{");
    const names = new Set<string>();
    this.#list("}", () => {
      const name = this.#string();
      if (names.has(name)) this.#fail(`the name ${JSON.stringify(name.slice(0, 80))} comes twice`);
      names.add(name);
      this.#blanks();
      this.#expect(":");
      entry(name, this.#value(depth));
    });
  }

  end(): void {
    this.#blanks();
    if (this.#at < this.#text.length) this.#fail("something follows the object");
  }

  #value(depth: number): Json {
    this.#blanks();
    const next = this.#text[this.#at];
    if (next === '"') return this.#string();
    if (next === "{" || next === "[") {
      if (depth >= MAX_DEPTH) this.#fail(`more than ${MAX_DEPTH} objects and lists in each other`);
      return next === "{" ? this.#map(depth + 1) : this.#array(depth + 1);
    }
    for (const [word, value] of WORDS) {
      if (!this.#text.startsWith(word, this.#at)) continue;
      this.#at += word.length;
      return value;
    }
    return this.#number();
  }

  #map(depth: number): Json {
    const map = new Map<string, Json>();
    this.object(depth, (name, value) => map.set(name, value));
    return map;
  }

  #array(depth: number): Json {
    const values: Json[] = [];
    this.#expect("[");
    this.#list("]", () => values.push(this.#value(depth)));
    return values;
  }

  /** What stands between a bracket, which is read past, and its end. */
  #list(end: string, item: () => void): void {
    this.#blanks();
    if (this.#text[this.#at] === end) return void this.#at++;
    while (true) {
      this.#blanks();
      item();
      this.#blanks();
      if (this.#text[this.#at] === end) return void this.#at++;
      this.#expect(",");
    }
  }

  #number(): number {
    NUMBER.lastIndex = this.#at;
    const found = NUMBER.exec(this.#text)?.[0];
    if (found === undefined) this.#fail("a value is wanted");
    this.#at += found.length;
    if (!Number.isFinite(Number(found))) this.#fail(`${found.slice(0, 30)} is too large`);
    return /^\d+$/.test(found) && Number.isSafeInteger(Number(found)) ? Number(found) : NaN;
  }

  #string(): string {
    const start = this.#at;
    if (this.#text.charCodeAt(this.#at++) !== QUOTE) this.#fail("a text is wanted");
    while (true) {
      const code = this.#text.charCodeAt(this.#at++);
      if (Number.isNaN(code)) this.#fail("a text has no end");
      if (code === QUOTE) break;
      if (code === BACKSLASH) this.#at++;
    }
    let text: string;
    try {
      text = JSON.parse(this.#text.slice(start, this.#at));
    } catch {
      return this.#fail("a text has an escape or a control character that is none of JSON");
    }
    if (!text.isWellFormed()) this.#fail("a text has half a surrogate pair");
    return text;
  }

  #blanks(): void {
    while (" \t\n\r".includes(this.#text[this.#at] ?? "x")) this.#at++;
  }

  #expect(character: string): void {
    if (this.#text[this.#at] !== character) this.#fail(`${character} is wanted`);
    this.#at++;
  }

  #fail(reason: string): never {
    throw new SyntaxError(`${reason} (character ${this.#at})`);
  }
}
