/** The values of a template, as Python has them: how they print, compare and count as true. */

/** A name, key or member that isn't there. It prints as nothing; anything else done with it is an error. */
export class Undefined {
  readonly message: string;
  constructor(message: string) {
    this.message = message;
  }
}
export class Float {
  readonly value: number;
  constructor(value: number) {
    this.value = value;
  }
}
export class Tuple {
  readonly items: readonly Value[];
  constructor(items: readonly Value[]) {
    this.items = items;
  }
}
/** An object with members: `namespace()`, `loop`, `cycler()`. */
export class Members {
  readonly kind: string;
  readonly members: Map<string, Value>;
  constructor(kind: string, members: Iterable<readonly [string, Value]>) {
    this.kind = kind;
    this.members = new Map(members);
  }
}
export type Named = ReadonlyMap<string, Value>;
export class Callable {
  readonly name: string;
  readonly call: (args: readonly Value[], named: Named) => Value;
  constructor(name: string, call: (args: readonly Value[], named: Named) => Value) {
    this.name = name;
    this.call = call;
  }
}
export type Dict = Map<Value, Value>;
/** A number is an int; `Float` is a float; an array is a list. */
export type Value = null | boolean | number | string | Float | Tuple | Value[] | Dict | Undefined | Members | Callable;

/** What Python raises; the message is Python's where templates are likely to meet it. */
export class TemplateError extends Error {}

/** Values from outside: plain JSON. */
export function fromJson(value: unknown): Value {
  if (value === null || typeof value === "boolean" || typeof value === "string") return value;
  if (typeof value === "number") return Number.isInteger(value) ? value : new Float(value);
  if (Array.isArray(value)) return value.map(fromJson);
  if (typeof value === "object") return new Map(Object.entries(value).map(([key, item]) => [key, fromJson(item)]));
  throw new TemplateError(`Can't pass a ${typeof value} to a template`);
}

/** Python's name of the value's type. */
export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  if (typeof value === "boolean") return "bool";
  if (typeof value === "number") return "int";
  if (typeof value === "string") return "str";
  if (Array.isArray(value)) return "list";
  if (value instanceof Map) return "dict";
  if (value instanceof Members) return value.kind;
  if (value instanceof Float) return "float";
  if (value instanceof Tuple) return "tuple";
  return value instanceof Undefined ? "Undefined" : "function";
}

/** Throws what using an undefined value throws. */
export function defined<T extends Value>(value: T): Exclude<T, Undefined> {
  if (value instanceof Undefined) throw new TemplateError(value.message);
  return value as Exclude<T, Undefined>;
}

export function truth(value: Value): boolean {
  if (value instanceof Undefined || value === null) return false;
  if (value instanceof Float) return value.value !== 0;
  if (value instanceof Tuple) return value.items.length > 0;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  return value instanceof Members || value instanceof Callable || Boolean(value);
}

/** A number of an int, a bool or a float; undefined for anything else. */
export function numeric(value: Value): number | undefined {
  if (typeof value === "number") return value;
  if (typeof value === "boolean") return value ? 1 : 0;
  return value instanceof Float ? value.value : undefined;
}

/** `str()`. */
export function text(value: Value): string {
  if (typeof value === "string") return value;
  return value instanceof Undefined ? "" : repr(value);
}

/** `repr()`. */
export function repr(value: Value): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return quoted(value);
  if (value instanceof Float) return floatText(value.value);
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  if (value instanceof Tuple) return `(${value.items.map(repr).join(", ")}${value.items.length === 1 ? "," : ""})`;
  if (value instanceof Map) return `{${[...value].map(([key, item]) => `${repr(key)}: ${repr(item)}`).join(", ")}}`;
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Members) {
    return `<Namespace {${[...value.members].map(([k, v]) => `${repr(k)}: ${repr(v)}`).join(", ")}}>`;
  }
  return `<function ${value.name}>`;
}

export function floatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Object.is(value, -0)) return "-0.0";
  if (Number.isInteger(value) && Math.abs(value) < 1e16) return value.toFixed(1);
  const [digits, exponent] = (Math.abs(value) >= 1e16 || Math.abs(value) < 1e-4 ? value.toExponential() : String(value))
    .split("e");
  return exponent === undefined ? digits : `${digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

const ESCAPES: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };

function quoted(value: string): string {
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  const inner = value.replace(/[\\\n\r\t]/g, (c) => ESCAPES[c]).replaceAll(quote, quote === "'" ? "\\'" : quote)
    // deno-lint-ignore no-control-regex
    .replace(/[\x00-\x1f\x7f-\xa0\xad]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
  return `${quote}${inner}${quote}`;
}

/** `==`. */
export function equal(a: Value, b: Value): boolean {
  const left = numeric(a), right = numeric(b);
  if (left !== undefined || right !== undefined) return left === right;
  if (a instanceof Undefined && b instanceof Undefined) return true;
  if (Array.isArray(a) && Array.isArray(b)) return sameItems(a, b);
  if (a instanceof Tuple && b instanceof Tuple) return sameItems(a.items, b.items);
  if (a instanceof Map && b instanceof Map) {
    return a.size === b.size && [...a].every(([key, item]) => b.has(key) && equal(item, b.get(key)!));
  }
  return a === b;
}

function sameItems(a: readonly Value[], b: readonly Value[]): boolean {
  return a.length === b.length && a.every((item, i) => equal(item, b[i]));
}

/** Negative, 0 or positive, as `<` orders; throws where Python can't compare. */
export function compare(a: Value, b: Value): number {
  const left = numeric(defined(a)), right = numeric(defined(b));
  if (left !== undefined && right !== undefined) return left - right;
  if (typeof a === "string" && typeof b === "string") return a < b ? -1 : a > b ? 1 : 0;
  const listA = itemsOf(a), listB = itemsOf(b);
  if (listA && listB && typeName(a) === typeName(b)) {
    for (let i = 0; i < Math.min(listA.length, listB.length); i++) {
      if (!equal(listA[i], listB[i])) return compare(listA[i], listB[i]);
    }
    return listA.length - listB.length;
  }
  throw new TemplateError(`'<' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

/** The items of a list or tuple. */
export function itemsOf(value: Value): readonly Value[] | undefined {
  return Array.isArray(value) ? value : value instanceof Tuple ? value.items : undefined;
}

/** What a loop goes over. */
export function iterate(value: Value): readonly Value[] {
  if (value instanceof Undefined) return [];
  if (typeof value === "string") return Array.from(value);
  if (value instanceof Map) return [...value.keys()];
  const items = itemsOf(value);
  if (!items) throw new TemplateError(`'${typeName(value)}' object is not iterable`);
  return items;
}

export function lengthOf(value: Value): number {
  if (numeric(value) === undefined && value !== null && !(value instanceof Members || value instanceof Callable)) {
    return iterate(value).length;
  }
  throw new TemplateError(`object of type '${typeName(value)}' has no len()`);
}

/** `item in whole`. */
export function contains(whole: Value, item: Value): boolean {
  if (typeof whole === "string") {
    if (typeof item === "string") return whole.includes(item);
    throw new TemplateError(`'in <string>' requires string as left operand, not ${typeName(item)}`);
  }
  if (whole instanceof Map) return whole.has(keyOf(item));
  return iterate(whole).some((each) => equal(each, item));
}

/** A dict key: a whole float is the int it equals. */
export function keyOf(value: Value): Value {
  if (Array.isArray(value) || value instanceof Map) throw new TemplateError(`unhashable type: '${typeName(value)}'`);
  return value instanceof Float ? value.value : value;
}

/** Python slicing: `[start:stop:step]`. */
export function slice<T>(items: readonly T[], start: number | null, stop: number | null, step: number): T[] {
  if (step === 0) throw new TemplateError("slice step cannot be zero");
  const size = items.length, low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
  const clamp = (at: number) => Math.min(high, Math.max(low, at < 0 ? at + size : at));
  const from = start === null ? (step > 0 ? low : high) : clamp(start);
  const to = stop === null ? (step > 0 ? high : low) : clamp(stop);
  const out: T[] = [];
  for (let at = from; step > 0 ? at < to : at > to; at += step) out.push(items[at]);
  return out;
}

/** Options of `json.dumps`. */
export interface JsonOptions {
  readonly ensureAscii: boolean;
  readonly indent: string | null;
  readonly separators: readonly [item: string, key: string];
  readonly sortKeys: boolean;
}

/** `json.dumps`. */
export function json(value: Value, options: JsonOptions, depth = 0): string {
  if (value === null) return "null";
  if (typeof value === "boolean" || typeof value === "number") return String(value);
  if (typeof value === "string") return jsonString(value, options.ensureAscii);
  if (value instanceof Float) return floatText(value.value).replace("inf", "Infinity").replace("nan", "NaN");
  const items = itemsOf(value);
  if (items) return bracketed("[]", items.map((item) => json(item, options, depth + 1)), options, depth);
  if (value instanceof Map) {
    const entries = [...value];
    if (options.sortKeys) entries.sort(([a], [b]) => compare(a, b));
    const parts = entries.map(([key, item]) =>
      `${jsonString(typeof key === "string" ? key : json(key, options), options.ensureAscii)}${options.separators[1]}${
        json(item, options, depth + 1)
      }`
    );
    return bracketed("{}", parts, options, depth);
  }
  throw new TemplateError(`Object of type ${typeName(value)} is not JSON serializable`);
}

function bracketed(pair: string, parts: readonly string[], { indent, separators }: JsonOptions, depth: number): string {
  if (parts.length === 0) return pair;
  if (indent === null) return `${pair[0]}${parts.join(separators[0])}${pair[1]}`;
  const inner = `\n${indent.repeat(depth + 1)}`;
  return `${pair[0]}${inner}${parts.join(separators[0] + inner)}\n${indent.repeat(depth)}${pair[1]}`;
}

function jsonString(value: string, ensureAscii: boolean): string {
  const out = JSON.stringify(value).replaceAll("\u007f", ensureAscii ? "\\u007f" : "\u007f");
  if (!ensureAscii) return out;
  return out.replace(/[\u0080-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
