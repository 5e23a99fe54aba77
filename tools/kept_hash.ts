/**
 * Prints a hash of what the tiny golden models keep under every policy, by `core`, by the ts backend and by the
 * kernels' simd128 build. The lines must be the same in every runtime: `deno run -A tools/kept_hash.ts`,
 * `bun tools/kept_hash.ts`. An argument names another folder of golden files.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { keptHashes } from "../tests/_helper/kept_hash.ts";
import { createWasmBackend } from "../wasm/backend.ts";

const golden = process.argv[2] ?? fileURLToPath(new URL("../tests/data/golden", import.meta.url));
const read = (name: string) => readFile(join(golden, name));
const { core, backend } = await keptHashes(read);
const kernels = await keptHashes(read, await createWasmBackend({ simd: "simd128" }));
console.log(`core ${core}\nts   ${backend}\nwasm ${kernels.backend}`);
