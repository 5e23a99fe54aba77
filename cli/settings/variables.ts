/** Environment variables: `PALISADE_MAX_CACHE` for `--max-cache` of every command, `PALISADE_ASK_MAX_CACHE` for one. */
import type { Io } from "../io.ts";
import { keyOf, type OptionSpec } from "../options.ts";
import type { Found } from "./settle.ts";

/** Variables that are no options. */
export const OTHER_VARIABLES = ["PALISADE_CACHE", "PALISADE_PASSPHRASE"];

/** Names of the variables that set an option, the strongest first. `command`: `ask`, `models list`. */
export function variablesOf(command: string, name: string, { own }: OptionSpec): string[] {
  if (name === "config") return ["PALISADE_CONFIG"];
  const one = variable(`${command} ${keyOf(name)}`);
  return own ? [one] : [one, variable(keyOf(name))];
}

function variable(words: string): string {
  return `PALISADE_${words.replace(/[ -]/g, "_").toUpperCase()}`;
}

/** What a variable says. An empty one says nothing, but for switches, which it switches off. */
export function inVariables(command: string, name: string, spec: OptionSpec, { runtime }: Io): Found | undefined {
  for (const place of variablesOf(command, name, spec)) {
    const raw = runtime.environment(place);
    if (raw !== undefined && (raw !== "" || spec.value === undefined)) return { raw, place };
  }
  return undefined;
}
