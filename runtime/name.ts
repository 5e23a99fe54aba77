/** Apart from the adapters, for what only wants to know. */
import type { RuntimeName } from "./interface.ts";

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
