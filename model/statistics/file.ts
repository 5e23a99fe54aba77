/**
 * What a model's queries are like before RoPE, as `palisade calibrate` finds it over texts: a safetensors
 * file with the F32 tensors `mean` `[layers, heads, headDim]`, `covariance` `[layers, heads, headDim, headDim]` and
 * `lengths` `[layers, heads, pairs]`, the mean length of each pair of RoPE; zeros for layers that look back over a window.
 * The metadata key `palisade_statistics` holds {@link StatisticsInfo} as JSON.
 *
 * Means over at least {@link LEAST_TOKENS} tokens, so that no text can be read from them.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { QueryMeans } from "../../core/measure/query_statistics.ts";
import type { ByteSource, Runtime } from "../../runtime/interface.ts";
import { kindByMetadata, type OutputKind } from "../../runtime/output.ts";
import type { ModelConfig } from "../config.ts";
import { readWhole } from "../file/read_whole.ts";
import { parseSafetensors, writeSafetensors } from "../file/safetensors.ts";
import { LEAST_LEARNED } from "../gate/learned.ts";
import { type FoundInfo, parseFoundInfo } from "../policy_files/found_for.ts";

export const STATISTICS_FORMAT = 1;
/** Fewer tokens than this are never summed up. */
export const LEAST_TOKENS = LEAST_LEARNED;
const KEY = "palisade_statistics";
/** Largest file that is read: 128 layers of 128 heads 128 wide take 1.1 GB. */
const MAX_BYTES = 2 ** 31;

/** For which model, and over what. */
export interface StatisticsInfo extends FoundInfo {
  readonly format: typeof STATISTICS_FORMAT;
}

/** Numbers of all layers, in order. */
export interface StatisticsShape {
  readonly layers: number;
  /** Query heads. */
  readonly heads: number;
  readonly headDim: number;
}

export interface Statistics extends Required<QueryMeans> {
  /** Where they came from, for messages. */
  readonly name: string;
  readonly info: StatisticsInfo;
  readonly shape: StatisticsShape;
  /** `[layers, heads, headDim]`. */
  readonly mean: Float32Array;
  /** `[layers, heads, headDim, headDim]`. */
  readonly covariance: Float32Array;
  /** `[layers, heads, pairs]`. */
  readonly lengths: Float32Array;
}

const NAMES = ["mean", "covariance", "lengths"] as const;

/** The shape of each tensor. */
function shapesOf({ layers, heads, headDim }: StatisticsShape): Readonly<Record<typeof NAMES[number], number[]>> {
  return {
    mean: [layers, heads, headDim],
    covariance: [layers, heads, headDim, headDim],
    lengths: [layers, heads, Math.ceil(headDim / 2)],
  };
}

/** The file's bytes. */
export function writeStatistics({ info, shape, ...tensors }: Omit<Statistics, "name">): Uint8Array<ArrayBuffer> {
  const shapes = shapesOf(shape);
  const written = NAMES.map((name) => ({ name, dtype: "F32" as const, shape: shapes[name], data: tensors[name] }));
  return writeSafetensors(written, { [KEY]: JSON.stringify(info) });
}

/**
 * Reads a file's bytes; `name` is for messages. PalisadeErrors of kind input: `safetensors.*`, `statistics.format`,
 * `statistics.metadata`, `statistics.shape`, `statistics.values` (not finite, a length below 0, a covariance that is not
 * symmetric), `statistics.tokens` (over fewer than {@link LEAST_TOKENS}).
 */
export function parseStatistics(bytes: Uint8Array, name: string): Statistics {
  const file = parseSafetensors(bytes, name);
  const refused = (code: string, reason: string) => refuse(code, name, reason);
  const form = { key: KEY, format: STATISTICS_FORMAT, refuse: refused };
  const info = parseFoundInfo<StatisticsInfo>(file.metadata.get(KEY), form), { tokens } = info.calibration;
  if (!(tokens >= LEAST_TOKENS)) throw refuse("tokens", name, `they are of ${tokens} tokens; want ${LEAST_TOKENS}`);
  const [layers = 0, heads = 0, headDim = 0] = file.tensors.get("mean")?.shape ?? [],
    shape = { layers, heads, headDim };
  const shapes = shapesOf(shape);
  const [mean, covariance, lengths] = NAMES.map((each) => {
    const found = file.tensors.get(each), wanted = shapes[each];
    if (found && `${found.shape}` === `${wanted}` && wanted.every((size) => size >= 1)) return found.read();
    throw refuse("shape", name, `want tensors mean, covariance and lengths; ${each} is not as mean says`);
  });
  const problem = [mean, covariance, lengths].some((values) => !values.every(Number.isFinite))
    ? "not finite"
    : lengths.some((length) => length < 0)
    ? "lengths below 0"
    : isSymmetric(covariance, headDim)
    ? undefined
    : "covariances that are not symmetric";
  if (problem) throw refuse("values", name, `they hold numbers that can't be: ${problem}`);
  return { name, info, shape, mean, covariance, lengths };
}

function isSymmetric(matrices: Float32Array, size: number): boolean {
  return matrices.every((value, at) => {
    const i = at % size ** 2, from = at - i, row = Math.floor(i / size), column = i % size;
    return value === matrices[from + column * size + row];
  });
}

/** Reads one file and closes it. PalisadeErrors: `file.*`, `statistics.large`, and those of {@link parseStatistics}. */
export async function readStatistics(
  from: string | ByteSource,
  runtime: Pick<Runtime, "openFile">,
): Promise<Statistics> {
  const { bytes, name } = await readWhole(from, runtime, MAX_BYTES, ({ name, size }) => {
    return refuse("large", name, `${size} bytes; want at most ${MAX_BYTES}`);
  });
  return parseStatistics(bytes, name);
}

/** Refuses statistics of another model. @throws PalisadeError `statistics.model`. */
export function checkStatistics(
  { name, info: { model }, shape }: Statistics,
  config: ModelConfig,
  sha256: string,
): void {
  const { layers, heads, headDim } = config;
  if (model.sha256 === sha256 && `${shapesOf(shape).mean}` === `${[layers, heads, headDim]}`) return;
  const of = (name: string, hash: string) => `${name} (SHA-256 ${hash.slice(0, 12)}…)`;
  throw refuse("model", name, `they are of ${of(model.name, model.sha256)}, not of ${of(config.name, sha256)}`);
}

/** A file that statistics may take the place of: others. */
export const STATISTICS_FILE: OutputKind = kindByMetadata("query statistics", KEY);

function refuse(code: string, name: string, reason: string): PalisadeError {
  return inputError(`statistics.${code}`, `Can't use the query statistics: ${reason}`, name);
}
