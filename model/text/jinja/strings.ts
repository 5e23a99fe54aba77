/** The methods of Python's strings, as far as templates use them. */
import {
  Callable,
  iterate,
  type Named,
  numeric,
  repr,
  TemplateError,
  text,
  Tuple,
  typeName,
  type Value,
} from "./values.ts";

/** More characters than any chat has in one piece; filling up to more is refused. */
export const MAX_PIECE = 16 * 1024 * 1024;

/** `piece` `times` over, within `MAX_PIECE`. */
export function repeated(piece: string, times: number): string {
  if (piece.length * Math.max(0, times) > MAX_PIECE) throw new TemplateError("a repeated text is too long");
  return piece.repeat(Math.max(0, times));
}

type Method = (self: string, args: readonly Value[], named: Named) => Value;

const METHODS: Record<string, Method> = {
  upper: (self) => self.toUpperCase(),
  lower: (self) => self.toLowerCase(),
  strip: (self, [chars]) => stripped(self, chars, "both"),
  lstrip: (self, [chars]) => stripped(self, chars, "left"),
  rstrip: (self, [chars]) => stripped(self, chars, "right"),
  title: (self) => self.toLowerCase().replace(/\p{L}+/gu, capitalized),
  capitalize: capitalized,
  swapcase: (self) => self.replace(/\p{L}/gu, (c) => c === c.toLowerCase() ? c.toUpperCase() : c.toLowerCase()),
  startswith: (self, [start]) => anyOf(start, "startswith").some((each) => self.startsWith(each)),
  endswith: (self, [end]) => anyOf(end, "endswith").some((each) => self.endsWith(each)),
  split: (self, args, named) => split(self, args[0] ?? named.get("sep"), whole(args[1] ?? named.get("maxsplit"), -1)),
  rsplit: (self, args, named) => rsplit(self, args[0] ?? named.get("sep"), whole(args[1] ?? named.get("maxsplit"), -1)),
  splitlines: (self, [keep]) => lines(self, keep === true),
  replace: (self, args, named) =>
    replace(self, string(args[0]), string(args[1]), whole(args[2] ?? named.get("count"), -1)),
  find: (self, [part]) => codePoints(self, self.indexOf(string(part))),
  rfind: (self, [part]) => codePoints(self, self.lastIndexOf(string(part))),
  index: (self, [part]) => found(codePoints(self, self.indexOf(string(part)))),
  rindex: (self, [part]) => found(codePoints(self, self.lastIndexOf(string(part)))),
  count: (self, [part]) => string(part) === "" ? Array.from(self).length + 1 : self.split(string(part)).length - 1,
  join: (self, [items]) => iterate(items).map((item) => string(item)).join(self),
  format: (self, args, named) => braces(self, args, named),
  isdigit: (self) => /^\p{Nd}+$/u.test(self),
  isnumeric: (self) => /^\p{N}+$/u.test(self),
  isdecimal: (self) => /^\p{Nd}+$/u.test(self),
  isalpha: (self) => /^\p{L}+$/u.test(self),
  isalnum: (self) => /^[\p{L}\p{N}]+$/u.test(self),
  isspace: (self) => /^\s+$/u.test(self),
  isupper: (self) => /\p{Lu}/u.test(self) && !/\p{Ll}/u.test(self),
  islower: (self) => /\p{Ll}/u.test(self) && !/\p{Lu}/u.test(self),
  zfill: (self, [width]) => {
    const sign = /^[-+]/.exec(self)?.[0] ?? "";
    return sign + repeated("0", whole(width, 0) - self.length) + self.slice(sign.length);
  },
  ljust: (self, [width, fill]) =>
    self + repeated(fill === undefined ? " " : string(fill), whole(width, 0) - self.length),
  rjust: (self, [width, fill]) =>
    repeated(fill === undefined ? " " : string(fill), whole(width, 0) - self.length) + self,
  center: (self, [width, fill]) => centred(self, whole(width, 0), fill === undefined ? " " : string(fill)),
  partition: (self, [at]) => parted(self, string(at), self.indexOf(string(at)), false),
  rpartition: (self, [at]) => parted(self, string(at), self.lastIndexOf(string(at)), true),
  removeprefix: (self, [start]) => self.startsWith(string(start)) ? self.slice(string(start).length) : self,
  removesuffix: (self, [end]) =>
    string(end) !== "" && self.endsWith(string(end)) ? self.slice(0, -string(end).length) : self,
};

/** A method bound to its string; undefined where strings have none of that name. */
export function stringMethod(self: string, name: string): Callable | undefined {
  if (!Object.hasOwn(METHODS, name)) return undefined;
  return new Callable(name, (args, named) => METHODS[name](self, args, named));
}

/** A string, or Python's TypeError. */
export function string(value: Value | undefined): string {
  if (typeof value === "string") return value;
  throw new TemplateError(`expected str, got ${value === undefined ? "nothing" : typeName(value)}`);
}

/** An int, or `otherwise` where there is none. */
export function whole(value: Value | undefined, otherwise: number): number {
  if (value === undefined || value === null) return otherwise;
  if (typeof value === "number" || typeof value === "boolean") return Number(value);
  throw new TemplateError(`'${typeName(value)}' object cannot be interpreted as an integer`);
}

export function capitalized(word: string): string {
  const [first = "", ...rest] = word;
  return first.toUpperCase() + rest.join("").toLowerCase();
}

export function centred(self: string, width: number, fill = " "): string {
  const missing = width - Array.from(self).length;
  if (missing <= 0) return self;
  const left = Math.floor(missing / 2) + (missing & width & 1);
  return repeated(fill, left) + self + repeated(fill, missing - left);
}

export function stripped(self: string, chars: Value | undefined, side: "both" | "left" | "right"): string {
  const isGone = chars === undefined || chars === null
    ? (c: string) => /\s/u.test(c)
    : ((set) => (c: string) => set.has(c))(new Set(Array.from(string(chars))));
  const all = Array.from(self);
  let from = 0, to = all.length;
  if (side !== "right") { while (from < to && isGone(all[from])) from++; }
  if (side !== "left") { while (to > from && isGone(all[to - 1])) to--; }
  return all.slice(from, to).join("");
}

function anyOf(value: Value | undefined, method: string): string[] {
  if (typeof value === "string") return [value];
  if (value instanceof Tuple) return value.items.map(string);
  throw new TemplateError(`${method} first arg must be str or a tuple of str, not ${typeName(value ?? null)}`);
}

function split(self: string, separator: Value | undefined, most: number): string[] {
  if (separator === undefined || separator === null) return words(self, most);
  const at = string(separator);
  if (at === "") throw new TemplateError("empty separator");
  const parts = self.split(at);
  return most < 0 || parts.length <= most ? parts : [...parts.slice(0, most), parts.slice(most).join(at)];
}

function words(self: string, most: number): string[] {
  const parts: string[] = [];
  let rest = self.trimStart();
  while (rest !== "") {
    const end = rest.search(/\s/u);
    if (end < 0 || (most >= 0 && parts.length >= most)) return [...parts, rest];
    parts.push(rest.slice(0, end));
    rest = rest.slice(end).trimStart();
  }
  return parts;
}

function rsplit(self: string, separator: Value | undefined, most: number): string[] {
  if (separator === undefined || separator === null) {
    const parts = words(self, -1);
    if (most < 0 || parts.length <= most) return parts;
    let rest = self.trimEnd();
    const tail: string[] = [];
    for (let i = 0; i < most; i++) {
      const word = /\S+$/u.exec(rest)![0];
      tail.unshift(word);
      rest = rest.slice(0, -word.length).trimEnd();
    }
    return [rest, ...tail];
  }
  const at = string(separator), parts = split(self, separator, -1);
  const head = parts.length - 1 - most;
  return most < 0 || head <= 0 ? parts : [parts.slice(0, head + 1).join(at), ...parts.slice(head + 1)];
}

function lines(self: string, keep: boolean): string[] {
  const parts = self.match(/[^\n\r]*(?:\r\n|\n|\r)|[^\n\r]+$/g) ?? [];
  return keep ? [...parts] : parts.map((line) => line.replace(/[\r\n]+$/, ""));
}

export function replace(self: string, from: string, to: string, most: number): string {
  if (most < 0) {
    return self.split(from === "" ? /(?:)/u : from).join(to).replace(/^/, from === "" ? to : "") +
      (from === "" ? to : "");
  }
  const parts = self.split(from);
  const head = parts.slice(0, most + 1).join(to);
  return [head, ...parts.slice(most + 1)].join(from);
}

function codePoints(self: string, at: number): number {
  return at < 0 ? at : Array.from(self.slice(0, at)).length;
}

function found(at: number): number {
  if (at < 0) throw new TemplateError("substring not found");
  return at;
}

function parted(self: string, by: string, at: number, last: boolean): Tuple {
  if (at < 0) return new Tuple(last ? ["", "", self] : [self, "", ""]);
  return new Tuple([self.slice(0, at), by, self.slice(at + by.length)]);
}

/** `str.format` with plain fields: `{}`, `{0}`, `{name}`, `{:>8}`, `{:.2f}`. */
function braces(self: string, args: readonly Value[], named: Named): string {
  let next = 0;
  return self.replace(/\{\{|\}\}|\{([^{}:!]*)(?:!([rs]))?(?::([^{}]*))?\}/g, (whole, field, conversion, spec) => {
    if (whole === "{{" || whole === "}}") return whole[0];
    const value = field === "" ? args[next++] : /^\d+$/.test(field) ? args[Number(field)] : named.get(field);
    if (value === undefined) throw new TemplateError(`format() has no value for {${field}}`);
    return formatted(conversion === "r" ? repr(value) : value, spec ?? "");
  });
}

function formatted(value: Value, spec: string): string {
  const parts = /^(?:(.)?([<>^]))?(0)?(\d+)?(?:\.(\d+))?([sdf])?$/su.exec(spec);
  if (!parts) throw new TemplateError(`format() can't do {:${spec}}`);
  const [, fill = " ", align, zero, width = "0", precision, type] = parts;
  const body = type === "f" || (precision !== undefined && typeof value !== "string")
    ? fixed(numeric(value) ?? NaN, Number(precision ?? 6))
    : text(value).slice(0, precision === undefined ? undefined : Number(precision));
  const missing = Number(width) - Array.from(body).length;
  if (missing <= 0) return body;
  if (zero && align === undefined) return repeated("0", missing) + body;
  if (align === "^") return centred(body, Number(width), fill);
  const right = align === ">" || (align === undefined && numeric(value) !== undefined);
  return right ? repeated(fill, missing) + body : body + repeated(fill, missing);
}

/** `toFixed`, but an exact half goes to the even digit, as in Python. */
function fixed(value: number, digits: number): string {
  const exact = Math.abs(value).toFixed(Math.min(100, digits + 40));
  const cut = exact.length - Math.min(100 - digits, 40);
  const half = /^50*$/.test(exact.slice(cut));
  const last = exact.slice(0, cut).replace(/\.$/, "").at(-1);
  if (!half || Number(last) % 2 === 1) return value.toFixed(digits);
  return (value < 0 ? "-" : "") + exact.slice(0, cut).replace(/\.$/, "");
}

/** `format % values`. */
export function percent(format: string, values: Value): string {
  const items = values instanceof Tuple ? values.items : [values];
  let next = 0;
  const out = format.replace(
    /%(?:\((\w+)\))?(0)?(\d+)?(?:\.(\d+))?([sdrif%])/g,
    (_, key, zero, width, precision, type) => {
      if (type === "%") return "%";
      const value = key === undefined ? items[next++] : values instanceof Map ? values.get(key) : undefined;
      if (value === undefined) throw new TemplateError("not enough arguments for format string");
      let body = type === "r" ? repr(value) : text(value);
      if (type === "f") body = fixed(numeric(value) ?? NaN, Number(precision ?? 6));
      if (type === "d" || type === "i") body = String(Math.trunc(numeric(value) ?? NaN));
      return body.padStart(Math.min(Number(width ?? 0), 10_000), zero ? "0" : " ");
    },
  );
  if (values instanceof Tuple && next < items.length) {
    throw new TemplateError("not all arguments converted during string formatting");
  }
  return out;
}
