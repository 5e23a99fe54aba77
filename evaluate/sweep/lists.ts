/** Lists as typed on the command line: parts between commas, marks that protect a comma, and no part twice. */
import { inputError, option, type PalisadeError, say } from "../../core/errors.ts";
import type { OptionMention, OptionName } from "../../core/options.ts";

/**
 * Parts of a list. Commas inside brackets or quotation marks belong to their part: `jsonl:"a, b.jsonl",vt`. Marks stay;
 * {@link unquoted} takes them off. @throws PalisadeError `list.syntax` for a mark or a bracket that is not closed.
 */
export function splitList(text: string, where?: OptionName): string[] {
  const parts: string[] = [];
  let depth = 0, start = 0, swallowed = false;
  for (const { 0: mark, index } of text.matchAll(MARKS)) {
    if (mark === '"') throw openEnd(text, where, "a quotation mark is not closed");
    if (mark === "(") depth++;
    if (mark === ")") depth--;
    if (mark === "," && depth > 0) swallowed = true;
    if (mark !== "," || depth > 0) continue;
    parts.push(text.slice(start, index));
    start = index + 1;
  }
  if (depth > 0 && swallowed) throw openEnd(text, where, "a bracket is not closed");
  return [...parts, text.slice(start)].map((part) => part.trim()).filter((part) => part !== "");
}

/** A quoted piece; or a mark of its own, a quotation mark only where its partner is missing. */
const MARKS = /"(?:\\["\\]|[^"])*"|[(),"]/g;

function openEnd(text: string, where: OptionName | undefined, reason: string): PalisadeError {
  const place: OptionMention | string = where === undefined ? "a list" : option(where);
  const advice = 'put a name with such marks into quotation marks, with \\" for one of its own';
  return inputError("list.syntax", say`Cannot read ${place} ${JSON.stringify(text)}: ${reason}; ${advice}`, place);
}

/** A part of a list as it was meant: without quotation marks, `\"` and `\\` inside them for themselves. */
export function unquoted(part: string): string {
  return part.replace(/"((?:\\["\\]|[^"])*)"/g, (_, inner: string) => inner.replace(/\\(["\\])/g, "$1"));
}

/** Names or files in a list. PalisadeErrors `list.syntax`. */
export function splitNames(text: string, where: OptionName): string[] {
  return splitList(text, where).map(unquoted);
}

/**
 * Refuses a list that names one thing twice: counted twice it would weigh twice, counted once it is not what was asked.
 * @throws PalisadeError `list.repeated`.
 */
export function refuseRepeated<T>(
  items: readonly T[],
  { key, name, where }: { key: (item: T) => string; name: (item: T) => string; where: OptionName },
): void {
  const seen = new Map<string, T>();
  for (const item of items) {
    const first = seen.get(key(item));
    if (first !== undefined) throw repeated(name(first), name(item), where);
    seen.set(key(item), item);
  }
}

/** `first` and `second` are the same thing. */
export function repeated(first: string, second: string, where: OptionName): PalisadeError {
  const how = first === second ? `${first} twice` : `the same thing twice, as ${first} and ${second}`;
  return inputError("list.repeated", say`${option(where)} names ${how}: name it once`, option(where));
}

/** A list that has something in it. @throws PalisadeError `list.empty`. */
export function nonEmpty(list: string[], where: OptionName): string[] {
  if (list.length > 0) return list;
  const message = say`Nothing named by ${option(where)}: want at least one, separated by commas`;
  throw inputError("list.empty", message, option(where));
}
