/**
 * transformers.js's WebGPU: a language model read and answered from, full cache, one row each. It runs on Deno's own
 * device, by the package's bundle for pages: the one for Node, which Deno would take, brings a device of its own. It is a
 * dev tool outside the package: `npm install --ignore-scripts --prefix bench/peers`.
 */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { describeAdapter } from "../../gpu/open.ts";
import { benchPath } from "../engines/engine.ts";
import { ANSWER_TOKENS, EMULATED_TOKENS, type Report } from "./measure.ts";
import { captureLog, readPlacement, requireWebGpu } from "./placement.ts";

/** What is used of the package `@huggingface/transformers`. */
export interface Library {
  readonly env: {
    readonly version: string;
    readonly backends: {
      readonly onnx: {
        readonly wasm: { wasmPaths?: unknown; numThreads?: number };
        readonly webgpu: { readonly device?: Promise<GPUDevice> | GPUDevice };
      };
    };
    logLevel: number;
    useBrowserCache: boolean;
    allowLocalModels: boolean;
    allowRemoteModels: boolean;
  };
  readonly AutoModelForCausalLM: { from_pretrained(model: string, options: object): Promise<CausalModel> };
  readonly Tensor: new (type: string, data: BigInt64Array, dims: readonly number[]) => object;
}

interface CausalModel {
  readonly sessions: { readonly model: { readonly config: { readonly dtype: string } } };
  readonly config: { readonly vocab_size: number };
  generate(options: object): Promise<unknown>;
  dispose(): Promise<unknown>;
}

export interface TransformersPlan {
  /** Id on the hub, or folder of an ONNX export in the layout that the library reads. */
  readonly model: string;
  /** By the library's names: `q4`, `q4f16`, `fp16`, `fp32` and others. */
  readonly dtype: string;
  readonly tokens: readonly number[];
  /** What the bench's own device is called: another one gives no row. */
  readonly device: string;
  readonly emulated: boolean;
}

const PACKAGES = benchPath("peers/node_modules");
/** The library's name for no messages at all: what goes wrong is said in one line here. */
const SILENT = 50;
/** Tokens that are read before anything is measured. */
const SHORT = 8;

/** Tokens a second of reading and of answering; one line says why where there are none. */
export async function transformers(
  plan: TransformersPlan,
  report: Report,
  load: () => Promise<Library> = loadLibrary,
  say: (line: string) => void = console.log,
): Promise<void> {
  const orSay = async (what: string, work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      say(`transformers.js gives no row${what}: ${firstLine(error)}`);
    }
  };
  await orSay("", async () => {
    const library = await load(), nodes = await placement(library, plan), model = await open(library, plan);
    try {
      const stages = await stagesOfToken(library, model, plan.device);
      say(`transformers.js ${library.env.version}, ${plan.model}, ${plan.dtype}: ${nodes}, ${stages} stages a token`);
      for (const tokens of plan.emulated ? [EMULATED_TOKENS] : plan.tokens) {
        await orSay(` at ${tokens} tokens`, () => measure(library, model, tokens, plan, report));
      }
    } finally {
      await model.dispose();
    }
  });
}

/** @throws Error where the package isn't installed, or doesn't start in this runtime. */
export async function loadLibrary(packages = PACKAGES): Promise<Library> {
  // Its other files import further packages, which Deno doesn't find from there.
  const bundle = `${packages}/@huggingface/transformers/dist/transformers.min.js`;
  if (!existsSync(bundle)) {
    throw new Error("it is not in bench/peers: npm install --ignore-scripts --prefix bench/peers");
  }
  const library: Library = await import(pathToFileURL(bundle).href);
  const { env } = library,
    engine = pathToFileURL(`${packages}/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify`).href;
  // By itself it would be fetched from a content network.
  env.backends.onnx.wasm.wasmPaths = { mjs: `${engine}.mjs`, wasm: `${engine}.wasm` };
  env.backends.onnx.wasm.numThreads = 1;
  env.logLevel = SILENT;
  return library;
}

/** @throws Error by what the library couldn't do. */
async function open(
  { env, AutoModelForCausalLM }: Library,
  { model, dtype }: TransformersPlan,
  session_options: object = {},
): Promise<CausalModel> {
  const local = existsSync(`${model}/config.json`);
  if (!local && !/^[\w.-]+\/[\w.-]+$/.test(model)) {
    throw new Error(`${model} is no folder with a config.json, and no id of the hub (OWNER/NAME)`);
  }
  env.allowLocalModels = local;
  env.allowRemoteModels = !local;
  env.useBrowserCache = !local;
  const place = local ? pathToFileURL(resolve(model)).href : model;
  return await AutoModelForCausalLM.from_pretrained(place, { device: "webgpu", dtype, session_options });
}

/**
 * What of the model runs where, in words. The engine falls back to the CPU without a word, so it is asked where its nodes
 * run; it holds on to the console that it finds when it starts, so this is the first that is asked of it.
 *
 * @throws Error where anything that takes time doesn't run on WebGPU, or another type of weights was taken.
 */
async function placement(library: Library, plan: TransformersPlan): Promise<string> {
  let dtype = "";
  const log = await captureLog(async () => {
    const model = await open(library, plan, { logSeverityLevel: 0 });
    ({ dtype } = model.sessions.model.config);
    await model.dispose();
  });
  if (dtype !== plan.dtype) throw new Error(`it doesn't know the type ${plan.dtype}, and took ${dtype}`);
  return requireWebGpu(readPlacement(log));
}

/**
 * Stages of a token, counted on the device; that also compiles most of them.
 *
 * @throws Error where none ran, and for another device than the bench's.
 */
async function stagesOfToken(library: Library, model: CausalModel, device: string): Promise<number> {
  const its = await library.env.backends.onnx.webgpu.device;
  const { description } = describeAdapter(its?.adapterInfo ?? {});
  if (description !== device) throw new Error(`it runs on ${description}, the bench on ${device}`);
  const counted = countStages(), at: number[] = [];
  try {
    await generate(library, model, SHORT, 2, () => at.push(counted.stages));
  } finally {
    counted.stop();
  }
  if (!(at[2] > at[1])) throw new Error("no stage of a token ran on the bench's device");
  return at[2] - at[1];
}

/** Counts the stages of all devices of this process until it is stopped. */
function countStages(): { readonly stages: number; stop(): void } {
  const passes = GPUComputePassEncoder.prototype, { dispatchWorkgroups, dispatchWorkgroupsIndirect } = passes;
  const counted = {
    stages: 0,
    stop: () => void Object.assign(passes, { dispatchWorkgroups, dispatchWorkgroupsIndirect }),
  };
  passes.dispatchWorkgroups = function (...size) {
    counted.stages++;
    return dispatchWorkgroups.apply(this, size);
  };
  passes.dispatchWorkgroupsIndirect = function (...from) {
    counted.stages++;
    return dispatchWorkgroupsIndirect.apply(this, from);
  };
  return counted;
}

async function measure(
  library: Library,
  model: CausalModel,
  tokens: number,
  { dtype, emulated }: TransformersPlan,
  report: Report,
): Promise<void> {
  const answer = emulated ? 2 : ANSWER_TOKENS, times: number[] = [];
  // Once before, so that every stage is compiled.
  if (!emulated) await generate(library, model, tokens, 16);
  await generate(library, model, tokens, answer, () => times.push(performance.now()));
  const [start, first] = times, last = times[answer];
  const row = (what: string) => `transformers.js ${dtype}, WebGPU: ${what} ${tokens} tokens, 100% kept`;
  report({ what: row("read"), value: 1000 * tokens / (first - start), unit: "tokens/s" });
  report({ what: row("answer"), value: 1000 * (answer - 1) / (last - first), unit: "tokens/s" });
}

/** Greedy tokens after a text of some ids; `next` is called at the start and when a token is known on this side. */
async function generate(
  { Tensor }: Library,
  model: CausalModel,
  tokens: number,
  answer: number,
  next: () => void = () => {},
): Promise<void> {
  const ids = BigInt64Array.from({ length: tokens }, (_, i) => BigInt((i * 7919 + 13) % model.config.vocab_size));
  const streamer = { put: next, end: () => {} };
  const length = { max_new_tokens: answer, min_new_tokens: answer, do_sample: false };
  await model.generate({ inputs: new Tensor("int64", ids, [1, tokens]), ...length, streamer });
}

/** The first line of an error, and of what it comes from. */
function firstLine(error: unknown): string {
  const { message, cause } = error instanceof Error ? error : new Error(String(error));
  return message.split("\n")[0] + (cause === undefined ? "" : ` (${firstLine(cause)})`);
}
