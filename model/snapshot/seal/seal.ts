/**
 * Sealing: authenticated encryption of a file that can still be read in ranges.
 *
 * The plain text is cut into chunks, each encrypted by AES-256-GCM under a key that only this file has (HKDF of the
 * secret and 32 random bytes), so the chunk's number is its nonce. This is the STREAM construction (Hoang, Reyhanitabar,
 * Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015), which `age` uses too:
 * each chunk is bound to the header and to its number, the last one also to how many there are. Opening checks the last
 * one first. So a file that is cut, grown, reordered, or mixed of two is refused, and what a ranged read returns has been
 * authenticated. Nothing of the plain text is returned before that.
 */
import type { ByteSource } from "../../../runtime/interface.ts";
import type { ByteSink } from "../bytes.ts";
import { coveredBytes, HEADER_BYTES, headerBytes, readHeader, refused, TAG_BYTES } from "./header.ts";
import { hkdf, KEY_BYTES, keyMaterial, SCRYPT_COST, type ScryptCost, type Secret, subtle } from "./key.ts";

export { isSealed } from "./header.ts";
export { keySecret, newKeyFile, passphraseSecret, type Secret } from "./key.ts";

/** Bytes of plain text in a chunk: a range costs little more than itself, and a call of WebCrypto little beside it. */
const CHUNK_BYTES = 2 ** 18;

/** How a file is sealed. */
export interface SealOptions {
  /** Bytes of plain text in a chunk, a power of two from 4 KiB to 16 MiB; default 256 KiB. */
  readonly chunkBytes?: number;
  /** What a try at the passphrase costs; default 128 MiB and about half a second. */
  readonly cost?: ScryptCost;
}

/** Bytes of a sealed file with `length` bytes of plain text. */
export function sealedSize(length: number, chunkBytes: number = CHUNK_BYTES): number {
  return HEADER_BYTES + length + TAG_BYTES * Math.max(1, Math.ceil(length / chunkBytes));
}

/**
 * A sink that passes on what it is given sealed by `secret`; `sink` is given up when that fails.
 * @throws PalisadeError resources `seal.no-crypto`, and what `sink` throws.
 */
export async function sealSink(sink: ByteSink, secret: Secret, options: SealOptions = {}): Promise<ByteSink> {
  try {
    return await begin(sink, secret, options);
  } catch (error) {
    await sink.abort();
    throw error;
  }
}

async function begin(sink: ByteSink, secret: Secret, options: SealOptions): Promise<ByteSink> {
  const { chunkBytes = CHUNK_BYTES, cost = SCRYPT_COST } = options;
  const salt = crypto.getRandomValues(new Uint8Array(KEY_BYTES));
  const covered = coveredBytes({ kind: secret.kind, cost, chunkBytes, salt });
  const cipher = new ChunkCipher(await fileKey(secret, salt, cost), covered);
  await sink.write(headerBytes(covered, await cipher.checkTag()));
  return new SealingSink(sink, cipher, chunkBytes);
}

/**
 * What was sealed, as a source of its own; closing it closes `source`, too. A refused `source` stays open. PalisadeErrors (input): `seal.*` of the
 * header; `seal.secret-kind` when the file wants a passphrase and got a key, or the reverse; `seal.key` when the secret is
 * another one; `seal.truncated` and `seal.damaged` with `where` the chunk, the latter also from `read`.
 */
export async function openSealed(source: ByteSource, secret: Secret): Promise<ByteSource> {
  const { kind, cost, chunkBytes, salt, covered, tag } = await readHeader(source);
  if (kind !== secret.kind) {
    const [wanted, given] = kind === "key" ? ["a key file", "a passphrase"] : ["a passphrase", "a key file"];
    throw refused(source, "secret-kind", `it was sealed by ${wanted}, not by ${given}`);
  }
  const cipher = new ChunkCipher(await fileKey(secret, salt, cost), covered);
  if (!await cipher.isChecked(tag)) {
    throw refused(source, "key", `the ${kind === "key" ? "key" : "passphrase"} is not the one it was sealed by`);
  }
  const opened = new SealedSource(source, cipher, chunkBytes);
  await opened.checkEnd();
  return opened;
}

async function fileKey(secret: Secret, salt: Uint8Array<ArrayBuffer>, cost: ScryptCost): Promise<CryptoKey> {
  const material = await keyMaterial(secret, salt, cost), use = { name: "AES-GCM", length: 256 };
  return await subtle().deriveKey(hkdf(salt, "palisade seal 1"), material, use, false, ["encrypt", "decrypt"]);
}

/** Numbers of nonces: the header's check has 0, chunk `i` has `i` + 1. */
class ChunkCipher {
  readonly #key: CryptoKey;
  readonly #covered: Uint8Array;

  constructor(key: CryptoKey, covered: Uint8Array) {
    this.#key = key;
    this.#covered = covered;
  }

  async checkTag(): Promise<Uint8Array> {
    return new Uint8Array(await subtle().encrypt(this.#with(0, 0), this.#key, new Uint8Array(0)));
  }

  async isChecked(tag: Uint8Array<ArrayBuffer>): Promise<boolean> {
    return (await this.#decrypt(this.#with(0, 0), tag)) !== undefined;
  }

  /** `count`: of all chunks when this is the last one, else 0. */
  async seal(index: number, count: number, plain: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
    return new Uint8Array(await subtle().encrypt(this.#with(index + 1, count), this.#key, plain));
  }

  /** Undefined when the chunk is not what was sealed at this place. */
  open(index: number, count: number, sealed: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer> | undefined> {
    return this.#decrypt(this.#with(index + 1, count), sealed);
  }

  async #decrypt(parameters: AesGcmParams, sealed: Uint8Array<ArrayBuffer>) {
    try {
      return new Uint8Array(await subtle().decrypt(parameters, this.#key, sealed));
    } catch (error) {
      if (error instanceof DOMException && error.name === "OperationError") return undefined;
      throw error;
    }
  }

  #with(nonce: number, count: number): AesGcmParams {
    const iv = new Uint8Array(12), additionalData = new Uint8Array(this.#covered.length + 16);
    new DataView(iv.buffer).setBigUint64(4, BigInt(nonce));
    additionalData.set(this.#covered);
    const view = new DataView(additionalData.buffer, this.#covered.length);
    view.setBigUint64(0, BigInt(nonce));
    view.setBigUint64(8, BigInt(count));
    return { name: "AES-GCM", iv, additionalData };
  }
}

class SealingSink implements ByteSink {
  readonly #sink: ByteSink;
  readonly #cipher: ChunkCipher;
  /** Plain text that waits until more comes: only then it is not the last. */
  readonly #held: Uint8Array<ArrayBuffer>;
  #length = 0;
  #index = 0;

  constructor(sink: ByteSink, cipher: ChunkCipher, chunkBytes: number) {
    this.#sink = sink;
    this.#cipher = cipher;
    this.#held = new Uint8Array(chunkBytes);
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      if (this.#length === this.#held.length) await this.#pass(0);
      const taken = Math.min(bytes.length - at, this.#held.length - this.#length);
      this.#held.set(bytes.subarray(at, at + taken), this.#length);
      this.#length += taken;
      at += taken;
    }
  }

  async commit(): Promise<void> {
    await this.#pass(this.#index + 1);
    await this.#sink.commit();
  }

  abort(): Promise<void> {
    this.#held.fill(0);
    return this.#sink.abort();
  }

  async #pass(count: number): Promise<void> {
    await this.#sink.write(await this.#cipher.seal(this.#index++, count, this.#held.subarray(0, this.#length)));
    this.#held.fill(0);
    this.#length = 0;
  }
}

class SealedSource implements ByteSource {
  readonly name: string;
  readonly size: number;
  readonly #source: ByteSource;
  readonly #cipher: ChunkCipher;
  readonly #chunkBytes: number;
  readonly #count: number;
  /** The chunk that was opened last: a header is read in many small ranges. */
  #held?: { readonly index: number; readonly plain: Uint8Array<ArrayBuffer> };

  constructor(source: ByteSource, cipher: ChunkCipher, chunkBytes: number) {
    const body = source.size - HEADER_BYTES;
    this.#count = Math.ceil(body / (chunkBytes + TAG_BYTES));
    this.name = source.name;
    this.size = body - this.#count * TAG_BYTES;
    this.#source = source;
    this.#cipher = cipher;
    this.#chunkBytes = chunkBytes;
  }

  /** Opens the last chunk, which knows how many there are. */
  async checkEnd(): Promise<void> {
    const last = this.#count - 1;
    // A last chunk of a tag alone is whole only when the plain text is empty.
    if (this.size < last * this.#chunkBytes + (last > 0 ? 1 : 0)) {
      throw refused(this.#source, "truncated", "it is cut", `seal.chunk[${last}]`);
    }
    await this.#chunk(last);
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    if (!(Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0)) {
      throw new RangeError(`Can't read ${length} bytes from ${offset}`);
    }
    if (offset + length > this.size) throw new RangeError(`Can't read past the ${this.size} bytes of ${this.name}`);
    const bytes = new Uint8Array(length);
    for (let at = offset; at < offset + length;) {
      const index = Math.floor(at / this.#chunkBytes), from = at - index * this.#chunkBytes;
      const part = (await this.#chunk(index)).subarray(from, from + offset + length - at);
      bytes.set(part, at - offset);
      at += part.length;
    }
    return bytes;
  }

  async close(): Promise<void> {
    this.#held?.plain.fill(0);
    this.#held = undefined;
    await this.#source.close();
  }

  async #chunk(index: number): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#held?.index === index) return this.#held.plain;
    const stride = this.#chunkBytes + TAG_BYTES, at = HEADER_BYTES + index * stride, last = index === this.#count - 1;
    const sealed = await this.#source.read(at, Math.min(stride, this.#source.size - at));
    const plain = await this.#cipher.open(index, last ? this.#count : 0, sealed);
    if (!plain) {
      const why = last ? "its end is damaged, or bytes are missing" : `chunk ${index} of ${this.#count} is damaged`;
      throw refused(this.#source, "damaged", why, `seal.chunk[${index}]`);
    }
    this.#held = { index, plain };
    return plain;
  }
}
