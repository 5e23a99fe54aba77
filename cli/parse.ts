/** From tables of options to a parser with help: the one place that knows the library which parses. */
import { Command as Parser, CommanderError, InvalidArgumentError, Option } from "commander";
import { PalisadeError } from "../core/errors.ts";
import type { Command } from "./command.ts";
import { EXIT, EXIT_CODES, type Io } from "./io.ts";
import { flagOf, type OptionSpec } from "./options.ts";

/** Help with the options that `--help` leaves out to fit a screen. */
export const HELP_ALL = "--help-all";

export interface ParserOptions {
  readonly version: string;
  readonly summary: string;
  /** Lines under the list of commands. */
  readonly notes: string;
  readonly io: Io;
  /** Help shows rare options too. */
  readonly all: boolean;
  /** Gets the exit code. */
  readonly done: (code: number) => void;
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
      writeOut: io.out,
      writeErr: io.err,
      getOutHelpWidth: () => 80,
      getErrHelpWidth: () => 80,
      outputError: (text, write) => write(text.replace(/^error: /, "palisade: ")),
    })
    .configureHelp({ optionDescription: describe })
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

function add(to: Parser, command: Command, options: ParserOptions): void {
  const parser = to.command(command.name).description(command.summary);
  if (command.argument !== undefined) parser.argument(command.argument);
  for (const [name, spec] of Object.entries(command.options)) parser.addOption(optionOf(name, spec, options.all));
  if (Object.values(command.options).some(({ rare }) => rare)) {
    parser.addHelpOption(new Option("-h, --help").hideHelp());
  }
  for (const note of notesOf(command, options.all)) parser.addHelpText("after", note);
  if (command.members) parser.helpCommand(false);
  for (const member of command.members ?? []) add(parser, member, options);
  if (command.run) {
    parser.action(async () => {
      options.done(await command.run!(valuesOf(command, parser), options.io, parser.args));
    });
  }
}

function optionOf(name: string, spec: OptionSpec, all: boolean): Option {
  const { value, help, read, choices, preset, shown = preset, required = false, rare = false, conflicts } = spec;
  const option = new Option(value === undefined ? flagOf(name) : `${flagOf(name)} <${value}>`, help);
  option.makeOptionMandatory(required).hideHelp(rare && !all);
  if (choices) option.choices(choices);
  if (read) option.argParser((text: string, before: unknown) => readBy(read, text, before));
  if (conflicts) option.conflicts([...conflicts]);
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

/** What was typed, and the presets of the rest. */
function valuesOf(command: Command, parser: Parser): object {
  const presets = Object.entries(command.options).map(([name, { preset }]) => [name, preset]);
  const typed = Object.entries(parser.opts()).filter(([, value]) => value !== undefined);
  return Object.fromEntries([...presets, ...typed]);
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
