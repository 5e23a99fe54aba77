/** Runs the command that is named, and says what becomes of a failure. */
import { PalisadeError } from "../core/errors.ts";
import { DEFAULTS } from "../model/defaults.ts";
import type { Command } from "./command.ts";
import { COMPLETE } from "./completion/hook.ts";
import { failureText } from "./failure.ts";
import { EXIT, EXIT_CODES, type Io } from "./io.ts";
import { allCommands, COMMANDS } from "./list.ts";
import { type Extent, HELP_ALL, parserExit, parserOf } from "./parse.ts";
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
    return reportFailure(error, io, named, settled);
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
      `\nExample: palisade ask --context book.txt --question "Who is Ishmael?"\nMore: palisade --version, palisade completion bash|zsh|fish|powershell\n${EXIT_CODES}`,
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
  await (await import("./completion/here.ts")).printHere(asked, io);
  return EXIT.ok;
}

/** One line on standard error, and the exit code by who has to act. */
function reportFailure(error: unknown, io: Io, command?: Command, settled?: Settled): number {
  const ended = parserExit(error);
  if (ended !== undefined) return ended;
  if (io.signal.aborted) {
    io.err("palisade: interrupted\n");
    return EXIT.interrupted;
  }
  const say = (text: string) => {
    io.paintErr(io.styles.err.failure("palisade:"));
    io.err(` ${text}\n`);
  };
  if (error instanceof PalisadeError) {
    say(`${failureText(error, command?.names)}${originOf(error, settled, command?.names)}`);
    return EXIT[error.kind];
  }
  say(`unexpected failure: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  return EXIT.failed;
}
