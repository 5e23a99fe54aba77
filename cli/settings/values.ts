/** From what a variable or a file has to what an option gives: read as if it had been typed. */
import { PalisadeError } from "../../core/errors.ts";
import { hostPathLike } from "./paths.ts";
import { isRepeatable, isSwitch, type OptionSpec } from "../options.ts";
import type { Found } from "./settle.ts";

const ON = /^(1|true|yes|on)$/i, OFF = /^(0|false|no|off|)$/i;

/** @throws PalisadeError usage `settings.value`, naming the place. */
export function valueOf(spec: OptionSpec, { raw, place, folder }: Found): unknown {
  if (isSwitch(spec)) return switchOf(raw, place);
  const parts = Array.isArray(raw) ? raw : [raw];
  if (parts.length !== 1 && !isRepeatable(spec)) throw refusal(place, raw, "one value");
  let value: unknown;
  for (const part of parts) value = readPart(spec, hostPathLike(textOf(spec, part, place), spec, folder), value, place);
  return value;
}

function switchOf(raw: unknown, place: string): boolean {
  if (typeof raw === "boolean") return raw;
  const text = String(raw);
  if (ON.test(text)) return true;
  if (OFF.test(text)) return false;
  throw refusal(place, raw, "true or false");
}

/** Numbers and the words `true` and `false`, where the option has them, need no quotes. */
function textOf({ choices }: OptionSpec, part: unknown, place: string): string {
  if (typeof part === "string") return part;
  if (typeof part === "number") return String(part);
  if (typeof part === "boolean" && choices?.includes(String(part))) return String(part);
  throw refusal(place, part, choices ? `one of ${choices.join(", ")}` : "a text or a number");
}

function readPart({ choices, read }: OptionSpec, text: string, before: unknown, place: string): unknown {
  if (choices && !choices.includes(text)) throw refusal(place, text, `one of ${choices.join(", ")}`);
  try {
    return read ? read(text, before as never) : text;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw refusal(place, text, error.message.replace(/^Want /, "").replace(/\.$/, ""));
  }
}

function refusal(place: string, raw: unknown, wanted: string): PalisadeError {
  const shown = JSON.stringify(raw) ?? String(raw);
  const value = shown.length > 60 ? `${shown.slice(0, 60)}…` : shown;
  return new PalisadeError("usage", "settings.value", `Can't take ${value} of ${place}: want ${wanted}`, {
    where: place,
  });
}
