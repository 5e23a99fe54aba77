/** `palisade config show`: what files and variables say, and where each value of a command comes from. */
import { PalisadeError } from "../../core/errors.ts";
import { adviceFor, nearestName } from "../../core/policy/nearest_name.ts";
import { type Command, command, type CommandBody, leaves } from "../command.ts";
import { EXIT, type Io } from "../io.ts";
import type { ShownConfig, ShownSetting } from "../json/outputs.ts";
import { JSON_SWITCH, printJson } from "../json/print.ts";
import { allCommands } from "../list.ts";
import { flagOf, type OptionSpec, type Values } from "../options.ts";
import { withCommon } from "../parse.ts";
import { tableText } from "../print/table.ts";
import { type SettingsFile, settingsFiles, userFolder } from "../settings/files.ts";
import { checkKeys } from "../settings/keys.ts";
import { Conflict, type Setting, settleFrom } from "../settings/settle.ts";
import { OTHER_VARIABLES, variablesOf } from "../settings/variables.ts";

/** `palisade config`. */
export const configCommand: CommandBody = {
  options: {},
  members: [
    command({
      name: "show",
      argument: "[command...]",
      summary: "what is set where; of a command: each value, and where from",
      words: async () => [...new Set(leaves(await allCommands()).flatMap(({ name }) => name.split(" ")))],
      options: JSON_SWITCH,
      notes: [
        "Strongest first: the line, variables (PALISADE_KEEP, PALISADE_ASK_KEEP), the",
        "project's palisade.toml or palisade.json, the user's, the default.",
      ],
      run: show,
    }),
  ],
};

async function show(
  { json, config }: Values<typeof JSON_SWITCH> & { readonly config?: string },
  io: Io,
  words: readonly string[],
): Promise<number> {
  const all = leaves(await allCommands()).map(withCommon), files = await settingsFiles(config, io);
  for (const file of files) await checkKeys(file, all[0], () => Promise.resolve(all));
  const one = words.length === 0 ? undefined : named(words.join(" "), all);
  const shown: ShownConfig = {
    files: files.map(({ level, path }) => ({ level, path })),
    userFolder: userFolder(io),
    settings: one ? settingsOf(one, files, io) : all.flatMap((each) => settingsOf(each, files, io).filter(isSet)),
    unknownVariables: unknownVariables(all, io),
  };
  if (json) printJson(io, "config show", shown);
  else io.out(shownText(shown, one !== undefined));
  return EXIT.ok;
}

/** @throws PalisadeError usage `config.command`. */
function named(name: string, all: readonly Command[]): Command {
  const found = all.find((each) => each.name === name);
  if (found) return found;
  const names = all.map((each) => each.name), advice = adviceFor(name, names, `want one of ${names.join(", ")}`);
  throw new PalisadeError("usage", "config.command", `There is no command ${name}: ${advice}`, { where: "command" });
}

function isSet({ from }: ShownSetting): boolean {
  return from !== "default";
}

/** Every option of a command, as it would be without a word on its line. */
function settingsOf(of: Command, files: readonly SettingsFile[], io: Io): ShownSetting[] {
  const settled = settledOrSaid(of, files, io);
  return Object.entries(of.options).map(([name, spec]) => {
    const { value, level, place } = settled.get(name) ?? defaultOf(spec);
    return { command: of.name, option: flagOf(name), value: hidden(spec, value), from: level, place: place || null };
  });
}

/** @throws PalisadeError usage `settings.conflict` for two of one level. */
function settledOrSaid(of: Command, files: readonly SettingsFile[], io: Io) {
  try {
    return settleFrom(of, {}, files, io);
  } catch (error) {
    if (!(error instanceof Conflict)) throw error;
    const [one, other] = error.pair.map((name, i) => `${flagOf(name)} (${error.places[i]})`);
    throw new PalisadeError("usage", "settings.conflict", `${one} cannot be used with ${other}`, {
      where: error.places[0],
    });
  }
}

function defaultOf({ preset, shown = preset, value }: OptionSpec): Setting {
  return { value: shown ?? (value === undefined ? false : null), level: "default", place: "" };
}

/** Some values are nobody else's to see. */
function hidden({ secret }: OptionSpec, value: unknown): unknown {
  return secret && value !== null ? "(not shown)" : value;
}

function unknownVariables(all: readonly Command[], { variables }: Io): ShownConfig["unknownVariables"] {
  const known = new Set(OTHER_VARIABLES);
  for (const { name: of, options } of all) {
    for (const [name, spec] of Object.entries(options)) for (const each of variablesOf(of, name, spec)) known.add(each);
  }
  const unknown = variables.filter((name) => name.startsWith("PALISADE_") && !known.has(name)).sort();
  return unknown.map((name) => ({ name, near: nearestName(name, known) ?? null }));
}

function shownText(
  { files, userFolder: user, settings, unknownVariables: unknown }: ShownConfig,
  one: boolean,
): string {
  const said = files.map(({ level, path }) => `${level}: ${path}\n`).join("") ||
    `No file of settings, neither here nor in ${user}\n`;
  const odd = unknown.map(({ name, near }) =>
    `${name} sets nothing${near === null ? "" : `: did you mean ${near}?`}\n`
  );
  if (settings.length === 0) {
    return `${said}Nothing is set: palisade config show COMMAND lists what can be\n${odd.join("")}`;
  }
  const rows = one
    ? settings.map(({ option, value, from, place }) => [option, textOf(value), place ?? from])
    : byPlace(settings).map((
      [first, commands],
    ) => [first.option, textOf(first.value), first.place!, commands.join(", ")]);
  const head = one ? ["option", "value", "from"] : ["option", "value", "from", "for"];
  return `${said}${tableText(head, rows)}\n${odd.join("")}`;
}

/** A setting that holds for many commands is one row. */
function byPlace(settings: readonly ShownSetting[]): [ShownSetting, string[]][] {
  const rows = new Map<string, [ShownSetting, string[]]>();
  for (const each of settings) {
    const key = `${each.option} ${each.place}`, row = rows.get(key);
    if (row) row[1].push(each.command);
    else rows.set(key, [each, [each.command]]);
  }
  return [...rows.values()];
}

function textOf(value: unknown): string {
  return value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
}
