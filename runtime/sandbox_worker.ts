/** The worker's side of `runSandboxed` in Node, Deno and Bun: imports one module, calls it once, answers. */
import { parentPort, workerData } from "node:worker_threads";

const { moduleUrl, message } = workerData as { moduleUrl: string; message: unknown };
try {
  const { default: call } = await import(moduleUrl);
  parentPort!.postMessage({ answer: await call(message) });
} catch (error) {
  parentPort!.postMessage({ failure: error instanceof Error ? error.message : String(error) });
}
