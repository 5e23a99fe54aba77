/** The worker's side of `runSandboxed` in Node, Deno and Bun: imports one module, calls it once, answers. */
import { parentPort, workerData } from "node:worker_threads";

const { moduleUrl, message } = workerData as { moduleUrl: string; message: unknown };

function fail(error: unknown): void {
  parentPort!.postMessage({ failure: error instanceof Error ? error.message : String(error) });
}

try {
  const { default: call } = await import(moduleUrl);
  // From a task of its own: Deno does not report a worker out of memory while its main module is being evaluated.
  setTimeout(() => {
    try {
      Promise.resolve(call(message)).then((answer) => parentPort!.postMessage({ answer }), fail);
    } catch (error) {
      fail(error);
    }
  }, 0);
} catch (error) {
  fail(error);
}
