/** The thread's side of `Runtime.startThread` in a browser: imports one module and hands it the data and a port. */
import type { ThreadPort } from "./interface.ts";

/** What a thread posts: a message of its module, or why it failed. */
export type ThreadMessage = { readonly message: unknown } | { readonly failure: string };

/** The part of a dedicated worker's global scope used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: ThreadMessage): void;
}

const scope = globalThis as unknown as WorkerScope;

// Messages that come before the module listens are kept for it.
const early: unknown[] = [];
let listener = (message: unknown): void => void early.push(message);

const port: ThreadPort = {
  post: (message) => scope.postMessage({ message }),
  listen(next) {
    listener = next;
    early.splice(0).forEach(next);
  },
};

scope.onmessage = async (event: MessageEvent<{ moduleUrl: string; data: unknown }>) => {
  scope.onmessage = ({ data }: MessageEvent<{ message: unknown }>) => listener(data.message);
  try {
    const { default: call } = await import(event.data.moduleUrl);
    await call(event.data.data, port);
  } catch (error) {
    scope.postMessage({ failure: error instanceof Error ? error.message : String(error) });
  }
};
