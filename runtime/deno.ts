/** Deno 2: Node's modules serve, under Deno's own name and version. */
import process from "node:process";
import type { Runtime } from "./interface.ts";
import { nodeRuntime } from "./node.ts";

export const denoRuntime: Runtime = { ...nodeRuntime, name: "deno", version: process.versions.deno ?? "unknown" };
