/**
 * Snapshots in a page: in the files that a site has for itself (origin private file system).
 *
 * These know no renaming that can be relied on, and a new file is there, empty, before its first byte. So the content
 * lies in `NAME~VERSION.data`, and the small file `NAME` says which version counts: it is replaced in one step when the
 * content is whole.
 */
import { resourceError } from "../../../core/errors.ts";
import { heeding } from "../signals.ts";
import { type ByteRange, checkSnapshotName, missingSnapshot, type SnapshotInfo, type SnapshotStore } from "../store.ts";
import { checkRange, storeFailure, WHERE } from "./failures.ts";

/** What of the file system is used, in the words of its standard (Deno's types have none of it). */
export interface Folder {
  getFileHandle(name: string, options?: { create: boolean }): Promise<FileHandle>;
  getDirectoryHandle(name: string, options?: { create: boolean }): Promise<Folder>;
  removeEntry(name: string): Promise<void>;
  keys(): AsyncIterable<string>;
}

interface FileHandle {
  getFile(): Promise<Blob & { readonly lastModified: number }>;
  createWritable(): Promise<Writable>;
}

interface Writable {
  write(bytes: Uint8Array): Promise<void>;
  close(): Promise<void>;
  abort(): Promise<void>;
}

type LockMode = "shared" | "exclusive";

interface Page {
  readonly navigator?: {
    readonly storage?: { getDirectory?(): Promise<Folder> };
    readonly locks?: { request<T>(name: string, options: { mode: LockMode }, work: () => Promise<T>): Promise<T> };
  };
  readonly FileSystemFileHandle?: { readonly prototype: { createWritable?: unknown } };
}

const page = globalThis as Page;

/** Whether this page has such files, and can write them outside a worker. */
export function hasOpfs(): boolean {
  return page.navigator?.storage?.getDirectory !== undefined && page.navigator.locks !== undefined &&
    page.FileSystemFileHandle?.prototype.createWritable !== undefined;
}

/** Versions that no name points to any more, or yet, are removed when they are this old, milliseconds. */
const STALE = 3_600_000;

/**
 * The snapshots in a folder of the site's own files, made when it isn't there. PalisadeErrors: resources
 * `store.no-opfs`; of its methods resources `store.full`, `store.failed`, besides a store's own.
 */
export async function opfsStore(folder = "palisade"): Promise<SnapshotStore> {
  if (!hasOpfs()) {
    throw resourceError("store.no-opfs", "There are no files of its own for this page; IndexedDB may do", WHERE);
  }
  const root = await page.navigator!.storage!.getDirectory!();
  return heeding(new OpfsStore(await root.getDirectoryHandle(folder, { create: true }), folder));
}

class OpfsStore implements SnapshotStore {
  readonly place: string;
  readonly #folder: Folder;

  constructor(folder: Folder, name: string) {
    this.#folder = folder;
    this.place = `the page's own files, folder ${name}`;
  }

  async get(name: string, range?: ByteRange): Promise<Uint8Array<ArrayBuffer>> {
    checkSnapshotName(name);
    return await this.#locked(name, "shared", async () => {
      const version = await this.#version(name);
      if (version === undefined) throw missingSnapshot(name, this.place);
      return await bytesOf(await this.#file(dataName(name, version)), range);
    });
  }

  async put(name: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<void> {
    checkSnapshotName(name);
    const version = crypto.randomUUID();
    try {
      await this.#write(dataName(name, version), content);
      await this.#locked(name, "exclusive", async () => {
        const old = await this.#version(name);
        await this.#write(name, new TextEncoder().encode(version));
        if (old !== undefined) await this.#remove(dataName(name, old));
        await this.#removeStale(name, version);
      });
    } catch (error) {
      await this.#remove(dataName(name, version));
      throw error;
    }
  }

  async head(name: string): Promise<SnapshotInfo | undefined> {
    checkSnapshotName(name);
    return await this.#locked(name, "shared", async () => {
      const pointer = await this.#file(name), version = await textOf(pointer);
      const data = version === "" ? undefined : await this.#file(dataName(name, version));
      return data && { name, size: data.size, used: pointer!.lastModified };
    });
  }

  async list(prefix = ""): Promise<SnapshotInfo[]> {
    const names: string[] = [], found: SnapshotInfo[] = [];
    for await (const file of this.#folder.keys()) if (!file.includes("~") && file.startsWith(prefix)) names.push(file);
    for (const name of names.sort()) {
      const info = await this.head(name);
      if (info) found.push(info);
    }
    return found;
  }

  async delete(name: string): Promise<boolean> {
    checkSnapshotName(name);
    return await this.#locked(name, "exclusive", async () => {
      const version = await this.#version(name);
      await this.#remove(name);
      if (version !== undefined) await this.#remove(dataName(name, version));
      return version !== undefined;
    });
  }

  async touch(name: string): Promise<void> {
    checkSnapshotName(name);
    await this.#locked(name, "exclusive", async () => {
      const version = await this.#version(name);
      if (version !== undefined) await this.#write(name, new TextEncoder().encode(version));
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }

  async #version(name: string): Promise<string | undefined> {
    return await textOf(await this.#file(name)) || undefined;
  }

  /** Undefined when it isn't there. */
  async #file(file: string) {
    try {
      return await (await this.#folder.getFileHandle(file)).getFile();
    } catch (error) {
      if ((error as Error).name === "NotFoundError") return undefined;
      throw error;
    }
  }

  /** Writes a file whole, or leaves what was there. What `content` throws is passed on. */
  async #write(file: string, content: Uint8Array | AsyncIterable<Uint8Array>): Promise<void> {
    const handle = await this.#asked(() => this.#folder.getFileHandle(file, { create: true }));
    const writable = await this.#asked(() => handle.createWritable());
    try {
      for await (const part of content instanceof Uint8Array ? [content] : content) {
        await this.#asked(() => writable.write(part));
      }
    } catch (error) {
      await writable.abort().catch(() => {});
      throw error;
    }
    await this.#asked(() => writable.close());
  }

  async #remove(file: string): Promise<void> {
    await this.#folder.removeEntry(file).catch(() => {});
  }

  /** Removes what puts have left that were cut off long ago. */
  async #removeStale(name: string, current: string): Promise<void> {
    const left: string[] = [];
    for await (const file of this.#folder.keys()) {
      if (file.startsWith(`${name}~`) && file !== dataName(name, current)) left.push(file);
    }
    for (const file of left) {
      const found = await this.#file(file);
      if (found && found.lastModified < Date.now() - STALE) await this.#remove(file);
    }
  }

  /** Over all tabs, a name's pointer is changed by one at a time, and not while somebody reads by it. */
  #locked<T>(name: string, mode: LockMode, work: () => Promise<T>): Promise<T> {
    return this.#asked(() => page.navigator!.locks!.request(`${this.place}: ${name}`, { mode }, work));
  }

  async #asked<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof DOMException) {
        throw storeFailure(error.name === "QuotaExceededError" ? "full" : "failed", this.place, error);
      }
      throw error;
    }
  }
}

function dataName(name: string, version: string): string {
  return `${name}~${version}.data`;
}

async function textOf(file: Blob | undefined): Promise<string> {
  return await file?.text() ?? "";
}

async function bytesOf(file: Blob | undefined, range?: ByteRange): Promise<Uint8Array<ArrayBuffer>> {
  if (!file) throw new DOMException("its content is gone", "NotFoundError");
  if (range) checkRange(range, file.size);
  const part = range ? file.slice(range.offset, range.offset + range.length) : file;
  return new Uint8Array(await part.arrayBuffer());
}
