/**
 * Text to calibrate on when there is no other: prose, tables, lists, code, JSON and dialogue, made from a seed. Facts in
 * it are read once and may be asked for, as in real contexts, but nothing is worded like the evaluation's tasks.
 */
import { randomSource } from "../../../core/measure/random.ts";
import {
  ADJECTIVES,
  FIRST_NAMES,
  LAST_NAMES,
  NOUNS,
  PLACES,
  PROSE_PATTERNS,
  SPEECH_PATTERNS,
  TRADES,
  VERBS,
} from "./words.ts";

/** Kinds of text that calibration mixes. */
export const KINDS = ["prose", "table", "list", "code", "json", "dialogue"] as const;
/** `log` is never calibrated on: it shows how a gate does on something else. */
export type Kind = typeof KINDS[number] | "log";

/** Draws from one seed. */
export class Draw {
  readonly #next: () => number;

  constructor(seed: number) {
    this.#next = randomSource(seed);
  }

  /** A whole number from `low` to `high`. */
  number(low: number, high: number): number {
    return low + Math.floor(this.#next() * (high - low + 1));
  }

  of<T>(list: readonly T[]): T {
    return list[this.number(0, list.length - 1)];
  }

  /** `count` results of `make`. */
  times<T>(low: number, high: number, make: (i: number) => T): T[] {
    return Array.from({ length: this.number(low, high) }, (_, i) => make(i));
  }

  name(): string {
    return `${this.of(FIRST_NAMES)} ${this.of(LAST_NAMES)}`;
  }

  thing(): string {
    return `${this.of(ADJECTIVES)} ${this.of(NOUNS)}`;
  }

  date(): string {
    return `${this.number(1950, 2030)}-${two(this.number(1, 12))}-${two(this.number(1, 28))}`;
  }

  /** A pattern with its words in braces filled in. */
  fill(pattern: string): string {
    return pattern.replace(/\{(\w+)\}/g, (_, word: string) => this.#word(word));
  }

  #word(word: string): string {
    switch (word) {
      case "name":
        return this.name();
      case "first":
        return this.of(FIRST_NAMES);
      case "place":
        return this.of(PLACES);
      case "trade":
        return this.of(TRADES);
      case "thing":
        return this.thing();
      case "noun":
        return this.of(NOUNS);
      case "adjective":
        return this.of(ADJECTIVES);
      case "verb":
        return this.of(VERBS);
      case "number":
        return String(this.number(2, 99));
      case "code":
        return `${this.of(LAST_NAMES).slice(0, 2).toUpperCase()}-${this.number(100, 99999)}`;
      case "date":
        return this.date();
      default:
        throw new RangeError(`No words for {${word}}`);
    }
  }
}

function two(value: number): string {
  return String(value).padStart(2, "0");
}

/** One passage of a kind, some hundred characters. `prose`: sentences of a real text that prose begins with. */
export function passage(kind: Kind, draw: Draw, prose: readonly string[] = []): string {
  switch (kind) {
    case "prose":
      return prosePassage(draw, prose);
    case "table":
      return tablePassage(draw);
    case "list":
      return listPassage(draw);
    case "code":
      return codePassage(draw);
    case "json":
      return JSON.stringify(draw.times(2, 5, () => record(draw)), null, draw.of([0, 2, 2]));
    case "dialogue":
      return draw.times(4, 10, () => `${draw.of(FIRST_NAMES)}: ${draw.fill(draw.of(SPEECH_PATTERNS))}`).join("\n");
    case "log":
      return draw.times(5, 12, () => logLine(draw)).join("\n");
    default:
      throw new TypeError(`Unknown kind ${kind satisfies never}`);
  }
}

/** Half of it from the real text, where there is one. */
function prosePassage(draw: Draw, prose: readonly string[]): string {
  if (prose.length > 0 && draw.number(0, 1) === 0) {
    const first = draw.number(0, Math.max(0, prose.length - 6));
    return prose.slice(first, first + draw.number(3, 6)).join(" ");
  }
  return draw.times(4, 9, () => draw.fill(draw.of(PROSE_PATTERNS))).join(" ");
}

function tablePassage(draw: Draw): string {
  const columns: [string, () => string][] = [
    ["name", () => draw.name()],
    ["place", () => draw.of(PLACES)],
    ["trade", () => draw.of(TRADES)],
    ["amount", () => (draw.number(100, 99999) / 100).toFixed(2)],
    ["since", () => draw.date()],
    ["item", () => draw.thing()],
    ["room", () => String(draw.number(1, 480))],
  ];
  const first = draw.number(0, columns.length - 3), used = columns.slice(first, first + draw.number(3, 4));
  const rows = draw.times(4, 9, () => used.map(([, make]) => make()));
  const [head, marks] = [used.map(([name]) => name), used.map(() => "---")];
  if (draw.number(0, 1) === 0) return [head, ...rows].map((row) => row.join(",")).join("\n");
  return [head, marks, ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}

function listPassage(draw: Draw): string {
  const mark = draw.of(["-", "*", "#"]);
  const title = draw.fill(
    draw.of(["What {first} packed:", "To do in {place}", "Stock of the {noun} room", "Keys at the {noun} house"]),
  );
  const item = draw.of([
    () => `${draw.number(1, 40)} ${draw.thing()}s`,
    () => draw.fill("the {noun} hangs on hook {number}"),
    () => draw.fill("{verb} the {thing} before {date}"),
    () => draw.fill("{first} has the {noun} ({code})"),
  ]);
  return [title, ...draw.times(4, 10, (i) => `${mark === "#" ? `${i + 1}.` : mark} ${item()}`)].join("\n");
}

function record(draw: Draw): Record<string, unknown> {
  return {
    id: draw.number(1, 99999),
    owner: draw.name(),
    [draw.of(["item", "object", "label"])]: draw.thing(),
    at: draw.of(PLACES),
    ...(draw.number(0, 1) === 0 && { tags: draw.times(1, 3, () => draw.of(ADJECTIVES)) }),
    [draw.of(["weight", "price", "level"])]: draw.number(1, 900) / 10,
    checked: draw.number(0, 1) === 1,
  };
}

function codePassage(draw: Draw): string {
  const [verb, noun, other] = [draw.of(VERBS), draw.of(NOUNS), draw.of(NOUNS)];
  const limit = draw.number(2, 900), step = draw.number(2, 9);
  const shapes = [
    () => [
      `def ${verb}_${noun}(${other}s, limit=${limit}):`,
      `    """${draw.fill("Returns the {adjective} part of {noun}.")}"""`,
      `    total = 0`,
      `    for ${other} in ${other}s:`,
      `        if ${other}.${noun} > limit:`,
      `            total += ${other}.${noun} // ${step}`,
      `    return total`,
    ],
    () => [
      `const ${noun.toUpperCase()}_LIMIT = ${limit};`,
      ``,
      `export function ${verb}${capital(noun)}(${other}: ${capital(other)}[]): number {`,
      `  const found = ${other}.filter(({ ${noun} }) => ${noun} !== undefined);`,
      `  if (found.length > ${noun.toUpperCase()}_LIMIT) throw new Error("${draw.thing()}");`,
      `  return found.reduce((sum, each) => sum + each.${noun} * ${step}, 0);`,
      `}`,
    ],
    () => [
      `# ${draw.fill("{verb} the {thing}")}`,
      `${noun}_path=/srv/${other}/${draw.number(1, 99)}`,
      `if [ ! -d "$${noun}_path" ]; then`,
      `  mkdir -p "$${noun}_path" && cp ${other}.conf "$${noun}_path/"`,
      `fi`,
      `${verb} --${noun}=${limit} --retries ${step} "$${noun}_path"`,
    ],
  ];
  return draw.of(shapes)().join("\n");
}

function capital(word: string): string {
  return word[0].toUpperCase() + word.slice(1);
}

function logLine(draw: Draw): string {
  const hex = draw.number(0, 2 ** 31).toString(16).padStart(8, "0");
  const level = draw.of(["INFO", "WARN", "ERROR", "DEBUG"]);
  return `${draw.date()}T${two(draw.number(0, 23))}:${two(draw.number(0, 59))}:${two(draw.number(0, 59))}Z ${level} ` +
    `[${draw.of(NOUNS)}-${draw.number(0, 31)}] 0x${hex} ${draw.of(VERBS)} took ${draw.number(1, 9999)}ms rc=${
      draw.number(0, 255)
    }`;
}

/** Passages of the kinds in turn by lot until `characters` are there. */
export function mixedText(draw: Draw, kinds: readonly Kind[], characters: number, prose: readonly string[]): string {
  const parts: string[] = [];
  for (let length = 0; length < characters;) {
    const part = passage(draw.of(kinds), draw, prose);
    parts.push(part);
    length += part.length + 2;
  }
  return parts.join("\n\n");
}
