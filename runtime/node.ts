/** Node 20 and later. */
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import process from "node:process";
import { isatty } from "node:tty";
import { probeGpu } from "./gpu_probe.ts";
import type { Cores, MemoryUse, Runtime } from "./interface.ts";
import { openFile, readText } from "./node_files.ts";
import { nodeHost } from "./node_host.ts";
import { runSandboxed } from "./node_sandbox.ts";
import { startThread } from "./node_thread.ts";
import { hasThreads } from "./features.ts";

/** An unset, empty or (in Deno, without permission) unreadable variable is `undefined`. */
function environment(name: string): string | undefined {
  try {
    return process.env[name] || undefined;
  } catch {
    return undefined;
  }
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
  const use = process.memoryUsage();
  return { rssBytes: use.rss, heapBytes: use.heapUsed };
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
  cores,
  memory,
  isTerminal: (stream) => isatty(DESCRIPTOR[stream]),
  probeGpu,
  runSandboxed,
  startThread,
};
