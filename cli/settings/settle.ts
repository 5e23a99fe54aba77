/**
 * What a command is told: its line first, then environment variables, the project's file, the user's file, and the
 * defaults. A setting that can't stand beside one of a higher level is as if it were not there.
 */
import type { PalisadeError } from "../../core/errors.ts";
import type { Command } from "../command.ts";
import { flagOfOption, type OptionNames } from "../failure.ts";
import type { Io } from "../io.ts";
import { flagOf, type OptionSpec, type OptionTable } from "../options.ts";
import { type SettingsFile, settingsFiles } from "./files.ts";
import { checkKeys, inFile } from "./keys.ts";
import { valueOf } from "./values.ts";
import { inVariables } from "./variables.ts";

/** Where a value comes from, the strongest first. */
export const LEVELS = ["flag", "variable", "project", "user", "default"] as const;
export type Level = typeof LEVELS[number];

/** A value and where it was set. */
export interface Setting {
  readonly value: unknown;
  readonly level: Level;
  /** For people: `PALISADE_KEEP`, `palisade.toml, [ask] keep`; empty for flags and defaults. */
  readonly place: string;
}

/** A text or number that was found, still to be read. */
export interface Found {
  readonly raw: unknown;
  readonly place: string;
  /** The folder that relative paths start from, other than the current one. */
  readonly folder?: string;
}

/** Settings by the names of options in the program; what nothing is said about is not in it. */
export type Settled = ReadonlyMap<string, Setting>;

/** What is asked for settings: a level of them. */
interface Layer {
  readonly level: Level;
  find(name: string, spec: OptionSpec): Found | undefined;
}

/** Two settings of one level that can't stand together, by their names. */
export class Conflict extends Error {
  readonly pair: readonly [string, string];
  readonly places: readonly [string, string];

  constructor(pair: readonly [string, string], places: readonly [string, string]) {
    super(`${pair.join(" and ")} conflict`);
    this.pair = pair;
    this.places = places;
  }
}

/**
 * The settings of a command: `typed` on its line, and what variables and files say. PalisadeErrors usage
 * `settings.value`, input `settings.*`. @throws Conflict
 */
export async function settle(
  command: Command,
  typed: Readonly<Record<string, unknown>>,
  io: Io,
  everything: () => Promise<readonly Command[]>,
): Promise<Settled> {
  const files = await settingsFiles(typed["config"] as string | undefined, io);
  for (const file of files) await checkKeys(file, command, everything);
  return settleFrom(command, typed, files, io);
}

/** The same of files that were read. */
export function settleFrom(
  command: Command,
  typed: Readonly<Record<string, unknown>>,
  files: readonly SettingsFile[],
  io: Io,
): Settled {
  const settled = new Map<string, Setting>();
  for (const [name, value] of Object.entries(typed)) settled.set(name, { value, level: "flag", place: "" });
  refuseConflicts(command.options, settled);
  const layers: Layer[] = [
    { level: "variable", find: (name, spec) => inVariables(command.name, name, spec, io) },
    ...files.map((file) => ({
      level: file.level,
      find: (name: string, spec: OptionSpec) => inFile(file, command.name, name, spec),
    })),
  ];
  for (const { level, find } of layers) {
    const stronger = new Set(settled.keys());
    for (const [name, spec] of Object.entries(command.options)) {
      if (stronger.has(name) || opponents(name, command.options).some((each) => stronger.has(each))) continue;
      const found = find(name, spec);
      if (found) settled.set(name, { value: valueOf(spec, found), level, place: found.place });
    }
    refuseConflicts(command.options, settled);
  }
  return settled;
}

/** Options that this one can't stand beside, whichever of them says so. */
function opponents(name: string, table: OptionTable): string[] {
  const others = Object.entries(table).filter(([, { conflicts }]) => conflicts?.includes(name)).map(([other]) => other);
  return [...table[name].conflicts ?? [], ...others];
}

/** A switch that was switched off stands beside anything. @throws Conflict */
function refuseConflicts(table: OptionTable, settled: Settled): void {
  const on = (name: string) => settled.has(name) && settled.get(name)!.value !== false;
  for (const [name, { conflicts = [] }] of Object.entries(table)) {
    const other = on(name) ? conflicts.find(on) : undefined;
    if (other === undefined) continue;
    throw new Conflict([name, other], [settled.get(name)!.place, settled.get(other)!.place]);
  }
}

/** ` (set by PALISADE_KEEP)` behind a refusal of an option that was not said on the line. */
export function originOf({ option, where }: PalisadeError, settled?: Settled, names?: OptionNames): string {
  const flag = option === undefined ? where : flagOfOption(option, names);
  for (const [name, { place }] of settled ?? []) {
    if (flagOf(name) === flag && place !== "") return ` (${flag} is set by ${place})`;
  }
  return "";
}
