/** What is too much text to tokenize: far beyond any context, and enough to take all memory. */
import { inputError, option } from "../../../core/errors.ts";

/** Some four million tokens; takes about a gigabyte to tokenize. */
export const MAX_TEXT = 16 * 1024 * 1024;
/** A word is merged as a whole, which takes some 400 bytes for each of its characters. */
export const MAX_WORD = 1024 * 1024;

/**
 * Throws PalisadeError input `text.too-large` for more than `MAX_TEXT` characters (UTF-16 units), `text.endless-word`
 * for a run of more than `MAX_WORD` without white space, or of nothing else. No offset is told: the text is a part of
 * what the user gave.
 */
export function refuseTooMuchText(text: string): void {
  if (text.length > MAX_TEXT) {
    throw inputError(
      "text.too-large",
      `Can't tokenize ${text.length} characters: at most ${MAX_TEXT} are possible, some four million tokens`,
      option("context"),
    );
  }
  if (text.length <= MAX_WORD) return;
  let start = 0;
  for (let i = 1; i < text.length; i++) {
    if (isSpace(text.charCodeAt(i)) === isSpace(text.charCodeAt(start))) {
      if (i - start < MAX_WORD) continue;
      const first = JSON.stringify(text.slice(start, start + 20));
      const run = isSpace(text.charCodeAt(start))
        ? "spaces and line breaks in a row"
        : `characters without a space or line break, from ${first} on`;
      throw inputError(
        "text.endless-word",
        `Can't tokenize the text: it has more than ${MAX_WORD} ${run}`,
        option("context"),
      );
    }
    start = i;
  }
}

/** Tab, line breaks and space; a rarer space only makes a run look longer than its words are. */
function isSpace(code: number): boolean {
  return code === 0x20 || (code >= 0x09 && code <= 0x0d);
}
