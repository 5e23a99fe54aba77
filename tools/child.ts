/** Child processes that can't outlive, out-wait or out-shout their parent. */
import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";

export interface ChildOptions {
  readonly cwd?: string;
  /** Added to the parent's environment; `undefined` removes a name. */
  readonly env?: Record<string, string | undefined>;
  /** Whole run, seconds. Default 600. */
  readonly timeout?: number;
  /** Without a byte of output, seconds. Default: no such limit. */
  readonly silence?: number;
  /** Pass the output on as it comes, through a function that may shorten it. Default false. */
  readonly echo?: boolean | ((part: string) => string);
  /** Written to the child's standard input, which is closed after it. Default: nothing. */
  readonly input?: string | Uint8Array;
}

export interface ChildResult {
  /** Exit code; −1 when killed or not started. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** Why the child was killed or could not start; empty when it ended by itself. */
  readonly killed: string;
}

const running = new Set<ChildProcess>();

/** Kills a child with everything it started: each child leads its own process group. */
function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(process.platform === "win32" ? child.pid : -child.pid, signal);
  } catch { /* already gone */ }
}

/**
 * Makes Ctrl-C (and SIGTERM) kill every child, then call `cleanUp`, before the process ends with 130. Call it once,
 * from a main.
 */
export function killChildrenOnInterrupt(cleanUp: () => void = () => {}): void {
  const stop = () => {
    for (const child of running) killGroup(child, "SIGKILL");
    cleanUp();
    process.exit(130);
  };
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
}

/** Runs a command to its end or to its time limit. Never throws for what the child does. */
export function runChild(command: string, args: readonly string[], options: ChildOptions = {}): Promise<ChildResult> {
  const { timeout = 600, silence = Infinity, echo = false } = options;
  const env: Record<string, string | undefined> = { ...process.env, RUST_BACKTRACE: "0", ...options.env };
  for (const name of Object.keys(env)) if (env[name] === undefined) delete env[name];
  return new Promise((resolve) => {
    const child = spawn(command, [...args], {
      cwd: options.cwd,
      env: env as NodeJS.ProcessEnv,
      detached: process.platform !== "win32",
      stdio: [options.input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    running.add(child);
    const started = Date.now();
    let lastByte = started;
    let killed = "";
    const text = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      const decoder = new TextDecoder();
      child[name]!.on("data", (chunk: Uint8Array) => {
        lastByte = Date.now();
        const part = decoder.decode(chunk, { stream: true });
        text[name] += part;
        if (echo) process[name].write(typeof echo === "function" ? echo(part) : part);
      });
    }
    if (options.input !== undefined) {
      child.stdin!.on("error", () => {}); // the child may end without reading
      child.stdin!.end(options.input);
    }
    const watch = setInterval(() => {
      const now = Date.now();
      if (now - started > timeout * 1000) killed ||= `no end after ${timeout} s`;
      else if (now - lastByte > silence * 1000) killed ||= `no output for ${silence} s`;
      if (killed) killGroup(child, "SIGKILL");
    }, 200);
    const finish = (code: number | null, signal: string | null) => {
      clearInterval(watch);
      if (!running.delete(child)) return;
      killGroup(child, "SIGKILL"); // stragglers of the group
      if (signal && !killed) killed = `ended by ${signal}`;
      resolve({ code: killed ? -1 : code ?? -1, ...text, killed });
    };
    child.on("error", (error) => {
      killed ||= `could not start ${command}: ${error.message}`;
      finish(null, null);
    });
    child.on("close", finish);
  });
}
