/**
 * The errors a caller is expected to catch. Everything else is a bug and stays a plain `Error`.
 *
 * `kind` says who has to act, and decides the exit code of the command line:
 * `usage` (2), `input` (3), `resources` (4), `interrupted` (130).
 */
export type ErrorKind = "usage" | "input" | "resources" | "interrupted";

/** A refusal: what was wrong, where, and what would be right. */
export class PalisadeError extends Error {
  override readonly name = "PalisadeError";
  /** Who has to act. */
  readonly kind: ErrorKind;
  /** Stable, dotted name of the failure, e.g. `gguf.truncated`. Part of the API; the message is not. */
  readonly code: string;
  /** The field, option or file concerned, e.g. `tensor[3].offset` or `--keep`. Empty when there is none. */
  readonly where: string;

  constructor(kind: ErrorKind, code: string, message: string, options: { where?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.kind = kind;
    this.code = code;
    this.where = options.where ?? "";
  }
}

/** A bad file, budget, name or text (exit code 3). */
export function inputError(code: string, message: string, where = "", cause?: unknown): PalisadeError {
  return new PalisadeError("input", code, message, { where, cause });
}

/** Not enough memory, disk or network to do what was asked (exit code 4). */
export function resourceError(code: string, message: string, where = "", cause?: unknown): PalisadeError {
  return new PalisadeError("resources", code, message, { where, cause });
}
