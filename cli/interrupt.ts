/**
 * Ctrl-C (SIGINT) and SIGTERM. The first one aborts a signal; running work then has a moment to come to its end, make
 * its files whole and say so. After that the process ends whatever is still running. A second one ends it at once, by
 * the system's own means, even while a kernel holds this thread. So does the first one during work that is known to hold
 * it for long (`hold`): files are whole between any two instructions, and a dead process's lock is taken over. SIGHUP is left alone, so that `nohup` works.
 */
import process from "node:process";
import { whileHeld } from "../runtime/breathe.ts";
import { runtimeName } from "../runtime/mod.ts";
import { removeLeftovers } from "../runtime/node_leftovers.ts";

/** Exit codes as shells count them: 128 + the signal's number. */
const CODES = { SIGINT: 130, SIGTERM: 143 } as const;
type Name = keyof typeof CODES;
const NAMES = Object.keys(CODES) as Name[];

/** What running work has to come to its end, milliseconds. */
const GRACE_MS = 250;

export class Interrupt {
  readonly #abort = new AbortController();
  readonly #last: () => void;
  #came?: Name;

  /** Listens from now on. `last`: called when work did not end in time, just before the process does. */
  constructor(last: () => void) {
    this.#last = last;
    this.#listen();
    whileHeld(() => {
      this.#ignore();
      // Not before the event loop turns: until then nothing could be heard, and the next such work would lose it.
      return () => void setTimeout(() => this.#came === undefined && this.#listen(), 0);
    });
  }

  /** Aborted by the first of the signals. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Ends the process with `code`, or with that of the signal that came. */
  exit(code: number): void {
    if (this.#came === undefined) process.exit(code);
    removeLeftovers();
    // Node waits for file operations under way, and that on a pipe nobody writes to never ends. A signal doesn't wait.
    const reading = () => process.getActiveResourcesInfo().some((name) => name.startsWith("FSReq"));
    if (runtimeName() === "node" && reading()) process.kill(process.pid, this.#came);
    else process.exit(CODES[this.#came]);
  }

  #listen(): void {
    this.#ignore();
    for (const name of NAMES) process.on(name, this.#hear);
  }

  /** Leaves the signals to the system, whose way is to end the process. */
  #ignore(): void {
    for (const name of NAMES) process.off(name, this.#hear);
  }

  readonly #hear = (name: NodeJS.Signals): void => {
    this.#came = name as Name;
    this.#ignore();
    setTimeout(() => {
      this.#last();
      this.exit(CODES[name as Name]);
    }, GRACE_MS);
    this.#abort.abort(new DOMException("Interrupted", "AbortError"));
  };
}
