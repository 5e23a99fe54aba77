/** What a command is: a name, a table of options, and what it does. `program.ts` lists them. */
import type { OptionNames } from "./failure.ts";
import type { Io } from "./io.ts";
import type { OptionTable, Values } from "./options.ts";

/** A command, or a group of them. */
export interface Command {
  readonly name: string;
  /** One line of help. */
  readonly summary: string;
  readonly options: OptionTable;
  /** `<name>`, or `<names...>` for one or more. */
  readonly argument?: string;
  /** Lines under the options of help. */
  readonly notes?: readonly string[];
  /** What it calls options of the library otherwise. */
  readonly names?: OptionNames;
  /** Members of a group, which does nothing by itself. */
  readonly members?: readonly Command[];
  /** Does the work; the exit code. Refusals are thrown as PalisadeErrors. */
  run?(options: object, io: Io, names: readonly string[]): number | Promise<number>;
}

/** A command whose `run` gets what its table of options says. */
interface TypedCommand<Table extends OptionTable> extends Command {
  readonly options: Table;
  run(options: Values<Table>, io: Io, names: readonly string[]): number | Promise<number>;
}

/** The command as the list holds it: the types of its options are its own affair. */
export function command<Table extends OptionTable>(spec: TypedCommand<Table>): Command {
  return spec;
}
