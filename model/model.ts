/** A loaded model: the file, its configuration, its tokenizer, its chat frame, and the two engines that run it. */
import type { Backend } from "../core/backend/interface.ts";
import type { Policy } from "../core/policy/policy.ts";
import { type BackendChoice, type Device, pickBackend } from "./device.ts";
import type { Runtime } from "../runtime/interface.ts";
import type { ThreadPool } from "../wasm/threads/pool.ts";
import type { ModelConfig } from "./config.ts";
import { DEFAULTS } from "./defaults.ts";
import { HostDense } from "./dense/host.ts";
import { type DenseChoice, pickDense } from "./dense/pick.ts";
import type { Gate } from "./gate/file.ts";
import { findGate } from "./gate/find.ts";
import { configOf } from "./file/gguf/config.ts";
import type { GgufFile } from "./file/gguf/reader.ts";
import { openGgufFile } from "./file/gguf/split.ts";
import { loadPolicy } from "./policy_files/policy_files.ts";
import { loadSoftTokens, type SoftTokens } from "./policy_files/soft_tokens.ts";
import { shortName } from "./store/short_name.ts";
import { type ChatFrame, chatFrame } from "./text/prompt.ts";
import { startPool, type ThreadChoice } from "./threads.ts";
import { type TextTokenizer, tokenizerOf } from "./text/tokenizer.ts";

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
  /** A gate file instead of the one found for this model (`model/gate/find.ts`). */
  readonly gate?: string;
  /** Most tokens there will be at once (`ConfigOptions`). */
  readonly tokens?: number;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

export interface Model extends Device, AsyncDisposable {
  /** What reports call it: `smollm2-135m`, or the file's name; `config.name` is what the file calls itself. */
  readonly name: string;
  readonly file: GgufFile;
  readonly config: ModelConfig;
  readonly tokenizer: TextTokenizer;
  readonly frame: ChatFrame;
  /**
   * The gate fitted for this model, looked for and checked at the first call.
   * @throws PalisadeError `gate.*`, `safetensors.*`, `file.*`.
   */
  gate(): Promise<Gate>;
  /**
   * The policy that a text names, with the file it names: the same texts as `--policy`.
   * @throws PalisadeError as `loadPolicy`.
   */
  policy(text: string): Promise<Policy>;
  /**
   * Soft tokens trained for this model, from a file.
   * @throws PalisadeError `soft-tokens.*`, `safetensors.*`, `file.*`.
   */
  softTokens(path: string): Promise<SoftTokens>;
}

/**
 * Opens a GGUF and starts both engines. PalisadeErrors: `file.*`, `gguf.*`, `tokenizer.*`, `template.*` (input),
 * `dense.*`, `backend.*`, `threads.*` (usage, input or resources). Nothing stays open when it fails.
 */
export async function loadModel(path: string, runtime: Runtime, options: LoadOptions = {}): Promise<Model> {
  const file = await openGgufFile(path, runtime);
  let backend: Backend | undefined, pool: ThreadPool | undefined;
  try {
    const config = await configOf(file, { tokens: options.tokens });
    const base = tokenizerOf(file.metadata);
    const frame = await chatFrame(file.metadata, base, runtime, {
      system: options.system,
      think: options.think,
      frame: options.frame,
      signal: options.signal,
    });
    const tokenizer = base.endingAt(frame.ends);
    const { threads = DEFAULTS.threads } = options;
    pool = await startPool(runtime, threads);
    backend = await pickBackend(options.backend ?? DEFAULTS.backend, { pool });
    const dense = new HostDense(
      await pickDense(file, config, { ...options, threads: threads === "auto" ? 1 : threads, pool }),
    );
    const held = { backend, pool };
    let gate: Promise<Gate> | undefined;
    return {
      name: shortName(path),
      file,
      config,
      tokenizer,
      frame,
      dense,
      backend,
      gate: () => gate ??= findGate({ path, config }, runtime, options.gate),
      policy: (text) => loadPolicy(text, runtime),
      softTokens: (from) => loadSoftTokens(from, runtime, { path, config }),
      async [Symbol.asyncDispose]() {
        await dense[Symbol.asyncDispose]();
        held.backend[Symbol.dispose]();
        held.pool?.[Symbol.dispose]();
        await file.close();
      },
    };
  } catch (error) {
    backend?.[Symbol.dispose]();
    pool?.[Symbol.dispose]();
    await file.close();
    throw error;
  }
}
