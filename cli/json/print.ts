/** The one way in which commands print JSON: what each may print is said by {@link Outputs}. */
import type { Io } from "../io.ts";
import type { OptionTable } from "../options.ts";
import type { Failure, Outputs } from "./outputs.ts";

/** The switch, for commands that have nothing more to say of it. */
export const JSON_SWITCH = { json: { help: "as JSON" } } satisfies OptionTable;

/** Prints the answer of a command: one value, indented. */
export function printJson<Name extends keyof Outputs>(io: Pick<Io, "out">, _command: Name, value: Outputs[Name]): void {
  io.out(`${JSON.stringify(value, null, 2)}\n`);
}

/** One of the lines of a command that prints many. */
export function printLine<Name extends keyof Outputs>(io: Pick<Io, "out">, _command: Name, value: Outputs[Name]): void {
  io.out(`${JSON.stringify(value)}\n`);
}

/** Why a command failed: a line of its own, wherever the output stood. */
export function printFailure(io: Pick<Io, "out">, failure: Failure): void {
  io.out(`${JSON.stringify(failure)}\n`);
}
