/**
 * 256-bit vectors: told to, V8 joins neighbouring 128-bit vectors of WebAssembly, where the processor has AVX2 and no
 * bounds need be checked before each load. Node leaves that to guard pages, Deno does not
 * (docs/decisions/wide-vectors.md).
 */
import { runtimeName } from "./name.ts";

const FLAG = "experimental-wasm-revectorize";
/**
 * V8s with which tests/_helper/kernel_bits.ts was tried and has the same bits with and without: Node 26's. Node 24's, 13.6,
 * gets products of one row wrong; Node 22's joins nothing.
 */
const FROM = [14, 6], BELOW = [15, 0];

export interface WideVectors {
  readonly on: boolean;
  /** For people: what they are, or why there are none. */
  readonly text: string;
}

/** What `node:process` says of the engine, as far as it counts here. */
export interface EngineProcess {
  readonly arch: string;
  /** What was given to the runtime itself. */
  readonly execArgv: readonly string[];
  readonly versions: { readonly v8?: string };
}

/** Whether an engine is to be told to join vectors. */
export function judgeEngine({ arch, execArgv, versions }: EngineProcess, runtime: string): WideVectors {
  if (execArgv.includes(`--no-${FLAG}`)) return { on: false, text: `none: --no-${FLAG} was given` };
  const [major, minor] = (versions.v8 ?? "").split(".").map(Number);
  const at = (version: readonly number[]) => major - version[0] || minor - version[1];
  if (runtime === "node" && arch === "x64" && at(FROM) >= 0 && at(BELOW) < 0) {
    return { on: true, text: "128-bit ones joined by V8, where the processor has AVX2" };
  }
  return { on: false, text: "none: V8 joins vectors rightly in Node 26 on x64 alone" };
}

let found: WideVectors | undefined;

/**
 * Tells V8 to join vectors where that is right, before it compiles any kernels. For a process of one's own: the flag
 * counts for all of its WebAssembly. `setFlags`: of `node:v8`, which pages must not meet.
 */
export function widenVectors(
  engine: EngineProcess,
  setFlags: (flags: string) => void,
  runtime: string = runtimeName(),
): WideVectors {
  found = judgeEngine(engine, runtime);
  if (found.on) setFlags(`--${FLAG}`);
  return found;
}

/**
 * What {@link widenVectors} found. Where nobody called it, as in the library, whether the process was started with V8's
 * flag, where that is right.
 */
export function wideVectors(engine?: EngineProcess, runtime: string = runtimeName()): WideVectors {
  if (found) return found;
  const started = engine ?? (globalThis as { process?: EngineProcess }).process;
  if (started?.execArgv?.includes(`--${FLAG}`)) return judgeEngine(started, runtime);
  return { on: false, text: "none: nothing asked for them" };
}
