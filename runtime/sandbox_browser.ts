/** The worker's side of `runSandboxed` in a browser: imports one module, calls it once, answers. */

/** The part of a dedicated worker's global scope used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<{ moduleUrl: string; message: unknown }>) => void) | null;
  postMessage(reply: unknown): void;
}

const scope = globalThis as unknown as WorkerScope;

scope.onmessage = async (event) => {
  try {
    const { default: call } = await import(event.data.moduleUrl);
    scope.postMessage({ answer: await call(event.data.message) });
  } catch (error) {
    scope.postMessage({ failure: error instanceof Error ? error.message : String(error) });
  }
};
