/** A command line without a process: what a command writes, and the exit code. */
import type { Io } from "../../cli/io.ts";
import { run } from "../../cli/program.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import type { Runtime } from "../../runtime/interface.ts";

export interface CliResult {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface CliOptions {
  /** Whether standard error is a terminal. Default false. */
  readonly interactive?: boolean;
  readonly signal?: AbortSignal;
  /** Replaces parts of the runtime, e.g. standard input. */
  readonly runtime?: Partial<Runtime>;
  /** Called with each piece of standard output. */
  readonly onOut?: (text: string) => void;
}

/** Runs `palisade` with these arguments inside this process. */
export async function palisade(parameters: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  let out = "", err = "";
  const base = await currentRuntime();
  const io: Io = {
    runtime: options.runtime ? Object.assign(Object.create(base) as Runtime, options.runtime) : base,
    out(text) {
      out += text;
      options.onOut?.(text);
    },
    err(text) {
      err += text;
    },
    interactive: options.interactive ?? false,
    signal: options.signal ?? new AbortController().signal,
  };
  const code = await run(parameters, io);
  return { code, out, err };
}
