/** Opens GGUF bytes in a worker, so that a reader that hangs can be stopped and named. */
import { Worker } from "node:worker_threads";
import type { OpenRequest, Outcome } from "./gguf_opener_worker.ts";

export type { Outcome } from "./gguf_opener_worker.ts";

/** Longest a reader may take for one file, milliseconds. */
export const WATCHDOG_MS = 30_000;

export class GgufOpener implements AsyncDisposable {
  #worker: Worker | undefined;

  /** What `openGguf` does with a file. Rejects when it takes longer than the watchdog allows. */
  async request(request: OpenRequest, watchdogMs: number = WATCHDOG_MS): Promise<Outcome> {
    const worker = this.#worker ??= new Worker(new URL("./gguf_opener_worker.ts", import.meta.url));
    const answer = Promise.withResolvers<Outcome>();
    const timer = setTimeout(() => answer.reject(new Error(`no answer within ${watchdogMs} ms`)), watchdogMs);
    worker.once("message", answer.resolve);
    worker.once("error", answer.reject);
    try {
      worker.postMessage(request);
      return await answer.promise;
    } catch (error) {
      await this.#stop();
      throw error;
    } finally {
      clearTimeout(timer);
      worker.removeAllListeners();
    }
  }

  async #stop(): Promise<void> {
    await this.#worker?.terminate();
    this.#worker = undefined;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stop();
  }
}
