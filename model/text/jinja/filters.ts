/** Jinja2's filters and tests, with `tojson` as transformers replaces it. */
import { capitalized, centred, percent, repeated, replace, string, stringMethod, stripped, whole } from "./strings.ts";
import {
  Callable,
  compare,
  contains,
  defined,
  equal,
  Float,
  itemsOf,
  iterate,
  json,
  keyOf,
  lengthOf,
  Members,
  type Named,
  numeric,
  TemplateError,
  text,
  truth,
  Tuple,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** What filters need of the interpreter. */
export interface Tools {
  /** A member by name, or an item by number. */
  member(value: Value, name: Value): Value;
}

type Filter = (value: Value, args: readonly Value[], named: Named, tools: Tools) => Value;

/** The argument at `index`, or by name. */
function given(args: readonly Value[], named: Named, index: number, name: string): Value | undefined {
  return args[index] ?? named.get(name);
}

const length: Filter = (value) => value instanceof Undefined ? 0 : lengthOf(value);

const FILTERS: Record<string, Filter> = {
  abs: (value) => value instanceof Float ? new Float(Math.abs(value.value)) : Math.abs(number(value)),
  attr: (value, [name], _, { member }) =>
    value instanceof Map ? new Undefined(`'dict object' has no attribute '${text(name)}'`) : member(value, name),
  batch: (value, args, named) =>
    batched(iterate(value), whole(given(args, named, 0, "linecount"), 1), given(args, named, 1, "fill_with")),
  capitalize: (value) => capitalized(text(value)),
  center: (value, args, named) => centred(text(value), whole(given(args, named, 0, "width"), 80)),
  count: length,
  d: fallback,
  default: fallback,
  dictsort: (value, args, named) => dictSorted(value, args, named),
  escape: (value) => escaped(text(value)),
  e: (value) => escaped(text(value)),
  forceescape: (value) => escaped(text(value)),
  first: (value) => iterate(value)[0] ?? new Undefined("No first item, sequence was empty."),
  last: (value) => iterate(value).at(-1) ?? new Undefined("No last item, sequence was empty."),
  float: (value, args, named) => toFloat(value, given(args, named, 0, "default") ?? new Float(0)),
  format: (value, args, named) => percent(text(value), named.size > 0 ? new Map(named) : new Tuple(args)),
  groupby: (value, args, named, tools) => grouped(value, args, named, tools),
  indent: (value, args, named) => indented(text(value), args, named),
  int: (value, args, named) => toInt(value, given(args, named, 0, "default") ?? 0),
  items: (value) => items(value),
  join: (value, args, named, tools) => joined(value, args, named, tools),
  length,
  list: (value) => [...iterate(value)],
  lower: (value) => text(value).toLowerCase(),
  map: (value, args, named, tools) => mapped(value, args, named, tools),
  max: (value, args, named, tools) => extreme(value, args, named, tools, 1),
  min: (value, args, named, tools) => extreme(value, args, named, tools, -1),
  reject: (value, args, named, tools) => iterate(value).filter((item) => !passes(item, args, named, tools)),
  rejectattr: (value, args, named, tools) => byMember(value, args, named, tools, false),
  replace: (value, args, named) =>
    replace(
      text(value),
      text(given(args, named, 0, "old")!),
      text(given(args, named, 1, "new")!),
      whole(given(args, named, 2, "count"), -1),
    ),
  reverse: (value) => typeof value === "string" ? Array.from(value).reverse().join("") : [...iterate(value)].reverse(),
  round: (value, args, named) => rounded(value, args, named),
  safe: (value) => text(value),
  select: (value, args, named, tools) => iterate(value).filter((item) => passes(item, args, named, tools)),
  selectattr: (value, args, named, tools) => byMember(value, args, named, tools, true),
  slice: (value, args, named) =>
    sliced(iterate(value), whole(given(args, named, 0, "slices"), 1), given(args, named, 1, "fill_with")),
  sort: (value, args, named, tools) => sorted(value, args, named, tools),
  string: (value) => text(value),
  striptags: (value) => text(value).replace(/<!--.*?-->|<[^>]*>/gs, "").split(/\s+/).filter(Boolean).join(" "),
  sum: (value, args, named, tools) => summed(value, args, named, tools),
  title: (value) => text(value).split(/([-\s({[<]+)/).map((part) => capitalized(part)).join(""),
  tojson: (value, args, named) => toJson(value, args, named),
  trim: (value, args, named) => stripped(text(value), given(args, named, 0, "chars"), "both"),
  truncate: (value, args, named) => truncated(text(value), args, named),
  unique: (value, args, named, tools) => unique(value, args, named, tools),
  upper: (value) => text(value).toUpperCase(),
  urlencode: (value) =>
    encodeURIComponent(text(value)).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
      .replaceAll("%2F", "/"),
  wordcount: (value) => text(value).match(/[\p{L}\p{N}_]+/gu)?.length ?? 0,
};

/** Applies a filter by name; throws where there is none. */
export function filter(name: string, value: Value, args: readonly Value[], named: Named, tools: Tools): Value {
  if (!Object.hasOwn(FILTERS, name)) throw new TemplateError(`No filter named '${name}'.`);
  return FILTERS[name](value, args, named, tools);
}

function number(value: Value): number {
  const found = numeric(defined(value));
  if (found === undefined) throw new TemplateError(`a number is needed, not ${typeName(value)}`);
  return found;
}

function fallback(value: Value, args: readonly Value[], named: Named): Value {
  const instead = given(args, named, 0, "default_value") ?? "";
  const anyFalse = truth(given(args, named, 1, "boolean") ?? false);
  return value instanceof Undefined || (anyFalse && !truth(value)) ? instead : value;
}

function items(value: Value): Value {
  if (value instanceof Undefined) return [];
  if (!(value instanceof Map)) throw new TemplateError("Can only get item pairs from a mapping.");
  return [...value].map((pair) => new Tuple(pair));
}

/** What sorting and comparing looks at: strings without their case, unless asked. */
function keyFor(args: { attribute: Value | undefined; caseSensitive: boolean }, tools: Tools): (item: Value) => Value {
  return (item) => {
    const value = memberPath(item, args.attribute, tools);
    return !args.caseSensitive && typeof value === "string" ? value.toLowerCase() : value;
  };
}

/** `a.b.0` step by step; the value itself without a path. */
function memberPath(value: Value, path: Value | undefined, tools: Tools): Value {
  if (path === undefined || path === null) return value;
  if (typeof path === "number") return tools.member(value, path);
  const steps = text(path).split(".").map((step) => /^\d+$/.test(step) ? Number(step) : step);
  return steps.reduce<Value>((at, step) => tools.member(at, step), value);
}

function sorted(value: Value, args: readonly Value[], named: Named, tools: Tools): Value[] {
  const reverse = truth(given(args, named, 0, "reverse") ?? false);
  const caseSensitive = truth(given(args, named, 1, "case_sensitive") ?? false);
  const paths = attributesOf(given(args, named, 2, "attribute"));
  const keys = paths.map((attribute) => keyFor({ attribute, caseSensitive }, tools));
  const order = (a: Value, b: Value) => {
    for (const key of keys) {
      const by = compare(key(a), key(b));
      if (by !== 0) return reverse ? -by : by;
    }
    return 0;
  };
  return [...iterate(value)].sort(order);
}

/** `"a,b"` sorts by a, then b. */
function attributesOf(attribute: Value | undefined): (Value | undefined)[] {
  return typeof attribute === "string" ? attribute.split(",") : [attribute];
}

function dictSorted(value: Value, args: readonly Value[], named: Named): Value {
  if (!(value instanceof Map)) throw new TemplateError(`'${typeName(value)}' object has no attribute 'items'`);
  const caseSensitive = truth(given(args, named, 0, "case_sensitive") ?? false);
  const by = given(args, named, 1, "by") ?? "key";
  if (by !== "key" && by !== "value") throw new TemplateError('You can only sort by either "key" or "value"');
  const reverse = truth(given(args, named, 2, "reverse") ?? false);
  const fold = (each: Value) => !caseSensitive && typeof each === "string" ? each.toLowerCase() : each;
  const at = by === "key" ? 0 : 1;
  const pairs = [...value].sort((a, b) => (reverse ? -1 : 1) * compare(fold(a[at]), fold(b[at])));
  return pairs.map((pair) => new Tuple(pair));
}

function grouped(value: Value, args: readonly Value[], named: Named, tools: Tools): Value {
  const attribute = given(args, named, 0, "attribute");
  const caseSensitive = truth(given(args, named, 2, "case_sensitive") ?? false);
  const otherwise = given(args, named, 1, "default");
  const own = (item: Value) => {
    const found = memberPath(item, attribute, tools);
    return found instanceof Undefined && otherwise !== undefined ? otherwise : found;
  };
  const fold = (item: Value) =>
    ((key) => !caseSensitive && typeof key === "string" ? key.toLowerCase() : key)(own(item));
  const groups: { key: Value; shown: Value; items: Value[] }[] = [];
  for (const item of [...iterate(value)].sort((a, b) => compare(fold(a), fold(b)))) {
    const last = groups.at(-1), key = fold(item);
    if (last && equal(last.key, key)) last.items.push(item);
    else groups.push({ key, shown: own(item), items: [item] });
  }
  return groups.map(({ shown, items }) => new Tuple([shown, items]));
}

function unique(value: Value, args: readonly Value[], named: Named, tools: Tools): Value {
  const caseSensitive = truth(given(args, named, 0, "case_sensitive") ?? false);
  const key = keyFor({ attribute: given(args, named, 1, "attribute"), caseSensitive }, tools);
  const seen = new Set<Value>();
  return iterate(value).filter((item) => {
    const own = keyOf(key(item));
    return !seen.has(own) && seen.add(own);
  });
}

function extreme(value: Value, args: readonly Value[], named: Named, tools: Tools, sign: 1 | -1): Value {
  const caseSensitive = truth(given(args, named, 0, "case_sensitive") ?? false);
  const key = keyFor({ attribute: given(args, named, 1, "attribute"), caseSensitive }, tools);
  const all = iterate(value);
  if (all.length === 0) return new Undefined("No aggregated item, sequence was empty.");
  return all.reduce((best, item) => sign * compare(key(item), key(best)) > 0 ? item : best);
}

function summed(value: Value, args: readonly Value[], named: Named, tools: Tools): Value {
  const attribute = given(args, named, 0, "attribute"), start = given(args, named, 1, "start") ?? 0;
  const all = [start, ...iterate(value).map((item) => memberPath(item, attribute, tools))];
  const total = all.reduce<number>((sum, item) => sum + number(item), 0);
  return all.some((item) => item instanceof Float) ? new Float(total) : total;
}

function joined(value: Value, args: readonly Value[], named: Named, tools: Tools): string {
  const attribute = given(args, named, 1, "attribute");
  return iterate(value).map((item) => text(memberPath(item, attribute, tools))).join(
    text(given(args, named, 0, "d") ?? ""),
  );
}

function mapped(value: Value, args: readonly Value[], named: Named, tools: Tools): Value[] {
  const attribute = named.get("attribute");
  if (args.length === 0 && attribute !== undefined) {
    const otherwise = named.get("default");
    return iterate(value).map((item) => {
      const found = memberPath(item, attribute, tools);
      return found instanceof Undefined && otherwise !== undefined ? otherwise : found;
    });
  }
  if (args.length === 0) throw new TemplateError("map requires a filter argument");
  return iterate(value).map((item) => filter(text(args[0]), item, args.slice(1), named, tools));
}

function passes(item: Value, args: readonly Value[], named: Named, _tools: Tools): boolean {
  return args.length === 0 ? truth(item) : test(text(args[0]), item, args.slice(1), named);
}

function byMember(value: Value, args: readonly Value[], named: Named, tools: Tools, wanted: boolean): Value[] {
  if (args.length === 0) throw new TemplateError("Missing parameter for attribute name");
  return iterate(value).filter((item) =>
    passes(memberPath(item, args[0], tools), args.slice(1), named, tools) === wanted
  );
}

function batched(all: readonly Value[], size: number, fill: Value | undefined): Value[] {
  const out: Value[][] = [];
  for (let at = 0; at < all.length; at += Math.max(1, size)) out.push(all.slice(at, at + Math.max(1, size)));
  const last = out.at(-1);
  if (last && fill !== undefined && fill !== null) {
    while (last.length < Math.min(size, 10_000)) last.push(fill);
  }
  return out;
}

function sliced(all: readonly Value[], count: number, fill: Value | undefined): Value[] {
  if (count < 1 || count > 10_000) throw new TemplateError("slice wants 1 to 10000 slices");
  const base = Math.floor(all.length / count), more = all.length % count;
  let at = 0;
  return Array.from({ length: count }, (_, i) => {
    const part = all.slice(at, at += base + (i < more ? 1 : 0));
    return fill !== undefined && fill !== null && i >= more && more > 0 ? [...part, fill] : part;
  });
}

function indented(value: string, args: readonly Value[], named: Named): string {
  const width = given(args, named, 0, "width") ?? 4;
  const first = truth(given(args, named, 1, "first") ?? false), blank = truth(given(args, named, 2, "blank") ?? false);
  const by = typeof width === "string" ? width : repeated(" ", whole(width, 4));
  const lines = value.split("\n");
  if (by.length * lines.length > 16 * 1024 * 1024) throw new TemplateError("an indented text is too long");
  return lines.map((line, i) => (i === 0 ? first : line !== "" || blank) ? by + line : line).join("\n");
}

function rounded(value: Value, args: readonly Value[], named: Named): Value {
  const method = given(args, named, 1, "method") ?? "common";
  const by = 10 ** whole(given(args, named, 0, "precision"), 0);
  const scaled = number(value) * by;
  if (method === "ceil") return new Float(Math.ceil(scaled) / by);
  if (method === "floor") return new Float(Math.floor(scaled) / by);
  if (method !== "common") throw new TemplateError("method must be common, ceil or floor");
  const even = Math.abs(scaled % 1) === 0.5 ? 2 * Math.round(scaled / 2) : Math.round(scaled);
  return value instanceof Float ? new Float(even / by) : even / by;
}

function toInt(value: Value, otherwise: Value): Value {
  const found = numeric(value);
  if (found !== undefined) return Number.isFinite(found) ? Math.trunc(found) : otherwise;
  if (typeof value !== "string") return value instanceof Undefined ? defined(value) : otherwise;
  const read = /^\s*[-+]?\d+(?:_\d+)*\s*$/.test(value) ? Number(value.replaceAll("_", "")) : Math.trunc(floatOf(value));
  return Number.isFinite(read) ? read : otherwise;
}

function toFloat(value: Value, otherwise: Value): Value {
  const found = numeric(value);
  if (found !== undefined) return new Float(found);
  if (typeof value !== "string") return value instanceof Undefined ? defined(value) : otherwise;
  const read = floatOf(value);
  return Number.isNaN(read) ? otherwise : new Float(read);
}

function floatOf(value: string): number {
  return /^\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*$/.test(value) ? Number(value) : NaN;
}

function truncated(value: string, args: readonly Value[], named: Named): string {
  const width = whole(given(args, named, 0, "length"), 255), end = text(given(args, named, 2, "end") ?? "...");
  const leeway = whole(given(args, named, 3, "leeway"), 5);
  if (value.length <= width + leeway) return value;
  const cut = value.slice(0, width - end.length);
  return (truth(given(args, named, 1, "killwords") ?? false) ? cut : cut.replace(/ [^ ]*$/, "")) + end;
}

const HTML: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;" };

function escaped(value: string): string {
  return value.replace(/[&<>'"]/g, (c) => HTML[c]);
}

/** transformers: `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`. */
function toJson(value: Value, args: readonly Value[], named: Named): string {
  const indent = given(args, named, 1, "indent") ?? null;
  const separators = itemsOf(given(args, named, 2, "separators") ?? null)?.map((each) => string(each));
  return json(value, {
    ensureAscii: truth(given(args, named, 0, "ensure_ascii") ?? false),
    indent: indent === null ? null : typeof indent === "string" ? indent : repeated(" ", whole(indent, 0)),
    separators: separators ? [separators[0], separators[1]] : [indent === null ? ", " : ",", ": "],
    sortKeys: truth(given(args, named, 3, "sort_keys") ?? false),
  });
}

type Test = (value: Value, args: readonly Value[]) => boolean;

const eq: Test = (value, [other]) => equal(value, other);
const ne: Test = (value, [other]) => !equal(value, other);
const lt: Test = (value, [other]) => compare(value, other) < 0;
const le: Test = (value, [other]) => compare(value, other) <= 0;
const gt: Test = (value, [other]) => compare(value, other) > 0;
const ge: Test = (value, [other]) => compare(value, other) >= 0;

const TESTS: Record<string, Test> = {
  defined: (value) => !(value instanceof Undefined),
  undefined: (value) => value instanceof Undefined,
  none: (value) => value === null,
  string: (value) => typeof value === "string",
  boolean: (value) => typeof value === "boolean",
  true: (value) => value === true,
  false: (value) => value === false,
  integer: (value) => typeof value === "number",
  float: (value) => value instanceof Float,
  number: (value) => numeric(value) !== undefined,
  mapping: (value) => value instanceof Map,
  sequence: (value) =>
    typeof value === "string" || value instanceof Map || itemsOf(value) !== undefined || value instanceof Undefined,
  iterable: (value) =>
    typeof value === "string" || value instanceof Map || itemsOf(value) !== undefined || value instanceof Undefined,
  callable: (value) => value instanceof Callable || value instanceof Undefined,
  sameas: (value, [other]) =>
    value === other || (value instanceof Float && other instanceof Float && value.value === other.value),
  escaped: () => false,
  in: (value, [whole]) => contains(whole, value),
  odd: (value) => Math.abs(number(value) % 2) === 1,
  even: (value) => number(value) % 2 === 0,
  divisibleby: (value, [by]) => number(value) % number(by) === 0,
  lower: (value) => text(value) === text(value).toLowerCase() && /\p{L}/u.test(text(value)),
  upper: (value) => text(value) === text(value).toUpperCase() && /\p{L}/u.test(text(value)),
  filter: (value) => Object.hasOwn(FILTERS, text(value)),
  test: (value) => Object.hasOwn(TESTS, text(value)),
  eq,
  equalto: eq,
  "==": eq,
  ne,
  "!=": ne,
  lt,
  lessthan: lt,
  "<": lt,
  le,
  "<=": le,
  gt,
  greaterthan: gt,
  ">": gt,
  ge,
  ">=": ge,
};

/** Whether a test by name holds; throws where there is none. */
export function test(name: string, value: Value, args: readonly Value[], _named: Named): boolean {
  if (!Object.hasOwn(TESTS, name)) throw new TemplateError(`No test named '${name}'.`);
  return TESTS[name](value, args);
}

/** Methods of dicts and lists; what would change them is refused, as Jinja2's immutable sandbox does. */
export function containerMethod(self: Value, name: string): Callable | undefined {
  if (typeof self === "string") return stringMethod(self, name);
  const changing = self instanceof Map ? CHANGES_DICT : Array.isArray(self) ? CHANGES_LIST : undefined;
  if (changing?.has(name)) {
    return new Callable(name, () => {
      throw new TemplateError(`access to attribute '${name}' of '${typeName(self)}' object is unsafe.`);
    });
  }
  if (self instanceof Map) return dictMethod(self, name);
  const all = itemsOf(self);
  if (all && name === "count") return new Callable(name, ([item]) => all.filter((each) => equal(each, item)).length);
  if (all && name === "index") return new Callable(name, ([item]) => indexIn(all, item));
  if (Array.isArray(self) && name === "copy") return new Callable(name, () => [...self]);
  return undefined;
}

const CHANGES_DICT = new Set(["clear", "pop", "popitem", "setdefault", "update"]);
const CHANGES_LIST = new Set(["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"]);

function dictMethod(self: ReadonlyMap<Value, Value>, name: string): Callable | undefined {
  switch (name) {
    case "get":
      return new Callable(
        name,
        ([key, otherwise = null]) => self.get(keyOf(key)) ?? (self.has(keyOf(key)) ? null : otherwise),
      );
    case "items":
      return new Callable(name, () => [...self].map((pair) => new Tuple(pair)));
    case "keys":
      return new Callable(name, () => [...self.keys()]);
    case "values":
      return new Callable(name, () => [...self.values()]);
    case "copy":
      return new Callable(name, () => new Map(self));
    default:
      return undefined;
  }
}

function indexIn(all: readonly Value[], item: Value): number {
  const at = all.findIndex((each) => equal(each, item));
  if (at < 0) throw new TemplateError(`${text(item)} is not in list`);
  return at;
}

/** `joiner()` and `cycler()`. */
export function joiner(separator: string): Callable {
  let used = false;
  return new Callable("joiner", () => used ? separator : (used = true, ""));
}

export function cycler(all: readonly Value[]): Members {
  let at = 0;
  const members = new Members("jinja2.utils.Cycler", [["current", all[0]]]);
  members.members.set(
    "next",
    new Callable("next", () => {
      const now = all[at];
      at = (at + 1) % all.length;
      members.members.set("current", all[at]);
      return now;
    }),
  );
  members.members.set(
    "reset",
    new Callable("reset", () => {
      at = 0;
      members.members.set("current", all[0]);
      return null;
    }),
  );
  return members;
}
