/**
 * Soft tokens from a safetensors file: embeddings that no word has, trained to look at a context as the answers to come
 * will (Judge Q, arXiv 2509.10798). docs/gates.md describes the file.
 *
 * Tensor `embeddings`, F32 or F16 `[count, width]`, what goes into layer 0; the metadata key `palisade_soft_tokens` holds
 * a {@link SoftTokensInfo} as JSON.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { ByteSource, Runtime } from "../../runtime/interface.ts";
import { kindByMetadata, type OutputKind } from "../../runtime/output.ts";
import type { ModelConfig } from "../config.ts";
import { readWhole } from "../file/read_whole.ts";
import { parseSafetensors, writeSafetensors } from "../file/safetensors.ts";
import type { GateSubject } from "../gate/find.ts";
import { findNamedOrOwn } from "./found_for.ts";

/** The form of the metadata. */
export const SOFT_TOKENS_FORMAT = 1;
const KEY = "palisade_soft_tokens";
const TENSOR = "embeddings";
export const SOFT_TOKENS_SUFFIX = ".soft.safetensors";
/** The paper's 64 are already harder to train than 32. */
export const MAX_SOFT_TOKENS = 1024;
/** Largest file that is read: as many tokens of width 16384 as float32. */
const MAX_BYTES = 2 ** 27;

/** What soft tokens may take the place of. */
export const SOFT_TOKENS_FILE: OutputKind = kindByMetadata("soft tokens", KEY);

/** For which model they were trained, and in what words their maker says on what. */
export interface SoftTokensInfo {
  readonly format: typeof SOFT_TOKENS_FORMAT;
  readonly model: {
    readonly name: string;
    /** SHA-256 of the model file, hexadecimal. */
    readonly sha256: string;
    readonly architecture: string;
    readonly width: number;
  };
  readonly trained: string;
}

export interface SoftTokens {
  /** Where they came from, for messages. */
  readonly name: string;
  readonly info: SoftTokensInfo;
  /** `[count, width]`. */
  readonly embeddings: Float32Array;
}

/** The file's bytes. @throws RangeError when the embeddings are no whole rows. */
export function writeSoftTokens(info: SoftTokensInfo, embeddings: Float32Array): Uint8Array<ArrayBuffer> {
  const { width } = info.model, shape = [Math.floor(embeddings.length / width), width];
  return writeSafetensors([{ name: TENSOR, dtype: "F32", shape, data: embeddings }], { [KEY]: JSON.stringify(info) });
}

/**
 * Reads a file's bytes; `name` is for messages. PalisadeErrors of kind input: `safetensors.*`, `soft-tokens.format` (some
 * other file, or another version), `soft-tokens.metadata`, `soft-tokens.shape`, `soft-tokens.values` (not finite).
 */
export function parseSoftTokens(bytes: Uint8Array, name: string): SoftTokens {
  const file = parseSafetensors(bytes, name);
  const info = parseInfo(file.metadata.get(KEY), name);
  const found = file.tensors.get(TENSOR), { width } = info.model;
  if (!found) throw refuse("shape", name, `there is no tensor ${TENSOR}`);
  const [count, columns] = found.shape;
  if (found.shape.length !== 2 || columns !== width || count < 1 || count > MAX_SOFT_TOKENS) {
    const wanted = `1 to ${MAX_SOFT_TOKENS} × ${width}`;
    throw refuse("shape", name, `tensor ${TENSOR} is ${found.shape.join(" × ") || "one number"}; want ${wanted}`);
  }
  const embeddings = found.read();
  if (!embeddings.every(Number.isFinite)) {
    throw refuse("values", name, `tensor ${TENSOR} holds numbers that are not finite`);
  }
  return { name, info, embeddings };
}

/**
 * Refuses soft tokens of another model file.
 * @throws PalisadeError `soft-tokens.model`, naming both.
 */
export function checkSoftTokens({ name, info: { model } }: SoftTokens, config: ModelConfig, sha256: string): void {
  const { architecture, width } = config;
  if (model.sha256 === sha256 && model.architecture === architecture && model.width === width) return;
  const describe = (each: { name: string; architecture: string; width: number }, hash: string) =>
    `${each.name} (${each.architecture}, width ${each.width}, SHA-256 ${hash.slice(0, 12)}…)`;
  const reason = `they were trained for ${describe(model, model.sha256)}, not for ${describe(config, sha256)}`;
  throw refuse("model", name, reason);
}

/** Reads one file and closes it. PalisadeErrors: `file.*`, `soft-tokens.large`, and those of {@link parseSoftTokens}. */
export async function readSoftTokens(
  from: string | ByteSource,
  runtime: Pick<Runtime, "openFile">,
): Promise<SoftTokens> {
  const { bytes, name } = await readWhole(from, runtime, MAX_BYTES, ({ name, size }) => {
    return refuse("large", name, `the file has ${size} bytes; want at most ${MAX_BYTES}`);
  });
  return parseSoftTokens(bytes, name);
}

/**
 * The soft tokens in a file, or those that were trained for this model: found by its SHA-256 beside its gate.
 * @throws PalisadeError `soft-tokens.none`, and those of {@link readSoftTokens} and {@link checkSoftTokens}.
 */
export async function findSoftTokens(
  model: GateSubject,
  runtime: Runtime,
  from?: string | ByteSource,
): Promise<SoftTokens> {
  const none = {
    code: "soft-tokens.none",
    what: "soft tokens",
    advice: `train them with palisade calibrate --kind judge-q --model ${model.name}`,
  };
  const kind = { suffix: SOFT_TOKENS_SUFFIX, read: readSoftTokens, check: checkSoftTokens, none };
  return await findNamedOrOwn(model, runtime, kind, from);
}

function refuse(code: string, name: string, reason: string): PalisadeError {
  return inputError(`soft-tokens.${code}`, `Can't use the soft tokens: ${reason}`, name);
}

function parseInfo(text: string | undefined, name: string): SoftTokensInfo {
  if (text === undefined) throw refuse("format", name, `there is no ${KEY} in its metadata; it is some other file`);
  let info: Partial<SoftTokensInfo> | null;
  try {
    info = JSON.parse(text);
  } catch (error) {
    throw refuse("metadata", name, `its ${KEY} is no JSON: ${(error as Error).message}`);
  }
  if (info?.format !== SOFT_TOKENS_FORMAT) {
    throw refuse("format", name, `it has format ${info?.format}; ${SOFT_TOKENS_FORMAT} is read`);
  }
  const { model, trained } = info;
  const texts = [model?.name, model?.sha256, model?.architecture, trained];
  if (!texts.every((each) => typeof each === "string") || !/^[0-9a-f]{64}$/.test(model!.sha256)) {
    throw refuse("metadata", name, "want model with name, SHA-256 and architecture, and trained, all of them texts");
  }
  if (!Number.isInteger(model!.width) || model!.width < 1 || model!.width > 2 ** 20) {
    throw refuse("metadata", name, `model.width is ${model!.width}; want a whole number of a sensible size`);
  }
  return info as SoftTokensInfo;
}
