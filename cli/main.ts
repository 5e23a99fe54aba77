#!/usr/bin/env node
/** The command: connects the process to the program and leaves everything else to it. */
import process from "node:process";
import { writeSync } from "node:fs";
import { currentRuntime } from "../runtime/mod.ts";
import { EXIT, type Io } from "./io.ts";
import { run } from "./program.ts";

/** Writes at once, so that nothing is lost when the process ends; a reader that went away ends the process quietly. */
function writer(descriptor: number): (text: string) => void {
  return (text) => {
    let rest = new TextEncoder().encode(text);
    while (rest.length > 0) {
      try {
        rest = rest.subarray(writeSync(descriptor, rest));
      } catch (error) {
        const code = (error as { code?: string }).code;
        if (code === "EAGAIN") continue;
        if (code === "EPIPE") process.exit(EXIT.ok);
        throw error;
      }
    }
  };
}

const interrupt = new AbortController();
process.on("SIGINT", () => {
  // A second Ctrl-C doesn't wait for the running step.
  if (interrupt.signal.aborted) process.exit(EXIT.interrupted);
  interrupt.abort(new DOMException("Interrupted", "AbortError"));
});

const io: Io = {
  runtime: await currentRuntime(),
  out: writer(1),
  err: writer(2),
  interactive: process.stderr.isTTY === true,
  signal: interrupt.signal,
};
process.exit(await run(process.argv.slice(2), io));
