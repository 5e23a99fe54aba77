/** A pipe as a source that can be read at any place: taken in whole first, in memory while it is small, else in a file. */
import { concatenate } from "../core/concatenate.ts";
import { hostOf } from "./host.ts";
import type { ByteSink, ByteSource, Runtime } from "./interface.ts";
import { openTemporary } from "./output.ts";
import { bufferSource } from "./sources.ts";

/** What is held in memory; more goes to a file. */
const IN_MEMORY = 64 * 2 ** 20;
/** Bytes shown to `check`: enough to tell one kind of file from another. */
const FIRST = 16;

export interface SpoolOptions {
  readonly signal?: AbortSignal;
  /** Called once with the first 16 bytes, or all there are: throws where nothing of it is wanted. */
  readonly check?: (first: Uint8Array, name: string) => void;
  /** Most bytes held in memory. Default 64 MiB. */
  readonly inMemory?: number;
}

/**
 * Takes in a pipe, or standard input for `-`. Closing the source removes its file, and so does the end of the process.
 * @throws PalisadeError `file.*`; what `check` throws; the signal's reason, at once even where nobody writes.
 */
export async function spooled(runtime: Runtime, path: string, options: SpoolOptions = {}): Promise<ByteSource> {
  const name = path === "-" ? "standard input" : path, { inMemory = IN_MEMORY } = options;
  const spool = new Spool(runtime, name, inMemory);
  let head = new Uint8Array(0), checked = false;
  const check = () => {
    if (!checked) options.check?.(head, name);
    checked = true;
  };
  try {
    for await (const chunk of runtime.readBytes(path, options.signal)) {
      if (!checked) {
        const more = chunk.subarray(0, FIRST - head.length), all = new Uint8Array(head.length + more.length);
        all.set(head);
        all.set(more, head.length);
        head = all;
        if (head.length === FIRST) check();
      }
      await spool.add(chunk);
    }
    check();
    return await spool.source();
  } catch (error) {
    await spool.remove();
    throw error;
  }
}

class Spool {
  readonly #runtime: Runtime;
  readonly #name: string;
  readonly #inMemory: number;
  #chunks: Uint8Array[] = [];
  #size = 0;
  #file?: { readonly path: string; readonly sink: ByteSink };

  constructor(runtime: Runtime, name: string, inMemory: number) {
    this.#runtime = runtime;
    this.#name = name;
    this.#inMemory = inMemory;
  }

  async add(chunk: Uint8Array): Promise<void> {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    if (this.#size <= this.#inMemory) return;
    this.#file ??= await openTemporary(this.#runtime, ".pipe");
    for (const each of this.#chunks) await this.#file.sink.write(each);
    this.#chunks = [];
  }

  async source(): Promise<ByteSource> {
    if (!this.#file) return bufferSource(concatenate(this.#chunks, Uint8Array), this.#name);
    const { path, sink } = this.#file;
    await sink.close();
    const opened = await this.#runtime.openFile(path);
    return {
      name: this.#name,
      size: opened.size,
      read: (offset, length) => opened.read(offset, length),
      close: async () => {
        await opened.close();
        await hostOf(this.#runtime, "remove a file").remove(path);
      },
    };
  }

  async remove(): Promise<void> {
    if (!this.#file) return;
    await this.#file.sink.close();
    await hostOf(this.#runtime, "remove a file").remove(this.#file.path);
  }
}
