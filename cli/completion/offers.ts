/** Commands and their options as scripts of completion need them: plain data, with equal lists of words kept once. */
import type { Command, CommandBody } from "../command.ts";
import {
  flagOf,
  type Here,
  isList,
  isRepeatable,
  isSwitch,
  type OptionSpec,
  type OptionTable,
  takesFile,
  type Word,
} from "../options.ts";
import { HELP_ALL, withCommon } from "../parse.ts";

/** What may stand somewhere. */
export interface Offer {
  /** What help calls it, `file`. */
  readonly value: string;
  /** Name of a list of words, in {@link Grammar.words}. */
  readonly words?: string;
  /** What the machine is asked for. */
  readonly here?: Here;
  /** Files, by what the shell has for them. */
  readonly files: boolean;
  /** Several, between commas. */
  readonly list: boolean;
}

/** An option, or a switch, which offers nothing. */
export interface OfferedOption {
  readonly flag: string;
  readonly help: string;
  readonly repeatable: boolean;
  /** Flags that it can't stand beside. */
  readonly excludes: readonly string[];
  readonly offer?: Offer;
}

/** What one command can be told. */
export interface OfferedCommand {
  /** `ask`, `models list`. */
  readonly name: string;
  readonly summary: string;
  readonly options: readonly OfferedOption[];
  readonly argument?: Offer & { readonly many: boolean };
}

/** Everything that can be typed. */
export interface Grammar {
  /** First words with their summaries; those of groups are followed by one of their members. */
  readonly first: readonly (readonly [name: string, summary: string])[];
  readonly groups: ReadonlyMap<string, readonly (readonly [name: string, summary: string])[]>;
  /** Commands that do something. */
  readonly commands: readonly OfferedCommand[];
  readonly words: ReadonlyMap<string, readonly (readonly [word: string, about: string])[]>;
}

/** Options before any command. */
export const FIRST_OPTIONS = [["--help", "what there is"], ["--version", "the version"]] as const;

/** Reads the table of all commands. */
export async function grammarOf(commands: readonly Command[]): Promise<Grammar> {
  const lists = new WordLists(), leaves: OfferedCommand[] = [], groups = new Map<string, [string, string][]>();
  for (const command of commands) {
    if (command.members) groups.set(command.name, command.members.map(({ name, summary }) => [name, summary]));
    for (const each of command.members ?? [command]) {
      const name = command.members ? `${command.name} ${each.name}` : each.name;
      leaves.push(await offeredCommand(name, each, lists));
    }
  }
  return { first: commands.map(({ name, summary }) => [name, summary]), groups, commands: leaves, words: lists.all };
}

async function offeredCommand(name: string, command: Command, lists: WordLists): Promise<OfferedCommand> {
  const table = withCommon(command).options, options: OfferedOption[] = [];
  for (const [key, spec] of Object.entries(table)) {
    options.push({
      flag: flagOf(key),
      help: spec.help,
      repeatable: isRepeatable(spec),
      excludes: opponents(key, table),
      ...(!isSwitch(spec) && { offer: await offerOf(key, spec, lists) }),
    });
  }
  const help = (flag: string, text: string) => ({ flag, help: text, repeatable: false, excludes: [] });
  options.push(help("--help", "what can be said here"));
  if (Object.values(table).some(({ rare }) => rare)) options.push(help(HELP_ALL, "all that can be said here"));
  const argument = command.argument === undefined ? {} : { argument: await argumentOf(name, command, lists) };
  return { name, summary: command.summary, options, ...argument };
}

function opponents(key: string, table: OptionTable): string[] {
  const others = Object.keys(table).filter((other) => table[other].conflicts?.includes(key));
  return [...table[key].conflicts ?? [], ...others].map(flagOf);
}

async function offerOf(key: string, spec: OptionSpec, lists: WordLists): Promise<Offer> {
  const { value = "", choices, words, here } = spec;
  const named = lists.add(key, choices ?? await words?.() ?? []);
  // A place may be a folder, and a list of models one of files.
  const files = takesFile(spec) || value === "place" || here === "models";
  return { value, ...named, ...(here && { here }), files, list: isList(spec) };
}

async function argumentOf(name: string, command: CommandBody, lists: WordLists) {
  const { argument = "", words, here, files = false } = command;
  const named = lists.add(name, await words?.() ?? []);
  const value = argument.replace(/^[<[]|(\.\.\.)?[\]>]$/g, "");
  return { value, ...named, ...(here && { here }), files, list: false, many: argument.includes("...") };
}

/** Lists of words by name: the same list has one name, however many options take it. */
class WordLists {
  readonly all = new Map<string, (readonly [string, string])[]>();

  add(name: string, words: readonly Word[]): { words?: string } {
    if (words.length === 0) return {};
    const pairs = words.map((each): readonly [string, string] => typeof each === "string" ? [each, ""] : each);
    const same = [...this.all].find(([, other]) => JSON.stringify(other) === JSON.stringify(pairs));
    if (same) return { words: same[0] };
    const base = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`).replace(/[^a-z_]/g, "_");
    let free = base;
    for (let i = 2; this.all.has(free); i++) free = `${base}_${i}`;
    this.all.set(free, pairs);
    return { words: free };
  }
}
