/** The thread's side of `Runtime.startThread` in Node, Deno and Bun: imports one module and hands it the data and a port to the starter. */
import { parentPort, workerData } from "node:worker_threads";
import type { ThreadPort } from "./interface.ts";

const { moduleUrl, data } = workerData as { moduleUrl: string; data: unknown };

// Messages that come before the module listens are kept for it.
const early: unknown[] = [];
let listener = (message: unknown): void => void early.push(message);
parentPort!.on("message", (message: unknown) => listener(message));

const port: ThreadPort = {
  post: (message) => parentPort!.postMessage(message),
  listen(next) {
    listener = next;
    early.splice(0).forEach(next);
  },
};

const { default: call } = await import(moduleUrl);
await call(data, port);
