/**
 * One cell as a line of JSON: the unit for schedulers of other people's (GNU parallel, Make, a pipe of Spark or Ray), which
 * keep count of what is done. A line in, a line out, and nothing is remembered.
 */
import { ALL_CACHE_TYPES, type CacheType, ROW_TYPES } from "../../core/cache/entry_type.ts";
import { inputError } from "../../core/errors.ts";
import type { Runtime } from "../../runtime/interface.ts";
import type { ResultLine } from "../results/results.ts";
import { NO_HAYSTACK, openHaystack } from "../tasks/haystack.ts";
import { openTasks } from "../tasks/registry.ts";
import { loadCases, parseLengths } from "./plan.ts";
import { runGroup, type Subject } from "./sweep.ts";

/** What a line asks for. All but `task`, and `length` for tasks that have none of their own, have defaults. */
export interface CellRequest {
  /** A name or a file. Default: the command's. */
  readonly model?: string;
  /** One of RULER's, `qa:FILE` or `jsonl:FILE`. */
  readonly task: string;
  /** Tokens: 1024, or `1k`. */
  readonly length?: string;
  /** Which one, from 0. Default 0. */
  readonly sample: number;
  readonly policy: string;
  readonly keep: string;
  /** In place of `keep`: bytes, or a share of the whole cache as float16. */
  readonly bytes?: string;
  readonly seed: number;
  /** Compressed after the question. */
  readonly queryAware: boolean;
  readonly cacheType?: CacheType;
  /** For policy `gate`: a file. */
  readonly gate?: string;
  /** Prose to hide needles in: a file. */
  readonly haystack?: string;
  readonly beyondTrained: boolean;
}

/** Longest line, characters. */
export const MAX_LINE = 2 ** 20;

type Reader = (value: unknown) => boolean;
const text: Reader = (value) => typeof value === "string" && value !== "";
const count: Reader = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const flag: Reader = (value) => typeof value === "boolean";
const amount: Reader = (value) => text(value) || (typeof value === "number" && Number.isFinite(value));

/** Fields of a line, what they take, and how that is said. */
const FIELDS: Readonly<Record<keyof CellRequest, readonly [Reader, string]>> = {
  model: [text, "a text"],
  task: [text, "a text"],
  length: [amount, "tokens: 1024, or a text such as 1k"],
  sample: [count, "a whole number from 0"],
  policy: [text, "a text"],
  keep: [amount, "a text such as 20%, or tokens"],
  bytes: [text, "a text such as 1/16 or 2MB"],
  seed: [count, "a whole number from 0"],
  queryAware: [flag, "true or false"],
  cacheType: [
    (value) => ALL_CACHE_TYPES.includes(value as CacheType),
    `one of ${ROW_TYPES.join(", ")}, or keys and values apart: k=int4,v=int8`,
  ],
  gate: [text, "a file's name"],
  haystack: [text, "a file's name"],
  beyondTrained: [flag, "true or false"],
};

/**
 * Reads a line.
 * @throws PalisadeError `cell.syntax`, `cell.field`.
 */
export function parseCell(line: string, defaults: Pick<CellRequest, "policy" | "keep">): CellRequest {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw inputError("cell.syntax", `Can't read a cell: it is no JSON: ${(error as Error).message}`, "cell", error);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw inputError("cell.syntax", `Can't read a cell: want an object such as {"task":"vt","length":"1k"}`, "cell");
  }
  const given = Object.entries(value).filter(([, each]) => each !== null);
  for (const [name, each] of given) {
    const known = Object.hasOwn(FIELDS, name) ? FIELDS[name as keyof CellRequest] : undefined;
    if (!known) {
      throw inputError("cell.field", `A cell has no field ${name}: there are ${Object.keys(FIELDS).join(", ")}`, name);
    }
    const [fits, wanted] = known;
    if (!fits(each)) {
      throw inputError("cell.field", `${name} of a cell is ${JSON.stringify(each)}: want ${wanted}`, name);
    }
  }
  const cell = {
    sample: 0,
    seed: 1,
    queryAware: false,
    beyondTrained: false,
    ...defaults,
    ...Object.fromEntries(given),
  };
  if (!("task" in cell)) throw inputError("cell.field", "A cell has no task: name one, e.g. niah_single_1", "task");
  const { length, keep, ...rest } = cell as unknown as CellRequest;
  return { ...rest, keep: String(keep), ...(length !== undefined && { length: String(length) }) };
}

/**
 * Computes one cell: the line that `palisade eval` would write.
 * @throws PalisadeError as `openTasks`, `loadCases`, `parseLengths`, `openHaystack` and `runGroup`; `cell.field` where it
 * names several things.
 */
export async function runCell(
  subject: Subject,
  request: CellRequest,
  options: {
    readonly signal?: AbortSignal;
    readonly onStep?: (label: string, done: number, total: number) => void;
  } = {},
): Promise<ResultLine> {
  const { runtime } = subject, { sample, seed, queryAware, cacheType, beyondTrained } = request;
  const { task, length, cases } = await openCell(request, runtime);
  const haystack = task.sized ? await openHaystack(runtime, request.haystack) : NO_HAYSTACK;
  const protocol = queryAware ? "query-aware" : "context-first";
  const settings = { ...options, seed, protocol, haystack, cacheType, beyondTrained, isDone: () => false } as const;
  const lines = runGroup(subject, { task, length, sample }, cases, settings);
  // One case gives one line, or a refusal.
  const { value } = await lines.next() as IteratorYieldResult<ResultLine>;
  await lines.return(undefined);
  return value;
}

/** What a cell names: one of each. @throws as {@link runCell}, before any model is needed. */
export async function openCell(request: CellRequest, runtime: Runtime) {
  const cases = await loadCases(runtime, request.policy, request.keep, request.bytes);
  const tasks = await openTasks([request.task], runtime);
  if (tasks.length !== 1) throw several("task", request.task);
  if (cases.length !== 1) throw several("policy and keep", `${request.policy} at ${request.keep}`);
  const [task] = tasks;
  if (request.sample >= (task.available ?? Infinity)) {
    const message = `${task.name} has ${task.available} samples: there is no number ${request.sample}, counted from 0`;
    throw inputError("cell.field", message, "sample");
  }
  return { task, cases, length: task.sized ? lengthOf(request) : null };
}

function lengthOf({ length, task }: CellRequest): number {
  if (length === undefined) throw inputError("cell.field", `A cell of ${task} needs a length, e.g. "1k"`, "length");
  const lengths = parseLengths(length);
  if (lengths.length !== 1) throw several("length", length);
  return lengths[0];
}

function several(what: string, given: string) {
  return inputError("cell.field", `A cell is of one ${what}, not of ${given}`, what);
}
