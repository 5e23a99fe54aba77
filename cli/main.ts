#!/usr/bin/env node
/** The command: connects the process to the program and leaves everything else to it. */
import process from "node:process";
import { writeSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { resourceError } from "../core/errors.ts";
import { currentRuntime } from "../runtime/mod.ts";
import { widenVectors } from "../runtime/wide_vectors.ts";
import { Interrupt } from "./interrupt.ts";
import { EXIT, type Io } from "./io.ts";
import { stylesOf } from "./print/colour.ts";
import { guarded } from "./print/terminal.ts";
import { run } from "./program.ts";
import { promptSecret } from "./secret_prompt.ts";

/**
 * Writes at once, so that nothing is lost when the process ends. Nobody reading standard output ends the process
 * quietly; nobody reading standard error changes nothing. A full disk is a PalisadeError `output.write`.
 */
function writer(descriptor: 1 | 2): (text: string) => void {
  return (text) => {
    let rest = new TextEncoder().encode(text);
    while (rest.length > 0) {
      try {
        rest = rest.subarray(writeSync(descriptor, rest));
      } catch (error) {
        const { code, message } = error as { code?: string; message: string };
        if (code === "EAGAIN") continue;
        if (descriptor === 2) return;
        if (code === "EPIPE") process.exit(EXIT.ok);
        const reason = code === "ENOSPC" ? "the disk is full" : message;
        throw resourceError("output.write", `Can't write the answer: ${reason}`, "standard output", error);
      }
    }
  };
}

// Before any kernels are compiled.
widenVectors(process, setFlagsFromString);
const interrupt = new Interrupt(() => io.err("palisade: interrupted\n"));

const io: Io = {
  runtime: await currentRuntime(),
  out: guarded(writer(1), process.stdout.isTTY === true),
  paint: writer(1),
  err: guarded(writer(2), process.stderr.isTTY === true),
  paintErr: writer(2),
  styles: { out: stylesOf("none"), err: stylesOf("none") },
  folder: process.cwd(),
  variables: Object.keys(process.env),
  interactive: process.stderr.isTTY === true,
  signal: interrupt.signal,
  ...(process.stdin.isTTY && process.stderr.isTTY && {
    askSecret: (question: string) => promptSecret(question, interrupt.signal),
  }),
};
interrupt.exit(await run(process.argv.slice(2), io));
