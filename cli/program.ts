/** The command line's grammar: commands, options, ranges, help. One file, so that parsing has one place. */
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { CACHE_TYPES } from "../core/cache/entry_type.ts";
import { PalisadeError } from "../core/errors.ts";
import { KINDS } from "../model/gate/fit/text.ts";
import { ask, type AskCommand } from "./commands/ask.ts";
import { calibrate, type CalibrateCommand } from "./commands/calibrate.ts";
import { demo, type DemoCommand } from "./commands/demo.ts";
import { DENSE_CHOICES } from "../model/dense/pick.ts";
import { MOST_THREADS, type ThreadChoice } from "../model/threads.ts";
import { doctor } from "./commands/doctor.ts";
import { type EvalCommand, evaluate } from "./commands/eval.ts";
import { EXIT, type Io } from "./io.ts";
import { listModels, modelPathCommand, pullCommand, removeCommand } from "./commands/models.ts";
import { listPolicies } from "./commands/policies.ts";
import { report, type ReportCommand } from "./commands/report.ts";
import { show, type ShowCommand } from "./commands/show.ts";
import { VERSION } from "./version.ts";
import { work, type WorkerCommand } from "./commands/worker.ts";

const EXIT_CODES = "Exit: 0 ok, 1 failed, 2 usage, 3 bad input, 4 no resources, 130 interrupted";

/** How a name with a comma is said. */
const LISTS = `Lists: parts between commas, or repeat the option; jsonl:"a, b.jsonl" is one.`;

/** Help with the options that `--help` leaves out to fit a screen. */
const HELP_ALL = "--help-all";

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
    return reportFailure(error, io);
  }
}

/** The grammar; `all`: help shows every option. `done` gets the exit code. */
export function buildProgram(io: Io, all: boolean, done: (code: number) => void): Command {
  const program = new Command("palisade")
    .description("Reads a long text, keeps 20 % of the KV cache by default, and answers questions from what is kept.")
    .version(VERSION)
    .helpCommand(false)
    .addHelpText("after", `\nExample: palisade ask --context book.txt --question "Who is Ishmael?"\n${EXIT_CODES}`);
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
  addAsk(program, io, all, done);
  addDemo(program, io, done);
  addShow(program, io, done);
  addEval(program, io, all, done);
  addWorker(program, io, done);
  program.command("report").argument("<results...>").description("what results files of eval say, as tables")
    .option("--html <file>", "write charts and shaded contexts into one HTML file")
    .option("--csv <file>", "write the table as CSV")
    .option("--sample <task#n>", "whose context to show in HTML, e.g. niah_single_1#1")
    .option("--against <policy>", "print paired differences from that policy instead of from the full cache")
    .action(async (paths: string[], options: ReportCommand) => done(await report(paths, options, io)));
  addCalibrate(program, io, done);
  addModels(program, io, done);
  program.command("policies").description("list the eviction policies and their papers")
    .option("--steps", "the rules of --step-policy instead, which evict while decoding")
    .option("--json", "as JSON, with every parameter, its default and its range")
    .action((options) => done(listPolicies(options, io)));
  program.command("doctor").description("what this machine offers, what is missing and why")
    .option("--model <file>", "instead: what a model file is, and what is odd in it")
    .option("--json", "as JSON")
    .action(async (options) => done(await doctor(options, io)));
  return program;
}

/**
 * Values that no file name, no text and no number can have: they would fail somewhere deep below.
 * @throws PalisadeError usage `option.text`, naming the option.
 */
function refuseUndecodable(command: Command): void {
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

function addAsk(program: Command, io: Io, all: boolean, done: (code: number) => void): void {
  const rare = (flags: string, description: string) => new Option(flags, description).hideHelp(!all);
  const command = program.command("ask")
    .description("answer questions about a text, evicted")
    .addHelpOption(new Option("-h, --help").hideHelp())
    .requiredOption("--context <file>", "the text, UTF-8; - reads standard input")
    .requiredOption("--question <text>", "what to ask; repeat it to ask the same cache more", collect)
    .option("--keep <amount>", "what stays: 20%, 0.2, or tokens per head", "20%")
    .option("--policy <name>", "see: palisade policies [gate, else kvzip]")
    .addOption(
      rare("--risk <share>", "instead of --keep: largest loss of attention, mean").argParser(number(0, 1, true, true))
        .conflicts(["keep", "riskWorst", "maxCache"]),
    )
    .addOption(
      rare("--risk-worst <share>", "instead: evict what is less important").argParser(number(0, 1, true, true))
        .conflicts(["keep", "maxCache"]),
    )
    .addOption(rare("--max-cache-bytes <n>", "may wait for --risk [1 GiB]").argParser(integer(1)))
    .addOption(rare("--explain", "print what eviction can have cost at worst"))
    .option("--max-cache <n>", "cap while answering, tokens per head", integer(1))
    .addOption(rare("--step-policy <name>", "its rule, see policies --steps [defensive]"))
    .addOption(
      rare("--positions <mode>", "kept keys stay or close up").choices(["true", "rerotate"])
        .default("true"),
    );
  command.addOption(new Option("--cache-type <type>", "keys and values").choices(CACHE_TYPES).default("f32"));
  addEngineOptions(command)
    .option("--max-tokens <n>", "longest answer in tokens [256]", integer(1))
    .option("--temperature <t>", "0 is greedy, up to 10", number(0, 10), 0)
    .addOption(rare("--top-p <p>", "sample from this share of the mass").argParser(number(0, 1, true)).default(1))
    .option("--seed <n>", "seed of the sampler", integer(0), 0)
    .addOption(rare("--answer-prefix <text>", "the reply starts with this"))
    .addOption(rare("--system <text>", "system prompt instead of the template's own"))
    .addOption(rare("--think", "let the model think first"))
    .addOption(rare("--frame <name|text>", "words around text and question"))
    .addOption(rare("--allow-loops", "never end an answer that repeats itself"))
    .addOption(rare("--gate <file>", "for policy gate: see palisade calibrate"))
    .addOption(rare("--beyond-trained", "allow more context than the model was trained on"))
    .option("--json", "print one object with answers and figures")
    .addHelpText("after", all ? EXIT_CODES : `More options: palisade ask ${HELP_ALL}\n${EXIT_CODES}`)
    .action(async (options: AskCommand) => done(await ask(withoutKeep(options), io)));
}

/** A risk takes the place of the default budget. */
function withoutKeep(options: AskCommand): AskCommand {
  const { risk, riskWorst } = options;
  return risk === undefined && riskWorst === undefined ? options : { ...options, keep: undefined };
}

function addDemo(program: Command, io: Io, done: (code: number) => void): void {
  const command = program.command("demo")
    .description("the full cache beside three evicted ones")
    .option("--seed <n>", "seed of the hidden facts and where they are hidden", integer(0), 1)
    .option("--questions <n>", "questions per text, 3 to 8", integer(3, 8), 3)
    .option("--keep <amount>", "what stays where something is evicted", "20%")
    .option("--json", "print one object with all answers and figures");
  addEngineOptions(command).action(async (options: DemoCommand) => done(await demo(options, io)));
}

function addShow(program: Command, io: Io, done: (code: number) => void): void {
  const command = program.command("show")
    .description("a text shaded by how many heads keep a token")
    .requiredOption("--context <file>", "the text, UTF-8; - reads standard input")
    .option("--keep <amount>", "what stays: 20%, 0.2, or tokens per head", "20%")
    .option("--policy <name>", "see: palisade policies [gate, else kvzip]")
    .addOption(new Option("--color <when>", "colours").choices(["auto", "truecolor", "256", "none"]).default("auto"))
    .option("--html <file>", "write it as an HTML file too")
    .option("--beyond-trained", "allow more context than the model was trained on");
  addEngineOptions(command).action(async (options: ShowCommand) => done(await show(options, io)));
}

function addEval(program: Command, io: Io, all: boolean, done: (code: number) => void): void {
  const rare = (flags: string, description: string) => new Option(flags, description).hideHelp(!all);
  const command = program.command("eval")
    .description("measure what policies cost in answers; resumes")
    .addHelpOption(new Option("-h, --help").hideHelp())
    .requiredOption("--out <file>", "results, one JSON line per cell; only appended to")
    .option("--tasks <list>", "RULER's by name, ruler for all, qa:FILE, jsonl:FILE", list(), "ruler")
    .option("--length <list>", "tokens of the whole prompt and answer", list(), "1k")
    .option("--policies <list>", "see: palisade policies", list(), "full,snapkv,layer-defensive")
    .option("--keep <list>", "budgets: 20%, 0.2, or tokens per head", list(), "20%")
    .option("--samples <n>", "samples per task and length", integer(1), 10)
    .option("--seed <n>", "seed of the samples", integer(0), 1)
    .option("--models <list>", "named models or files", list(), "smollm2-135m")
    .option("--query-aware", "compress after the question, not before it")
    .addOption(rare("--cache-type <type>", "keys and values").choices(CACHE_TYPES).default("f32"))
    .addOption(rare("--gate <file>", "for policy gate, instead of the one found"))
    .addOption(rare("--haystack <file>", "prose to hide needles in, not Moby-Dick"))
    .option("--beyond-trained", "allow more tokens than the model was trained on")
    .option("--queue <url>", "let palisade worker compute: redis://HOST:PORT");
  addEngineOptions(command, { model: false })
    .addHelpText("after", LISTS)
    .addHelpText("after", all ? EXIT_CODES : `More options: palisade eval ${HELP_ALL}\n${EXIT_CODES}`)
    .action(async (options: EvalCommand) => done(await evaluate(options, io)));
}

function addWorker(program: Command, io: Io, done: (code: number) => void): void {
  const command = program.command("worker")
    .description("compute cells for eval --queue, on any machine")
    .requiredOption("--queue <url>", "Valkey or Redis: redis://[USER:PASSWORD@]HOST:PORT/DB")
    .option("--idle <seconds>", "end after so long without work; default: never", number(0, 1e6, true));
  addEngineOptions(command).addHelpText("after", EXIT_CODES)
    .action(async (options: WorkerCommand) => done(await work(options, io)));
}

function addCalibrate(program: Command, io: Io, done: (code: number) => void): void {
  const command = program.command("calibrate")
    .description("fit a gate for a model on this machine; resumes")
    .option("--text <file>", "your own text beside the built-in one; repeatable", collect)
    .option("--tokens <n>", "tokens to fit on", integer(1000, 1_000_000), 10_000)
    .option("--seed <n>", "seed of the built-in text", integer(0, 2 ** 40), 1)
    .option("--kinds <list>", "kinds of built-in text", list(), KINDS.join(","))
    .option("--out <file>", "where to write it instead of the cache folder")
    .option("--json", "print one object with all figures");
  addEngineOptions(command).addHelpText("after", EXIT_CODES)
    .action(async (options: CalibrateCommand) => done(await calibrate(options, io)));
}

/** What every command that runs a model takes; `model: false` for those that take several. */
function addEngineOptions(command: Command, { model = true } = {}): Command {
  if (model) {
    command.option(
      "--model <name|file>",
      "named model, FILE.gguf, or OWNER/REPOSITORY[:QUANT] of the hub",
      "smollm2-135m",
    );
  }
  return command
    .addOption(
      new Option("--backend <name>", "attention kernels").choices(["auto", "ts", "wasm"]).default("auto"),
    )
    .addOption(
      new Option("--dense <name>", "dense layers").choices(DENSE_CHOICES).default("auto"),
    )
    .option("--threads <n>", "kernel threads; auto: cores, up to 4", threadCount, "auto")
    .option("--offline", "never touch the network")
    .option("--quiet", "no progress, no report");
}

function addModels(program: Command, io: Io, done: (code: number) => void): void {
  const models = program.command("models").description("list, fetch, find and remove model files").helpCommand(false);
  models.command("list").description("named models, and which are here")
    .option("--json", "as JSON").action(async (options) => done(await listModels(options, io)));
  models.command("pull").argument("<name>").description(
    "fetch a model, by name or OWNER/REPOSITORY[:QUANT], and check its SHA-256",
  )
    .option("--offline", "only check what is here").option("--quiet", "no progress")
    .action(async (name, options) => done(await pullCommand(name, options, io)));
  models.command("path").argument("<name>").description("print where the model's file is")
    .action(async (name) => done(await modelPathCommand(name, io)));
  models.command("rm").argument("<name>").description("remove the model's file")
    .action(async (name) => done(await removeCommand(name, io)));
}

/** Description, allowed words and default, short enough for one line each. */
function describe({ description, argChoices, defaultValue }: Option): string {
  const choices = argChoices ? `: ${argChoices.join(", ")}` : "";
  const preset = defaultValue === undefined ? "" : ` [${defaultValue}]`;
  return `${description}${choices}${preset}`;
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

/** A list that may be given in several options: none of them is lost. */
function list(): (value: string) => string {
  const given: string[] = [];
  return (value) => {
    given.push(value);
    return given.join(",");
  };
}

/** `auto`, or a number of threads. */
function threadCount(text: string): ThreadChoice {
  return text === "auto" ? text : integer(1, MOST_THREADS)(text);
}

function integer(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^[+-]?\d+$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`Want a whole number from ${min} to ${max}.`);
  };
}

/** `above`, `below`: the end itself is refused. */
function number(min: number, max: number, above = false, below = false): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const inside = value >= min && value <= max && !(above && value === min) && !(below && value === max);
    if (text.trim() !== "" && inside) return value;
    throw new InvalidArgumentError(
      `Want a number ${above ? "above" : "from"} ${min} ${below ? "below" : "to"} ${max}.`,
    );
  };
}

/** One line on standard error, and the exit code by who has to act. */
function reportFailure(error: unknown, io: Io): number {
  // Commander has printed its message, and help is not a failure.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  if (io.signal.aborted) {
    io.err("palisade: interrupted\n");
    return EXIT.interrupted;
  }
  if (error instanceof PalisadeError) {
    const place = error.message.includes(error.where) ? "" : `${error.where}: `;
    io.err(`palisade: ${place}${error.message}\n`);
    return EXIT[error.kind];
  }
  io.err(`palisade: unexpected failure: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  return EXIT.failed;
}
