/** Files and processes through Node's modules, which Deno and Bun implement too. */
import { type ChildProcess, spawn } from "node:child_process";
import { chmod, mkdir, open, readdir, readlink, realpath, rename, rm, stat, utimes } from "node:fs/promises";
import { createHash } from "node:crypto";
import { constants, homedir, hostname, tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { PalisadeError } from "../core/errors.ts";
import type { ByteSink, CreateOptions, FileInfo, Host, ProcessOptions, ProcessResult } from "./interface.ts";
import { createError, fileError } from "./node_files.ts";
import { forgetTemporary, noteTemporary } from "./node_leftovers.ts";
import { lock } from "./node_lock.ts";

/** How much of a program's output is kept for messages. */
const OUTPUT_KEPT = 64 * 1024;

/** Runs a file operation; failures become PalisadeErrors that name `path`. */
async function named<T>(path: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    throw fileError(error, path);
  }
}

function isMissing(error: unknown): boolean {
  const code = (error as { code?: string }).code;
  return code === "ENOENT" || code === "ENOTDIR";
}

async function info(path: string): Promise<FileInfo | undefined> {
  try {
    const found = await stat(path);
    const kind = found.isFile() ? "file" : found.isDirectory() ? "folder" : "other";
    return { kind, size: found.size, modified: found.mtimeMs };
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw fileError(error, path);
  }
}

async function list(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (isMissing(error)) return [];
    throw fileError(error, path);
  }
}

async function move(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to);
    forgetTemporary(from);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw fileError(error, to);
  }
}

/** Parents first, one by one: Node's own recursion never ends where a folder takes nothing, as in /proc. */
async function makeFolder(path: string): Promise<void> {
  try {
    if ((await info(path))?.kind === "folder") return;
    if (dirname(path) !== path) await makeFolder(dirname(path));
    await mkdir(path);
  } catch (error) {
    if (error instanceof PalisadeError) throw error;
    // Someone else may have made it meanwhile.
    if ((error as { code?: string }).code === "EEXIST" && (await info(path))?.kind === "folder") return;
    throw createError(error, path);
  }
}

async function touch(path: string): Promise<void> {
  const now = new Date();
  try {
    await utimes(path, now, now);
  } catch (error) {
    if (!isMissing(error)) throw fileError(error, path);
  }
}

async function identity(path: string): Promise<string | undefined> {
  try {
    const { dev, ino } = await stat(path, { bigint: true });
    return `${dev}:${ino}`;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw fileError(error, path);
  }
}

/** Links followed before they count as a circle, as in Linux. */
const MOST_LINKS = 40;

async function realPath(path: string, links = 0): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (!isMissing(error) || links > MOST_LINKS) throw fileError(error, path);
  }
  // A link that leads nowhere yet: the file is made where it points to.
  const target = await readlink(path).catch(() => undefined);
  if (target !== undefined) return await realPath(resolve(dirname(path), target), links + 1);
  try {
    return join(await realpath(dirname(path)), basename(path));
  } catch (error) {
    throw createError(error, path);
  }
}

/** Eight digits that stand for this machine. */
const MACHINE = createHash("sha256").update(hostname()).digest("hex").slice(0, 8);

function isGone(processTag: string): boolean | undefined {
  const [machine, pid] = processTag.split("-");
  if (machine !== MACHINE) return undefined;
  try {
    process.kill(Number(pid), 0);
    return false;
  } catch (error) {
    return (error as { code?: string }).code !== "EPERM";
  }
}

async function create(path: string, options: CreateOptions = {}): Promise<ByteSink> {
  const shown = options.named ?? path;
  let handle;
  try {
    const mode = options.secret ? 0o600 : 0o666;
    handle = await open(path, options.temporary ? "wx" : options.append ? "a" : "w", mode);
    if (options.temporary) noteTemporary(path);
    const like = options.like === undefined ? undefined : await stat(options.like).catch(() => undefined);
    if (like) await chmod(path, like.mode & (options.secret ? 0o700 : 0o777));
  } catch (error) {
    await handle?.close();
    throw createError(error, shown);
  }
  return {
    write: (bytes) =>
      named(shown, async () => {
        let done = 0;
        while (done < bytes.length) done += (await handle.write(bytes, done, bytes.length - done)).bytesWritten;
      }),
    sync: () => named(shown, () => handle.sync()),
    close: () => named(shown, () => handle.close()),
  };
}

/** Windows and some file systems can't: then there is nothing to wait for. */
async function syncFolder(path: string): Promise<void> {
  try {
    const folder = await open(dirname(path), "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  } catch { /* said above */ }
}

/** Ends a process and its children: it leads a process group of its own, except on Windows. */
function endGroup(child: ChildProcess): void {
  try {
    if (process.platform !== "win32" && child.pid) process.kill(-child.pid, "SIGKILL");
    else child.kill("SIGKILL");
  } catch {
    child.kill("SIGKILL");
  }
}

function execute(
  program: string,
  parameters: readonly string[],
  options: ProcessOptions = {},
): Promise<ProcessResult | undefined> {
  return new Promise((resolve, reject) => {
    options.signal?.throwIfAborted();
    const child = spawn(program, [...parameters], {
      stdio: ["ignore", "pipe", "pipe"],
      detached: process.platform !== "win32",
      env: { ...process.env, ...options.environment },
      windowsHide: true,
    });
    let output = "";
    const keep = (chunk: unknown) => {
      output = (output + String(chunk)).slice(-OUTPUT_KEPT);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    const end = () => endGroup(child);
    options.signal?.addEventListener("abort", end, { once: true });
    // Should the program exit without aborting first, the child must not outlive it.
    process.once("exit", end);
    const settled = () => {
      options.signal?.removeEventListener("abort", end);
      process.removeListener("exit", end);
    };
    child.on("error", (error: Error & { code?: string }) => {
      settled();
      if (isMissing(error) || error.code === "EACCES") resolve(undefined);
      else reject(error);
    });
    // "close" waits for everyone who holds the output open; after an abort nobody is waited for.
    child.on("exit", () => {
      if (options.signal?.aborted) reject(options.signal.reason);
    });
    child.on("close", (code, signal) => {
      settled();
      if (options.signal?.aborted) reject(options.signal.reason);
      else resolve({ code: code ?? 128 + (signal ? constants.signals[signal] ?? 0 : 0), output });
    });
  });
}

/** The Host of Node, Deno and Bun. */
export const nodeHost: Host = {
  homeFolder: homedir(),
  temporaryFolder: tmpdir(),
  join,
  pathOf: (url) => fileURLToPath(url),
  makeFolder,
  info,
  list,
  rename: move,
  async remove(path) {
    await named(path, () => rm(path, { recursive: true, force: true }));
    forgetTemporary(path);
  },
  touch,
  identity,
  realPath,
  processTag: `${MACHINE}-${process.pid}`,
  isGone,
  temporary: noteTemporary,
  create,
  syncFolder,
  lock,
  execute,
};
