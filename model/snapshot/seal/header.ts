/**
 * The first 96 bytes of a sealed file. Numbers are little-endian.
 *
 * | bytes  | what                                                                                       |
 * | ------ | ------------------------------------------------------------------------------------------ |
 * | 0 … 7  | `PALSEAL` and a zero byte                                                                  |
 * | 8      | version, 1                                                                                 |
 * | 12     | 1: a key file; 2: a passphrase through scrypt                                              |
 * | 16     | scrypt's log₂ N, r and p, 4 bytes each; zeros with a key file                              |
 * | 28     | log₂ of a chunk's bytes of plain text                                                      |
 * | 32     | salt, 32 random bytes: of scrypt, and of the file's own key                                |
 * | 64     | tag of an empty message under the file's key, the 64 bytes above as associated data        |
 * | 80     | the first 16 bytes of the SHA-256 of the 80 above: tells a damaged header from a wrong key |
 */
import { sha256 } from "@noble/hashes/sha2.js";
import { inputError, type PalisadeError } from "../../../core/errors.ts";
import type { ByteSource } from "../../../runtime/interface.ts";
import { costProblem, KEY_BYTES, type ScryptCost, type Secret } from "./key.ts";

export const HEADER_BYTES = 96;
/** Bytes that AES-GCM adds to each message. */
export const TAG_BYTES = 16;
/** Of the header, what the tag covers. */
export const COVERED_BYTES = 64;

const MAGIC = "PALSEAL\0", VERSION = 1, DIGEST_AT = 80;
const KINDS = { key: 1, passphrase: 2 } as const;
/** 4 KiB and 16 MiB, as log₂. */
const LEAST_CHUNK = 12, MOST_CHUNK = 24;

export interface SealHeader {
  readonly kind: Secret["kind"];
  readonly cost: ScryptCost;
  /** Bytes of plain text in every chunk but the last. */
  readonly chunkBytes: number;
  readonly salt: Uint8Array<ArrayBuffer>;
  /** The covered bytes as they stand in the file. */
  readonly covered: Uint8Array<ArrayBuffer>;
  readonly tag: Uint8Array<ArrayBuffer>;
}

/** The covered bytes of a new file. */
export function coveredBytes({ kind, cost, chunkBytes, salt }: Omit<SealHeader, "covered" | "tag">) {
  const bytes = new Uint8Array(COVERED_BYTES), view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(MAGIC));
  const { logN, r, p } = kind === "passphrase" ? cost : { logN: 0, r: 0, p: 0 };
  [VERSION, KINDS[kind], logN, r, p, Math.log2(chunkBytes)].forEach((n, i) => view.setUint32(8 + 4 * i, n, true));
  bytes.set(salt, 32);
  return bytes;
}

/** The header as it is written. */
export function headerBytes(covered: Uint8Array, tag: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_BYTES);
  bytes.set(covered);
  bytes.set(tag, COVERED_BYTES);
  bytes.set(digestOf(bytes), DIGEST_AT);
  return bytes;
}

function digestOf(header: Uint8Array): Uint8Array {
  return sha256(header.subarray(0, DIGEST_AT)).subarray(0, HEADER_BYTES - DIGEST_AT);
}

/** Whether a file is a sealed one, by how it begins. */
export async function isSealed(source: ByteSource): Promise<boolean> {
  if (source.size < MAGIC.length) return false;
  return new TextDecoder().decode(await source.read(0, MAGIC.length)) === MAGIC;
}

/**
 * @throws PalisadeError input `seal.magic`, `seal.truncated`, `seal.version`, `seal.damaged`, `seal.header`, where
 * `seal.header`.
 */
export async function readHeader(source: ByteSource): Promise<SealHeader> {
  if (!await isSealed(source)) throw refused(source, "magic", "it begins otherwise than a sealed snapshot");
  if (source.size < HEADER_BYTES + TAG_BYTES) {
    throw refused(
      source,
      "truncated",
      `it is cut: ${source.size} bytes, of which the header alone needs ${HEADER_BYTES}`,
    );
  }
  const bytes = await source.read(0, HEADER_BYTES), view = new DataView(bytes.buffer, bytes.byteOffset);
  const [version, kindCode, logN, r, p, logChunk] = [8, 12, 16, 20, 24, 28].map((at) => view.getUint32(at, true));
  // Before the digest: a later version may have another header.
  if (version !== VERSION) {
    throw refused(source, "version", `it has version ${version}: this palisade knows ${VERSION}`);
  }
  if (digestOf(bytes).some((byte, i) => byte !== bytes[DIGEST_AT + i])) {
    throw refused(source, "damaged", "its header is damaged");
  }
  const kind = kindCode === KINDS.key ? "key" : kindCode === KINDS.passphrase ? "passphrase" : undefined;
  if (!kind) throw refused(source, "header", `it has keys of kind ${kindCode}, which this palisade does not know`);
  const cost = { logN, r, p }, problem = kind === "passphrase" && costProblem(cost);
  if (problem) throw refused(source, "header", `its passphrase can't be tried: ${problem}`);
  if (logChunk < LEAST_CHUNK || logChunk > MOST_CHUNK) {
    throw refused(source, "header", "its chunks have an impossible size");
  }
  return {
    kind,
    cost,
    chunkBytes: 2 ** logChunk,
    salt: bytes.slice(32, 32 + KEY_BYTES),
    covered: bytes.slice(0, COVERED_BYTES),
    tag: bytes.slice(COVERED_BYTES, COVERED_BYTES + TAG_BYTES),
  };
}

/** `where` is the part of the file: `seal.header` or `seal.chunk[3]`. */
export function refused({ name }: ByteSource, code: string, why: string, where = "seal.header"): PalisadeError {
  return inputError(`seal.${code}`, `Can't open the sealed snapshot ${name}: ${why}`, where);
}
