/** What a command may touch of the outside, so that every command can be tested without a process. */
import type { Runtime } from "../runtime/interface.ts";
import type { Styles } from "./print/colour.ts";

export interface Io {
  readonly runtime: Runtime;
  /** The answer, or the JSON object; nothing else. On a terminal, what it would obey is shown as `·`. */
  out(text: string): void;
  /** The same with colours of our own: what comes from a model or a file must have been made harmless in it. */
  paint(text: string): void;
  /** Progress and reports; on a terminal as {@link out}. */
  err(text: string): void;
  /** The same with colours of our own, as {@link paint}. */
  paintErr(text: string): void;
  /** Colours for both, decided by `--color`, variables and terminals. */
  readonly styles: { readonly out: Styles; readonly err: Styles };
  /** The current folder, absolute. */
  readonly folder: string;
  /** Names of all environment variables, for those that are misspelt. */
  readonly variables: readonly string[];
  /** Whether standard error is a terminal: without one, progress and reports stay silent. */
  readonly interactive: boolean;
  /** Aborted by Ctrl-C or SIGTERM. */
  readonly signal: AbortSignal;
  /** Has a line typed of which nothing is shown; absent where nobody sits at a terminal. */
  askSecret?(question: string): Promise<string>;
}

/** Exit codes, as `--help` lists them. */
export const EXIT = { ok: 0, failed: 1, usage: 2, input: 3, resources: 4, interrupted: 130 } as const;

/** The same in a line of help. */
export const EXIT_CODES = "Exit: 0 ok, 1 failed, 2 usage, 3 bad input, 4 no resources, 130 interrupted";
