/** `runSandboxed` on `node:worker_threads`, which Deno and Bun implement too. */
import process from "node:process";
import { Worker } from "node:worker_threads";
import type { SandboxOptions } from "./interface.ts";
import { memoryError, type SandboxReply, timeoutError } from "./sandbox_error.ts";
import { siblingModule } from "./sibling_module.ts";

/** How often the process's memory is looked at, milliseconds. */
const WATCH_MS = 50;

/** What a new worker and the rest of the process may take meanwhile, MiB; a bare worker takes about 20. */
const ELSEWHERE_MB = 256;

/** See `Runtime.runSandboxed`. */
export async function runSandboxed<Answer>(moduleUrl: URL, message: unknown, options: SandboxOptions): Promise<Answer> {
  options.signal?.throwIfAborted();
  const worker = new Worker(siblingModule("./sandbox_worker", import.meta.url), {
    workerData: { moduleUrl: moduleUrl.href, message },
    resourceLimits: options.maxHeapMb === undefined ? undefined : { maxOldGenerationSizeMb: options.maxHeapMb },
  });
  let timer: ReturnType<typeof setTimeout> | undefined;
  let watch: ReturnType<typeof setInterval> | undefined;
  let abort: (() => void) | undefined;
  try {
    return await new Promise<Answer>((resolve, reject) => {
      timer = setTimeout(() => reject(timeoutError(moduleUrl, options.timeoutMs)), options.timeoutMs);
      watch = watchMemory(options.maxHeapMb, () => reject(memoryError(moduleUrl, options.maxHeapMb)));
      abort = () => reject(options.signal?.reason);
      options.signal?.addEventListener("abort", abort);
      worker.on("message", (reply: SandboxReply<Answer>) => {
        if ("failure" in reply) reject(new Error(reply.failure));
        else resolve(reply.answer);
      });
      worker.on("error", (error: Error & { code?: string }) => {
        reject(error.code === "ERR_WORKER_OUT_OF_MEMORY" ? memoryError(moduleUrl, options.maxHeapMb) : error);
      });
      worker.on("exit", (code) => reject(new Error(`The worker of ${moduleUrl} ended early with status ${code}`)));
    });
  } finally {
    clearTimeout(timer);
    clearInterval(watch);
    if (abort) options.signal?.removeEventListener("abort", abort);
    await worker.terminate();
  }
}

/**
 * Calls `exceeded` when the process has grown by more than a worker of `maxHeapMb` explains. Node ends such a worker
 * by itself; Deno 2.9 does so only sometimes, and Bun 1.4 never.
 */
function watchMemory(maxHeapMb: number | undefined, exceeded: () => void): ReturnType<typeof setInterval> | undefined {
  if (maxHeapMb === undefined) return undefined;
  const limit = process.memoryUsage().rss + (maxHeapMb + ELSEWHERE_MB) * 1024 * 1024;
  return setInterval(() => {
    if (process.memoryUsage().rss > limit) exceeded();
  }, WATCH_MS);
}
