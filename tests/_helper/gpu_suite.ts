/**
 * The suite for an adapter of another process or of a page, the backend's cases and some whole models: each by name, with
 * why it failed. Names no runtime.
 */
import { createReferenceBackend } from "../../core/backend/reference.ts";
import type { CacheType } from "../../core/cache/entry_type.ts";
import { createGpuBackend, type GpuBackendOptions } from "../../gpu/backend/backend.ts";
import { openGpu } from "../../gpu/device.ts";
import type { GpuFeatures } from "../../gpu/open.ts";
import { goldenKept } from "./golden_kept.ts";
import { gpuModel } from "./gpu_models.ts";
import { ONE_SIZE, PARITY_CASES } from "./parity.ts";
import { openWithHalves } from "./stand_in.ts";
import { onThisSide } from "./this_side.ts";

/** What an adapter did. */
export interface GpuOutcome {
  readonly description: string;
  readonly emulated: boolean;
  readonly features: GpuFeatures;
  /** Name and failure of each case; a case that passed has none. */
  readonly cases: readonly (readonly [name: string, failure: string])[];
  /** Bytes that are held when everything was freed: the device's own. */
  readonly held: number;
}

/** Cases whose rows are wide, and slow where a GPU is emulated. */
const TOO_SLOW = /cuts long inputs|logits in the thousands/;

export interface GpuSuiteOptions {
  /** The bytes of a golden file. */
  readonly read: (name: string) => Promise<Uint8Array>;
  /** Rows of a narrower type too. */
  readonly narrow: boolean;
  /** Tiny models whose logits are compared, and the bytes of their files. */
  readonly models: readonly string[];
  readonly readModel: (name: string) => Promise<Uint8Array<ArrayBuffer>>;
}

/** Runs all cases. */
export async function gpuSuite({ read, narrow, models, readModel }: GpuSuiteOptions): Promise<GpuOutcome> {
  using gpu = await openGpu();
  const cases: [string, string][] = [];
  const run = async (
    name: string,
    body: (backend: ReturnType<typeof onThisSide>) => Promise<void>,
    options?: GpuBackendOptions,
  ) => {
    const inner = createGpuBackend(gpu, options);
    try {
      using backend = onThisSide(inner, () => inner.tensors.alive);
      await body(backend);
      cases.push([name, ""]);
    } catch (error) {
      cases.push([name, String(error)]);
    }
  };
  for (const [i, { title, types, body }] of PARITY_CASES.filter((each) => !TOO_SLOW.test(each.title)).entries()) {
    // Of the narrower types one in turn: each has stages of its own to compile.
    for (const type of types.filter((_, at) => at === 0 || narrow && at === 1 + i % 2)) {
      await run(`${type}: ${title}`, (backend) => body(pairOf(backend, type), ONE_SIZE));
    }
  }
  // The stages of a real device, on one shape: they must be valid to every compiler.
  const tiled = { ...ONE_SIZE, shapes: [{ heads: 2, kvHeads: 1, headDim: 64 }], lengths: [1, 40] };
  for (const { title, body } of PARITY_CASES.filter((each) => /^prefillAttention\(\) equals/.test(each.title))) {
    await run(`of a real device: ${title}`, (backend) => body(pairOf(backend, "f32"), tiled), { short: false });
  }
  await run("golden kept sets", (backend) => goldenKept(backend, [97], read));
  for (const name of models) {
    cases.push([`logits of ${name}`, await gpuModel(gpu, name, readModel).catch((error) => String(error))]);
  }
  if (gpu.info.features.subgroups && !gpu.info.features.f16) {
    using both = await openWithHalves();
    const failure = await gpuModel(both, models[0], readModel, "auto").catch((error) => String(error));
    cases.push([`logits of ${models[0]}, with 16-bit floats stood in for`, failure]);
  }
  const { description, emulated, features } = gpu.info, { bytes, spare } = gpu.memory;
  return { description, emulated, features, cases, held: bytes - spare };
}

function pairOf(backend: ReturnType<typeof onThisSide>, type: CacheType) {
  return { oracle: createReferenceBackend(), backend, type };
}
