/**
 * A template's text to a tree. `@huggingface/jinja` parses; what it reads otherwise than Jinja2 is settled before:
 * line breaks and trimming (`trim_blocks`, `lstrip_blocks`, `-` and `+`), `{% raw %}`, and tests with arguments.
 */
import { parse, tokenize } from "@huggingface/jinja";
import type { Node } from "./nodes.ts";

/** What a test with arguments is called, as a filter. */
export const TEST_PREFIX = "__is_";
export const NOT_PREFIX = "__isnot_";

/** Throws what the library throws, an Error, where the text is no template. */
export function parseTemplate(template: string): Node {
  const tokens = testsWithArguments(tuples(numbers(tokenize(trimmed(template)))));
  return parse(tokens as Parameters<typeof parse>[0]) as unknown as Node;
}

const OPEN = /\{[{%#]/g;
const CLOSE = { "{": "}}", "%": "%}", "#": "#}" } as const;
const RAW_END = /\{%([-+]?)\s*endraw\s*([-+]?)%\}/g;
/** Marks what transformers trains on; in a prompt it is nothing. */
const GENERATION = /^\s*(?:end)?generation\s*$/;

/**
 * The same template with all white space settled as Jinja2 settles it, and no `-` or `+` left in its tags
 * (jinja2 `lexer.py`: a block's line break goes, and so does the white space before it on its line).
 */
function trimmed(template: string): string {
  const source = template.replace(/\r\n|\r/g, "\n").replace(/\n$/, "");
  let out = "", at = 0;
  /** What the tag before does to the text that follows. */
  let after: "keep" | "line" | "all" = "keep";
  while (at < source.length) {
    OPEN.lastIndex = at;
    const open = OPEN.exec(source);
    const end = open?.index ?? source.length;
    let text = trimStart(source.slice(at, end), after);
    if (!open) return ending(out + text);
    const tag = tagAt(source, end);
    if (tag.before === "-") text = text.trimEnd();
    else if (tag.kind !== "{" && tag.before !== "+") {
      text = stripLine(text, out === "" && at === 0 || endsLine(source, at, after));
    }
    // Before a tag, a brace of the text would seem to be the tag's.
    out += text.replace(/\{$/, '{{ "{" }}');
    const raw = tag.kind === "%" && tag.inner.trim() === "raw";
    if (raw) {
      RAW_END.lastIndex = tag.end;
      const close = RAW_END.exec(source);
      if (!close) throw new SyntaxError("Missing end of raw directive");
      let inside = trimStart(source.slice(tag.end, close.index), tag.trail === "-" ? "all" : "keep");
      if (close[1] === "-") inside = inside.trimEnd();
      else if (close[1] !== "+") inside = stripLine(inside, false);
      if (inside !== "") out += `{{ ${JSON.stringify(inside)} }}`;
      at = RAW_END.lastIndex;
      after = close[2] === "-" ? "all" : close[2] === "+" ? "keep" : "line";
      continue;
    }
    out += tag.kind === "#"
      ? "{##}"
      : tag.kind === "%" && GENERATION.test(tag.inner)
      ? ""
      : `{${tag.kind}${tag.inner}${CLOSE[tag.kind]}`;
    at = tag.end;
    after = afterOf(tag);
  }
  return ending(out);
}

interface Tag {
  readonly kind: "{" | "%" | "#";
  readonly before: string;
  readonly inner: string;
  readonly trail: string;
  /** Where the text after it begins. */
  readonly end: number;
}

function tagAt(source: string, start: number): Tag {
  const kind = source[start + 1] as Tag["kind"];
  const close = closeOf(source, start + 2, kind);
  let inner = source.slice(start + 2, close);
  const before = /^[-+]/.exec(inner)?.[0] ?? "";
  inner = inner.slice(before.length);
  const trail = (kind === "{" ? /-$/ : /[-+]$/).exec(inner)?.[0] ?? "";
  if (trail !== "") inner = inner.slice(0, -1);
  return {
    kind,
    before,
    inner: kind === "#" ? "" : ` ${inner.replace(/\\([\s\S])/g, escape)} `,
    trail,
    end: close + 2,
  };
}

/** A backslash before anything but a known letter stands for itself; the library refuses it. */
function escape(whole: string, letter: string): string {
  if ("ntrbfv'\"\\xu".includes(letter)) return whole;
  return letter === "\n" ? "" : `\\${whole}`;
}

/** Where the tag's closing braces begin: strings and nested braces in it are passed over. */
function closeOf(source: string, from: number, kind: Tag["kind"]): number {
  if (kind === "#") {
    const end = source.indexOf("#}", from);
    if (end < 0) throw new SyntaxError("Missing end of comment tag");
    return end;
  }
  let depth = 0;
  for (let at = from; at < source.length; at++) {
    const c = source[at];
    if (depth === 0 && source.startsWith(CLOSE[kind], at)) return at;
    if (c === "'" || c === '"') at = stringEnd(source, at);
    else if (c === "{") depth++;
    else if (c === "}") depth = Math.max(0, depth - 1);
  }
  throw new SyntaxError(`unexpected end of template, expected '${CLOSE[kind]}'`);
}

function stringEnd(source: string, from: number): number {
  for (let at = from + 1; at < source.length; at++) {
    if (source[at] === "\\") at++;
    else if (source[at] === source[from]) return at;
  }
  throw new SyntaxError("a string doesn't end");
}

function afterOf({ kind, trail }: Tag): "keep" | "line" | "all" {
  if (trail === "-") return "all";
  return kind === "{" || trail === "+" ? "keep" : "line";
}

function trimStart(text: string, after: "keep" | "line" | "all"): string {
  if (after === "all") return text.trimStart();
  return after === "line" ? text.replace(/^\n/, "") : text;
}

/** Whether the text that begins at `at` begins a line, so that blanks alone before a block are its indentation. */
function endsLine(source: string, at: number, after: string): boolean {
  return after !== "all" && at > 0 && after === "line" && source[at] === "\n";
}

/** Blanks at the end of `text` go when they are all there is on their line. */
function stripLine(text: string, startsLine: boolean): string {
  const line = text.lastIndexOf("\n") + 1;
  const blank = /^[^\S\n]*$/.test(text.slice(line));
  return blank && (line > 0 || startsLine) ? text.slice(0, line) : text;
}

/** The library takes one line break off the end. */
function ending(text: string): string {
  return text.endsWith("\n") ? `${text}\n` : text;
}

interface Token {
  readonly type: string;
  readonly value: string;
}

/** `1e3`, `2.5e-4` and `1_000` are one number; the library reads a number and a word. */
function numbers(tokens: readonly Token[]): Token[] {
  const out: Token[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const [token, next, sign, digits] = tokens.slice(i, i + 4);
    if (token.type !== "NumericLiteral" || next?.type !== "Identifier") {
      out.push(token);
      continue;
    }
    const dotted = token.value.includes(".") ? token.value : `${token.value}.`;
    const signed = /^e$/i.test(next.value) && sign?.type === "AdditiveBinaryOperator" &&
      digits?.type === "NumericLiteral";
    if (signed) out.push({ ...token, value: `${dotted}e${sign.value}${digits.value}` });
    else if (/^e\d+$/i.test(next.value)) out.push({ ...token, value: dotted + next.value });
    else if (/^(?:_\d+)+$/.test(next.value)) {
      out.push({ ...token, value: token.value + next.value.replaceAll("_", "") });
    } else {
      out.push(token);
      continue;
    }
    i += signed ? 3 : 1;
  }
  return out;
}

/** What makes a list a tuple. */
export const TUPLE = "__tuple";
/** After these a bracket is a call or an index. */
const OPERANDS = new Set(["Identifier", "StringLiteral", "CloseParen", "CloseSquareBracket"]);
const WORDS = new Set(["if", "elif", "else", "in", "not", "and", "or", "is", "set", "for"]);

/** `()` and `(x,)` become lists that a filter turns to tuples; of `(x, y,)` the last comma goes. */
function tuples(tokens: readonly Token[]): Token[] {
  const out: Token[] = [], open: { at: number; group: boolean; commas: number }[] = [];
  for (const token of tokens) {
    const before = out.at(-1);
    if (OPENING.has(token.type)) {
      const operand = before !== undefined && OPERANDS.has(before.type) &&
        !(before.type === "Identifier" && WORDS.has(before.value));
      open.push({ at: out.length, group: token.type === "OpenParen" && !operand, commas: 0 });
    } else if (token.type === "Comma" && open.length > 0) open.at(-1)!.commas++;
    const closed = CLOSING.has(token.type) ? open.pop() : undefined;
    const empty = closed !== undefined && out.length === closed.at + 1;
    if (closed?.group && (empty || before?.type === "Comma")) {
      if (!empty) out.pop();
      if (empty || closed.commas === 1) {
        out.splice(closed.at + 1, 0, { type: "OpenSquareBracket", value: "[" });
        out.push({ type: "CloseSquareBracket", value: "]" }, { type: "Pipe", value: "|" });
        out.push({ type: "Identifier", value: TUPLE });
      }
    }
    out.push(token);
  }
  return out;
}

/** Words that end a test rather than being its argument. */
const NO_ARGUMENT = new Set(["else", "elif", "or", "and", "is", "if", "in", "not", "recursive"]);
const BEGINS_ARGUMENT = new Set([
  "Identifier",
  "NumericLiteral",
  "StringLiteral",
  "OpenSquareBracket",
  "OpenCurlyBracket",
]);
const OPENING = new Set(["OpenParen", "OpenSquareBracket", "OpenCurlyBracket"]);
const CLOSING = new Set(["CloseParen", "CloseSquareBracket", "CloseCurlyBracket"]);

/** `x is divisibleby 3` becomes a filter with an argument: the library knows tests without arguments only. */
function testsWithArguments(tokens: readonly Token[]): Token[] {
  const out: Token[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const negated = tokens[i + 1]?.value === "not" && tokens[i + 1].type === "Identifier";
    const name = tokens[i + (negated ? 2 : 1)];
    const next = i + (negated ? 3 : 2);
    if (!isWord(tokens[i], "is") || !isTestName(name) || !(takesArgument(tokens[next]))) {
      out.push(tokens[i]);
      continue;
    }
    const test = `${negated ? NOT_PREFIX : TEST_PREFIX}${name.value}`;
    out.push({ type: "Pipe", value: "|" }, { type: "Identifier", value: test });
    i = next - 1;
    if (tokens[next].type === "OpenParen") continue;
    const end = argumentEnd(tokens, next);
    out.push({ type: "OpenParen", value: "(" }, ...testsWithArguments(tokens.slice(next, end)), {
      type: "CloseParen",
      value: ")",
    });
    i = end - 1;
  }
  return out;
}

/** Tests may also be called by their signs: `x is == 3`. */
function isTestName(token: Token | undefined): token is Token {
  return token !== undefined && (token.type === "Identifier" || token.type === "ComparisonBinaryOperator");
}

function isWord(token: Token | undefined, word: string): boolean {
  return token?.type === "Identifier" && token.value === word;
}

function takesArgument(token: Token | undefined): boolean {
  if (token === undefined) return false;
  if (token.type === "OpenParen") return true;
  return BEGINS_ARGUMENT.has(token.type) && !(token.type === "Identifier" && NO_ARGUMENT.has(token.value));
}

/** The end of one value with its members, indexes and calls. */
function argumentEnd(tokens: readonly Token[], start: number): number {
  let at = OPENING.has(tokens[start].type) ? closing(tokens, start) + 1 : start + 1;
  while (at < tokens.length) {
    if (tokens[at].type === "Dot") at += 2;
    else if (tokens[at].type === "OpenParen" || tokens[at].type === "OpenSquareBracket") at = closing(tokens, at) + 1;
    else break;
  }
  return at;
}

function closing(tokens: readonly Token[], open: number): number {
  let depth = 0;
  for (let at = open; at < tokens.length; at++) {
    if (OPENING.has(tokens[at].type)) depth++;
    if (CLOSING.has(tokens[at].type) && (depth -= 1) === 0) return at;
  }
  throw new SyntaxError("a bracket doesn't close");
}
