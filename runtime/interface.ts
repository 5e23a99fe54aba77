/**
 * What palisade asks of the runtime it runs in, and nothing about how. One adapter per runtime implements it; all
 * other rooms see only this file, so none of them names Deno, Bun, Node or the DOM.
 */

/** Bytes that can be read at any offset: a file, a `Blob`, an `ArrayBuffer`, a URL (`sources.ts`). */
export interface ByteSource {
  /** For messages: the path, or a label. */
  readonly name: string;
  /** Length in bytes when the source was opened. */
  readonly size: number;
  /**
   * Reads exactly `length` bytes from `offset`. Throws RangeError when the range is not inside `0 … size`, and a
   * PalisadeError (`file.changed`) when the file has become shorter meanwhile.
   */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** The same into `target`, all of it, where the source can do so without a buffer of its own. */
  readInto?(offset: number, target: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Gives back what it holds; nothing can be read afterwards. */
  close(): Promise<void>;
}

/** A file being written. */
export interface ByteSink {
  /** Appends all of `bytes`. A full disk is a PalisadeError (`file.disk-full`, kind resources). */
  write(bytes: Uint8Array): Promise<void>;
  /** Returns once the bytes are on the disk (fsync). */
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface FileInfo {
  readonly kind: "file" | "folder" | "other";
  /** Bytes. */
  readonly size: number;
  /** Last change, milliseconds since 1970. */
  readonly modified: number;
}

/** A running hash. */
export interface Hasher {
  update(bytes: Uint8Array): void;
  /** Lower-case hexadecimal digest; the hasher can't be used afterwards. */
  digest(): string;
}

export interface ProcessOptions {
  /** Ends the process and everything it started; the result then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Variables set on top of the current environment. */
  readonly environment?: Readonly<Record<string, string>>;
}

export interface ProcessResult {
  /** Exit status; 128 + n after signal n, as a shell counts. */
  readonly code: number;
  /** The last 64 KiB of standard output and standard error together. */
  readonly output: string;
}

/** What a module started by `Runtime.startThread` talks to its starter with. */
export interface ThreadPort {
  /** Sends a copy (structured clone). */
  post(message: unknown): void;
  /** Calls `listener` with each message, those already come first. */
  listen(listener: (message: unknown) => void): void;
}

/** A module running in a thread of its own. */
export interface Thread {
  /** Sends a copy (structured clone). */
  post(message: unknown): void;
  /** Resolves with the reason when the thread has ended, by a failure or by {@link terminate}. */
  readonly ended: Promise<Error>;
  /** Lets the process end while the thread lives; it then ends with it. No effect in browsers. */
  unref(): void;
  /** Ends the thread. Deno 2.9 doesn't stop a busy one: it runs on until it idles or the process exits. */
  terminate(): Promise<void>;
}

export interface CreateOptions {
  readonly append?: boolean;
  readonly named?: string;
  readonly temporary?: boolean;
  readonly like?: string;
  /** Only its owner may read it, whatever `like` and the system's habits say. */
  readonly secret?: boolean;
}

/** Files and processes. Absent in a browser. */
export interface Host {
  readonly homeFolder: string;
  /** Where files may lie for a while. */
  readonly temporaryFolder: string;
  /** Joins path parts by the platform's rule. */
  join(...parts: string[]): string;
  /** The path of a `file:` URL. */
  pathOf(url: URL): string;
  /** Makes a folder and its parents; an existing one is fine. */
  makeFolder(path: string): Promise<void>;
  /** `undefined` when there is nothing at `path`. Follows links. */
  info(path: string): Promise<FileInfo | undefined>;
  /** Names in a folder, unsorted; none when it doesn't exist. */
  list(path: string): Promise<string[]>;
  /** Renames over an existing file; false when `from` doesn't exist. */
  rename(from: string, to: string): Promise<boolean>;
  /** Makes now the time of a file's last change; nothing there is fine. */
  touch(path: string): Promise<void>;
  /** Removes a file, or a folder with all that is in it; nothing there is fine. */
  remove(path: string): Promise<void>;
  /** Names this process among all that write to the same disk: letters, digits and one `-`. */
  readonly processTag: string;
  /** Whether the process of a tag has ended; undefined for one of another machine, which can't be asked. */
  isGone(processTag: string): boolean | undefined;
  /** Has the file or folder at `path` removed should the process end, other than by being killed, before that is done. */
  temporary(path: string): void;
  /**
   * Equal for two paths exactly when they lead to the same file, through links of either kind; `undefined` when there is
   * nothing at `path`.
   */
  identity(path: string): Promise<string | undefined>;
  /** The path without links, of a file that is there or is still to be made: then its folder must be there. */
  realPath(path: string): Promise<string>;
  /**
   * Opens a file for writing: emptied, or at its end with `append`. PalisadeErrors input `file.no-folder`,
   * `file.is-folder`, `file.no-permission` name `named`, default `path`: what the user asked for. With `temporary` the
   * file must be new; until it is renamed it ends with the process, and it may be used as the file `like` may.
   */
  create(path: string, options?: CreateOptions): Promise<ByteSink>;
  /** Returns once the names in the folder of `path` are on the disk, where the system can tell. */
  syncFolder(path: string): Promise<void>;
  /**
   * Makes this process the only writer of the file at `path` until the lock is disposed of; a lock file lies beside it
   * meanwhile. A killed process's lock is taken over. Throws PalisadeError resources `file.locked` when another one
   * holds it, and as {@link create} when there is no such folder.
   */
  lock(path: string): Promise<AsyncDisposable>;
  /** Runs a program to its end; `undefined` when there is no such program. Standard input is empty. */
  execute(
    program: string,
    parameters: readonly string[],
    options?: ProcessOptions,
  ): Promise<ProcessResult | undefined>;
}

export interface SandboxOptions {
  /** Wall time until the worker is ended, milliseconds. */
  readonly timeoutMs: number;
  /**
   * Heap limit of the worker in MiB. Exact in Node. Deno and Bun end the worker at the latest when the whole process
   * has grown by 256 MiB more, so load nothing large meanwhile. Browsers have no such limit.
   */
  readonly maxHeapMb?: number;
  readonly signal?: AbortSignal;
}

export interface MemoryUse {
  /** Resident set of the process in bytes; `undefined` where the runtime doesn't say (browsers). */
  readonly rssBytes?: number;
  /** The most it ever was; `undefined` likewise. */
  readonly peakRssBytes?: number;
  /** The most this process can have: the machine's memory, or less where a limit is set (cgroup); `undefined` likewise. */
  readonly limitBytes?: number;
  /** What it can still have without taking from others; `undefined` likewise. */
  readonly freeBytes?: number;
  /** JavaScript heap in use, bytes. */
  readonly heapBytes?: number;
}

export interface Cores {
  /** Hardware threads this process may use, ≥ 1. */
  readonly logical: number;
  /** Physical cores where the runtime lets us know, ≥ 1. Browsers and most systems but Linux don't. */
  readonly physical?: number;
}

export type RuntimeName = "deno" | "bun" | "node" | "browser";

/** What palisade asks of the runtime it runs in. */
export interface Runtime {
  readonly name: RuntimeName;
  readonly version: string;
  /** Operating system and architecture, e.g. `linux-x64`; the user agent's platform in a browser. */
  readonly platform: string;
  /** True when SharedArrayBuffer, Atomics.wait and workers exist, so that threads can share one memory. */
  readonly threads: boolean;
  /** Files and processes; `undefined` in a browser. */
  readonly host?: Host;

  /**
   * An environment variable; `undefined` when unset, empty, or where there are none. PalisadeError input
   * `environment.text` for one that is no UTF-8.
   */
  environment(name: string): string | undefined;

  /**
   * Opens a file for reading at any offset. PalisadeErrors of kind input with `where` = path: `file.not-found`,
   * `file.is-folder`, `file.no-permission`, `file.unreadable` (device, pipe, other failures).
   */
  openFile(path: string): Promise<ByteSource>;

  /**
   * The text of a file, or of standard input for `-`. Strict UTF-8: invalid bytes are refused with their offset
   * (`text.not-utf8`), NUL characters too (`text.binary`), a leading byte order mark is dropped, more than `maxBytes`
   * (default 64 MiB) is refused (`text.too-large`). File errors as in `openFile`. Rejects with `signal.reason` when
   * aborted, at once even where nobody writes to a pipe.
   */
  readText(path: string, options?: { readonly maxBytes?: number; readonly signal?: AbortSignal }): Promise<string>;

  /**
   * The bytes of a file or pipe, or of standard input for `-`, as they come. File errors as in `openFile`; rejects with
   * the signal's reason when aborted, at once even where nobody writes.
   */
  readBytes(path: string, signal?: AbortSignal): AsyncIterable<Uint8Array>;

  /** A running SHA-256. */
  sha256(): Hasher;
  /** What it may compute on. */
  cores(): Cores;
  /** What the process uses, and may use. */
  memory(): MemoryUse;
  /** Whether somebody looks. */
  isTerminal(stream: "stdin" | "stdout" | "stderr"): boolean;

  /**
   * Calls the default export of a module in a worker of its own with `message` (structured clone) and returns its
   * answer. The module names no runtime: `export default function (message) { … }`. Make its URL with
   * `siblingModule`. Errors: PalisadeError resources `sandbox.timeout` or `sandbox.memory`; `signal.reason` when
   * aborted; an `Error` with the module's message when it throws. Node, Bun and browsers stop the worker then;
   * Deno 2.9 does not stop one that is busy, it runs on until it idles or the program ends. So a module that may
   * loop has to watch the time itself as well.
   */
  runSandboxed<Answer>(moduleUrl: URL, message: unknown, options: SandboxOptions): Promise<Answer>;

  /**
   * Runs a module in a thread of its own, which may be busy while this one's event loop stays free. The module names
   * no runtime: `export default async function (data, port) { … }`, `data` a structured clone (a SharedArrayBuffer in it
   * is shared), `port` a {@link ThreadPort}. Make its URL with `siblingModule`.
   */
  startThread(moduleUrl: URL, data: unknown, listener: (message: unknown) => void): Thread;
}
