/**
 * What a terminal is shown. Texts of models and files may hold control characters that a terminal would obey: set its
 * title, move its cursor, answer as if the user had typed. They are shown as `·`, wherever standard output or standard
 * error is a terminal; pipes and files get them unchanged.
 */
import stringWidth from "string-width";

/**
 * C0 but tab and line feed, DEL, C1, and what turns the order of the characters around it: embeddings, overrides and
 * isolates of direction (Unicode UAX #9). Marks of direction and joiners stay: Arabic, Hebrew, Persian and emoji need
 * them, and they hide nothing.
 */
// deno-lint-ignore no-control-regex -- they are what is looked for
const OBEYED = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;

/** `text` with `·` for every character that a terminal would obey. Looks at single characters, so pieces are safe too. */
export function shown(text: string): string {
  return text.replace(OBEYED, "·");
}

/** A writer whose texts are shown on a terminal, or go unchanged to anything else. */
export function guarded(write: (text: string) => void, isTerminal: boolean): (text: string) => void {
  return isTerminal ? (text) => write(shown(text)) : write;
}

/** Columns that one line of text takes: 2 for wide characters and emoji, 0 for combining ones. */
export function columns(text: string): number {
  return stringWidth(shown(text));
}

/** `text` and as many spaces as make it `width` columns. */
export function padRight(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - columns(text)));
}

/** Spaces in front of `text`, as many as make it `width` columns. */
export function padLeft(text: string, width: number): string {
  return " ".repeat(Math.max(0, width - columns(text))) + text;
}

/**
 * Runs a layout on texts in which each character that a terminal would obey is replaced by one of one column, and puts
 * the characters back: a layout of other hands may drop them, or count them as nothing.
 */
export function laidOut(texts: readonly string[], layout: (plain: string[]) => string): string {
  const free = freeCharacters(texts.join(""));
  const stands = new Map<string, string>(), means = new Map<string, string>();
  const plain = (character: string) => {
    const known = stands.get(character);
    if (known !== undefined) return known;
    const stand = free.next().value!;
    stands.set(character, stand);
    means.set(stand, character);
    return stand;
  };
  const out = layout(texts.map((text) => text.replace(OBEYED, plain)));
  return stands.size === 0 ? out : Array.from(out, (character) => means.get(character) ?? character).join("");
}

/** Characters for private use that are not in `text`: there are more of them than there are characters to replace. */
function* freeCharacters(text: string): Generator<string, undefined> {
  const taken = new Set(text);
  for (let code = 0xe000; code <= 0xf8ff; code++) {
    const character = String.fromCharCode(code);
    if (!taken.has(character)) yield character;
  }
  return undefined;
}
