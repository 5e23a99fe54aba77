/** The list of commands, and what becomes of a failure. Each command's options and work are in `commands/`. */
import { PalisadeError } from "../core/errors.ts";
import { DEFAULTS } from "../model/defaults.ts";
import type { Command } from "./command.ts";
import { askCommand } from "./commands/ask.ts";
import { calibrateCommand } from "./commands/calibrate.ts";
import { cellCommand } from "./commands/cell.ts";
import { demoCommand } from "./commands/demo.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { evalCommand } from "./commands/eval.ts";
import { evictCommand } from "./commands/evict.ts";
import { modelsCommand } from "./commands/models.ts";
import { policiesCommand } from "./commands/policies.ts";
import { readCommand } from "./commands/read.ts";
import { reportCommand } from "./commands/report.ts";
import { showCommand } from "./commands/show.ts";
import { snapshotsCommand } from "./commands/snapshots.ts";
import { workerCommand } from "./commands/worker.ts";
import { failureText } from "./failure.ts";
import { EXIT, EXIT_CODES, type Io } from "./io.ts";
import { HELP_ALL, parserExit, parserOf } from "./parse.ts";
import { VERSION } from "../runtime/version.ts";

/** Every command, in the order of help. */
const COMMANDS: readonly Command[] = [
  askCommand,
  readCommand,
  snapshotsCommand,
  demoCommand,
  showCommand,
  evictCommand,
  evalCommand,
  workerCommand,
  cellCommand,
  reportCommand,
  calibrateCommand,
  modelsCommand,
  policiesCommand,
  doctorCommand,
];

/** The default budget as people write it. */
const KEEP = DEFAULTS.keep.replace("%", " %");

/** Parses `parameters` (without program and script), runs the command, and returns the exit code. Never throws. */
export async function run(parameters: readonly string[], io: Io): Promise<number> {
  let code: number = EXIT.ok;
  const program = buildProgram(io, parameters.includes(HELP_ALL), (result) => {
    code = result;
  });
  try {
    await program.parseAsync(parameters.map((each) => each === HELP_ALL ? "--help" : each), { from: "user" });
    return code;
  } catch (error) {
    return reportFailure(error, io, COMMANDS.find(({ name }) => name === parameters[0]));
  }
}

/** The parser of all commands; `all`: help shows every option. `done` gets the exit code. */
export function buildProgram(io: Io, all: boolean, done: (code: number) => void): ReturnType<typeof parserOf> {
  return parserOf(COMMANDS, {
    version: VERSION,
    summary: `Reads a long text, keeps ${KEEP} of the KV cache, and answers from what is kept.`,
    notes:
      `\nExample: palisade ask --context book.txt --question "Who is Ishmael?"\nVersion: palisade --version\n${EXIT_CODES}`,
    ...{ io, all, done },
  });
}

/** One line on standard error, and the exit code by who has to act. */
function reportFailure(error: unknown, io: Io, command?: Command): number {
  const ended = parserExit(error);
  if (ended !== undefined) return ended;
  if (io.signal.aborted) {
    io.err("palisade: interrupted\n");
    return EXIT.interrupted;
  }
  if (error instanceof PalisadeError) {
    io.err(`palisade: ${failureText(error, command?.names)}\n`);
    return EXIT[error.kind];
  }
  io.err(`palisade: unexpected failure: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  return EXIT.failed;
}
