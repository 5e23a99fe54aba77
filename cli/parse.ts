/** From tables of options to a parser with help: the one place that knows the library which parses. */
import { Command as Parser, CommanderError, InvalidArgumentError, Option } from "commander";
import { PalisadeError } from "../core/errors.ts";
import { type Command, leaves } from "./command.ts";
import { EXIT, EXIT_CODES, type Io } from "./io.ts";
import type { FailureText } from "./json/outputs.ts";
import { flagOf, isSwitch, type OptionSpec, type OptionTable } from "./options.ts";
import { COLOUR_CHOICES, withColours } from "./print/colour.ts";
import { Conflict, settle, type Settled } from "./settings/settle.ts";

/** Help with the options that `--help` leaves out to fit a screen. */
export const HELP_ALL = "--help-all";

/** What every command can be told besides. */
export const COMMON = {
  color: {
    value: "when",
    help: "colours",
    choices: COLOUR_CHOICES,
    preset: "auto",
    rare: true,
    more: "colours; `auto`: where a terminal has them, unless `NO_COLOR` or `FORCE_COLOR` says otherwise",
  },
  config: {
    value: "file",
    help: "settings from this file, or none",
    rare: true,
    own: true,
    more:
      "settings from this file instead of the `palisade.toml` or `palisade.json` that is found; `none`: from no file",
  },
} satisfies OptionTable;

/** A command with the options that all have. */
export function withCommon(command: Command): Command {
  return { ...command, options: { ...COMMON, ...command.options } };
}

/** How a parser is run. */
export interface Extent {
  /** Help shows rare options too. */
  readonly all: boolean;
  /** Gets the exit code. */
  readonly done: (code: number) => void;
  /** Gets what the command is told, and who says so, before it runs. */
  readonly onSettled?: (settled: Settled) => void;
}

export interface ParserOptions extends Extent {
  readonly version: string;
  readonly summary: string;
  /** Lines under the list of commands. */
  readonly notes: string;
  readonly io: Io;
  /** Every command with its options, for keys of files that are not of the one that runs. */
  readonly everything: () => Promise<readonly Command[]>;
}

/** A parser of `commands`, which runs the one that is named. */
export function parserOf(commands: readonly Command[], options: ParserOptions): Parser {
  const { io } = options;
  const program = new Parser("palisade")
    .description(options.summary)
    .version(options.version)
    .helpCommand(false)
    // Who reads this has found it.
    .addHelpOption(new Option("-h, --help").hideHelp())
    .addHelpText("after", options.notes);
  // The notes say it, in a line less.
  for (const option of program.options) option.hideHelp();
  // Commands made from here on inherit these.
  program.exitOverride()
    .configureOutput({
      // Help has colours and no texts of others.
      writeOut: io.paint,
      writeErr: io.err,
      getOutHasColors: () => io.styles.out.depth !== "none",
      getErrHasColors: () => io.styles.err.depth !== "none",
      getOutHelpWidth: () => 80,
      getErrHelpWidth: () => 80,
      outputError: (text, write) => write(text.replace(/^error: /, "palisade: ")),
    })
    .configureHelp({
      optionDescription: describe,
      styleTitle: (text) => io.styles.out.heading(text),
      styleOptionTerm: (text) => io.styles.out.good(text),
      styleSubcommandTerm: (text) => io.styles.out.good(text),
    })
    .showHelpAfterError("(--help lists what can be said here)");
  program.hook("preAction", (_, command) => refuseUndecodable(command));
  for (const command of commands) add(program, command, options);
  return program;
}

/** The exit code where the parser itself ended the run, its message printed; help is not a failure. */
export function parserExit(error: unknown): number | undefined {
  if (!(error instanceof CommanderError)) return undefined;
  return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
}

/** What the parser refused, for programs; undefined for anything else. */
export function parserRefusal(error: unknown): FailureText | undefined {
  if (!(error instanceof CommanderError)) return undefined;
  const code = error.code.replace("commander.", "").replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const message = error.message.replace(/^error: /, "").split("\n")[0];
  const [where = ""] = /(?<=')--[a-z-]+/.exec(message) ?? [];
  return { kind: "usage", code: `line.${code}`, where, message };
}

function add(to: Parser, command: Command, options: ParserOptions, group = ""): void {
  const parser = to.command(command.name, { hidden: command.rare }).description(command.summary);
  if (command.argument !== undefined) parser.argument(command.argument);
  const full = command.members ? command : withCommon(command);
  for (const [name, spec] of Object.entries(full.options)) addOption(parser, name, spec, options.all);
  if (Object.values(command.options).some(({ rare }) => rare)) {
    parser.addHelpOption(new Option("-h, --help").hideHelp());
  }
  for (const note of notesOf(command, options.all)) parser.addHelpText("after", note);
  if (command.members) parser.helpCommand(false);
  for (const member of command.members ?? []) add(parser, member, options, `${command.name} `);
  if (command.run) {
    const named = { ...full, name: `${group}${command.name}` };
    parser.action(async () => {
      const settled = await settledOf(named, parser, options);
      options.onSettled?.(settled);
      const { color, ...values } = valuesOf(named, settled);
      const io = withColours(options.io, color as string);
      options.done(await command.run!({ color, ...values }, io, parser.args));
    });
  }
}

/** What the command is told, by whom. Ends the run with the parser's own refusals. */
async function settledOf(command: Command, parser: Parser, { io, everything }: ParserOptions): Promise<Settled> {
  const flags = (name: string) => parser.options.find(({ long }) => long === flagOf(name))!.flags;
  try {
    const all = async () => leaves(await everything()).map(withCommon);
    const settled = await settle(command, typedOf(command, parser), io, all);
    for (const [name, { required }] of Object.entries(command.options)) {
      if (required && !settled.has(name)) {
        parser.error(`error: required option '${flags(name)}' not specified`, {
          code: "commander.missingMandatoryOptionValue",
        });
      }
    }
    return settled;
  } catch (error) {
    if (!(error instanceof Conflict)) throw error;
    const [one, other] = error.pair.map((name, i) =>
      `option '${flags(name)}'${error.places[i] && ` (${error.places[i]})`}`
    );
    return parser.error(`error: ${one} cannot be used with ${other}`, { code: "commander.conflictingOption" });
  }
}

/** Switches may be switched off again, where a variable or a file has them on. */
function addOption(parser: Parser, name: string, spec: OptionSpec, all: boolean): void {
  const off = offFlag(name);
  if (isSwitch(spec) && off.startsWith("--no-")) parser.addOption(optionOf(name, spec, all));
  if (isSwitch(spec)) parser.addOption(new Option(off).hideHelp());
  if (!isSwitch(spec) || !off.startsWith("--no-")) parser.addOption(optionOf(name, spec, all));
}

/** `--no-quiet` for `quiet`, `--learn` for `noLearn`: the flag that switches it off. */
function offFlag(name: string): string {
  const flag = flagOf(name);
  return flag.startsWith("--no-") ? `--${flag.slice("--no-".length)}` : `--no-${flag.slice(2)}`;
}

/** What was typed, by the names of options. */
function typedOf({ options }: Command, parser: Parser): Record<string, unknown> {
  const typed: Record<string, unknown> = {};
  for (const name of Object.keys(options)) {
    const negated = /^no[A-Z]/.test(name), own = negated ? name[2].toLowerCase() + name.slice(3) : name;
    const value = parser.getOptionValue(own);
    if (value !== undefined) typed[name] = negated ? !value : value;
  }
  return typed;
}

function optionOf(name: string, spec: OptionSpec, all: boolean): Option {
  const { value, help, read, choices, preset, shown = preset, rare = false } = spec;
  const option = new Option(value === undefined ? flagOf(name) : `${flagOf(name)} <${value}>`, help);
  option.hideHelp(rare && !all);
  if (choices) option.choices(choices);
  if (read) option.argParser((text: string, before: unknown) => readBy(read, text, before));
  // For help only: the value itself is filled in afterwards, so that `read` never takes it for one that was typed.
  if (shown !== undefined) option.default(undefined, String(shown));
  return option;
}

function readBy(read: NonNullable<OptionSpec["read"]>, text: string, before: unknown): unknown {
  try {
    return read(text, before as never);
  } catch (error) {
    throw error instanceof RangeError ? new InvalidArgumentError(error.message) : error;
  }
}

/** What was said, and the presets of the rest. A switch that is off is as one that nobody named. */
function valuesOf({ options }: Command, settled: Settled): Record<string, unknown> {
  const entries = Object.entries(options).map(([name, spec]) => {
    const value = settled.has(name) ? settled.get(name)!.value : spec.preset;
    return [name, isSwitch(spec) && value === false ? undefined : value];
  });
  return Object.fromEntries(entries);
}

/** A command with rare options says where they are, and what its exit codes mean. */
function notesOf({ name, notes = [], options }: Command, all: boolean): string[] {
  if (!Object.values(options).some(({ rare }) => rare)) return [...notes];
  return [...notes, all ? EXIT_CODES : `More options: palisade ${name} ${HELP_ALL}\n${EXIT_CODES}`];
}

/** Description, allowed words and default, short enough for one line each. */
function describe({ description, argChoices, defaultValueDescription }: Option): string {
  const choices = argChoices ? `: ${argChoices.join(", ")}` : "";
  return `${description}${choices}${defaultValueDescription === undefined ? "" : ` [${defaultValueDescription}]`}`;
}

/**
 * Values that no file name, no text and no number can have: they would fail somewhere deep below.
 * @throws PalisadeError usage `option.text`, naming the option.
 */
function refuseUndecodable(command: Parser): void {
  const values = [
    ...command.options.map((option) => [option.long ?? option.flags, command.getOptionValue(option.attributeName())]),
    ...command.registeredArguments.map((argument, i) => [`<${argument.name()}>`, command.processedArgs[i]]),
  ];
  for (const [name, value] of values) {
    for (const text of [value].flat()) {
      if (typeof text !== "string" || (text.isWellFormed() && !text.includes("\0"))) continue;
      const what = text.includes("\0") ? "a NUL character" : "half a surrogate pair";
      throw new PalisadeError("usage", "option.text", `Can't read the value of ${name}: it has ${what} in it`, {
        where: String(name),
      });
    }
  }
}
