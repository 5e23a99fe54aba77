/** `Runtime.startThread` on `node:worker_threads`, which Deno and Bun implement too. */
import { Worker } from "node:worker_threads";
import type { Thread } from "./interface.ts";
import { siblingModule } from "./sibling_module.ts";

/** See `Runtime.startThread`. */
export function startThread(moduleUrl: URL, data: unknown, listener: (message: unknown) => void): Thread {
  const worker = new Worker(siblingModule("./thread_worker", import.meta.url), {
    workerData: { moduleUrl: moduleUrl.href, data },
  });
  const ended = new Promise<Error>((resolve) => {
    worker.on("error", (error) => resolve(error instanceof Error ? error : new Error(String(error))));
    worker.on("exit", (code) => resolve(new Error(`The thread of ${moduleUrl} ended with status ${code}`)));
  });
  worker.on("message", listener);
  return {
    post: (message) => worker.postMessage(message),
    ended,
    unref: () => worker.unref(),
    terminate: async () => void await worker.terminate(),
  };
}
