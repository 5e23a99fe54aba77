/** Node 20 and later. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { availableParallelism, freemem, totalmem } from "node:os";
import process from "node:process";
import { isatty } from "node:tty";
import type { Cores, Hasher, MemoryUse, Runtime } from "./interface.ts";
import { inputError, type PalisadeError } from "../core/errors.ts";
import { openFile, readBytes, readText } from "./node_files.ts";
import { nodeHost } from "./node_host.ts";
import { runSandboxed } from "./node_sandbox.ts";
import { startThread } from "./node_thread.ts";
import { hasThreads } from "./features.ts";

/**
 * An unset, empty or (in Deno, without permission) unreadable variable is `undefined`. One that is no UTF-8 is refused:
 * Node hands it out damaged, Deno not at all.
 */
function environment(name: string): string | undefined {
  let value: string | undefined;
  try {
    value = process.env[name] || undefined;
  } catch (error) {
    if ((error as Error).name === "InvalidData") throw notText(name, error);
    return undefined;
  }
  if (value?.includes("\ufffd")) throw notText(name);
  return value;
}

function notText(name: string, cause?: unknown): PalisadeError {
  const message = `Can't read the environment variable ${name}: its value is not UTF-8; set it to another, or unset it`;
  return inputError("environment.text", message, name, cause);
}

function cores(): Cores {
  return { logical: availableParallelism(), physical: physicalCores() };
}

/** Distinct (package, core) pairs of `/proc/cpuinfo`; `undefined` where there is no such file or field. */
function physicalCores(): number | undefined {
  try {
    const text = readFileSync("/proc/cpuinfo", "utf8");
    const packages = [...text.matchAll(/^physical id\s*: (\d+)$/gm)];
    const ids = [...text.matchAll(/^core id\s*: (\d+)$/gm)];
    const distinct = new Set(ids.map((id, i) => `${packages[i]?.[1]}/${id[1]}`)).size;
    return distinct || undefined;
  } catch {
    return undefined;
  }
}

function memory(): MemoryUse {
  const { rss, heapUsed } = process.memoryUsage();
  // Both are counted a little late.
  const peak = Math.max(rss, residentPeak());
  const limitBytes = limit(), freeBytes = Math.min(available(), Math.max(0, limitBytes - rss));
  return { rssBytes: rss, peakRssBytes: peak, heapBytes: heapUsed, limitBytes, freeBytes };
}

/** The system's own count where it is to be read, exact; else that of `getrusage`, kibibytes in all runtimes. */
function residentPeak(): number {
  try {
    const found = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    if (found) return 1024 * Number(found[1]);
  } catch { /* no Linux, or no permission */ }
  return 1024 * process.resourceUsage().maxRSS;
}

/** Linux counts what it can take back from its caches; elsewhere what nobody uses. */
function available(): number {
  try {
    const found = /^MemAvailable:\s*(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"));
    if (found) return 1024 * Number(found[1]);
  } catch { /* no Linux, or no permission */ }
  return freemem();
}

/** Without a limit some runtimes tell 0, others more than there is. */
function limit(): number {
  const { constrainedMemory } = process as { constrainedMemory?: () => number | undefined };
  return Math.min(totalmem(), constrainedMemory?.() || Infinity);
}

function sha256(): Hasher {
  const hash = createHash("sha256");
  return { update: (bytes) => void hash.update(bytes), digest: () => hash.digest("hex") };
}

const DESCRIPTOR = { stdin: 0, stdout: 1, stderr: 2 } as const;

/** The adapter of Node; Deno's and Bun's are copies of it under their own name. */
export const nodeRuntime: Runtime = {
  name: "node",
  version: process.versions.node,
  platform: `${process.platform}-${process.arch}`,
  threads: hasThreads(),
  host: nodeHost,
  environment,
  openFile,
  readText,
  readBytes,
  sha256,
  cores,
  memory,
  isTerminal: (stream) => isatty(DESCRIPTOR[stream]),
  runSandboxed,
  startThread,
};
