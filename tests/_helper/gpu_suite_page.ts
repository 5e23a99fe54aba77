/** {@link gpuSuite} in a page: bundled, and called by the test through `globalThis`. */
import { gpuSuite } from "./gpu_suite.ts";

async function read(name: string): Promise<Uint8Array> {
  return new Uint8Array(await (await fetch(`/${name}`)).arrayBuffer());
}

Object.assign(globalThis, { runGpuSuite: () => gpuSuite(read, false) });
