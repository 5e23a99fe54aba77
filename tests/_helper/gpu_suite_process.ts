/** {@link gpuSuite} in a process of its own, whose environment picks the adapter: prints the outcome as JSON. */
import { readGolden } from "./golden.ts";
import { gpuSuite } from "./gpu_suite.ts";

console.log(`outcome ${JSON.stringify(await gpuSuite(readGolden, true))}`);
