/** Reading files through `node:fs`, which Deno and Bun implement too. */
import { concatenate } from "../core/concatenate.ts";
import { constants, existsSync, statSync } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { dirname } from "node:path";
import process from "node:process";
import { inputError, type PalisadeError, resourceError } from "../core/errors.ts";
import type { ByteSource } from "./interface.ts";
import { checkRange } from "./sources.ts";
import { decodeText, MAX_TEXT_BYTES, tooLarge } from "./utf8.ts";

/** Bytes asked for at a time from a stream of unknown length. */
const CHUNK = 1 << 20;

/** What a failed system call on something that is there, or should be, means to the user. */
export function fileError(error: unknown, path: string): PalisadeError {
  const code = (error as { code?: string }).code ?? "";
  if (path === "") return inputError("file.not-found", "Can't open a file: an empty path names none", path, error);
  switch (code) {
    case "ENOENT":
      return inputError("file.not-found", `Can't open ${path}: there is no such file`, path, error);
    case "ENOTDIR":
      return inputError("file.not-found", `Can't open ${path}: ${notFolder(path)}`, path, error);
    case "EISDIR":
      return folderError(path);
    case "EACCES":
    case "EPERM":
    case "ERR_ACCESS_DENIED":
      return inputError("file.no-permission", `Can't open ${path}: permission denied`, path, error);
    case "ENOSPC":
    case "EDQUOT":
      return resourceError("file.disk-full", `Can't write ${path}: the disk is full`, path, error);
    case "EROFS":
      return resourceError("file.read-only", `Can't write ${path}: the file system is read-only`, path, error);
    case "EMFILE":
    case "ENFILE":
      return resourceError("file.too-many-open", `Can't open ${path}: too many open files`, path, error);
  }
  // Without a code of its own in Deno.
  if (code === "EIO" || /\bEIO\b|os error 5\)/.test((error as Error)?.message)) {
    return inputError("file.unreadable", `Can't read or write ${path}: an I/O error`, path, error);
  }
  if ((error as Error)?.name === "NotCapable") {
    return inputError("file.no-permission", `Can't open ${path}: Deno was not given permission for it`, path, error);
  }
  return inputError("file.unreadable", `Can't use ${path}: ${(error as Error)?.message ?? error}`, path, error);
}

/** What a failed system call means that should have made the file or folder at `path`. */
export function createError(error: unknown, path: string): PalisadeError {
  const refuse = (code: string, reason: string) => inputError(code, `Can't create ${path}: ${reason}`, path, error);
  switch ((error as { code?: string }).code) {
    case "ENOENT":
      if (path === "") {
        return inputError("file.not-found", "Can't create a file: an empty path names none", path, error);
      }
      return refuse("file.no-folder", missingFolder(path));
    case "ENOTDIR":
    case "EEXIST":
      return refuse("file.no-folder", notFolder(path));
    case "EISDIR":
      return refuse("file.is-folder", "there is a folder of that name");
    case "EACCES":
    case "EPERM":
    case "ERR_ACCESS_DENIED":
      return refuse("file.no-permission", "permission denied");
  }
  return fileError(error, path);
}

/** The first part of `path` that is no folder, although something is below it. */
function notFolder(path: string): string {
  const file = [path, ...parents(path)].findLast((part) => statSync(part, { throwIfNoEntry: false })?.isFile());
  return `${file ?? dirname(path)} is not a folder`;
}

/** A folder may be there and still take nothing: those of /proc, for one. */
function missingFolder(path: string): string {
  const folder = parents(path)[0];
  if (existsSync(folder)) return `the system allows nothing new in the folder ${folder}`;
  return `the folder ${folder} does not exist`;
}

/** The folders around `path`, the innermost first. */
function parents(path: string): string[] {
  const folder = dirname(path);
  return folder === path ? [] : [folder, ...parents(folder)];
}

function folderError(path: string): PalisadeError {
  return inputError("file.is-folder", `Can't open ${path}: it is a folder, a file is wanted`, path);
}

/** A regular file as a ByteSource; see `Runtime.openFile`. */
export async function openFile(path: string): Promise<ByteSource> {
  let handle: FileHandle | undefined;
  try {
    // Looked at before opening: opening a pipe would wait for its writer.
    const info = await stat(path);
    if (info.isDirectory()) throw folderError(path);
    if (!info.isFile()) {
      throw inputError("file.unreadable", `Can't open ${path}: it is a pipe or device, a file is wanted`, path);
    }
    handle = await open(path, constants.O_RDONLY);
    const size = (await handle.stat()).size;
    return new NodeSource(path, size, handle);
  } catch (error) {
    await handle?.close();
    throw (error as Error).name === "PalisadeError" ? error : fileError(error, path);
  }
}

class NodeSource implements ByteSource {
  readonly name: string;
  readonly size: number;
  readonly #handle: FileHandle;

  constructor(name: string, size: number, handle: FileHandle) {
    this.name = name;
    this.size = size;
    this.#handle = handle;
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(this, offset, length);
    const bytes = new Uint8Array(length);
    await this.readInto(offset, bytes);
    return bytes;
  }

  async readInto(offset: number, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const { length } = bytes;
    checkRange(this, offset, length);
    let done = 0;
    while (done < length) {
      let count: number;
      try {
        count = (await this.#handle.read(bytes, done, length - done, offset + done)).bytesRead;
      } catch (error) {
        throw fileError(error, this.name);
      }
      if (count === 0) {
        throw inputError(
          "file.changed",
          `Can't read ${this.name}: it ended at byte ${offset + done}, it had ${this.size} bytes when opened`,
          this.name,
        );
      }
      done += count;
    }
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

interface TextOptions {
  readonly maxBytes?: number;
  readonly signal?: AbortSignal;
}

/** The text of a file (pipes too) or of standard input for `-`; see `Runtime.readText`. */
export async function readText(path: string, options: TextOptions = {}): Promise<string> {
  const { signal } = options;
  signal?.throwIfAborted();
  if (!signal) return await readWhole(path, options);
  let abort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
  });
  // Reading a pipe can't be called off: what waits there is left behind.
  const text = readWhole(path, options);
  text.catch(() => {});
  try {
    return await Promise.race([text, aborted]);
  } finally {
    signal.removeEventListener("abort", abort!);
  }
}

/** The bytes of a file or pipe, or of standard input for `-`, as they come; see `Runtime.readBytes`. */
export async function* readBytes(path: string, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const chunks = chunksOf(path)[Symbol.asyncIterator]();
  let abort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal!.reason);
    signal?.addEventListener("abort", abort, { once: true });
  });
  aborted.catch(() => {});
  try {
    signal?.throwIfAborted();
    while (true) {
      const next = chunks.next();
      // Reading a pipe can't be called off: what waits there is left behind.
      next.catch(() => {});
      const { done, value } = await Promise.race([next, aborted]);
      if (done) return;
      yield value;
    }
  } finally {
    signal?.removeEventListener("abort", abort!);
    if (!signal?.aborted) await chunks.return?.();
  }
}

function chunksOf(path: string): AsyncIterable<Uint8Array> {
  return path === "-" ? process.stdin as AsyncIterable<Uint8Array> : fileChunks(path);
}

async function readWhole(path: string, options: TextOptions): Promise<string> {
  const maxBytes = options.maxBytes ?? MAX_TEXT_BYTES;
  const where = path === "-" ? "standard input" : path;
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of chunksOf(path)) {
    size += chunk.length;
    if (size > maxBytes) {
      throw tooLarge(path, maxBytes, where);
    }
    chunks.push(chunk);
  }
  return decodeText(concatenate(chunks, Uint8Array), path);
}

async function* fileChunks(path: string): AsyncGenerator<Uint8Array> {
  let handle: FileHandle | undefined;
  try {
    if ((await stat(path)).isDirectory()) throw folderError(path);
    handle = await open(path, constants.O_RDONLY);
    while (true) {
      const chunk = new Uint8Array(CHUNK);
      const { bytesRead } = await handle.read(chunk, 0, CHUNK, null);
      if (bytesRead === 0) return;
      yield chunk.subarray(0, bytesRead);
    }
  } catch (error) {
    throw (error as Error).name === "PalisadeError" ? error : fileError(error, path);
  } finally {
    await handle?.close();
  }
}
