/** Runs the command that is named, and says what becomes of a failure. */
import { PalisadeError } from "../core/errors.ts";
import { DEFAULTS } from "../model/defaults.ts";
import type { Command } from "./command.ts";
import { COMPLETE } from "./completion/hook.ts";
import { failureText, flagOfOption, messageOf } from "./failure.ts";
import { EXIT, EXIT_CODES, type Io } from "./io.ts";
import type { Failure } from "./json/outputs.ts";
import { printFailure } from "./json/print.ts";
import { allCommands, COMMANDS } from "./list.ts";
import { type Extent, HELP_ALL, parserExit, parserOf, parserRefusal } from "./parse.ts";
import { withColours } from "./print/colour.ts";
import { originOf, type Settled } from "./settings/settle.ts";
import { VERSION } from "../runtime/version.ts";

/** The default budget as people write it. */
const KEEP = DEFAULTS.keep.replace("%", " %");

/** Parses `parameters` (without program and script), runs the command, and returns the exit code. Never throws. */
export async function run(parameters: readonly string[], outside: Io): Promise<number> {
  if (parameters[0] === COMPLETE) return await completeHere(parameters.slice(1), outside);
  const io = withColours(outside, askedColour(parameters));
  let code: number = EXIT.ok, settled: Settled | undefined;
  const named = await COMMANDS.find(({ name }) => name === parameters[0])?.load();
  const program = parserFor(COMMANDS.map((each) => each.name === named?.name ? named : { ...each, options: {} }), io, {
    all: parameters.includes(HELP_ALL),
    done(result) {
      code = result;
    },
    onSettled(settings) {
      settled = settings;
    },
  });
  try {
    await program.parseAsync(parameters.map((each) => each === HELP_ALL ? "--help" : each), { from: "user" });
    return code;
  } catch (error) {
    return reportFailure(error, { io, command: named, settled, json: wantsJson(parameters, settled) });
  }
}

/** The parser of all commands; `all`: help shows every option. `done` gets the exit code. */
export async function buildProgram(
  io: Io,
  all: boolean,
  done: (code: number) => void,
): Promise<ReturnType<typeof parserOf>> {
  return parserFor(await allCommands(), io, { all, done });
}

function parserFor(commands: readonly Command[], io: Io, extent: Extent): ReturnType<typeof parserOf> {
  return parserOf(commands, {
    version: VERSION,
    summary: `Reads a long text, keeps ${KEEP} of the KV cache, and answers from what is kept.`,
    notes:
      `\nExample: palisade ask --context book.txt --question "Who is Ishmael?"\nMore: palisade --version, palisade completion SHELL, palisade schema\n${EXIT_CODES}`,
    io,
    everything: allCommands,
    ...extent,
  });
}

/** What the line says of colours, before it is parsed: refusals of the parser are coloured too. */
function askedColour(parameters: readonly string[]): string | undefined {
  const at = parameters.findLastIndex((each) => /^--color(=|$)/.test(each));
  if (at < 0) return undefined;
  return parameters[at] === "--color" ? parameters[at + 1] : parameters[at].slice("--color=".length);
}

/** What completion asks the machine for: its modules are few, so that it answers at once. */
async function completeHere(asked: readonly string[], io: Io): Promise<number> {
  // As in the list of commands, so that Deno reads it when it is asked for.
  const here = import("./completion/here.ts" as string) as Promise<typeof import("./completion/here.ts")>;
  await (await here).printHere(asked, io);
  return EXIT.ok;
}

/** Before the settings are known, what the line says decides. */
function wantsJson(parameters: readonly string[], settled?: Settled): boolean {
  return settled ? settled.get("json")?.value === true : parameters.includes("--json");
}

interface Failed {
  readonly io: Io;
  readonly command?: Command;
  readonly settled?: Settled;
  readonly json: boolean;
}

/** One line on standard error, under `--json` one on standard output too, and the exit code by who has to act. */
function reportFailure(error: unknown, { io, command, settled, json }: Failed): number {
  const ended = parserExit(error), failure = failureOf(error, io, command);
  // Where nothing can be written, this can't be either.
  if (json && ended !== EXIT.ok && failure.error.code !== "output.write") printFailure(io, failure);
  if (ended !== undefined) return ended;
  if (failure.error.kind === "interrupted") io.err("palisade: interrupted\n");
  else {
    io.paintErr(io.styles.err.failure("palisade:"));
    io.err(` ${spokenOf(error, command, settled)}\n`);
  }
  return EXIT[failure.error.kind];
}

function spokenOf(error: unknown, command?: Command, settled?: Settled): string {
  if (error instanceof PalisadeError) {
    return `${failureText(error, command?.names)}${originOf(error, settled, command?.names)}`;
  }
  return `unexpected failure: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
}

/** The same for programs. */
function failureOf(error: unknown, { signal }: Io, command?: Command): Failure {
  const refused = parserRefusal(error);
  if (refused) return { error: refused };
  if (signal.aborted) return { error: { kind: "interrupted", code: "interrupted", where: "", message: "interrupted" } };
  if (error instanceof PalisadeError) {
    const { kind, code, where, option } = error;
    const place = option === undefined ? where : flagOfOption(option, command?.names);
    return { error: { kind, code, where: place, message: messageOf(error, command?.names) } };
  }
  return { error: { kind: "failed", code: "unexpected", where: "", message: String(error) } };
}
