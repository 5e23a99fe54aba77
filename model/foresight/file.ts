/**
 * Which frequency chunks of each head foresee its highest entries, as `palisade calibrate` finds them for `fasa`: a safetensors
 * file with the tensor `agreement`, F32 `[layers, kvHeads, chunks]`, 0 … 1, zeros for layers that look back over a window;
 * the metadata key `palisade_chunks` holds {@link ChunksInfo} as JSON.
 */
import { inputError, type PalisadeError } from "../../core/errors.ts";
import type { ByteSource, Runtime } from "../../runtime/interface.ts";
import { kindByMetadata, type OutputKind } from "../../runtime/output.ts";
import type { ModelConfig } from "../config.ts";
import { readWhole } from "../file/read_whole.ts";
import { parseSafetensors, writeSafetensors } from "../file/safetensors.ts";
import { type FoundInfo, parseFoundInfo } from "../policy_files/found_for.ts";

export const CHUNKS_FORMAT = 1;
const KEY = "palisade_chunks";
const TENSOR = "agreement";
/** Largest file that is read: 200 layers of 64 heads 512 wide take 13 MB. */
const MAX_BYTES = 2 ** 26;

/** For which model, and on what. */
export interface ChunksInfo extends FoundInfo {
  readonly format: typeof CHUNKS_FORMAT;
  /** Highest entries that were compared. */
  readonly top: number;
}

export interface Chunks {
  /** Where they came from, for messages. */
  readonly name: string;
  readonly info: ChunksInfo;
  /** `[layers, kvHeads, chunks]`. */
  readonly agreement: Float32Array;
  readonly shape: readonly [layers: number, kvHeads: number, chunks: number];
}

/** The file's bytes. */
export function writeChunks({ info, agreement, shape }: Omit<Chunks, "name">): Uint8Array<ArrayBuffer> {
  return writeSafetensors([{ name: TENSOR, dtype: "F32", shape: [...shape], data: agreement }], {
    [KEY]: JSON.stringify(info),
  });
}

/**
 * Reads a file's bytes; `name` is for messages. PalisadeErrors of kind input: `safetensors.*`, `chunks.format`,
 * `chunks.metadata`, `chunks.shape`, `chunks.values`.
 */
export function parseChunks(bytes: Uint8Array, name: string): Chunks {
  const file = parseSafetensors(bytes, name);
  const refused = (code: string, reason: string) => refuse(code, name, reason);
  const form = { key: KEY, format: CHUNKS_FORMAT, refuse: refused };
  const info = parseFoundInfo<ChunksInfo>(file.metadata.get(KEY), form);
  const found = file.tensors.get(TENSOR);
  if (!found || found.shape.length !== 3 || found.shape.some((size) => size < 1)) {
    throw refuse("shape", name, `want one tensor ${TENSOR} of layers × heads × chunks`);
  }
  const agreement = found.read();
  if (!agreement.every((each) => each >= 0 && each <= 1)) {
    throw refuse("values", name, `${TENSOR} holds numbers that are not from 0 to 1`);
  }
  const [layers, kvHeads, chunks] = found.shape;
  return { name, info, agreement, shape: [layers, kvHeads, chunks] };
}

/** Reads one file and closes it. PalisadeErrors: `file.*`, `chunks.large`, and those of {@link parseChunks}. */
export async function readChunks(from: string | ByteSource, runtime: Pick<Runtime, "openFile">): Promise<Chunks> {
  const { bytes, name } = await readWhole(from, runtime, MAX_BYTES, ({ name, size }) => {
    return refuse("large", name, `${size} bytes; want at most ${MAX_BYTES}`);
  });
  return parseChunks(bytes, name);
}

/** Refuses chunks of another model. @throws PalisadeError `chunks.model`. */
export function checkChunks({ name, info: { model }, shape }: Chunks, config: ModelConfig, sha256: string): void {
  const wanted = [config.layers, config.kvHeads, Math.ceil(config.headDim / 2)];
  if (model.sha256 === sha256 && `${shape}` === `${wanted}`) return;
  throw refuse(
    "model",
    name,
    `they were found for ${model.name} (SHA-256 ${model.sha256.slice(0, 12)}…, ${shape}), not ` +
      `for ${config.name} (SHA-256 ${sha256.slice(0, 12)}…, ${wanted})`,
  );
}

/** A file that chunks may take the place of: others. */
export const CHUNKS_FILE: OutputKind = kindByMetadata("frequency chunks", KEY);

function refuse(code: string, name: string, reason: string): PalisadeError {
  return inputError(`chunks.${code}`, `Can't use the chunks: ${reason}`, name);
}
