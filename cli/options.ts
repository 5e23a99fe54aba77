/** Tables of options: what a command can be told. Each command has one; `parse.ts` makes the grammar and the help of it. */

/** A word that completion offers, alone or with what it means. */
export type Word = string | readonly [word: string, about: string];
/** Words that the program knows. */
export type Words = () => readonly Word[] | Promise<readonly Word[]>;
/** What only the machine knows: models that were fetched, snapshots that are kept; and what stands in a policy's brackets. */
export type Here = "models" | "snapshots" | "policies";

/** One option. Its flag is its key in the table: `maxCache` is `--max-cache`. */
export interface OptionSpec {
  /** What help calls the value, e.g. `file`. Without one the option is a switch. */
  readonly value?: string;
  /** One line of help; choices and default are added to it. */
  readonly help: string;
  /** The value of a text. `before`: what the same option gave earlier in the line. A RangeError says what is wanted. */
  readonly read?: (text: string, before?: never) => unknown;
  /** The only texts allowed. */
  readonly choices?: readonly string[];
  /** What the command gets when nothing is said. */
  readonly preset?: string | number;
  /** What help prints as the default where the command gets `undefined`, and the library fills it in. */
  readonly shown?: string | number;
  readonly required?: true;
  /** Only `--help-all` shows it, so that help fits a screen. */
  readonly rare?: true;
  /** Options that it can't stand beside. */
  readonly conflicts?: readonly string[];
  /** What docs/cli.md and the man pages say instead of `help`, where there is more room. */
  readonly more?: string;
  /** What completion offers besides the choices, and files where the value is one. Those of lists go between commas. */
  readonly words?: Words;
  /** What completion asks the machine for as well. */
  readonly here?: Here;
  /** Means something else in every command: in settings it stands under its command alone, `[read] out`. */
  readonly own?: true;
  /** A project's file can't set it: where texts go and what secrets open is for the user to say. */
  readonly personal?: true;
  /** `palisade config show` doesn't print it. */
  readonly secret?: true;
}

/** Options by their names in the program, in the order of help. */
export type OptionTable = Readonly<Record<string, OptionSpec>>;

/** What one option gives. */
type ValueOf<Spec> = Spec extends { read: (text: string, before?: never) => infer Value } ? Value
  : Spec extends { choices: readonly (infer Choice)[] } ? Choice
  : Spec extends { value: string } ? string
  : boolean;

/** What a command gets of its table. */
export type Values<Table> = {
  readonly [Name in keyof Table]:
    | ValueOf<Table[Name]>
    | (Table[Name] extends { required: true } | { preset: string | number } ? never : undefined);
};

/** `maxCache` as it is typed: `--max-cache`. */
export function flagOf(name: string): string {
  return `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/** `maxCache` as it is called in settings: `max-cache`. */
export function keyOf(name: string): string {
  return flagOf(name).slice(2);
}

/** An option without a value. */
export function isSwitch({ value }: OptionSpec): boolean {
  return value === undefined;
}

/** Whether the option may be said several times. */
export function isRepeatable({ read }: OptionSpec): boolean {
  return read === repeated || read === list;
}

/** Whether the value may be several, between commas. */
export function isList({ read }: OptionSpec): boolean {
  return read === list;
}

/** Whether the value may be a file. */
export function takesFile({ value = "" }: OptionSpec): boolean {
  return value.split("|").includes("file");
}

/** An option that may be repeated. */
export function repeated(text: string, before: readonly string[] = []): readonly string[] {
  return [...before, text];
}

/** A list that may be given in several options: none of them is lost. */
export function list(text: string, before?: string): string {
  return before === undefined ? text : `${before},${text}`;
}

/** A whole number. */
export function whole(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^[+-]?\d+$/.test(text) && value >= min && value <= max) return value;
    throw new RangeError(`Want a whole number from ${min} to ${max}.`);
  };
}

/** A number; `above`, `below`: the end itself is refused. */
export function number(min: number, max: number, { above = false, below = false } = {}): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const inside = value >= min && value <= max && !(above && value === min) && !(below && value === max);
    if (text.trim() !== "" && inside) return value;
    throw new RangeError(`Want a number ${above ? "above" : "from"} ${min} ${below ? "below" : "to"} ${max}.`);
  };
}

/** A share of a whole, both ends refused. */
export const share = number(0, 1, { above: true, below: true });
