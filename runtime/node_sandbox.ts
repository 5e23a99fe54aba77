/** `runSandboxed` on `node:worker_threads`, which Deno and Bun implement too. */
import { Worker } from "node:worker_threads";
import type { SandboxOptions } from "./interface.ts";
import { memoryError, type SandboxReply, timeoutError } from "./sandbox_error.ts";
import { siblingModule } from "./sibling_module.ts";

/** See `Runtime.runSandboxed`. */
export async function runSandboxed<Answer>(moduleUrl: URL, message: unknown, options: SandboxOptions): Promise<Answer> {
  options.signal?.throwIfAborted();
  const worker = new Worker(siblingModule("./sandbox_worker", import.meta.url), {
    workerData: { moduleUrl: moduleUrl.href, message },
    resourceLimits: options.maxHeapMb === undefined ? undefined : { maxOldGenerationSizeMb: options.maxHeapMb },
  });
  let timer: ReturnType<typeof setTimeout> | undefined;
  let abort: (() => void) | undefined;
  try {
    return await new Promise<Answer>((resolve, reject) => {
      timer = setTimeout(() => reject(timeoutError(moduleUrl, options.timeoutMs)), options.timeoutMs);
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
    if (abort) options.signal?.removeEventListener("abort", abort);
    await worker.terminate();
  }
}
