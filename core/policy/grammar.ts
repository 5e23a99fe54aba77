/**
 * The little language of policies:
 *
 *     policy   = name [ "@reference" ] [ "(" [ argument { "," argument } ] ")" ]
 *     argument = name "=" value | policy
 *     name     = letters, digits and "-"
 *     value    = letters, digits, "-", "+", ".", "%" and, for file names, "_", "/", "\\", ":" and "~";
 *                or anything in quotation marks, with \" and \\ for themselves: `file="my, scores.json"`
 *
 * Blanks may stand between any two parts. Examples: `snapkv`, `layer-defensive@reference`, `snapkv(window=16)`,
 * `adakv(snapkv(kernel=7), safeguard=0.3)`.
 */
import { inputError, option, type PalisadeError } from "../errors.ts";
import type { PolicyMode } from "./policy.ts";

/** A parsed policy; `at` is the character it starts at, counted from 1. */
export interface PolicyText {
  readonly name: string;
  readonly at: number;
  /** `reference` only where the text says so. */
  readonly mode?: PolicyMode;
  readonly scorer?: PolicyText;
  readonly settings: readonly Setting[];
}

export interface Setting {
  readonly name: string;
  readonly value: string;
  readonly at: number;
}

/** Longest text that is read; the longest sensible one has about 200 characters. */
const MAX_TEXT = 1000;
/** Deepest nesting of policies. */
const MAX_DEPTH = 8;

/** An input error about `text` that points at a character. */
export function policyError(code: string, message: string, text: string, at: number): PalisadeError {
  return inputError(code, `${message} (character ${at} of "${text}")`, option("policy"));
}

/**
 * Parses one policy and nothing after it.
 * @throws PalisadeError `policy.syntax`.
 */
export function parsePolicy(text: string): PolicyText {
  if (text.length > MAX_TEXT) {
    throw inputError(
      "policy.syntax",
      `A policy of ${text.length} characters: want at most ${MAX_TEXT}`,
      option("policy"),
    );
  }
  const parser = new Parser(text);
  const policy = parser.policy(0);
  parser.end();
  return policy;
}

class Parser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  policy(depth: number): PolicyText {
    if (depth === MAX_DEPTH) throw this.#error(`want at most ${MAX_DEPTH} policies inside each other`);
    this.#blanks();
    const at = this.#at + 1;
    const name = this.#word(/[A-Za-z0-9-]+/y, "the name of a policy");
    return { name, at, ...this.#rest(depth) };
  }

  end(): void {
    this.#blanks();
    if (this.#at < this.#text.length) throw this.#error("want nothing more here");
  }

  /** What may follow a policy's name. */
  #rest(depth: number): Pick<PolicyText, "mode" | "scorer" | "settings"> {
    const mode = this.#mode();
    const settings: Setting[] = [];
    let scorer: PolicyText | undefined;
    if (this.#take("(") && !this.#take(")")) {
      do {
        this.#blanks();
        const start = this.#at;
        const name = this.#word(/[A-Za-z0-9-]+/y, "a parameter or a policy");
        if (this.#take("=")) {
          settings.push({ name, at: start + 1, value: this.#value(name) });
        } else {
          this.#at = start;
          if (scorer) throw this.#error("want one policy inside, not two");
          scorer = this.policy(depth + 1);
        }
      } while (this.#take(","));
      if (!this.#take(")")) throw this.#error('want "," or ")"');
    }
    return { mode, scorer, settings };
  }

  #mode(): PolicyMode | undefined {
    if (!this.#take("@")) return undefined;
    const start = this.#at;
    if (this.#word(/[A-Za-z]+/y, '"reference"') === "reference") return "reference";
    this.#at = start;
    throw this.#error('want "reference" after "@"');
  }

  #value(name: string): string {
    this.#blanks();
    if (this.#text[this.#at] !== '"') return this.#word(/[A-Za-z0-9.+_\/\\:~%-]+/y, `a value for ${name}`);
    const quoted = this.#word(/"(?:\\["\\]|[^"])*"/y, `the end of the quotation of ${name}`);
    return quoted.slice(1, -1).replace(/\\(["\\])/g, "$1");
  }

  #word(pattern: RegExp, wanted: string): string {
    this.#blanks();
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (!match) throw this.#error(`want ${wanted}`);
    this.#at += match[0].length;
    return match[0];
  }

  #take(mark: string): boolean {
    this.#blanks();
    if (this.#text[this.#at] !== mark) return false;
    this.#at++;
    return true;
  }

  #blanks(): void {
    while (this.#text[this.#at] === " ") this.#at++;
  }

  #error(wanted: string): PalisadeError {
    return policyError("policy.syntax", `Cannot read the policy: ${wanted}`, this.#text, this.#at + 1);
  }
}
