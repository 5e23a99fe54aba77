/**
 * The results file: JSON lines, only ever appended to, one line per cell.
 *
 * A *cell* is one (model, task, length, sample, policy, budget). Its `id` is a hash over everything its numbers depend
 * on, so a line is looked up, never recomputed. A process that dies while writing leaves a last line without its line
 * break; opening the file cuts it off, and that one cell is computed again. A file with anything else in it is not
 * touched. Blank lines are read past. Zeros in the last line are blocks that were never written.
 */
import { inputError, PalisadeError } from "../../core/errors.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import type { Budget, ParameterValues } from "../../core/policy/policy.ts";
import type { Keep } from "../../core/select/budget.ts";
import type { Finish } from "../../model/session.ts";
import { hostOf } from "../../runtime/host.ts";
import type { ByteSink, Host, Runtime } from "../../runtime/interface.ts";
import { openForAppending, type OutputKind, writeWhole } from "../../runtime/output.ts";
import type { MetricName } from "../tasks/metrics.ts";
import type { Shading } from "../report/shading.ts";

/** Raised when the meaning of a line changes. */
export const RESULT_FORMAT = 1;

/** What a cell's numbers depend on; hashed into its id. */
export interface CellInputs {
  readonly format: number;
  readonly model: { readonly name: string; readonly sha256: string };
  /** SHA-256 of the chat frame around context and question, and of the sample's texts and expected answers. */
  readonly frame: string;
  readonly sampleHash: string;
  readonly task: string;
  /** Tokens asked for; null for tasks that are as long as they are. */
  readonly length: number | null;
  readonly sample: number;
  readonly seed: number;
  readonly haystack: { readonly name: string; readonly sha256: string } | null;
  /** `context-first`: compressed without the question. `query-aware`: compressed after it. */
  readonly protocol: Protocol;
  /** How the caches store keys and values, the full one too; missing: f32, as in files written before there were others. */
  readonly cacheType?: Exclude<CacheType, "f32">;
  readonly maxNewTokens: number;
  readonly policy: { readonly name: string; readonly parameters: ParameterValues };
  readonly keep: Keep;
  /** The share of the whole float16 cache that `keep` was made of, as it was asked for: `1/16`; missing where none was. */
  readonly bytesAsked?: string;
  readonly budget: Omit<Budget, "model">;
  readonly engines: { readonly palisade: string; readonly backend: string; readonly dense: string };
}

export type Protocol = "context-first" | "query-aware";

/** What came out of a cell. */
export interface CellOutcome {
  readonly question: string;
  readonly answerPrefix: string;
  readonly expected: readonly string[];
  readonly metric: MetricName;
  /** The reply after the answer prefix. */
  readonly answer: string;
  readonly finish: Finish;
  /** 0 … 100. */
  readonly score: number;
  /** The full cache's reply to the same sample. */
  readonly full: { readonly answer: string; readonly score: number };
  /** Index of the first token that is not the full cache's; null when there is none. */
  readonly firstDifference: number | null;
  /** Nats, over the full cache's answer. */
  readonly kl: { readonly mean: number; readonly max: number };
  readonly tokens: {
    readonly context: number;
    readonly question: number;
    readonly answer: number;
    readonly full: number;
  };
  /** Entries that stayed, `[layers][kvHeads]`, of the layers that look at everything. */
  readonly kept: readonly (readonly number[])[];
  /** Live bytes of the evicted cache, and of the whole one. */
  readonly bytes: { readonly live: number; readonly full: number };
  /** Milliseconds; `prefill` and `observe` are shared by all cells of the sample. */
  readonly ms: {
    readonly prefill: number;
    readonly observe: number;
    readonly evict: number;
    readonly fork: number;
    readonly question: number;
    readonly decode: number;
  };
  /** Heads that keep each context token, and the tokens' texts: for the first samples of a task. */
  readonly shading?: Shading;
}

/** One line of the file. */
export interface ResultLine extends CellInputs, CellOutcome {
  readonly id: string;
  /** The policy and keep as they were typed. */
  readonly asked: { readonly policy: string; readonly keep: string };
  /** The task's file as it was named, and the hash of what it held; missing in lines of earlier versions. */
  readonly source?: { readonly file: string; readonly sha256: string };
  /** What reports call the model; missing in lines of earlier versions. `model.name` is what its file calls itself. */
  readonly modelName?: string;
  readonly runtime: string;
  /** ISO 8601. */
  readonly at: string;
}

/** Hash of the inputs, 32 hexadecimal digits; the order of fields doesn't matter. */
export function cellId(inputs: CellInputs, runtime: Pick<Runtime, "sha256">): string {
  return hashOf(inputs, runtime).slice(0, 32);
}

/** SHA-256 of a value's canonical JSON. */
export function hashOf(value: unknown, runtime: Pick<Runtime, "sha256">): string {
  const hasher = runtime.sha256();
  hasher.update(new TextEncoder().encode(canonical(value)));
  return hasher.digest();
}

/** JSON with sorted keys. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, each) => {
    if (each === null || typeof each !== "object" || Array.isArray(each)) return each;
    return Object.fromEntries(Object.entries(each).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

export interface ReadResults {
  /** One line per id, the first one written. */
  readonly lines: readonly ResultLine[];
  /** Lines whose id came before. */
  readonly duplicates: number;
  /** Bytes up to the end of the last whole line. */
  readonly wholeBytes: number;
  /** True when something follows them. */
  readonly torn: boolean;
}

/** What `eval` may append to: every whole line is a result, and a torn last one begins like a result. */
export const RESULTS: OutputKind = {
  name: "results of palisade eval",
  async problem(file) {
    try {
      parseResults(await file.read(0, file.size), file.name);
      return undefined;
    } catch (error) {
      if (error instanceof PalisadeError && error.code === "results.damaged") return error.message;
      throw error;
    }
  },
};

/**
 * The lines of a results file; a torn last line is left out.
 * @throws PalisadeError `file.*`, `results.damaged` for a whole line that is no result, and for a torn one that can't
 * become one.
 */
export async function readResults(runtime: Runtime, path: string): Promise<ReadResults> {
  const source = await runtime.openFile(path);
  try {
    return parseResults(await source.read(0, source.size), path);
  } finally {
    await source.close();
  }
}

function parseResults(bytes: Uint8Array, path: string): ReadResults {
  const wholeBytes = endOfWhole(bytes);
  const texts = new TextDecoder().decode(bytes.subarray(0, wholeBytes)).split("\n").slice(0, -1);
  const byId = new Map<string, ResultLine>();
  let count = 0;
  texts.forEach((text, i) => {
    if (text.trim() === "") return;
    const line = parseLine(text, i + 1, path);
    if (!byId.has(line.id)) byId.set(line.id, line);
    count++;
  });
  const rest = new TextDecoder().decode(bytes.subarray(wholeBytes));
  if (rest.trim() !== "" && !isTorn(rest, wholeBytes)) throw damaged(texts.length + 1, path, "it is no result");
  return { lines: [...byId.values()], duplicates: count - byId.size, wholeBytes, torn: rest !== "" };
}

/**
 * The bytes up to the end of the last whole line. Where the power failed, blocks of the line that was being written may be
 * zeros, which no line has in it, though its line break is there.
 */
function endOfWhole(bytes: Uint8Array): number {
  const end = bytes.lastIndexOf(0x0a) + 1;
  const start = end > 1 ? bytes.lastIndexOf(0x0a, end - 2) + 1 : 0;
  return start > 0 && bytes.subarray(start, end).includes(0) ? start : end;
}

/** The smallest blocks that disks write. */
const BLOCK = 512;

/**
 * Whether what follows whole lines, from byte `at` on, may be what is there of one more: its beginning, or blocks of it.
 * Of a file that begins with zeros nobody can tell whose it is.
 */
function isTorn(rest: string, at: number): boolean {
  const zeros = /^\0*/.exec(rest)![0].length;
  if (zeros > 0) return at > 0 && (zeros === rest.length || (at + zeros) % BLOCK === 0);
  return startsLikeOurs(rest.split("\0", 1)[0].replace(/\n$/, ""));
}

/** How lines begin; # is a hexadecimal digit. */
const STARTS = [`{"id":"${"#".repeat(32)}","format":${RESULT_FORMAT},`, `{"format":${RESULT_FORMAT},"id":"`];

/** Whether a text without a line break may be what is there of a line that wasn't written to its end. */
function startsLikeOurs(text: string): boolean {
  return STARTS.some((start) =>
    [...start].every((letter, i) => {
      if (i >= text.length) return true;
      return letter === "#" ? /[0-9a-f]/.test(text[i]) : letter === text[i];
    })
  );
}

function damaged(number: number, path: string, reason: string): PalisadeError {
  return inputError("results.damaged", `Can't read line ${number} of ${path}: ${reason}`, path);
}

function parseLine(text: string, number: number, path: string): ResultLine {
  let line: Partial<ResultLine> | undefined;
  try {
    line = JSON.parse(text);
  } catch { /* said below */ }
  if (typeof line?.id === "string" && line.format === RESULT_FORMAT) return line as ResultLine;
  const reason = line?.format === undefined ? "it is no result" : `its format is ${line.format}, not ${RESULT_FORMAT}`;
  throw damaged(number, path, reason);
}

/** A results file open for appending; nobody else can open it meanwhile. A new one without a line is removed again. */
export class ResultsFile implements AsyncDisposable {
  readonly #ids: Set<string>;
  readonly #sink: ByteSink;
  /** Closes the file; `empty` when it was made for nothing. */
  readonly #close: (empty: boolean) => Promise<void>;
  readonly #isNew: boolean;
  /** What was there when it was opened. */
  readonly before: readonly ResultLine[];

  private constructor(
    before: readonly ResultLine[] | undefined,
    sink: ByteSink,
    close: (empty: boolean) => Promise<void>,
  ) {
    this.before = before ?? [];
    this.#isNew = before === undefined;
    this.#ids = new Set(this.before.map(({ id }) => id));
    this.#sink = sink;
    this.#close = close;
  }

  /** Opens or makes the file; a torn last line is cut off. PalisadeErrors as {@link readResults} and `Host.lock`. */
  static async open(runtime: Runtime, path: string): Promise<ResultsFile> {
    const host = hostOf(runtime, `write ${path}`);
    const lock = await lockOf(host, path);
    try {
      const read = await host.info(path) && await readResults(runtime, path);
      if (read?.torn) await cutOff(runtime, path, read.wholeBytes);
      const sink = await openForAppending(runtime, path);
      // A file whose name is not on the disk is lost with all its lines.
      if (!read) await host.syncFolder(path);
      return new ResultsFile(read?.lines, sink, async (empty) => {
        if (empty) await host.remove(path);
        await lock[Symbol.asyncDispose]();
      });
    } catch (error) {
      await lock[Symbol.asyncDispose]();
      throw error;
    }
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  /** Writes one line and returns once it is on the disk. */
  async append(line: ResultLine): Promise<void> {
    await this.#sink.write(new TextEncoder().encode(`${JSON.stringify(line)}\n`));
    await this.#sink.sync();
    this.#ids.add(line.id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sink.close();
    await this.#close(this.#isNew && this.#ids.size === 0);
  }
}

/** One writer per file, by whatever link it was named. */
async function lockOf(host: Host, path: string): Promise<AsyncDisposable> {
  try {
    return await host.lock(await host.realPath(path));
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    throw error.again({ where: path });
  }
}

/** Replaces the file by its first `bytes` bytes, in one step. */
async function cutOff(runtime: Runtime, path: string, bytes: number): Promise<void> {
  const source = await runtime.openFile(path);
  try {
    await writeWhole(runtime, path, await source.read(0, bytes));
  } finally {
    await source.close();
  }
}
