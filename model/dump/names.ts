/** Which tensor of a dump is what: patterns, one for each part of a layer. */
import { dumpError } from "./tensors.ts";

/**
 * Parts of a layer. `q`, `k` after RoPE; `wo` the output projection; `hidden` the input of the attention block after its
 * norm, and `wq` the query projection; then scores that only a model can give: what the gate predicts, the attention while
 * the model repeats the context, that of soft tokens.
 */
export const PARTS = ["q", "k", "v", "wo", "hidden", "wq", "gate", "reconstruction", "softTokens"] as const;
/** One of {@link PARTS}. */
export type Part = typeof PARTS[number];

/** Names with `{layer}` where the layer's number stands; without it the tensor holds all layers, first dimension. */
export type Patterns = Readonly<Partial<Record<Part, string>>>;

function inFolder(folder: string, names: Partial<Record<Part, string>> = {}): Patterns {
  return Object.fromEntries(PARTS.map((part) => [part, folder + (names[part] ?? part)]));
}

/** What is looked for when nothing is said: the first set whose keys are there. */
const KNOWN: readonly Patterns[] = [
  inFolder("layers/{layer}/"),
  inFolder("layers.{layer}."),
  // A transformers DynamicCache by its attributes, today's and those before version 4.54.
  inFolder("layers.{layer}.", { k: "keys", v: "values", q: "queries" }),
  { k: "key_cache.{layer}", v: "value_cache.{layer}", q: "query_cache.{layer}" },
  { k: "past_key_values.{layer}.key", v: "past_key_values.{layer}.value", q: "queries.{layer}" },
  { k: "k_{layer}", v: "v_{layer}", q: "q_{layer}" },
  // All layers in one tensor.
  inFolder(""),
  { k: "keys", v: "values", q: "queries" },
];

/**
 * Patterns as typed: `k=cache.{layer}.key`.
 * @throws PalisadeError `dump.pattern`.
 */
export function parsePatterns(texts: readonly string[]): Patterns {
  const patterns: Partial<Record<Part, string>> = {};
  for (const text of texts.flatMap((each) => each.split(",")).map((each) => each.trim())) {
    const at = text.indexOf("="), part = PARTS.find((each) => each === text.slice(0, at)), name = text.slice(at + 1);
    if (!part || at < 0) refuse(text, `want PART=NAME, a part being one of ${PARTS.join(", ")}`);
    if (name === "" || name.split("{layer}").length > 2) refuse(text, "want a name with {layer} at most once");
    if (patterns[part] !== undefined) refuse(text, `${part} comes twice`);
    patterns[part] = name;
  }
  return patterns;
}

function refuse(text: string, reason: string): never {
  throw dumpError("pattern", `Can't read the pattern "${text}": ${reason}`, text);
}

/** The tensors of a layer, by name; or of all layers, where a part is one tensor. */
export interface FoundParts {
  /** Numbers of the layers, ascending without gaps; undefined where the keys of all layers are one tensor. */
  readonly layers?: readonly number[];
  /** By part: the name for each layer, or the one of all. */
  readonly names: ReadonlyMap<Part, ReadonlyMap<number, string> | string>;
}

/**
 * Finds the parts among names. What `asked` says replaces what would be looked for.
 * @throws PalisadeError `dump.names`, `dump.layers`.
 */
export function findParts(names: readonly string[], asked: Patterns, file: string): FoundParts {
  const aliases = aliasesOf(names);
  const patterns = { ...knownPatterns(aliases, asked), ...asked };
  const found = new Map<Part, ReadonlyMap<number, string> | string>();
  for (const part of PARTS) {
    const pattern = patterns[part];
    if (pattern === undefined) continue;
    const match = matching(aliases, pattern, file);
    if (match !== undefined) found.set(part, match);
    else if (asked[part] !== undefined) {
      throw dumpError("names", `There is no tensor ${pattern} in ${file}: it has ${listed(names)}`, part);
    }
  }
  const keys = found.get("k");
  if (keys === undefined && names.length === 1) return { names: new Map([["k", names[0]]]) };
  if (keys === undefined) {
    const message = `There are no keys in ${file}: it has ${listed(names)}; name them, k=PATTERN with {layer}`;
    throw dumpError("names", message, "k");
  }
  return { names: found, ...(typeof keys !== "string" && { layers: withoutGaps([...keys.keys()], file) }) };
}

function knownPatterns(aliases: Aliases, asked: Patterns): Patterns {
  return KNOWN.find((patterns) => matching(aliases, asked.k ?? patterns.k!, "") !== undefined) ?? KNOWN[0];
}

function listed(names: readonly string[]): string {
  return names.slice(0, 6).join(", ") + (names.length > 6 ? ` and ${names.length - 6} more` : "");
}

/** What a tensor may also be called: in a folder, `layer_7/k` is `layers/7/k`, and `k` of a part of a split file. */
type Aliases = ReadonlyMap<string, readonly string[]>;

function aliasesOf(names: readonly string[]): Aliases {
  return new Map(names.map((name) => {
    const slash = name.indexOf("/"), stem = name.slice(0, slash), inner = name.slice(slash + 1);
    const numbers = slash < 0 ? [] : stem.match(/\d+/g) ?? [];
    const asLayer = numbers.length === 1
      ? [`layers/${Number(numbers[0])}/${inner}`, `layers/${Number(numbers[0])}/${long(inner)}`]
      : [];
    return [name, [name, ...asLayer, ...(slash < 0 ? [] : [inner])]];
  }));
}

function long(inner: string): string {
  return { keys: "k", values: "v", queries: "q", key: "k", value: "v", query: "q" }[inner] ?? inner;
}

/** Names by layer, or the one name; undefined where there is none. */
function matching(aliases: Aliases, pattern: string, file: string): ReadonlyMap<number, string> | string | undefined {
  if (!pattern.includes("{layer}")) return nameOf(aliases, pattern);
  const [before, after] = pattern.split("{layer}"), byLayer = new Map<number, string>();
  for (const [name, all] of aliases) {
    const layer = all.map((each) => numberIn(each, before, after)).find((each) => each !== undefined);
    if (layer === undefined) continue;
    if (byLayer.has(layer)) {
      throw dumpError(
        "names",
        `${file} has ${pattern} of layer ${layer} twice: ${byLayer.get(layer)} and ${name}`,
        name,
      );
    }
    byLayer.set(layer, name);
  }
  return byLayer.size > 0 ? byLayer : undefined;
}

/** Its own name comes before what it may also be called. */
function nameOf(aliases: Aliases, name: string): string | undefined {
  return aliases.has(name) ? name : undefined;
}

function numberIn(name: string, before: string, after: string): number | undefined {
  if (!name.startsWith(before) || !name.endsWith(after) || name.length <= before.length + after.length) {
    return undefined;
  }
  const digits = name.slice(before.length, name.length - after.length);
  return /^\d{1,6}$/.test(digits) ? Number(digits) : undefined;
}

function withoutGaps(layers: number[], file: string): number[] {
  const sorted = layers.sort((a, b) => a - b);
  const gap = sorted.findIndex((layer, i) => layer !== sorted[0] + i);
  if (gap < 0) return sorted;
  const missing = sorted[gap - 1] + 1;
  throw dumpError(
    "layers",
    `Layer ${missing} is missing in ${file}: it has ${sorted[gap - 1]} and ${sorted[gap]}`,
    `${missing}`,
  );
}
