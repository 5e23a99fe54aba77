/** Bun: Node's modules serve, under Bun's own name and version. `node_sandbox.ts` says what its workers lack. */
import process from "node:process";
import type { Runtime } from "./interface.ts";
import { nodeRuntime } from "./node.ts";

export const bunRuntime: Runtime = { ...nodeRuntime, name: "bun", version: process.versions.bun ?? "unknown" };
