/**
 * A model file on its way: written under a name of its own, hashed while written, and given its final name only
 * when size and SHA-256 are the pinned ones. So a half file never counts as whole, and two pulls at once never
 * write to the same file.
 *
 * Names beside `NAME.gguf`: `NAME.gguf.part` is an interrupted download that anyone may take over by renaming it;
 * `NAME.gguf.<id>.part` belongs to the running pull that made the id.
 */
import { breathe } from "../../runtime/breathe.ts";
import type { ByteSink, ByteSource, Hasher, Host, Runtime } from "../../runtime/interface.ts";
import { readInto } from "../../runtime/read_into.ts";
import type { NamedModel } from "./registry.ts";

/** A running pull writes at least every half minute; a part that old belongs to nobody any more. */
const ORPHAN_MS = 10 * 60 * 1000;

/** Bytes read at a time when hashing. */
const HASH_CHUNK = 1 << 20;

/** The bytes are not those of the pinned file. Going on makes no sense; starting anew may. */
export class WrongBytesError extends Error {}

export class PartFile {
  readonly #host: Host;
  readonly #folder: string;
  readonly #model: NamedModel;
  readonly #path: string;
  readonly #hasher: Hasher;
  readonly #sink: ByteSink;
  #bytes: number;
  #open = true;

  private constructor(
    host: Host,
    folder: string,
    model: NamedModel,
    path: string,
    hasher: Hasher,
    sink: ByteSink,
    bytes: number,
  ) {
    this.#host = host;
    this.#folder = folder;
    this.#model = model;
    this.#path = path;
    this.#hasher = hasher;
    this.#sink = sink;
    this.#bytes = bytes;
  }

  /** Takes over an interrupted download with `resume`, or starts empty. `folder` must exist. */
  static async open(
    runtime: Runtime,
    host: Host,
    folder: string,
    model: NamedModel,
    options: { readonly resume: boolean },
  ): Promise<PartFile> {
    const path = host.join(folder, `${model.file}.${crypto.randomUUID()}.part`);
    const hasher = runtime.sha256();
    let bytes = 0;
    if (options.resume && await host.rename(host.join(folder, `${model.file}.part`), path)) {
      if ((await host.info(path))!.size <= model.size) bytes = await hashFile(runtime, path, hasher);
    }
    const sink = await host.create(path, { append: bytes > 0 });
    return new PartFile(host, folder, model, path, hasher, sink, bytes);
  }

  /** Bytes written so far, those taken over included. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Throws WrongBytesError when there are more bytes than the file has. */
  async write(bytes: Uint8Array): Promise<void> {
    if (this.#bytes + bytes.length > this.#model.size) {
      throw new WrongBytesError(`it is longer than the ${this.#model.size} bytes of the pinned file`);
    }
    await this.#sink.write(bytes);
    this.#hasher.update(bytes);
    this.#bytes += bytes.length;
  }

  /** Checks size and hash and gives the file its name, which it returns. Throws WrongBytesError. */
  async finish(): Promise<string> {
    if (this.#bytes !== this.#model.size) {
      throw new WrongBytesError(`it has ${this.#bytes} bytes, the pinned file has ${this.#model.size}`);
    }
    const digest = this.#hasher.digest();
    if (digest !== this.#model.sha256) {
      throw new WrongBytesError(`its SHA-256 is ${digest}, the pinned file's is ${this.#model.sha256}`);
    }
    await this.#sink.sync();
    await this.#close();
    const path = this.#host.join(this.#folder, this.#model.file);
    if (!await this.#host.rename(this.#path, path)) throw new Error(`${this.#path} was removed by someone else`);
    return path;
  }

  /** Leaves the bytes for a later pull to go on from. */
  async keep(): Promise<void> {
    await this.#close();
    if (this.#bytes === 0) await this.#host.remove(this.#path);
    else await this.#host.rename(this.#path, this.#host.join(this.#folder, `${this.#model.file}.part`));
  }

  async discard(): Promise<void> {
    await this.#close();
    await this.#host.remove(this.#path);
  }

  async #close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#sink.close();
  }
}

/** While bytes are hashed. */
export interface HashOptions {
  readonly signal?: AbortSignal;
  /** Bytes that were hashed since the last call. */
  readonly onBytes?: (bytes: number) => void;
}

/** Feeds a whole file to `hasher` and returns its length in bytes. Memory: one chunk. */
export async function hashFile(
  runtime: Runtime,
  path: string,
  hasher: Hasher,
  options: HashOptions = {},
): Promise<number> {
  const source = await runtime.openFile(path);
  try {
    return await hashSource(source, hasher, options);
  } finally {
    await source.close();
  }
}

/** The same of bytes that are open and stay so. */
export async function hashSource(
  source: ByteSource,
  hasher: Hasher,
  { signal, onBytes }: HashOptions = {},
): Promise<number> {
  const chunk = new Uint8Array(Math.min(HASH_CHUNK, source.size));
  for (let at = 0; at < source.size; at += HASH_CHUNK) {
    await breathe(signal);
    const bytes = chunk.subarray(0, Math.min(HASH_CHUNK, source.size - at));
    await readInto(source, at, bytes);
    hasher.update(bytes);
    onBytes?.(bytes.length);
  }
  return source.size;
}

/** Makes parts left by pulls that were killed free for the taking; removes what is left over. */
export async function adoptOrphans(host: Host, folder: string, model: NamedModel): Promise<void> {
  const free = host.join(folder, `${model.file}.part`);
  for (const name of await host.list(folder)) {
    if (!name.startsWith(`${model.file}.`) || !name.endsWith(".part") || name === `${model.file}.part`) continue;
    const path = host.join(folder, name);
    const info = await host.info(path);
    if (!info || Date.now() - info.modified < ORPHAN_MS) continue;
    if (await host.info(free)) await host.remove(path);
    else await host.rename(path, free);
  }
}
