/** What a command is: a name, a table of options, and what it does. `program.ts` lists them. */
import type { OptionNames } from "./failure.ts";
import type { Io } from "./io.ts";
import type { Here, OptionTable, Values, Words } from "./options.ts";

/** What a command can be told and what it does, or a group of commands. */
export interface CommandBody {
  readonly options: OptionTable;
  /** `<name>`, or `<names...>` for one or more. */
  readonly argument?: string;
  /** What completion offers for the argument. */
  readonly words?: Words;
  readonly here?: Here;
  /** The argument is a file, or may be one. */
  readonly files?: true;
  /** Lines under the options of help. */
  readonly notes?: readonly string[];
  /** What it calls options of the library otherwise. */
  readonly names?: OptionNames;
  /** Members of a group, which does nothing by itself. */
  readonly members?: readonly Command[];
  /** Does the work; the exit code. Refusals are thrown as PalisadeErrors. */
  run?(options: object, io: Io, names: readonly string[]): number | Promise<number>;
}

/** A command by its name. */
export interface Command extends CommandBody {
  readonly name: string;
  /** One line of help. */
  readonly summary: string;
  /** The list of commands leaves it out, so that it fits a screen. */
  readonly rare?: boolean;
}

/** A command whose `run` gets what its table of options says. */
interface TypedBody<Table extends OptionTable> extends CommandBody {
  readonly options: Table;
  run(options: Values<Table>, io: Io, names: readonly string[]): number | Promise<number>;
}

/** The command as the list holds it: the types of its options are its own affair. */
export function command<Table extends OptionTable>(
  spec: TypedBody<Table> & Pick<Command, "name" | "summary">,
): Command;
export function command<Table extends OptionTable>(spec: TypedBody<Table>): CommandBody;
export function command(spec: CommandBody): CommandBody {
  return spec;
}

/** A command of the list: its modules are loaded when it is named, so that others start at once. */
export interface Listed {
  readonly name: string;
  readonly summary: string;
  readonly rare?: boolean;
  /** The whole command. */
  load(): Promise<Command>;
}

/** An entry of the list. */
export function listed(name: string, summary: string, load: () => Promise<CommandBody>, rare = false): Listed {
  return { name, summary, rare, load: async () => ({ ...await load(), name, summary, rare }) };
}

/** Commands that do something: a group's members under `GROUP MEMBER`. */
export function leaves(commands: readonly Command[]): Command[] {
  return commands.flatMap((each) =>
    each.members?.map((member) => ({ ...member, name: `${each.name} ${member.name}` })) ?? [each]
  );
}
