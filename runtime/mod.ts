/** Picks the adapter of the runtime at hand. Imports it only then, so that a browser never meets `node:` modules. */
import type { Runtime } from "./interface.ts";
import { runtimeName } from "./name.ts";

export type * from "./interface.ts";
export { hostOf } from "./host.ts";
export { runtimeName } from "./name.ts";
export { blobSource, bufferSource, urlSource, withFiles } from "./sources.ts";
export { siblingModule } from "./sibling_module.ts";

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
