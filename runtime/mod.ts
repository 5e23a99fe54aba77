/** Picks the adapter of the runtime at hand. Imports it only then, so that a browser never meets `node:` modules. */
import type { Runtime, RuntimeName } from "./interface.ts";

export type * from "./interface.ts";
export { hostOf } from "./host.ts";
export { blobSource, bufferSource, urlSource, withFiles } from "./sources.ts";
export { siblingModule } from "./sibling_module.ts";

/** Which runtime this is. Deno and Bun also look like Node, so they are asked for first. */
export function runtimeName(): RuntimeName {
  const globals = globalThis as {
    Deno?: { version?: unknown };
    Bun?: { version?: unknown };
    process?: { versions?: { node?: string } };
  };
  if (globals.Deno?.version) return "deno";
  if (globals.Bun?.version) return "bun";
  if (globals.process?.versions?.node) return "node";
  return "browser";
}

/** The adapter of this runtime. */
export async function currentRuntime(): Promise<Runtime> {
  const name = runtimeName();
  switch (name) {
    case "deno":
      return (await import("./deno.ts")).denoRuntime;
    case "bun":
      return (await import("./bun.ts")).bunRuntime;
    case "node":
      return (await import("./node.ts")).nodeRuntime;
    case "browser":
      return (await import("./browser.ts")).browserRuntime;
    default:
      return name satisfies never;
  }
}
