import { inputError } from "../../../core/errors.ts";
import type { PalisadeError } from "../../../core/errors.ts";
import { quoted } from "./cursor.ts";
import type { GgufFile, GgufValue } from "./types.ts";

/** What the getters need of a file. */
export type WithMetadata = Pick<GgufFile, "name" | "metadata">;

export interface NumberRange {
  /** Smallest value, default −∞. */
  readonly min?: number;
  /** Largest value, default ∞. */
  readonly max?: number;
  /** Whether it must be an integer; default false. */
  readonly integer?: boolean;
}

/** A refusal of the value of `key`. */
export function refuseField(gguf: WithMetadata, key: string, code: string, message: string): PalisadeError {
  return inputError(code, `${gguf.name}: ${key}: ${message}`, `metadata[${quoted(key)}]`);
}

/** A finite number in `range`. `gguf.missing` when there is none, `gguf.value` when it is something else. */
export function requireNumber(gguf: WithMetadata, key: string, range: NumberRange = {}): number {
  return required(gguf, key, optionalNumber(gguf, key, range));
}

/** Like `requireNumber`, `undefined` when the key is absent. */
export function optionalNumber(gguf: WithMetadata, key: string, range: NumberRange = {}): number | undefined {
  const value = gguf.metadata.get(key);
  if (value === undefined) return undefined;
  const { min = -Infinity, max = Infinity, integer = false } = range;
  const fits = typeof value === "number" && Number.isFinite(value) && value >= min && value <= max &&
    (!integer || Number.isInteger(value));
  if (fits) return value;
  const kind = integer ? "an integer" : "a number";
  throw refuseField(gguf, key, "gguf.value", `${described(value)}; ${kind} from ${min} to ${max} is right`);
}

/**
 * Numbers in `range`, one or more; a single one stands for itself alone and gives `undefined`, as does an absent key.
 * `gguf.value` for anything else.
 */
export function optionalNumbers(gguf: WithMetadata, key: string, range: NumberRange = {}): number[] | undefined {
  const value = gguf.metadata.get(key);
  if (value === undefined || typeof value === "number") return undefined;
  const { min = -Infinity, max = Infinity, integer = false } = range;
  const fits = (each: unknown): each is number =>
    typeof each === "number" && each >= min && each <= max && (!integer || Number.isInteger(each));
  const numbers = isArray(value) ? Array.from(value as ArrayLike<unknown>) : [];
  if (numbers.length > 0 && numbers.every(fits)) return numbers;
  const kind = integer ? "integers" : "numbers";
  throw refuseField(gguf, key, "gguf.value", `${described(value)}; ${kind} from ${min} to ${max} are right`);
}

/** Flags, one or more, `undefined` for an absent key or a number; `gguf.value` for anything else. */
export function optionalFlags(gguf: WithMetadata, key: string): readonly boolean[] | undefined {
  const value = gguf.metadata.get(key);
  if (value === undefined || typeof value === "number") return undefined;
  const flags = isArray(value) ? Array.from(value as ArrayLike<unknown>) : [];
  if (flags.length > 0 && flags.every((each) => typeof each === "boolean")) return flags;
  throw refuseField(gguf, key, "gguf.value", `${described(value)}; true or false for each layer is right`);
}

/** A text. `gguf.missing` when there is none, `gguf.value` when it is something else. */
export function requireString(gguf: WithMetadata, key: string): string {
  return required(gguf, key, optionalString(gguf, key));
}

/** Like `requireString`, `undefined` when the key is absent. */
export function optionalString(gguf: WithMetadata, key: string): string | undefined {
  const value = gguf.metadata.get(key);
  if (value === undefined || typeof value === "string") return value;
  throw refuseField(gguf, key, "gguf.value", `${described(value)}; a string is right`);
}

/**
 * An array of texts; `undefined` when the key is absent, `gguf.value` when it is something else. An empty array of any
 * type counts as one of texts.
 */
export function optionalStrings(gguf: WithMetadata, key: string): readonly string[] | undefined {
  const value = gguf.metadata.get(key);
  if (value === undefined) return undefined;
  if (isArray(value) && value.length === 0) return [];
  if (Array.isArray(value) && typeof value[0] === "string") return value as string[];
  throw refuseField(gguf, key, "gguf.value", `${described(value)}; an array of strings is right`);
}

function required<T>(gguf: WithMetadata, key: string, value: T | undefined): T {
  if (value === undefined) throw refuseField(gguf, key, "gguf.missing", "the file has no such key");
  return value;
}

function isArray(value: GgufValue): value is Extract<GgufValue, object> {
  return typeof value === "object";
}

/** A value as a message names it. */
function described(value: GgufValue): string {
  if (isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "string") return `the text ${quoted(value)}`;
  return `${value}`;
}
