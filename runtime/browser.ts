/** Browsers: there are no paths; bytes come from the sources of `sources.ts`. */
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { type PalisadeError, resourceError } from "../core/errors.ts";
import type { Hasher, Runtime, SandboxOptions, Thread } from "./interface.ts";
import { type SandboxReply, timeoutError } from "./sandbox_error.ts";
import { hasThreads } from "./features.ts";
import { siblingModule } from "./sibling_module.ts";
import type { ThreadMessage } from "./thread_browser.ts";

function noFiles(path: string): PalisadeError {
  return resourceError(
    "runtime.no-files",
    `Can't open ${path}: a browser has no paths; pass the bytes, as blobSource(file) does`,
    path,
  );
}

/** `runSandboxed` on a web worker. `maxHeapMb` can't be enforced here. */
async function runSandboxed<Answer>(moduleUrl: URL, message: unknown, options: SandboxOptions): Promise<Answer> {
  options.signal?.throwIfAborted();
  const worker = new Worker(siblingModule("./sandbox_browser", import.meta.url), { type: "module" });
  let timer: ReturnType<typeof setTimeout> | undefined;
  let abort: (() => void) | undefined;
  try {
    return await new Promise<Answer>((resolve, reject) => {
      timer = setTimeout(() => reject(timeoutError(moduleUrl, options.timeoutMs)), options.timeoutMs);
      abort = () => reject(options.signal?.reason);
      options.signal?.addEventListener("abort", abort);
      worker.onmessage = (event: MessageEvent<SandboxReply<Answer>>) => {
        if ("failure" in event.data) reject(new Error(event.data.failure));
        else resolve(event.data.answer);
      };
      worker.onerror = (event) => reject(new Error(event.message || `The worker of ${moduleUrl} did not start`));
      worker.postMessage({ moduleUrl: moduleUrl.href, message });
    });
  } finally {
    clearTimeout(timer);
    if (abort) options.signal?.removeEventListener("abort", abort);
    worker.terminate();
  }
}

/** See `Runtime.startThread`; a web worker. */
function startThread(moduleUrl: URL, data: unknown, listener: (message: unknown) => void): Thread {
  const worker = new Worker(siblingModule("./thread_browser", import.meta.url), { type: "module" });
  let end: (reason: Error) => void;
  const ended = new Promise<Error>((resolve) => end = resolve);
  worker.onmessage = (event: MessageEvent<ThreadMessage>) => {
    if ("failure" in event.data) end(new Error(event.data.failure));
    else listener(event.data.message);
  };
  worker.onerror = (event) => end(new Error(event.message || `The worker of ${moduleUrl} did not start`));
  worker.postMessage({ moduleUrl: moduleUrl.href, data });
  return {
    post: (message) => worker.postMessage({ message }),
    ended,
    unref: () => {},
    terminate() {
      worker.terminate();
      end(new Error(`The thread of ${moduleUrl} was ended`));
      return Promise.resolve();
    },
  };
}

/** Not the browser's own, which takes only what is whole in memory, and only on pages that came by https. */
function hasher(): Hasher {
  const hash = sha256.create();
  return { update: (bytes) => void hash.update(bytes), digest: () => bytesToHex(hash.digest()) };
}

interface BrowserGlobals {
  readonly navigator?: { userAgent?: string; platform?: string; hardwareConcurrency?: number };
  readonly performance?: { memory?: { usedJSHeapSize: number } };
}

const globals = globalThis as BrowserGlobals;

export const browserRuntime: Runtime = {
  name: "browser",
  version: globals.navigator?.userAgent ?? "unknown",
  platform: globals.navigator?.platform ?? "unknown",
  threads: hasThreads() && typeof Worker === "function",
  environment: () => undefined,
  openFile: (path) => Promise.reject(noFiles(path)),
  readText: (path) => Promise.reject(noFiles(path)),
  readBytes(path) {
    throw noFiles(path);
  },
  cores: () => ({ logical: globals.navigator?.hardwareConcurrency ?? 1 }),
  memory: () => ({ heapBytes: globals.performance?.memory?.usedJSHeapSize }),
  isTerminal: () => false,
  sha256: hasher,
  runSandboxed,
  startThread,
};
