/**
 * The errors a caller is expected to catch. Everything else is a bug and stays a plain `Error`.
 *
 * `kind` says who has to act, and decides the exit code of the command line:
 * `usage` (2), `input` (3), `resources` (4), `interrupted` (130).
 */
import { type OptionMention, type OptionName, type Said, spoken } from "./options.ts";

export { option, type Said, say } from "./options.ts";

/** Who has to act on an error; see {@link PalisadeError}. */
export type ErrorKind = "usage" | "input" | "resources" | "interrupted";

/** What is wrong with, or concerned by, a refusal: an option, or a field or file by its name. */
export type Where = string | OptionMention;

/** A refusal: what was wrong, where, and what would be right. */
export class PalisadeError extends Error {
  override readonly name = "PalisadeError";
  /** Who has to act. */
  readonly kind: ErrorKind;
  /** Stable, dotted name of the failure, e.g. `gguf.truncated`. Part of the API; the message is not. */
  readonly code: string;
  /** The option, field or file concerned, e.g. `keep` or `tensor[3].offset`. Empty when there is none. */
  readonly where: string;
  /** The same where it is an option. */
  readonly option?: OptionName;
  /** The message in pieces, options apart, for surfaces that call them otherwise (`spoken`). */
  readonly said: Said;

  constructor(kind: ErrorKind, code: string, message: string | Said, options: { where?: Where; cause?: unknown } = {}) {
    const said = typeof message === "string" ? [message] : message, { where = "", cause } = options;
    super(spoken(said), cause === undefined ? undefined : { cause });
    this.kind = kind;
    this.code = code;
    this.said = said;
    this.where = typeof where === "string" ? where : where.option;
    if (typeof where !== "string") this.option = where.option;
  }

  /** What another error is made of that says the same: plain data, for threads and for {@link again}. */
  plain(): { kind: ErrorKind; code: string; said: Said; where: Where } {
    const { kind, code, said, where, option } = this;
    return { kind, code, said, where: option === undefined ? where : { option } };
  }

  /** The same refusal with more behind it, or of another place; this one is its cause. */
  again({ more = "", where }: { readonly more?: string; readonly where?: Where }): PalisadeError {
    const plain = this.plain(), said = more === "" ? plain.said : [...plain.said, more];
    return new PalisadeError(plain.kind, plain.code, said, { where: where ?? plain.where, cause: this });
  }
}

/** A bad file, budget, name or text (exit code 3). */
export function inputError(code: string, message: string | Said, where: Where = "", cause?: unknown): PalisadeError {
  return new PalisadeError("input", code, message, { where, cause });
}

/** Not enough memory, disk or network to do what was asked (exit code 4). */
export function resourceError(code: string, message: string | Said, where: Where = "", cause?: unknown): PalisadeError {
  return new PalisadeError("resources", code, message, { where, cause });
}
