/**
 * One writer per file, by a lock file that names its process. What a killed process leaves behind is taken over as soon
 * as that process is gone, so nothing stays locked for ever. Neither Node nor Bun offers the system's own file locks.
 */
import { readFile, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import process from "node:process";
import { inputError, resourceError } from "../core/errors.ts";
import { createError } from "./node_files.ts";
import { forgetTemporary, noteTemporary } from "./node_leftovers.ts";

interface Holder {
  readonly host: string;
  readonly pid: number;
  /** When the process began, where the system tells (Linux): process numbers are used again. */
  readonly started?: string;
  /** Tells the locks of one process apart. */
  readonly token: string;
}

/** Tokens of the locks that this process holds. */
const held = new Set<string>();

/** How often a lock is tried: each time, another process may just be taking over or giving back. */
const TRIES = 8;
const PAUSE_MS = 20;

/** See `Host.lock`. */
export async function lock(path: string): Promise<AsyncDisposable> {
  const file = `${path}.lock`;
  const mine: Holder = {
    host: hostname(),
    pid: process.pid,
    started: await startOf(process.pid),
    token: crypto.randomUUID(),
  };
  held.add(mine.token);
  try {
    const other = await hold(file, mine, path);
    if (other) throw refusal(path, file, other);
  } catch (error) {
    held.delete(mine.token);
    throw error;
  }
  noteTemporary(file);
  return {
    [Symbol.asyncDispose]: async () => {
      await release(file, mine);
      forgetTemporary(file);
    },
  };
}

/** Undefined once `mine` stands in `file`; otherwise who holds it. */
async function hold(file: string, mine: Holder, path: string): Promise<Holder | undefined> {
  let other: Holder | undefined;
  for (let i = 0; i < TRIES; i++) {
    if (await write(file, mine, path)) return undefined;
    other = await read(file, path) ?? other;
    if (other === undefined) continue; // given back meanwhile
    // One that names nobody may be about to be filled.
    const unfilled = other.pid === 0 && i < TRIES / 2;
    if (!unfilled && await lives(other)) return other;
    if (unfilled || !await clear(file, other, mine, path)) await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
  return other ?? mine;
}

/**
 * Removes a dead holder's file. Who does so holds a ticket for exactly this holder meanwhile: otherwise a slow process
 * might remove the lock of one that has taken over already. False when another process has the ticket.
 */
async function clear(file: string, dead: Holder, mine: Holder, path: string): Promise<boolean> {
  const ticket = `${file}.${/^[0-9a-f-]{36}$/.test(dead.token) ? dead.token : "torn"}`;
  if (await hold(ticket, mine, path)) return false;
  try {
    if ((await read(file, path))?.token === dead.token) await rm(file, { force: true });
  } finally {
    await rm(ticket, { force: true });
  }
  return true;
}

/** False when there is a lock file already. */
async function write(file: string, holder: Holder, path: string): Promise<boolean> {
  try {
    await writeFile(file, `${JSON.stringify(holder)}\n`, { flag: "wx" });
    return true;
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "EEXIST") return false;
    throw createError(error, code === "ENOENT" || code === "ENOTDIR" ? path : file);
  }
}

/**
 * Undefined when there is none; a lock that a killed process never filled names nobody. Many tools call a file of
 * theirs so: what can't have been a lock of ours is refused, and `path` with it.
 */
async function read(file: string, path: string): Promise<Holder | undefined> {
  const text = await readFile(file, "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  if (!isOurs(text)) {
    const message =
      `Can't write ${path}: its lock would be ${file}, which is a file of another kind; name another file`;
    throw inputError("file.no-lock", message, path);
  }
  try {
    const holder = JSON.parse(text) as Holder;
    const { host, pid, token } = holder;
    if (typeof host === "string" && Number.isInteger(pid) && typeof token === "string") return holder;
  } catch { /* said below */ }
  return { host: hostname(), pid: 0, token: "" };
}

/** Whole, torn or empty. */
function isOurs(text: string): boolean {
  const start = '{"host":';
  return text.startsWith(start) || start.startsWith(text) || /^\s*(\{\}|\[\])?\s*$/.test(text);
}

/** Another machine's process can't be asked: it counts as alive. */
async function lives({ host, pid, started, token }: Holder): Promise<boolean> {
  if (host !== hostname()) return true;
  if (pid === process.pid) return held.has(token);
  if (!(pid > 0)) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as { code?: string }).code === "EPERM";
  }
  const now = await startOf(pid);
  return now === undefined || started === undefined || now === started;
}

/** Start time in clock ticks since boot: field 22 of /proc/PID/stat, 20th after the name in brackets (proc(5)). */
async function startOf(pid: number): Promise<string | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return text?.slice(text.lastIndexOf(")") + 2).split(" ")[19];
}

async function release(file: string, mine: Holder): Promise<void> {
  held.delete(mine.token);
  if ((await read(file, file).catch(() => undefined))?.token === mine.token) await rm(file, { force: true });
}

function refusal(path: string, file: string, { host, pid }: Holder) {
  const near = host === hostname();
  const message = `${path} is being written by process ${pid}${near ? "" : ` on ${host}`}: ` +
    `wait for it, or write to another file${near ? "" : `; remove ${file} if that process is gone`}`;
  return resourceError("file.locked", message, path);
}
