/** Commands and their options for people, from the tables that parse them: a part of docs/cli.md, and man pages. */
import { type Command, leaves } from "../cli/command.ts";
import { EXIT_CODES } from "../cli/io.ts";
import { allCommands } from "../cli/list.ts";
import { flagOf, type OptionSpec } from "../cli/options.ts";
import { COMMON, withCommon } from "../cli/parse.ts";
import { variablesOf } from "../cli/settings/variables.ts";
import { VERSION } from "../runtime/version.ts";
import { markdownTable } from "./markdown.ts";

/** What an option does, in Markdown: its longer text, and the words it takes where the text has none of them. */
function aboutOf({ help, more = help, choices = [] }: OptionSpec): string {
  const named = choices.some((each) => more.includes(`\`${each}\``));
  return choices.length === 0 || named ? more : `${more}: ${choices.map((each) => `\`${each}\``).join(", ")}`;
}

function defaultOf({ preset, shown = preset, required }: OptionSpec): string {
  return required ? "required" : shown === undefined ? "" : String(shown);
}

/** The table of a command's options, without those that every command has. */
function optionTable(command: Command): string {
  const rows = Object.entries(command.options).map(([name, spec]) => {
    const value = spec.value === undefined ? "" : ` <${spec.value}>`, preset = defaultOf(spec);
    const shown = preset === "" || preset === "required" || /[ ,]/.test(preset) ? preset : `\`${preset}\``;
    return [`\`${flagOf(name)}${value}\``, shown, aboutOf(spec)];
  });
  return markdownTable(["option", "default", "what it does"], rows);
}

/** The options of `ask`, and those of every command. */
export async function askTable(): Promise<string> {
  const ask = (await allCommands()).find(({ name }) => name === "ask")!;
  return optionTable({ ...ask, options: { ...ask.options, ...COMMON } });
}

/** The other commands, each with its options. */
export async function otherTables(): Promise<string> {
  const commands = leaves(await allCommands()).filter(({ name }) => name !== "ask");
  return commands.map((each) => {
    const argument = each.argument === undefined ? "" : ` ${each.argument}`;
    const table = Object.keys(each.options).length === 0 ? "" : `\n\n${optionTable(each)}`;
    return `### \`palisade ${each.name}${argument}\`\n\n${sentence(each.summary)}${table}`;
  }).join("\n\n");
}

function sentence(text: string): string {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** Man pages by their file names: one of palisade, and one of each command or group. */
export async function manPages(): Promise<Map<string, string>> {
  const commands = await allCommands();
  const pages = commands.map((each) => [`palisade-${each.name}.1`, commandPage(each)] as const);
  return new Map([["palisade.1", mainPage(commands)], ...pages]);
}

function mainPage(commands: readonly Command[]): string {
  const list = commands.map(({ name, summary }) => `.TP\n.BR palisade\\-${roff(name)} (1)\n${roff(summary)}\n`).join(
    "",
  );
  return header("palisade", "reads a long text, keeps a part of the KV cache, and answers from it") +
    `.SH SYNOPSIS\n.B palisade\n.I command\n[\\fIoptions\\fR]\n` +
    `.SH COMMANDS\n${list}` +
    `.SH OPTIONS\nEvery command takes these.\n${optionList("", COMMON)}` +
    `.TP\n.B \\-\\-help\\fR, \\fB\\-\\-help\\-all\nWhat a command can be told; all of it.\n` +
    `.TP\n.B \\-\\-version\nThe version.\n${SETTINGS}${EXIT}${EXAMPLE}` +
    `.SH SEE ALSO\n${commands.map(({ name }) => `.BR palisade\\-${roff(name)} (1)`).join(",\n")}\n`;
}

function commandPage(command: Command): string {
  const title = `palisade-${command.name}`;
  const body = (command.members ?? [command]).map((each) =>
    command.members ? memberPart(command, each) : `${optionPart(each)}${notesPart(each)}`
  ).join("");
  const common = command.members ? `.SH OPTIONS OF ALL\n${optionList("", COMMON)}` : "";
  return header(title, command.summary) + synopsis(command) + body + common + SETTINGS + EXIT +
    `.SH SEE ALSO\n.BR palisade (1),\nand what palisade's package says in docs/cli.md\n`;
}

function synopsis(command: Command): string {
  const lines = leaves([command]).map(({ name, argument, options }) => {
    const told = Object.keys(options).length > 0 ? " [\\fIoptions\\fR]" : "";
    return `.B palisade ${roff(name)}\\fR${told}${argument === undefined ? "" : ` \\fI${roff(argument)}\\fR`}\n`;
  });
  return `.SH SYNOPSIS\n${lines.join(".br\n")}`;
}

function optionPart(command: Command): string {
  return `.SH OPTIONS\n${optionList(command.name, withCommon(command).options)}`;
}

function memberPart(group: Command, member: Command): string {
  const named = { ...member, name: `${group.name} ${member.name}` };
  return `.SH ${roff(member.name.toUpperCase())}\n${roff(sentence(member.summary))}\n` +
    optionList(named.name, named.options) + notesPart(member, ".PP\n");
}

/** Lines of help, as they are broken there, that say more than the exit codes, which have a part of their own. */
function notesPart({ notes = [] }: Command, before = ".SH NOTES\n"): string {
  const own = notes.filter((each) => each !== EXIT_CODES);
  return own.length === 0 ? "" : `${before}.nf\n${own.map(roff).join("\n")}\n.fi\n`;
}

function optionList(command: string, options: Command["options"]): string {
  return Object.entries(options).map(([name, spec]) => {
    const value = spec.value === undefined ? "" : ` \\fI${roff(spec.value)}\\fR`, preset = defaultOf(spec);
    const rest = preset === "" ? "" : preset === "required" ? " Required." : ` Default: ${roff(preset)}.`;
    const variable = command === "" ? "" : ` Variable: \\fB${variablesOf(command, name, spec).at(-1)}\\fR.`;
    return `.TP\n.B ${roff(flagOf(name))}\\fR${value}\n${roff(sentence(aboutOf(spec)))}${rest}${variable}\n`;
  }).join("");
}

function header(title: string, summary: string): string {
  return `.\\" Written by deno task docs.\n.TH ${
    roff(title.toUpperCase())
  } 1 "" "palisade ${VERSION}" "User commands"\n` +
    `.SH NAME\n${roff(title)} \\- ${roff(summary)}\n`;
}

const SETTINGS = `.SH SETTINGS
An option that is not on the line is taken from its variable, else from
.I palisade.toml
or
.I palisade.json
in the current folder or above it in its repository, else from the user's in
.IR $XDG_CONFIG_HOME/palisade ,
else it is the default. A switch is switched off by \\fB\\-\\-no\\-\\fINAME\\fR.
.B palisade config show
says where each value comes from.
`;

const EXIT = `.SH EXIT STATUS
${roff(EXIT_CODES.replace("Exit: ", ""))}.
`;

const EXAMPLE = `.SH EXAMPLES
.nf
palisade ask \\-\\-context book.txt \\-\\-question "Who is Ishmael?"
palisade read \\-\\-context book.txt \\-\\-out book.palisade
palisade ask \\-\\-snapshot book.palisade \\-\\-question "Who is Ishmael?"
.fi
`;

/** Markdown or plain text as roff has it: what is between backticks is bold. */
function roff(text: string): string {
  const safe = text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll(/^([.'])/gm, "\\&$1");
  return safe.replace(/`([^`]*)`/g, "\\fB$1\\fR");
}
