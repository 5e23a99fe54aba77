/** {@link gpuSuite} in a page: bundled, and called by the test through `globalThis`. */
import { gpuSuite } from "./gpu_suite.ts";

async function read(name: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await (await fetch(`/${name}`)).arrayBuffer());
}

const run = (models: readonly string[]) => gpuSuite({ read, narrow: false, models, readModel: read });
Object.assign(globalThis, { runGpuSuite: run });
