/** A loaded model: the file, its configuration, its tokenizer, its chat frame, and the two engines that run it. */
import type { GateTarget, Policy } from "../core/policy/policy.ts";
import type { BackendChoice, Device } from "./device.ts";
import type { ByteSource, Runtime } from "../runtime/interface.ts";
import type { ModelConfig } from "./config.ts";
import type { Context } from "./context.ts";
import type { DenseChoice } from "./dense/pick.ts";
import type { Gate } from "./gate/file.ts";
import type { Chunks } from "./foresight/file.ts";
import { findChunks } from "./foresight/find.ts";
import type { Statistics } from "./statistics/file.ts";
import { findStatistics } from "./statistics/find.ts";
import { findGate, type GateChoice, saysNoGate } from "./gate/find.ts";
import { findLearned } from "./gate/learned.ts";
import { configOf } from "./file/gguf/config.ts";
import type { GgufFile } from "./file/gguf/reader.ts";
import { openGgufFile, openGgufSources } from "./file/gguf/split.ts";
import { loadPolicy } from "./policy_files/policy_files.ts";
import { findSoftTokens, type SoftTokens } from "./policy_files/soft_tokens.ts";
import { restoreContext, type RestoreOptions } from "./snapshot/restore.ts";
import { checkRoom, type Expected, type NeededMemory, neededMemory, type Room } from "./needed_memory.ts";
import { modelHash, sourcesHash } from "./store/identity.ts";
import type { HashOptions } from "./store/part.ts";
import { sharedWork } from "./shared_work.ts";
import { shortName } from "./store/short_name.ts";
import { type ChatFrame, chatFrame } from "./text/prompt.ts";
import type { judgeGpu } from "./gpu_choice.ts";
import { startDevice } from "./start_device.ts";
import type { ThreadChoice } from "./threads.ts";
import { type TextTokenizer, tokenizerOf } from "./text/tokenizer.ts";

/** How a model is run, and what it is told. */
export interface LoadOptions {
  readonly backend?: BackendChoice;
  readonly dense?: DenseChoice;
  /** One dense engine for any number of rows: for results that are set beside earlier ones. */
  readonly oneEngine?: boolean;
  /** `float32` keeps every weight exact; `auto` takes what is fastest within memory (`model/dense/pick.ts`). */
  readonly precision?: "auto" | "float32" | "quantised";
  /** Threads of the kernels and the dense engine; `auto` leaves onnxruntime at one. Default 1. */
  readonly threads?: ThreadChoice;
  /** Replaces the chat template's own system prompt. */
  readonly system?: string;
  /** Lets the model think before it answers; refused where its chat template knows of no thinking. Default false. */
  readonly think?: boolean;
  /**
   * Words around text and question: a name of `FRAMES` or a text, `"{text}\n\n{question}"`. Default: the architecture's.
   * `none` leaves out the chat template too, for `ask("")`, which goes on from the text itself.
   */
  readonly frame?: string;
  /**
   * A gate, or a gate's file, instead of the one found for this model (`model/gate/find.ts`). In a browser none is found:
   * without this option a context's default policy is one that needs no gate (`model/default_policy.ts`).
   */
  readonly gate?: GateChoice;
  /** Most tokens there will be at once (`ConfigOptions`). */
  readonly tokens?: number;
  /**
   * What the model is loaded for, where that is known: asked once, before weights are read. Then there must be room for
   * keys and values too, and a LongRoPE model turns as it was trained to for so many tokens.
   */
  readonly expected?: (known: Pick<Model, "frame" | "tokenizer">) => Expected;
  /** Called once with what the head of the file says, before weights are read; what it throws ends the loading. */
  readonly onHead?: (head: ModelHead) => Promise<void>;
  /** Called once, before weights are read, with the bytes that they, and all together, will take at least. */
  readonly onNeeded?: (weights: number, needed?: NeededMemory) => void;
  /** Hears why `auto` goes on without the WebGPU device that it had taken: lost, out of memory. */
  readonly onDeviceLost?: (why: string) => void;
  /** Whether `auto` takes a WebGPU device, for tests. */
  readonly judge?: typeof judgeGpu;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * Where a model's bytes are: the path of its file, or a source of them (`blobSource`, `bufferSource`, `urlSource`). Of a
 * split model the path of any part, the others beside it; or the sources of all parts, in any order.
 */
export type ModelSource = string | ByteSource | readonly ByteSource[];

/** What is known of a model before its weights are read. */
export type ModelHead = Pick<Model, "config" | "file" | "frame" | "identity">;

/** While a model's file is hashed. */
export interface IdentityOptions {
  readonly signal?: AbortSignal;
  /** Bytes hashed so far, of all; called only of the first of several callers at a time. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface GateOptions extends Pick<IdentityOptions, "signal"> {
  /** What the gate is to predict. Default KVzip's importance. */
  readonly target?: GateTarget;
}

export interface Model extends Device, AsyncDisposable {
  /** What reports call it: `smollm2-135m`, or the file's name; `config.name` is what the file calls itself. */
  readonly name: string;
  /** What it was loaded in. */
  readonly runtime: Runtime;
  readonly file: GgufFile;
  readonly config: ModelConfig;
  readonly tokenizer: TextTokenizer;
  readonly frame: ChatFrame;
  /** What a text will take here, the weights among it; nothing is read for it. */
  needed(expected: Expected): NeededMemory;
  /** What there is for it. */
  readonly room: Room;
  /**
   * Where `auto` took a WebGPU device: starts this side in its place when `error` is that device's, and resolves with
   * whether it is. `backend` and `dense` are others from then on. Contexts call it, and are read or restored again.
   */
  recover?(error: unknown): Promise<boolean>;
  /**
   * SHA-256 of the model's file, of all parts in order; hexadecimal. Computed at the first call, which takes 0.1 s per
   * 100 MB, and 3 s in a browser.
   * @throws the signal's reason; what reading the file throws.
   */
  identity(options?: IdentityOptions): Promise<string>;
  /**
   * The gate fitted for this model, looked for and checked until there is one.
   * @throws PalisadeError `gate.*`, `safetensors.*`, `file.*`; the signal's reason.
   */
  gate(options?: GateOptions): Promise<Gate>;
  /**
   * The frequency chunks that foresee what this model's heads look at, from a file, or those found for it.
   * @throws PalisadeError `chunks.*`, `safetensors.*`, `file.*`.
   */
  chunks(file?: string): Promise<Chunks>;
  /**
   * What this model's queries are like over texts, from a file, or as calibrated for it.
   * @throws PalisadeError `statistics.*`, `safetensors.*`, `file.*`.
   */
  statistics(file?: string): Promise<Statistics>;
  /** What texts that were read left of `self-gate`'s gates, now; undefined where there is nothing that can be used. */
  learned(): Promise<Gate | undefined>;
  /**
   * The policy that a text names, with the file it names: as typed on the command line.
   * @throws PalisadeError as `loadPolicy`.
   */
  policy(text: string): Promise<Policy>;
  /**
   * Soft tokens trained for this model, from a file, or those that were trained here.
   * @throws PalisadeError `soft-tokens.*`, `safetensors.*`, `file.*`.
   */
  softTokens(from?: string | ByteSource): Promise<SoftTokens>;
  /**
   * The context that a snapshot holds (`Context.save`), without reading anything. The source is the caller's to close,
   * after the promise; where `auto` took a WebGPU device, after the context, which is restored again when that fails
   * (`snapshot.gone` where it can't be).
   * @throws PalisadeError input, where = the section or field: `snapshot.kind`, `snapshot.version`, `snapshot.size`,
   * `snapshot.header`, `snapshot.state`, `snapshot.layout` (of another form), `snapshot.damaged`, `snapshot.identity`
   * (of another model, or made otherwise than the options say), `snapshot.no-scores`.
   */
  restore(source: ByteSource, options?: RestoreOptions): Promise<Context>;
}

/**
 * Opens a GGUF and starts both engines. The model takes over a source and closes it. PalisadeErrors: `file.*`, `url.*`,
 * `gguf.*`, `tokenizer.*`, `template.*` (input), `dense.*`, `memory.short`, `backend.*`, `gpu.*`, `device.*`,
 * `threads.*` (usage, input or resources), `runtime.no-files` for a path in a browser. Nothing stays open when it fails.
 */
export async function loadModel(source: ModelSource, runtime: Runtime, options: LoadOptions = {}): Promise<Model> {
  const { file, name, hash } = await openSource(source, runtime);
  try {
    const base = tokenizerOf(file.metadata);
    const frame = await chatFrame(file.metadata, base, runtime, {
      system: options.system,
      think: options.think,
      frame: options.frame,
      signal: options.signal,
    });
    const tokenizer = base.endingAt(frame.ends), expected = options.expected?.({ frame, tokenizer });
    const config = await configOf(file, { tokens: options.tokens ?? lastPosition(expected) });
    const identity = sharedWork(hash);
    await options.onHead?.({ config, file, frame, identity });
    let weightBytes = 0, room: Room = { weightModules: 0, cacheModules: 0 };
    const device = await startDevice(file, config, runtime, {
      ...options,
      onNeeded(weights, modules) {
        const needed = expected && neededMemory(config, weights, expected);
        [weightBytes, room] = [weights, { limitBytes: runtime.memory().limitBytes, ...modules }];
        checkRoom(file.name, needed ?? { weights, cache: 0, working: 0, tokens: 0 }, room);
        options.onNeeded?.(weights, needed);
      },
    });
    const gateFor = (target: GateTarget) =>
      sharedWork((told: Pick<IdentityOptions, "signal">) => {
        return findGate({ name, config, identity: () => identity(told) }, runtime, options.gate, target);
      });
    const gates = new Map<GateTarget, ReturnType<typeof gateFor>>();
    const model: Model = {
      name: shortName(name),
      runtime,
      file,
      config,
      tokenizer,
      frame,
      get dense() {
        return device.dense;
      },
      get backend() {
        return device.backend;
      },
      ...(device.recover && { recover: (error: unknown) => device.recover!(error) }),
      needed: (text) => neededMemory(config, weightBytes, text),
      get room() {
        return room;
      },
      identity,
      async gate({ target = true, ...told } = {}) {
        const found = gates.get(target) ?? gateFor(target);
        gates.set(target, found);
        try {
          return await found(told);
        } catch (error) {
          // Where there is none, one may be fitted yet.
          if (saysNoGate(error)) gates.delete(target);
          throw error;
        }
      },
      chunks: (path) => findChunks({ name, config, identity }, runtime, path),
      statistics: (path) => findStatistics({ name, config, identity }, runtime, path),
      learned: () => findLearned({ config, runtime, identity }),
      policy: (text) => loadPolicy(text, runtime),
      softTokens: (from) => findSoftTokens({ name, config, identity }, runtime, from),
      restore(snapshot, given) {
        return restoreContext(this, snapshot, given);
      },
      async [Symbol.asyncDispose]() {
        await device[Symbol.asyncDispose]();
        await file.close();
      },
    };
    return model;
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Nothing for any that the model was trained on. */
function lastPosition({ positions, tokens }: Partial<Expected> = {}): number | undefined {
  return positions === "trained" ? undefined : positions ?? tokens;
}

const NO_TEXT: Expected = { tokens: 0, positions: "trained" };

/**
 * What `loadModel` with the same options would need, and the text that `expected` tells of: known from the head of the
 * file, and no weight is read.
 * @throws PalisadeError as `loadModel`, `memory.short` and `memory.module` among them where it would not fit.
 */
export async function memoryOf(
  source: ModelSource,
  runtime: Runtime,
  options: LoadOptions = {},
): Promise<NeededMemory> {
  let needed: NeededMemory | undefined;
  const known = new Error("Known");
  const { expected = () => NO_TEXT } = options;
  try {
    const model = await loadModel(source, runtime, {
      ...options,
      expected,
      onNeeded(_, all) {
        needed = all;
        throw known;
      },
    });
    await model[Symbol.asyncDispose]();
  } catch (error) {
    if (error !== known) throw error;
  }
  return needed!;
}

/** An open model file: what messages call it, and how it is identified. */
interface OpenSource {
  readonly file: GgufFile;
  readonly name: string;
  hash(options: IdentityOptions): Promise<string>;
}

async function openSource(source: ModelSource, runtime: Runtime): Promise<OpenSource> {
  if (typeof source === "string") {
    const file = await openGgufFile(source, runtime);
    return { file, name: source, hash: (told) => modelHash(source, runtime, counted(told, file.size)) };
  }
  const { file, sources } = await openGgufSources("read" in source ? [source] : source);
  return { file, name: file.name, hash: (told) => sourcesHash(sources, runtime, counted(told, file.size)) };
}

function counted({ signal, onProgress }: IdentityOptions, total: number): HashOptions {
  let done = 0;
  return { signal, onBytes: (bytes) => onProgress?.(done += bytes, total) };
}
