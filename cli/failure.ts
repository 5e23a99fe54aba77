/** How refusals are printed: options with the dashes of the command line. */
import { PalisadeError } from "../core/errors.ts";
import { type OptionName, spoken } from "../core/options.ts";
import { flagOf } from "./options.ts";

/** What a command calls options of the library otherwise: `eval` takes a list of policies, so `policy` is `policies`. */
export type OptionNames = Readonly<Partial<Record<OptionName, string>>>;

/** What every command calls otherwise. */
const NAMES: OptionNames = { "maxCache.rule": "stepPolicy" };

/** The flag of a library's option, `--keep`. */
export function flagOfOption(name: OptionName, names: OptionNames = {}): string {
  return flagOf(names[name] ?? NAMES[name] ?? name);
}

/** The message of a failure. */
export function messageOf(error: Error, names: OptionNames = {}): string {
  return error instanceof PalisadeError ? spoken(error.said, (name) => flagOfOption(name, names)) : error.message;
}

/** One line: the place, unless the message names it, and the message. */
export function failureText(error: PalisadeError, names: OptionNames = {}): string {
  const message = messageOf(error, names);
  const where = error.option === undefined ? error.where : flagOfOption(error.option, names);
  return message.includes(where) ? message : `${where}: ${message}`;
}
