/**
 * Whether `auto` takes the WebGPU device: it does when one is there that is no emulator, and its product beats the kernels'.
 * Measured once for a device and a version, in about a second, and kept in the cache folder (`webgpu.json`).
 */
import { PalisadeError } from "../core/errors.ts";
import { listOf } from "../gpu/dense/lists.ts";
import { DenseStages } from "../gpu/dense/stages.ts";
import { DeviceWeights } from "../gpu/dense/weights.ts";
import { type GpuDevice, type GpuInfo, openGpu, type OpenOptions } from "../gpu/device.ts";
import { lookForDevice } from "../gpu/open.ts";
import type { Runtime } from "../runtime/interface.ts";
import { writeWhole } from "../runtime/output.ts";
import { VERSION } from "../runtime/version.ts";
import { multiply, Stored } from "../wasm/dense/products.ts";
import { Kernels } from "../wasm/module.ts";
import { cacheFolder } from "./store/store.ts";
import { autoThreads } from "./threads.ts";

/** What `auto` does, and why, in a line for people. */
export interface GpuVerdict {
  readonly taken: boolean;
  readonly reason: string;
  /** The adapter, where there is one. */
  readonly info?: GpuInfo;
}

/** Products in a second, of one row and a matrix of {@link SIDE}² in blocks of 8 bits. */
export interface ProductRates {
  readonly device: number;
  /** Of all threads that `auto` takes, if each did as much as one does alone. */
  readonly kernels: number;
}

export interface JudgeOptions extends Pick<OpenOptions, "entry"> {
  /** Takes the rates instead of measuring them, for tests. */
  readonly measure?: (entry: OpenOptions) => Promise<ProductRates>;
  /** Only says what is known: a device that was not measured yet is not opened. */
  readonly onlyLook?: boolean;
}

/** Rows and columns of the matrix that is multiplied: 17 MB, more than a processor's cache holds. */
const SIDE = 4096;
/** Q8_0: a block of 32 numbers takes 34 bytes (GGUF's type 8). */
const Q8_0 = { number: 8, block: 32, bytes: 34 };
/** How long each side is measured, ms. */
const PATIENCE = 300;
const FILE = "webgpu.json";

/** Rates of this process, where nothing can be kept. */
const known = new Map<string, ProductRates>();
/** What this process found when it looked first. */
let looked: Promise<GpuInfo> | undefined;

/** Never rejects for want of a device. */
export async function judgeGpu(runtime: Runtime, options: JudgeOptions = {}): Promise<GpuVerdict> {
  try {
    const info = await (options.entry ? lookForDevice(options.entry) : looked ??= lookForDevice());
    if (info.emulated) return { taken: false, reason: `${info.description} is emulated on the processor`, info };
    return { ...verdict(await ratesOf(runtime, info, options)), info };
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
    return { taken: false, reason: error.message };
  }
}

function verdict(rates: ProductRates | undefined): GpuVerdict {
  if (!rates) return { taken: false, reason: "not measured yet: that is done when a model is loaded" };
  const times = (rates.device / rates.kernels).toPrecision(2);
  return { taken: rates.device > rates.kernels, reason: `its product is ${times} times as fast as the kernels'` };
}

async function ratesOf(runtime: Runtime, info: GpuInfo, options: JudgeOptions): Promise<ProductRates | undefined> {
  const key = `${VERSION} ${runtime.name} ${info.description}`, kept = await readRates(runtime);
  const found = known.get(key) ?? kept[key];
  if (found || options.onlyLook) return found;
  const { device, kernels } = await (options.measure ?? measureProducts)({ entry: options.entry });
  const rates = { device, kernels: kernels * autoThreads(runtime) };
  known.set(key, rates);
  await writeRates(runtime, { ...kept, [key]: rates });
  return rates;
}

/** Rates by device and version; a file that can't be read as such counts as none. */
async function readRates(runtime: Runtime): Promise<Record<string, ProductRates>> {
  if (!runtime.host) return {};
  try {
    const all: unknown = JSON.parse(await runtime.readText(runtime.host.join(cacheFolder(runtime), FILE)));
    const entries = Object.entries(all as Record<string, ProductRates>);
    return Object.fromEntries(entries.filter(([, { device, kernels }]) => device > 0 && kernels > 0));
  } catch {
    return {};
  }
}

/** A cache folder that can't be written costs a measurement the next time, and no more. */
async function writeRates(runtime: Runtime, rates: Record<string, ProductRates>): Promise<void> {
  const { host } = runtime;
  if (!host) return;
  try {
    const folder = cacheFolder(runtime);
    await host.makeFolder(folder);
    await writeWhole(runtime, host.join(folder, FILE), new TextEncoder().encode(`${JSON.stringify(rates, null, 2)}\n`));
  } catch (error) {
    if (!(error instanceof PalisadeError)) throw error;
  }
}

/** Measures the device and one thread of the kernels, one after the other. @throws PalisadeError `gpu.*`. */
export async function measureProducts(options: OpenOptions = {}): Promise<ProductRates> {
  const kernels = await kernelRate();
  using gpu = await openGpu(options);
  return { device: await deviceRate(gpu), kernels };
}

function randomBlocks(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SIDE * SIDE / Q8_0.block * Q8_0.bytes);
  for (let i = 0; i < bytes.length; i++) bytes[i] = i * 37 & 0xff;
  // A scale of 2⁻¹⁰ in float16: any pattern would do, but for infinities.
  for (let at = 0; at < bytes.length; at += Q8_0.bytes) bytes.set([0x00, 0x14], at);
  return bytes;
}

async function deviceRate(gpu: GpuDevice): Promise<number> {
  using weights = new DeviceWeights(gpu);
  const filling = weights.fill(SIDE * SIDE / Q8_0.block * Q8_0.bytes);
  filling.add(randomBlocks());
  const part = {
    ...{ kind: Q8_0.number, inputs: SIDE, padded: SIDE, outputs: SIDE, column: 0 },
    rowBytes: SIDE / Q8_0.block * Q8_0.bytes,
    weights: filling.end(),
  };
  const list = listOf([{ op: "multiply", weights: [part], rows: SIDE, from: "x", to: "y" }], { x: SIDE });
  const stages = new DenseStages(gpu, { normEpsilon: 0, f16: gpu.info.features.f16 });
  const x = gpu.borrow(4 * SIDE), y = gpu.borrow(4 * SIDE);
  const some = async (count: number) => {
    for (let i = 0; i < count; i++) stages.run(list, { x }, 1, y);
    await gpu.read(y, 0, 4);
  };
  await some(2);
  return await rateOf(async () => {
    await some(20);
    return 20;
  });
}

async function kernelRate(): Promise<number> {
  const kernels = await Kernels.start({}), weights = new Stored(kernels, SIDE * SIDE / Q8_0.block * Q8_0.bytes);
  const [x, y] = [new Stored(kernels, 4 * SIDE), new Stored(kernels, 4 * SIDE)];
  weights.view(0, weights.byteLength).set(randomBlocks());
  const matrix = { kernel: Q8_0.number, outputs: SIDE, inputs: SIDE, weights };
  const once = () => multiply(kernels, matrix, x.handle, 1, { buffer: y.handle, stride: SIDE }, false);
  once();
  return await rateOf(() => {
    once();
    return Promise.resolve(1);
  });
}

/** Products a second; `work` says how many it did. */
async function rateOf(work: () => Promise<number>): Promise<number> {
  const start = performance.now();
  let done = 0, spent = 0;
  while (spent < PATIENCE) {
    done += await work();
    spent = performance.now() - start;
  }
  return 1000 * done / spent;
}
