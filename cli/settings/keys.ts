/** Keys of files of settings: options by their names, `max-cache`, for all commands or below one, `[models-list]`. */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import { adviceFor } from "../../core/policy/nearest_name.ts";
import type { Command } from "../command.ts";
import { keyOf, type OptionSpec } from "../options.ts";
import { isSection, type SettingsFile } from "./files.ts";
import type { Found } from "./settle.ts";

/** For editors, which find out by it what may stand in a JSON file. */
const IGNORED = new Set(["$schema"]);

/** `models list` as a section is called. */
export function sectionOf(command: string): string {
  return command.replaceAll(" ", "-");
}

/** What a file says of an option: below the command first. */
export function inFile(file: SettingsFile, command: string, name: string, spec: OptionSpec): Found | undefined {
  const { content, path, folder } = file, section = sectionOf(command), key = keyOf(name);
  const own = content[section];
  if (isSection(own) && Object.hasOwn(own, key)) {
    return { raw: own[key], place: `${path}, [${section}] ${key}`, folder };
  }
  if (spec.own || !Object.hasOwn(content, key)) return undefined;
  return { raw: content[key], place: `${path}, ${key}`, folder };
}

/**
 * Refuses keys that no command has. Other commands are loaded only where a key is not one of this one's; `everything`
 * gives all of them, members of groups by `GROUP MEMBER`.
 * @throws PalisadeError input `settings.key`, `settings.own`, `settings.personal`.
 */
export async function checkKeys(
  file: SettingsFile,
  command: Command,
  everything: () => Promise<readonly Command[]>,
): Promise<void> {
  const foreign = Object.entries(file.content).filter(([key, value]) =>
    !IGNORED.has(key) && !(isSection(value) ? sectionOf(command.name) === key : isOf(command, key))
  );
  const known = foreign.length === 0 ? [command] : await everything();
  for (const [key, value] of Object.entries(file.content)) {
    if (IGNORED.has(key)) continue;
    if (isSection(value)) checkSection(file, key, value, known);
    else checkKey(file, key, known);
  }
}

function isOf({ options }: Command, key: string): boolean {
  return Object.entries(options).some(([name, { own }]) => keyOf(name) === key && !own);
}

function checkSection(file: SettingsFile, key: string, section: Record<string, unknown>, known: readonly Command[]) {
  const command = known.find(({ name }) => sectionOf(name) === key);
  if (!command) throw unknown(file, `[${key}]`, key, known.map(({ name }) => sectionOf(name)), "command");
  for (const name of Object.keys(section)) {
    const spec = optionsOf([command]).get(name);
    if (!spec) throw unknown(file, `[${key}] ${name}`, name, optionsOf([command]).keys(), "setting");
    refusePersonal(file, `[${key}] ${name}`, spec);
  }
}

function checkKey(file: SettingsFile, key: string, known: readonly Command[]): void {
  const having = known.filter(({ options }) => Object.keys(options).some((name) => keyOf(name) === key));
  if (having.length === 0) {
    throw unknown(file, key, key, [...optionsOf(known).keys(), ...known.map(({ name }) => sectionOf(name))], "setting");
  }
  refusePersonal(file, key, optionsOf(having).get(key)!);
  if (having.some((command) => isOf(command, key))) return;
  const places = having.map(({ name }) => `[${sectionOf(name)}]`).join(", ");
  const message = `${file.path}: ${key} means something else in every command; put it below ${places}`;
  throw inputError("settings.own", message, file.path);
}

function optionsOf(commands: readonly Command[]): Map<string, OptionSpec> {
  return new Map(
    commands.flatMap(({ options }) => Object.entries(options).map(([name, spec]) => [keyOf(name), spec] as const)),
  );
}

/** What a project's file may not say. One that is named by the user is the user's. */
function refusePersonal({ level, path, named }: SettingsFile, key: string, { personal }: OptionSpec): void {
  if (!personal || level !== "project" || named) return;
  const message = `${path}: a project's file can't set ${key}, which is for you alone to say; put it into your own ` +
    `file, or name this one by --config`;
  throw inputError("settings.personal", message, path);
}

function unknown(
  { path }: SettingsFile,
  key: string,
  word: string,
  words: Iterable<string>,
  what: "command" | "setting",
): PalisadeError {
  const advice = adviceFor(word, words, "palisade config show lists what there is");
  return inputError("settings.key", `${path}: unknown ${what} ${key}; ${advice}`, path);
}
