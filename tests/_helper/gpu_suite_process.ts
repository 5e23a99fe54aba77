/** {@link gpuSuite} in a process of its own, whose environment picks the adapter: prints the outcome as JSON. */
import { readFile } from "node:fs/promises";
import { readGolden } from "./golden.ts";
import { gpuSuite } from "./gpu_suite.ts";

/** Norms of heads and of what was added, GELU, two rotations; and blocks of 256. */
const MODELS = ["gemma3-windows", "llama3-factors"];

async function readModel(name: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await readFile(new URL(`../data/models/${name}`, import.meta.url)));
}

const outcome = await gpuSuite({ read: readGolden, narrow: true, models: MODELS, readModel });
console.log(`outcome ${JSON.stringify(outcome)}`);
