/** `palisade cell`: cells of a sweep that somebody else schedules, a line of JSON in and a line out. */
import { PalisadeError } from "../../core/errors.ts";
import { type CellRequest, MAX_LINE, openCell, parseCell, runCell } from "../../evaluate/sweep/cell.ts";
import { parseLengths } from "../../evaluate/sweep/plan.ts";
import { DEFAULTS } from "../../model/defaults.ts";
import { command } from "../command.ts";
import { ENGINE } from "../engine.ts";
import { EXIT, EXIT_CODES, type Io } from "../io.ts";
import { printLine } from "../json/print.ts";
import type { OptionTable, Values } from "../options.ts";
import { createProgress, type Progress } from "../print/progress.ts";
import { openModelFile, type OpenSubject, openSubject } from "../sweep/subject.ts";

const OPTIONS = {
  ...ENGINE,
  model: { ...ENGINE.model, help: "for lines that name none" },
  json: { help: "refusals of the command as JSON, as lines are anyway" },
} satisfies OptionTable;

type Options = Values<typeof OPTIONS>;

/** What a line takes that it doesn't say. */
const CELL_DEFAULTS = { policy: DEFAULTS.dumpPolicy, keep: DEFAULTS.keep };

/** `palisade cell`. */
export const cellCommand = command({
  argument: "<cells>",
  files: true,
  options: OPTIONS,
  notes: [
    'Lines, from a file or - for a pipe: {"task":"vt","length":"1k","sample":0,',
    '"policy":"snapkv","keep":"20%"}. A cell that fails gives a line with "error".',
    EXIT_CODES,
  ],
  run: cells,
});

/** Runs the command; returns the exit code: of the last line that failed, 0 when none did. */
async function cells(options: Options, io: Io, [path]: readonly string[]): Promise<number> {
  using progress = createProgress(io.interactive && !options.quiet);
  await using models = new Models(options, io, progress);
  let code: number = EXIT.ok;
  for await (const line of linesOf(path, io)) {
    if (line.trim() === "") continue;
    let request: CellRequest | undefined;
    try {
      request = parseCell(line, CELL_DEFAULTS);
      await openCell(request, io.runtime);
      const subject = await models.of(request);
      const onStep = (label: string, done: number, total: number) => progress.update(label, done, total);
      const result = await runCell(subject, request, { signal: io.signal, onStep });
      progress.clear();
      printLine(io, "cell", result);
    } catch (error) {
      progress.clear();
      if (io.signal.aborted || !(error instanceof PalisadeError)) throw error;
      // Lines have fields where other commands have flags.
      const { kind, code: name, where, message } = error;
      code = EXIT[kind];
      printLine(io, "cell", { error: { kind, code: name, where, message }, cell: request ?? line.slice(0, 200) });
      if (!options.quiet) io.err(`palisade: ${message}\n`);
    }
  }
  return code;
}

/** The last model stays loaded for the lines that want it too. */
class Models implements AsyncDisposable {
  readonly #options: Options;
  readonly #io: Io;
  readonly #progress: Progress;
  #last?: { readonly key: string; readonly subject: OpenSubject };

  constructor(options: Options, io: Io, progress: Progress) {
    this.#options = options;
    this.#io = io;
    this.#progress = progress;
  }

  /** `length`, `cacheType`: the first line's tell what the model is loaded for. */
  async of({ model: name = this.#options.model, gate, length, cacheType }: CellRequest): Promise<OpenSubject> {
    const key = JSON.stringify([name, gate]);
    if (this.#last?.key === key) return this.#last.subject;
    await this[Symbol.asyncDispose]();
    const settings = { ...this.#options, gate };
    const file = await openModelFile(name, settings, this.#io, this.#progress);
    const expected = { tokens: length === undefined ? 0 : Math.max(...parseLengths(length)), cacheType };
    const subject = await openSubject(file, settings, this.#io, this.#progress, expected);
    this.#last = { key, subject };
    return subject;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const last = this.#last;
    this.#last = undefined;
    await last?.subject[Symbol.asyncDispose]();
  }
}

/** Lines as they come, the last one with or without its line break. */
async function* linesOf(path: string, { runtime, signal }: Io): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let rest = "";
  try {
    for await (const chunk of runtime.readBytes(path, signal)) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = lines.pop()!;
      yield* lines;
      if (rest.length > MAX_LINE) throw tooLong(path);
    }
    rest += decoder.decode();
  } catch (error) {
    if (error instanceof TypeError) throw notText(path, error);
    throw error;
  }
  if (rest !== "") yield rest;
}

function tooLong(path: string): PalisadeError {
  return new PalisadeError("input", "cell.syntax", `A line of ${path} has more than ${MAX_LINE} characters`, {
    where: path,
  });
}

function notText(path: string, cause: Error): PalisadeError {
  return new PalisadeError("input", "text.not-utf8", `Can't read ${path}: it is not UTF-8`, { where: path, cause });
}
