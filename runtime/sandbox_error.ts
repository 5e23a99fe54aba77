/** What `runSandboxed` says when it had to end the worker. */
import { type PalisadeError, resourceError } from "../core/errors.ts";

/** What a worker of `runSandboxed` posts back. */
export type SandboxReply<Answer> = { readonly answer: Answer } | { readonly failure: string };

export function timeoutError(moduleUrl: URL, timeoutMs: number): PalisadeError {
  const name = moduleName(moduleUrl);
  return resourceError("sandbox.timeout", `Stopped ${name}: it took longer than the ${timeoutMs} ms allowed`, name);
}

export function memoryError(moduleUrl: URL, maxHeapMb: number | undefined): PalisadeError {
  const name = moduleName(moduleUrl);
  const limit = maxHeapMb === undefined ? "the memory there is" : `the ${maxHeapMb} MiB allowed`;
  return resourceError("sandbox.memory", `Stopped ${name}: it took more than ${limit}`, name);
}

function moduleName(url: URL): string {
  return url.pathname.slice(url.pathname.lastIndexOf("/") + 1).replace(/\.[^.]*$/, "");
}
