/** The files and processes of a runtime, for work that can't do without them. */
import { resourceError } from "../core/errors.ts";
import type { Host, Runtime } from "./interface.ts";

/**
 * The runtime's files and processes. `what` is the work that needs them, as in "Can't …": `calibrate`.
 * @throws PalisadeError resources `runtime.no-files` in a browser, which has none.
 */
export function hostOf({ host, name }: Pick<Runtime, "host" | "name">, what: string): Host {
  if (host) return host;
  throw resourceError("runtime.no-files", `Can't ${what}: it takes files, and this runtime (${name}) has none`, what);
}
