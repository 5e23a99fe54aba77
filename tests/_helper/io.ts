/** A command line without a process: what a command writes, and the exit code. */
import process from "node:process";
import type { Io } from "../../cli/io.ts";
import { stylesOf } from "../../cli/print/colour.ts";
import { guarded } from "../../cli/print/terminal.ts";
import { run } from "../../cli/program.ts";
import { currentRuntime } from "../../runtime/mod.ts";
import type { Runtime } from "../../runtime/interface.ts";

/** Commands under test keep what they read only where a test says so. */
process.env["PALISADE_SNAPSHOTS"] ??= "off";
/** And settings of whoever runs the tests are not looked for. */
process.env["PALISADE_CONFIG"] ??= "none";
const PLAIN = { out: stylesOf("none"), err: stylesOf("none") };

export interface CliResult {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface CliOptions {
  /** Whether standard error is a terminal. Default false. */
  readonly interactive?: boolean;
  /** Whether standard output is one. Default false. */
  readonly terminal?: boolean;
  readonly signal?: AbortSignal;
  /** The current folder. Default: that of the tests. */
  readonly folder?: string;
  /** Names of environment variables. Default: none. */
  readonly variables?: readonly string[];
  /** Replaces parts of the runtime, e.g. standard input. */
  readonly runtime?: Partial<Runtime>;
  /** What somebody at the terminal types, question by question; without it nobody is there. */
  readonly typed?: readonly string[];
  /** Called with each piece of standard output. */
  readonly onOut?: (text: string) => void;
}

/** Runs `palisade` with these arguments inside this process. */
export async function palisade(parameters: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const typed = [...options.typed ?? []];
  let out = "", err = "";
  const base = await currentRuntime();
  const io: Io = {
    runtime: options.runtime ? Object.assign(Object.create(base) as Runtime, options.runtime) : base,
    out: guarded((text) => {
      out += text;
      options.onOut?.(text);
    }, options.terminal ?? false),
    paint(text) {
      out += text;
    },
    err: guarded((text) => err += text, options.interactive ?? false),
    paintErr(text) {
      err += text;
    },
    styles: PLAIN,
    folder: options.folder ?? process.cwd(),
    variables: options.variables ?? [],
    interactive: options.interactive ?? false,
    signal: options.signal ?? new AbortController().signal,
    ...(options.typed && {
      askSecret(question: string) {
        err += question;
        const line = typed.shift();
        return line === undefined ? Promise.reject(new Error(`Nobody answers ${question}`)) : Promise.resolve(line);
      },
    }),
  };
  const code = await run(parameters, io);
  return { code, out, err };
}

/** What a command gets of the outside when nobody looks at what it writes. */
export async function quietIo(): Promise<Io> {
  const silent = () => {};
  const signal = new AbortController().signal;
  const runtime = await currentRuntime(), writers = { out: silent, err: silent, paint: silent, paintErr: silent };
  return { runtime, ...writers, styles: PLAIN, folder: process.cwd(), variables: [], interactive: false, signal };
}
